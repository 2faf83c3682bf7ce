"""WebSocket messages as the server sends them: built once, and the same bytes do for every reader.

What comes in is read by `websockets`' own sans-I/O protocol, see `websocket`.
"""

from __future__ import annotations

from websockets.frames import Frame, Opcode


def binary_message(payload: bytes) -> bytes:
    """Return an unmasked binary message."""
    return Frame(Opcode.BINARY, payload).serialize(mask=False)


PING = Frame(Opcode.PING, b"").serialize(mask=False)
