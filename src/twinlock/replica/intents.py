"""From intents to edits, and intents as bytes for the side file of a locked device."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import msgspec

from twinlock.document.document import Document
from twinlock.document.fields import ArrayRemove, ArrayUnion, DeleteField, Increment, ServerTimestamp
from twinlock.document.intent import Operations, delete_ops, set_ops, update_ops
from twinlock.document.lists import insert_ops, move_ops, remove_element_ops, set_element_ops
from twinlock.document.values import check_collection, check_document_id
from twinlock.errors import InvalidDataError, LeaseExpiredError, NotFoundError
from twinlock.ids import DeviceId
from twinlock.protocol.clock import Hlc
from twinlock.replica.batch import (
    Batch,
    DeleteDocument,
    EditList,
    Intent,
    ListAction,
    SetDocument,
    UpdateDocument,
)

_OPERATORS: Final[Mapping[int, type[Any]]] = {
    17: Increment,
    18: ArrayUnion,
    19: ArrayRemove,
    20: DeleteField,
    21: ServerTimestamp,
}
_CODES: Final = {kind: code for code, kind in _OPERATORS.items()}
Ext = msgspec.msgpack.Ext


def check_batch(batch: Batch) -> None:
    """Refuse an empty batch and names that cannot be.

    Raises:
        InvalidDataError: nothing of the batch is to be written.
    """
    if not batch:
        raise InvalidDataError("an empty batch")
    for intent in batch:
        check_collection(intent.collection, reserved=True)
        check_document_id(intent.id)


def operations_of(intent: Intent, document: Document, device: DeviceId, *, must_exist: bool = True) -> Operations:
    """Return what an intent does to a document in its present state.

    Raises:
        NotFoundError: an update of a document that does not exist.
        InvalidDataError: the data cannot be stored.
    """
    match intent:
        case SetDocument(data=data, merge=merge):
            return set_ops(document, data, device=device, merge=merge)
        case UpdateDocument(changes=changes):
            if must_exist and not document.exists:
                raise NotFoundError(f"{intent.collection}/{intent.id}")
            return update_ops(document, changes, device=device)
        case DeleteDocument():
            return delete_ops(document)
        case EditList():
            return _list_operations(intent, document)


def _list_operations(intent: EditList, document: Document) -> Operations:
    match intent.action:
        case ListAction.INSERT:
            return insert_ops(document, intent.path, intent.index, intent.element, intent.value)
        case ListAction.SET:
            return set_element_ops(document, intent.path, intent.element, intent.value)
        case ListAction.MOVE:
            return move_ops(document, intent.path, intent.element, intent.index)
        case ListAction.REMOVE:
            return remove_element_ops(document, intent.path, intent.element)


class LockedWrite(msgspec.Struct, frozen=True, array_like=True):
    """A batch written while locked, with the time it was written at."""

    stamp: Hlc
    intents: list[tuple[str, str, str, Any]]


def encode_locked(batch: Batch, stamp: Hlc) -> bytes:
    """Return a batch as bytes.

    Raises:
        LeaseExpiredError: an intent needs to read the document first.
    """
    check_batch(batch)
    empty = Document.empty()
    written = []
    for intent in batch:
        entry = _written(intent)
        # What would be refused later must be refused now, while the application is listening.
        operations_of(intent, empty, _NO_DEVICE, must_exist=False)
        written.append(entry)
    return msgspec.msgpack.encode(LockedWrite(stamp, written))


_NO_DEVICE = DeviceId(bytes(16))


def _written(intent: Intent) -> tuple[str, str, str, Any]:
    match intent:
        case SetDocument(data=data, merge=merge):
            return ("merge" if merge else "set", intent.collection, intent.id, _packed(data))
        case UpdateDocument(changes=changes):
            fields = [
                [path if isinstance(path, str) else list(path), _packed(value)] for path, value in changes.items()
            ]
            return ("update", intent.collection, intent.id, fields)
        case DeleteDocument():
            return ("delete", intent.collection, intent.id, None)
        case EditList():
            raise LeaseExpiredError("an ordered list needs to be seen before it is changed")


def _packed(value: Any) -> Any:
    if isinstance(value, ArrayRemove):
        raise LeaseExpiredError("array_remove needs to see the elements")
    code = _CODES.get(type(value))
    if code is not None:
        return Ext(code, msgspec.msgpack.encode(value))
    if isinstance(value, Mapping):
        return {key: _packed(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_packed(item) for item in value]
    return value


def decode_locked(data: bytes) -> tuple[Hlc, list[Intent]]:
    """Read what `encode_locked` made."""
    written = msgspec.msgpack.decode(data, type=LockedWrite)
    return written.stamp, [_intent(*item) for item in written.intents]


def _intent(kind: str, collection: str, id: str, data: Any) -> Intent:
    match kind:
        case "set" | "merge":
            return SetDocument(collection, id, _unpacked(data), kind == "merge")
        case "update":
            changes = {path if isinstance(path, str) else tuple(path): _unpacked(value) for path, value in data}
            return UpdateDocument(collection, id, changes)
        case "delete":
            return DeleteDocument(collection, id)
    raise InvalidDataError(f"a locked write of kind {kind}")


def _unpacked(value: Any) -> Any:
    if isinstance(value, Ext) and value.code in _OPERATORS:
        return msgspec.msgpack.decode(bytes(value.data), type=_OPERATORS[value.code])
    if isinstance(value, dict):
        return {key: _unpacked(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_unpacked(item) for item in value]
    return value
