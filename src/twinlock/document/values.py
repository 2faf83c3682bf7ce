"""What a document may hold: values, their canonical bytes, paths. See spec/documents.md, section 1."""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final

import msgspec

from twinlock.errors import InvalidDataError
from twinlock.protocol.limits import COLLECTION_NAME_BYTES_MAX, DOCUMENT_DEPTH_MAX, DOCUMENT_ID_BYTES_MAX

Value = Any
"""None, bool, int of 64 bits, float, str, bytes, datetime (UTC, microseconds), list, dict with string keys."""

Path = str
"""The keys from the root to a field, joined by NUL, which no key contains; "" is the document itself."""

PATH_SEPARATOR: Final = "\0"
INT_MIN: Final = -(1 << 63)
INT_MAX: Final = (1 << 63) - 1

Ext = msgspec.msgpack.Ext
EXT_LIST: Final = 1
"""Marks a path as an ordered list whose elements are the path's children."""
EXT_TEXT: Final = 2
"""Reserved for the updates of a Yjs document."""
EXT_STAMP_TIME: Final = 3
"""In an operation only: the time of the edit's own stamp."""
LIST_MARKER: Final = Ext(EXT_LIST, b"")
STAMP_TIME_MARKER: Final = Ext(EXT_STAMP_TIME, b"")

_encode_canonical = msgspec.msgpack.Encoder(order="sorted").encode
_decode_any = msgspec.msgpack.Decoder().decode
ATOMS: Final = frozenset({type(None), bool, str, bytes, datetime})
"""The types of decoded values that need no look inside."""


def canonical(value: Value) -> bytes:
    """Return the one MessagePack encoding of a value: shortest forms, keys sorted by their UTF-8 bytes."""
    return _encode_canonical(value)


def from_canonical(data: bytes) -> Value:
    """Read a value that `canonical` wrote."""
    return _decode_any(data)


def is_list_marker(value: Value) -> bool:
    """Tell whether a path's value marks it as an ordered list."""
    return type(value) is Ext and value.code == EXT_LIST


def check_key(key: object) -> str:
    """Return an object's key, or say why it is none."""
    if not isinstance(key, str):
        raise InvalidDataError(f"a key of type {type(key).__name__}: keys are strings")
    if not key or PATH_SEPARATOR in key:
        raise InvalidDataError("a key is not empty and contains no NUL character")
    check_text(key)
    return key


def check_text(text: str) -> None:
    """Refuse what has no UTF-8 bytes: lone surrogates."""
    if text.isascii():
        return
    try:
        text.encode()
    except UnicodeEncodeError as exc:
        raise InvalidDataError("a text holds a lone surrogate, which has no UTF-8 bytes") from exc


def check_data(value: Value, depth: int = 1) -> Value:
    """Return a deep copy of a value from the application, in the exact types that are stored.

    Args:
        depth: how deep the value itself lies; the document is at 1.

    Raises:
        InvalidDataError: something in it cannot be stored; the message says what.
    """
    kind = type(value)
    if kind is int and INT_MIN <= value <= INT_MAX:
        return value
    if kind is float and value == value:
        return value
    match value:
        case None | bool() | bytes():
            return value
        case str():
            check_text(value)
            return value
        case int() | float():
            return _check_number(value)
        case datetime():
            return _check_datetime(value)
        case list() | tuple() | Mapping():
            return _check_nested(value, depth)
        case Ext():
            return _check_unknown(value)
        case bytearray() | memoryview():
            return bytes(value)
    raise InvalidDataError(f"a value of type {type(value).__name__}")


def _check_number(value: int | float) -> int | float:
    if isinstance(value, int):
        if not INT_MIN <= value <= INT_MAX:
            raise InvalidDataError(f"the integer {value} does not fit in 64 bits")
        return int(value)
    if math.isnan(value):
        raise InvalidDataError("NaN has no place in an order; use null")
    return float(value)


def _check_datetime(value: datetime) -> datetime:
    if value.tzinfo is None:
        raise InvalidDataError("a datetime without a time zone")
    try:
        return value.astimezone(UTC)
    except OverflowError as exc:
        raise InvalidDataError("a datetime outside of the years 1 to 9999 in UTC") from exc


