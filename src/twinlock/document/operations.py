"""Operations, edits and changes: what is sealed and sent. See spec/documents.md, section 3.

An operation is a plain list, its code first, because most changes hold one and each object would cost time:

    [0, saw, {path: value}]            PUT        write leaves
    [1, saw, {path: value}]            REPLACE    replace the whole document by these leaves
    [2, saw, path]                     CLEAR      delete a path and all below it; "" deletes the document
    [3, base, path, total]             INCREMENT  this device's running total since the stamp `base`
    [4, path, [element]]               UNION      add elements to a set
    [5, path, [[element, [stamp]]]]    REMOVE     remove these adds of elements from a set

Code 6 is kept for text. An operation with another code is passed on byte for byte as an `msgspec.Raw`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import isfinite
from typing import Any, Final

import msgspec

from twinlock.document.stamps import Stamp, is_stamp
from twinlock.document.values import ATOMS, PATH_SEPARATOR, Value, check_collection, check_document_id, check_received
from twinlock.errors import InvalidDataError
from twinlock.protocol.clock import Hlc
from twinlock.protocol.limits import DOCUMENT_DEPTH_MAX

PUT: Final = 0
REPLACE: Final = 1
CLEAR: Final = 2
INCREMENT: Final = 3
UNION: Final = 4
REMOVE: Final = 5

SCHEMA: Final = 1
"""The form of changes that this version writes; it reads any, since unknown operations are kept."""

HLC_MAX: Final = (253_402_300_799_999 << 16) | 0xFFFF
"""The last millisecond of the year 9999: a later stamp has no datetime."""

Operation = list[Any] | msgspec.Raw


class Edit(msgspec.Struct, array_like=True, frozen=True):
    """All operations on one document that happen at one stamp."""

    collection: str
    id: str
    stamp: Hlc
    ops: list[Any]


class Change(msgspec.Struct, array_like=True, frozen=True):
    """One atomic batch of edits; the author's device stands in the envelope that carries it."""

    schema: int
    edits: list[Edit]


class _RawEdit(msgspec.Struct, array_like=True, frozen=True):
    collection: str
    id: str
    stamp: int
    ops: list[msgspec.Raw]


class _RawChange(msgspec.Struct, array_like=True, frozen=True):
    schema: int
    edits: list[_RawEdit]


_encoder = msgspec.msgpack.Encoder(order="sorted")
_decoder: msgspec.msgpack.Decoder[Change] = msgspec.msgpack.Decoder(Change)
_raw_decoder: msgspec.msgpack.Decoder[_RawChange] = msgspec.msgpack.Decoder(_RawChange)


def encode_change(edits: list[Edit]) -> bytes:
    """Return the payload of a change envelope."""
    return _encoder.encode(Change(SCHEMA, edits))


def decode_change(payload: bytes) -> Change:
    """Read the payload of a change envelope; operations of unknown kinds come as `msgspec.Raw`.

    Raises:
        InvalidDataError: no honest device wrote this; the envelope goes into quarantine.
    """
    try:
        change = _decoder.decode(payload)
        unknown = [_check_edit(edit) for edit in change.edits]
        return _with_raw_operations(payload, change) if any(unknown) else change
    except (msgspec.DecodeError, ValueError, RecursionError, TypeError) as exc:
        raise InvalidDataError(f"a change that cannot be read: {exc}") from exc


def is_known(operation: Operation) -> bool:
    """Tell whether this version knows what an operation means."""
    return not isinstance(operation, msgspec.Raw)


def _with_raw_operations(payload: bytes, change: Change) -> Change:
    """Take the unknown operations as the bytes they came in, so that they are passed on unchanged."""
    raw = _raw_decoder.decode(payload)
    edits = [
        msgspec.structs.replace(
            edit,
            ops=[
                op if _code_of(op) in _CHECKS else msgspec.Raw(bytes(raw_op))
                for op, raw_op in zip(edit.ops, raw_edit.ops, strict=True)
            ],
        )
        for edit, raw_edit in zip(change.edits, raw.edits, strict=True)
    ]
    return Change(change.schema, edits)


