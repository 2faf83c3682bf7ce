"""WebSocket frames after the handshake: one small parser a connection, and messages built once for many readers.

A general protocol object keeps kilobytes a connection; this parser keeps a few dozen bytes, and reads a small message
in about a microsecond. The unmasking is that of `websockets`, in C.
"""

from __future__ import annotations

import struct
from enum import IntEnum

from websockets.frames import apply_mask  # type: ignore[attr-defined]  # It chooses the compiled one itself.

from twinlock.protocol.limits import FRAME_BYTES_MAX

BINARY_BIT_FINAL = 0x82
CONTROL_BYTES_MAX = 125
_UNPACK_U16 = struct.Struct(">H").unpack_from
_UNPACK_U64 = struct.Struct(">Q").unpack_from
_MASK_BYTES = 4


class Opcode(IntEnum):
    """What a WebSocket frame is."""

    CONTINUATION = 0
    TEXT = 1
    BINARY = 2
    CLOSE = 8
    PING = 9
    PONG = 10


class CloseCode(IntEnum):
    """Why a connection ends: RFC 6455, section 7.4."""

    NORMAL = 1000
    GOING_AWAY = 1001
    PROTOCOL_ERROR = 1002
    UNSUPPORTED = 1003
    POLICY = 1008
    TOO_BIG = 1009
    INTERNAL = 1011
    TRY_AGAIN_LATER = 1013


class FramingError(Exception):
    """The peer breaks the WebSocket protocol; nothing more can be read from it."""

    def __init__(self, code: CloseCode, reason: str) -> None:
        super().__init__(reason)
        self.code = code
        self.reason = reason


Message = tuple[int, bytes]
"""An opcode (BINARY, CLOSE, PING or PONG) and the unmasked payload; a fragmented message comes out as one."""


def binary_message(payload: bytes) -> bytes:
    """Return an unmasked binary message, as a server sends it: the same bytes do for every reader."""
    size = len(payload)
    if size < 126:
        return b"\x82%c%b" % (size, payload)
    if size < 1 << 16:
        return b"\x82\x7e%b%b" % (size.to_bytes(2, "big"), payload)
    return b"\x82\x7f%b%b" % (size.to_bytes(8, "big"), payload)


def control_message(opcode: Opcode, payload: bytes = b"") -> bytes:
    """Return an unmasked control message."""
    assert len(payload) <= CONTROL_BYTES_MAX
    return bytes((0x80 | opcode, len(payload))) + payload


def close_message(code: CloseCode, reason: str = "") -> bytes:
    """Return a close message; the reason is cut to what fits."""
    return control_message(Opcode.CLOSE, code.to_bytes(2, "big") + reason.encode()[: CONTROL_BYTES_MAX - 2])


class MessageReader:
    """Turn the bytes of one connection into messages; keeps no buffer while there is nothing half read."""

    __slots__ = ("_fragments", "_waiting")

    def __init__(self) -> None:
        self._waiting: bytearray | None = None
        self._fragments: bytearray | None = None

    def feed(self, data: bytes) -> list[Message]:
        """Take in bytes and return every message that is complete.

        At most one message of FRAME_BYTES_MAX and one read of the socket are ever held.

        Raises:
            FramingError: the connection must be closed; messages before the error in `data` are lost.
        """
        waiting = self._waiting
        if waiting is not None:
            waiting += data
            data = bytes(waiting) if _is_complete(waiting) else b""
            if not data:
                return []
        messages: list[Message] = []
        position, end = 0, len(data)
        while position < end:
            start, size = _frame_at(data, position)
            if start < 0 or start + size > end:
                break
            payload = apply_mask(data[start : start + size], data[start - _MASK_BYTES : start]) if size else b""
            self._take(data[position], payload, messages)
            position = start + size
        self._waiting = bytearray(data[position:]) if position < end else None
        return messages

    def _take(self, first: int, payload: bytes, messages: list[Message]) -> None:
        if first == BINARY_BIT_FINAL and self._fragments is None:
            messages.append((Opcode.BINARY, payload))
        elif first & 0x08:
            messages.append((first & 0x0F, payload))
        else:
            self._take_fragment(first, payload, messages)

    def _take_fragment(self, first: int, payload: bytes, messages: list[Message]) -> None:
        fragments = self._fragments
        if (first & 0x0F == Opcode.CONTINUATION) != (fragments is not None):
            raise FramingError(CloseCode.PROTOCOL_ERROR, "fragments of messages are mixed")
        fragments = self._fragments = fragments if fragments is not None else bytearray()
        fragments += payload
        if len(fragments) > FRAME_BYTES_MAX:
            raise FramingError(CloseCode.TOO_BIG, "limit_exceeded")
        if first & 0x80:
            messages.append((Opcode.BINARY, bytes(fragments)))
            self._fragments = None


def _is_complete(waiting: bytearray) -> bool:
    start, size = _frame_at(waiting, 0)
    return start >= 0 and start + size <= len(waiting)


def _frame_at(data: bytes | bytearray, position: int) -> tuple[int, int]:
    """Return where a frame's payload starts and its size; a start of -1 says that its header is not complete.

    Raises:
        FramingError: as soon as the header shows it, before any payload is waited for.
    """
    available = len(data) - position
    if available < 2:
        return -1, 0
    first, second = data[position], data[position + 1]
    _check_header(first, second)
    size = second & 0x7F
    start = position + 2 + _MASK_BYTES
    if size == 126:
        if available < 4:
            return -1, 0
        size = _UNPACK_U16(data, position + 2)[0]
        start += 2
    elif size == 127:
        if available < 10:
            return -1, 0
        size = _UNPACK_U64(data, position + 2)[0]
        start += 8
    if size > FRAME_BYTES_MAX:
        raise FramingError(CloseCode.TOO_BIG, "limit_exceeded")
    return (start, size) if start <= len(data) else (-1, 0)


def _check_header(first: int, second: int) -> None:
    if not second & 0x80:
        raise FramingError(CloseCode.PROTOCOL_ERROR, "a client's frames are masked")
    if first == BINARY_BIT_FINAL:
        return
    opcode = first & 0x0F
    if first & 0x70 or opcode not in _OPCODES:
        raise FramingError(CloseCode.PROTOCOL_ERROR, "reserved bits or opcode")
    if opcode == Opcode.TEXT:
        raise FramingError(CloseCode.UNSUPPORTED, "malformed_frame")
    if opcode & 0x08 and (not first & 0x80 or second & 0x7F > CONTROL_BYTES_MAX):
        raise FramingError(CloseCode.PROTOCOL_ERROR, "a control frame is long or in fragments")


_OPCODES = frozenset(Opcode)