def _check_nested(value: Any, depth: int) -> Value:
    if depth > DOCUMENT_DEPTH_MAX:
        raise InvalidDataError(f"nested deeper than {DOCUMENT_DEPTH_MAX}")
    if isinstance(value, Mapping):
        return {check_key(key): check_data(item, depth + 1) for key, item in value.items()}
    return [check_data(item, depth + 1) for item in value]


def _check_unknown(value: Ext) -> Ext:
    """Let a value of a newer SDK pass that the application read and writes back; not what only this one makes."""
    if value.code in (EXT_LIST, EXT_STAMP_TIME):
        raise InvalidDataError("an ordered list is written through `list(path)`")
    return value


def check_received(value: Value, depth: int) -> None:
    """Refuse a decoded value that no honest device sends; cheap for the usual ones.

    Raises:
        InvalidDataError: the whole change or snapshot that holds it goes into quarantine.
    """
    kind = type(value)
    if kind in ATOMS:
        return
    if kind is int:
        if not INT_MIN <= value <= INT_MAX:
            raise InvalidDataError("an integer over 64 bits")
    elif kind is float:
        if value != value:
            raise InvalidDataError("NaN")
    elif kind is list or kind is dict:
        _check_received_nested(value, depth)
    elif kind is not Ext:
        raise InvalidDataError(f"a value of type {kind.__name__}")


def _check_received_nested(value: Any, depth: int) -> None:
    if depth > DOCUMENT_DEPTH_MAX:
        raise InvalidDataError(f"nested deeper than {DOCUMENT_DEPTH_MAX}")
    if type(value) is dict:
        for key in value:
            check_key(key)
        value = value.values()
    for item in value:
        check_received(item, depth + 1)


def copy_value(value: Value) -> Value:
    """Copy lists and objects, so that what a caller does to them stays with the caller."""
    kind = type(value)
    if kind is list:
        return [copy_value(item) for item in value]
    if kind is dict:
        return {key: copy_value(item) for key, item in value.items()}
    return value


def check_document_id(document_id: str) -> str:
    """Return a document's id, or say why it is none: 1 to 256 bytes of UTF-8."""
    return _check_name(document_id, "document id", DOCUMENT_ID_BYTES_MAX)


def check_collection(name: str, *, reserved: bool = False) -> str:
    """Return a collection's name, or say why it is none.

    Args:
        reserved: allow the names beginning with "$", which are the SDK's own.
    """
    _check_name(name, "collection name", COLLECTION_NAME_BYTES_MAX)
    if name.startswith("$") and not reserved:
        raise InvalidDataError('collection names that begin with "$" are reserved')
    return name


def _check_name(name: str, what: str, bytes_max: int) -> str:
    if not isinstance(name, str):
        raise InvalidDataError(f"a {what} is a string")
    check_text(name)
    if not 1 <= len(name.encode()) <= bytes_max or PATH_SEPARATOR in name:
        raise InvalidDataError(f"a {what} has 1 to {bytes_max} bytes of UTF-8 and no NUL character")
    return name


def parse_path(path: str | tuple[str, ...]) -> Path:
    """Turn `"a.b"`, or `("a", "b")` where keys contain dots, into a path.

    Raises:
        InvalidDataError: a part is empty, or the path is too deep.
    """
    parts = path.split(".") if isinstance(path, str) else path
    if not parts or len(parts) > DOCUMENT_DEPTH_MAX:
        raise InvalidDataError(f"a path has 1 to {DOCUMENT_DEPTH_MAX} parts")
    return PATH_SEPARATOR.join([check_key(part) for part in parts])


def keys_of(path: Path) -> tuple[str, ...]:
    """Return the keys of a path."""
    return tuple(path.split(PATH_SEPARATOR)) if path else ()


def prefixes_of(path: Path) -> list[Path]:
    """Return every path from the document down to this one: "", "a", "a\\0b" for "a\\0b"."""
    found = [""]
    at = path.find(PATH_SEPARATOR)
    while at >= 0:
        found.append(path[:at])
        at = path.find(PATH_SEPARATOR, at + 1)
    if path:
        found.append(path)
    return found