def _check_edit(edit: Edit) -> bool:
    """Check what came from elsewhere; return whether it holds an unknown operation."""
    check_collection(edit.collection, reserved=True)
    check_document_id(edit.id)
    if not 0 < edit.stamp <= HLC_MAX:
        raise InvalidDataError("a stamp out of range")
    unknown = False
    for op in edit.ops:
        check = _CHECKS.get(_code_of(op))
        if check is None:
            unknown = True
        else:
            check(op)
    return unknown


def _code_of(op: Any) -> int:
    if type(op) is not list or not op or type(op[0]) is not int:
        raise InvalidDataError("an operation without a code")
    return op[0]


def _check_leaves(op: list[Any]) -> None:
    _, saw, leaves = op
    _check_saw(saw)
    if type(leaves) is not dict:
        raise InvalidDataError("leaves that are no map")
    for path, value in leaves.items():
        if type(value) not in ATOMS or type(path) is not str or not path or PATH_SEPARATOR in path:
            check_leaf(path, value)


def check_leaf(path: Any, value: Value) -> None:
    """Check one path and value of a write from elsewhere."""
    depth = check_path(path)
    if type(value) is dict and value:
        raise InvalidDataError("an object as a leaf")
    check_received(value, depth + 1)


def check_path(path: Any) -> int:
    """Check a field's path from elsewhere and return its depth."""
    if type(path) is not str or not path:
        raise InvalidDataError("a path that is no text")
    if PATH_SEPARATOR not in path:
        return 1
    parts = path.split(PATH_SEPARATOR)
    if "" in parts or len(parts) > DOCUMENT_DEPTH_MAX:
        raise InvalidDataError("a path with an empty key, or too deep")
    return len(parts)


def _check_saw(saw: Any) -> None:
    if type(saw) is not bytes or not is_stamp(saw):
        raise InvalidDataError("a stamp of a wrong length")


def _check_clear(op: list[Any]) -> None:
    _, saw, path = op
    _check_saw(saw)
    if path != "":
        check_path(path)


def _check_increment(op: list[Any]) -> None:
    _, base, path, total = op
    _check_saw(base)
    check_path(path)
    check_total(total)


def check_total(total: Any) -> None:
    """Check a counter's running total from elsewhere."""
    if type(total) not in (int, float) or not isfinite(total):
        raise InvalidDataError("an increment that is no finite number")
    check_received(total, 1)


def _check_union(op: list[Any]) -> None:
    _, path, elements = op
    depth = check_path(path)
    if type(elements) is not list:
        raise InvalidDataError("a union without elements")
    check_received(elements, depth + 1)


def _check_remove(op: list[Any]) -> None:
    _, path, removed = op
    depth = check_path(path)
    for element, stamps in removed:
        check_received(element, depth + 2)
        for stamp in stamps:
            _check_saw(stamp)


_CHECKS: Mapping[int, Callable[[list[Any]], None]] = {
    PUT: _check_leaves,
    REPLACE: _check_leaves,
    CLEAR: _check_clear,
    INCREMENT: _check_increment,
    UNION: _check_union,
    REMOVE: _check_remove,
}


def restamp(edit: Edit, stamp: Hlc, moved: Mapping[Stamp, Stamp]) -> Edit:
    """Return an edit moved to another stamp, its references to other moved stamps following.

    The outbox needs it when a clock turned out to be wrong: waiting edits are clamped before they are sealed, and
    a counter's base or a remove's adds that name an earlier waiting edit must still name it afterwards.
    """
    return Edit(edit.collection, edit.id, stamp, [_moved(op, moved) for op in edit.ops])


def _moved(op: Operation, moved: Mapping[Stamp, Stamp]) -> Operation:
    if isinstance(op, msgspec.Raw):
        return op
    match op:
        case [(0 | 1 | 2 | 3) as code, saw, *rest]:
            return [code, moved.get(saw, saw), *rest]
        case [5, path, removed]:
            return [5, path, [[element, [moved.get(seen, seen) for seen in stamps]] for element, stamps in removed]]
    return op
