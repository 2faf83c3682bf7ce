"""A TCP connection of which every chunk received goes to a function."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import cast


class PlainSocket(asyncio.Protocol):
    """One connection to the loopback: `write` bytes, `receiver` gets every chunk."""

    def __init__(self, receiver: Callable[[bytes], None]) -> None:
        self.receiver = receiver
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        """Hand the bytes on."""
        self.receiver(data)

    def write(self, data: bytes) -> None:
        """Send bytes as they are."""
        assert self._transport is not None
        self._transport.write(data)

    def close(self) -> None:
        """Drop the connection."""
        if self._transport is not None:
            self._transport.abort()


async def open_plain(port: int, receiver: Callable[[bytes], None]) -> PlainSocket:
    """Connect to a server on the loopback."""
    loop = asyncio.get_running_loop()
    _, socket = await loop.create_connection(lambda: PlainSocket(receiver), "127.0.0.1", port)
    return socket
