"""A WebSocket client that costs as little as possible, so that the load is never slower than what it measures.

It masks with a key of zeros, which the standard allows and which leaves the bytes as they are, takes only unfragmented
binary messages, and calls one function with each of them. It is a tool for measuring, not a client to copy.
"""

from __future__ import annotations

import asyncio
import base64
import os
import struct
from collections.abc import Callable
from typing import cast

Receiver = Callable[[memoryview], None]
_BINARY = 0x82
_CLOSE, _PING, _PONG = 0x8, 0x9, 0xA


class LeanSocket(asyncio.Protocol):
    """One connection: `send` a message, `receiver` gets each message."""

    __slots__ = ("_buffer", "_handshake", "closed", "opened", "receiver", "transport")

    def __init__(self, receiver: Receiver) -> None:
        loop = asyncio.get_running_loop()
        self.receiver = receiver
        self.transport: asyncio.Transport | None = None
        self.opened: asyncio.Future[None] = loop.create_future()
        self.closed: asyncio.Future[None] = loop.create_future()
        self._buffer = bytearray()
        self._handshake = True

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport; `open_socket` sends the request."""
        self.transport = cast("asyncio.Transport", transport)

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell whoever waits that this connection is over."""
        if not self.opened.done():
            self.opened.set_exception(exc or ConnectionError("the server closed the connection"))
        if not self.closed.done():
            self.closed.set_result(None)

    def data_received(self, data: bytes) -> None:
        """Hand on every whole message; keep the rest for the next turn."""
        if self._buffer or self._handshake:
            self._buffer += data
            if self._handshake and not self._read_handshake():
                return
            data = bytes(self._buffer)
            self._buffer.clear()
        used = self._read_messages(data)
        if used < len(data):
            self._buffer += data[used:]

    def send(self, message: bytes) -> None:
        """Send one binary message."""
        assert self.transport is not None
        self.transport.write(frame_of(message))

    def close(self) -> None:
        """Drop the connection without ceremony."""
        if self.transport is not None:
            self.transport.abort()

    def _read_handshake(self) -> bool:
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0:
            return False
        status = bytes(self._buffer[: self._buffer.find(b"\r\n")])
        del self._buffer[: end + 4]
        self._handshake = False
        if b" 101 " in status:
            self.opened.set_result(None)
        else:
            self.opened.set_exception(ConnectionError(status.decode("latin-1")))
        return True

    def _read_messages(self, data: bytes) -> int:
        at, end = 0, len(data)
        view = memoryview(data)
        while end - at >= 2:
            start, length = at + 2, data[at + 1]
            if length == 126:
                if end - at < 4:
                    break
                start, length = at + 4, (data[at + 2] << 8) | data[at + 3]
            elif length == 127:
                if end - at < 10:
                    break
                start, length = at + 10, int.from_bytes(data[at + 2 : at + 10], "big")
            if end - start < length:
                break
            if data[at] == _BINARY:
                self.receiver(view[start : start + length])
            else:
                self._control(data[at] & 0x0F, data[start : start + length])
            at = start + length
        return at

    def _control(self, opcode: int, payload: bytes) -> None:
        assert self.transport is not None
        if opcode == _PING:
            self.transport.write(bytes((0x80 | _PONG, 0x80 | len(payload))) + bytes(4) + payload)
        elif opcode == _CLOSE:
            self.transport.close()


def frame_of(message: bytes) -> bytes:
    """Return a masked binary WebSocket frame whose mask is zero."""
    length = len(message)
    if length < 126:
        return bytes((_BINARY, 0x80 | length, 0, 0, 0, 0)) + message
    if length < 1 << 16:
        return struct.pack(">BBHI", _BINARY, 0xFE, length, 0) + message
    return struct.pack(">BBQI", _BINARY, 0xFF, length, 0) + message


async def shake_hands(socket: LeanSocket, port: int) -> None:
    """Connect a socket to a sync server on the loopback and ask for the upgrade."""
    loop = asyncio.get_running_loop()
    await loop.create_connection(lambda: socket, "127.0.0.1", port)
    assert socket.transport is not None
    key = base64.b64encode(os.urandom(16)).decode()
    lines = (
        "GET /sync HTTP/1.1",
        f"Host: 127.0.0.1:{port}",
        "Upgrade: websocket",
        "Connection: Upgrade",
        f"Sec-WebSocket-Key: {key}",
        "Sec-WebSocket-Version: 13",
        "Sec-WebSocket-Protocol: twinlock.1",
        "\r\n",
    )
    socket.transport.write("\r\n".join(lines).encode())
    await socket.opened
