"""WebSocket messages as the server sends them: built once, and the same bytes do for every reader.

What comes in is read by `websockets`' own sans-I/O protocol, see `websocket`.
"""

from __future__ import annotations

PING = b"\x89\x00"
_SHORT = tuple(b"\x82" + bytes((size,)) for size in range(126))
"""Final, binary, and the length; what servers send is not masked (RFC 6455, section 5.2)."""


def binary_message(payload: bytes) -> bytes:
    """Return an unmasked binary message."""
    size = len(payload)
    if size < 126:
        return _SHORT[size] + payload
    return (b"\x82\x7e" + size.to_bytes(2) if size < 1 << 16 else b"\x82\x7f" + size.to_bytes(8)) + payload
