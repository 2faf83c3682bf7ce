"""The broker contract: messages between the nodes of a cluster, at most once, never stored."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

Receiver = Callable[[bytes], None]
"""Called in the event loop with each message; must not block."""

Subject = str
"""Words of letters, digits, `-` and `_`, joined by dots, such as `sig.3f…`."""


class Broker(ABC):
    """At most once, in order from one publisher: for signals and notices between nodes.

    A node never hears itself. An engine of a single process has nobody to tell.
    """

    @abstractmethod
    def publish(self, subject: Subject, message: bytes) -> None:
        """Hand a message to every other node that is subscribed now."""

    @abstractmethod
    def subscribe(self, subject: Subject, receiver: Receiver) -> Callable[[], None]:
        """Call `receiver` with every later message of a subject by another node; return what ends it."""

    @abstractmethod
    def on_gap(self, callback: Callable[[], None]) -> None:
        """Call `callback` whenever messages may have been missed, so that what they told is looked up.

        Such as after the connection to the others was lost and is there again.
        """
