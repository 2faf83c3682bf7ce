"""The broker contract: messages between nodes, at most once, never stored."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

Receiver = Callable[[bytes], None]
"""Called in the event loop with each message; must not block."""


class Broker(ABC):
    """At most once, in order from one publisher: for signals and notices between nodes."""

    @abstractmethod
    def publish(self, subject: str, message: bytes) -> None:
        """Hand a message to whoever is subscribed now."""

    @abstractmethod
    def subscribe(self, subject: str, receiver: Receiver) -> Callable[[], None]:
        """Call `receiver` with every later message of a subject; return what ends it."""
