"""How the vectors write values in JSON, which knows neither bytes nor 64-bit integers. See spec/vectors/README.md."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

from twinlock.document.values import Ext

INT_PLAIN_MAX = (1 << 53) - 1
"""The largest integer that every JSON reader keeps exactly; larger ones are written as text."""

_UNIX_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def written(value: Any) -> Any:
    """Return a value as JSON."""
    match value:
        case None | bool() | str():
            return value
        case int():
            return value if abs(value) <= INT_PLAIN_MAX else {"int": str(value)}
        case float():
            return {"float": repr(value)}
        case bytes():
            return {"bytes": value.hex()}
        case datetime():
            return {"timestamp": str((value - _UNIX_EPOCH) // timedelta(microseconds=1))}
        case list() | tuple():
            return [written(item) for item in value]
        case dict():
            return {"object": {key: written(item) for key, item in value.items()}}
        case Ext():
            return {"ext": [value.code, bytes(value.data).hex()]}
    raise TypeError(f"a value of type {type(value).__name__}")


def read_value(note: Any) -> Any:
    """Return the value that JSON stands for."""
    if isinstance(note, list):
        return [read_value(item) for item in note]
    if not isinstance(note, dict):
        return note
    ((kind, content),) = note.items()
    return _READERS[kind](content)


_READERS: dict[str, Callable[[Any], Any]] = {
    "int": int,
    "float": float,
    "bytes": bytes.fromhex,
    "timestamp": lambda microseconds: _UNIX_EPOCH + timedelta(microseconds=int(microseconds)),
    "object": lambda items: {key: read_value(item) for key, item in items.items()},
    "ext": lambda content: Ext(content[0], bytes.fromhex(content[1])),
}


def read_bytes(note: str | list[Any]) -> bytes:
    """Return bytes: hexadecimal, or a list of hexadecimal parts and of `[count, hexadecimal]` for repeated ones."""
    if isinstance(note, str):
        return bytes.fromhex(note)
    return b"".join(bytes.fromhex(part) if isinstance(part, str) else part[0] * bytes.fromhex(part[1]) for part in note)
