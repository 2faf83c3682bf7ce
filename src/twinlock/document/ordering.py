"""The total order of all values, and keys whose bytes sort the same way. See spec/documents.md, section 8.

null < bool < number < timestamp < string < bytes < list < object. An int and a float that are equal as numbers have
the same key.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Final

from twinlock.document.values import INT_MAX, INT_MIN, Ext, Value, canonical

_NULL: Final = b"\x10"
_FALSE: Final = b"\x20"
_TRUE: Final = b"\x21"
_NUMBER: Final = b"\x30"
_TIMESTAMP: Final = b"\x40"
_STRING: Final = b"\x50"
_BYTES: Final = b"\x60"
_LIST: Final = b"\x70"
_OBJECT: Final = b"\x80"
_UNKNOWN: Final = b"\x90"
_END: Final = b"\x00"
"""Ends lists and objects; below every tag, so that a prefix sorts first."""

_SIGN: Final = 1 << 63
_ALL: Final = (1 << 64) - 1
_pack = struct.Struct(">QQ").pack
_float_bits = struct.Struct(">d").pack
_UNIX_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


def order_key(value: Value) -> bytes:
    """Return bytes that compare as the values do, and are equal exactly for equal values."""
    encode = _KEYS.get(type(value))
    if encode is None:
        raise TypeError(f"a value of type {type(value).__name__} has no place in the order")
    return encode(value)


_INVERTED: Final = bytes(range(255, -1, -1))


def descending(key: bytes) -> bytes:
    """Return a key that sorts the other way round; no key is the beginning of another, so inverting is enough."""
    return key.translate(_INVERTED)


def type_range(key: bytes) -> tuple[bytes, bytes]:
    """Return the first key, and the end, of the type that a key belongs to: comparisons stay within it."""
    rank = key[0] & 0xF0
    return bytes([rank]), bytes([rank + 0x10])


def _bool_key(value: bool) -> bytes:
    return _TRUE if value else _FALSE


def _int_key(value: int) -> bytes:
    """Give the nearest float below first and the rest after it, so that no digit of 64 bits is lost."""
    near = float(value)
    if int(near) > value:
        near = math.nextafter(near, -math.inf)
    return _NUMBER + _pack(_sortable(near), value - int(near))


def _float_key(value: float) -> bytes:
    if value.is_integer() and INT_MIN <= value <= INT_MAX:
        return _int_key(int(value))
    return _NUMBER + _pack(_sortable(value), 0)


def _sortable(value: float) -> int:
    bits = int.from_bytes(_float_bits(value + 0.0), "big")
    return bits ^ _ALL if bits & _SIGN else bits | _SIGN


def _timestamp_key(value: datetime) -> bytes:
    delta = value - _UNIX_EPOCH
    microseconds = (delta.days * 86_400 + delta.seconds) * 1_000_000 + delta.microseconds
    return _TIMESTAMP + (microseconds + _SIGN).to_bytes(8, "big")


def _text_key(value: str) -> bytes:
    return _STRING + _terminated(value.encode())


def _bytes_key(value: bytes) -> bytes:
    return _BYTES + _terminated(value)


def _terminated(data: bytes) -> bytes:
    return data.replace(b"\x00", b"\x00\xff") + b"\x00\x01"


def _list_key(value: list[Value]) -> bytes:
    return _LIST + b"".join([order_key(item) for item in value]) + _END


def _object_key(value: dict[str, Value]) -> bytes:
    keys = sorted(value)
    return _OBJECT + b"".join([_text_key(key) + order_key(value[key]) for key in keys]) + _END


def _unknown_key(value: Ext) -> bytes:
    return _UNKNOWN + _terminated(canonical(value))


_KEYS: Final[dict[type, Callable[[Any], bytes]]] = {
    type(None): lambda _: _NULL,
    bool: _bool_key,
    int: _int_key,
    float: _float_key,
    datetime: _timestamp_key,
    str: _text_key,
    bytes: _bytes_key,
    list: _list_key,
    dict: _object_key,
    Ext: _unknown_key,
}
