"""What the server's inner parts see of a connection."""

from __future__ import annotations

from abc import ABC, abstractmethod

from twinlock.errors import TwinlockError
from twinlock.protocol.frames import ServerFrame
from twinlock.protocol.server import ServerSession
from twinlock.server.sequencer import Author


class Peer(ABC):
    """One connection: its session, who its device is, and the way out to it."""

    __slots__ = ("address", "author", "paused", "session")

    session: ServerSession
    author: Author | None
    """Who the device is; None in an anonymous session, and before the welcome."""

    address: str
    """Where it comes from, for limits of tries."""

    paused: bool
    """Whether its unsent bytes are over READER_BUFFER_BYTES_MAX, so that nothing is delivered to it now."""

    @abstractmethod
    def write(self, message: bytes) -> None:
        """Send a whole WebSocket message that was built already; never blocks."""

    @abstractmethod
    def send(self, frame: ServerFrame) -> None:
        """Send one frame; never blocks."""

    @abstractmethod
    def settle(self, pushed_bytes: int) -> None:
        """Note that a push was answered in full, and read on if that had been stopped for its sake."""

    @abstractmethod
    def refuse(self, error: TwinlockError) -> None:
        """Tell why, and close this connection."""
