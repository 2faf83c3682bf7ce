"""The vectors of merging: changes of several devices to one document, the state they make, its value, its conflicts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import msgspec

from tools.vector_notation import written
from tools.vectors_keys import Vector, vector
from twinlock.document import Document, Edit, array_remove, array_union, decode_change, delete_field, encode_change
from twinlock.document.fields import (
    ArrayRemove,
    ArrayUnion,
    DeleteField,
    Increment,
    ServerTimestamp,
    increment,
    server_timestamp,
)
from twinlock.document.intent import delete_ops, set_ops, update_ops
from twinlock.document.lists import insert_ops, move_ops, remove_element_ops, set_element_ops
from twinlock.document.operations import CLEAR, INCREMENT, PUT, REMOVE, UNION
from twinlock.document.stamps import NEVER, Stamp, stamp_of
from twinlock.document.values import INT_MAX, Ext, keys_of, parse_path
from twinlock.ids import DeviceId
from twinlock.protocol.clock import Hlc, pack

Case = dict[str, object]
Ops = list[Any]
Maker = Callable[[Document, DeviceId], Ops]
Step = tuple[str, int, Maker] | str
"""A device, the moment, and what it writes; or that all devices meet."""

START_MS = 1_750_000_000_000
DEVICES = {name: DeviceId(bytes([number]) * 16) for name, number in {"a": 0xA1, "b": 0xB2, "c": 0xC3}.items()}
MEET = "all devices learn of everything so far"
LIST = "todo"


def at(tick: int) -> Hlc:
    """Return the clock of a case's n-th moment."""
    return pack(START_MS + tick * 1000, tick)


def stamp(who: str, tick: int) -> Stamp:
    """Return a device's stamp of a case's n-th moment."""
    return stamp_of(at(tick), DEVICES[who])


class Request(NamedTuple):
    """What an application asks for, as it stands in a vector."""

    note: Case
    make: Callable[[Document, DeviceId], Ops]

    def __call__(self, document: Document, device: DeviceId) -> Ops:
        """Return its operations for a device that knows this of the document."""
        return self.make(document, device)


def put(data: dict[str, Any]) -> Request:
    """Set the whole document."""
    return Request(
        {"do": "set", "data": _noted(data)["object"]}, lambda document, device: set_ops(document, data, device=device)
    )


def update(changes: dict[Any, Any]) -> Request:
    """Write single fields."""
    fields = [[list(keys_of(parse_path(path))), _noted(value)] for path, value in changes.items()]
    return Request(
        {"do": "update", "fields": fields}, lambda document, device: update_ops(document, changes, device=device)
    )


def delete() -> Request:
    """Delete the document."""
    return Request({"do": "delete"}, lambda document, device: delete_ops(document))


def _noted(value: Any) -> Any:
    """Return a value, or what stands in place of one, as JSON."""
    match value:
        case Increment(amount):
            return {"increment": written(amount)}
        case ArrayUnion(elements):
            return {"union": written(elements)}
        case ArrayRemove(elements):
            return {"remove": written(elements)}
        case DeleteField():
            return {"delete": True}
        case ServerTimestamp():
            return {"stamp_time": True}
        case dict():
            return {"object": {key: _noted(item) for key, item in value.items()}}
    return written(value)


def insert(index: int, element: str, value: Any) -> Maker:
    """Insert into an ordered list."""
    return lambda document, device: insert_ops(document, LIST, index, element, value)


def change_element(element: str, value: Any) -> Maker:
    """Replace the value of an element."""
    return lambda document, device: set_element_ops(document, LIST, element, value)


def move(element: str, index: int) -> Maker:
    """Move an element."""
    return lambda document, device: move_ops(document, LIST, element, index)


def remove_element(element: str) -> Maker:
    """Remove an element."""
    return lambda document, device: remove_element_ops(document, LIST, element)


def raw(*operations: Any) -> Maker:
    """Write just these operations, also such as no honest device makes."""
    return lambda document, device: list(operations)


def unknown(*parts: Any) -> msgspec.Raw:
    """Return an operation of a newer version."""
    return msgspec.Raw(msgspec.msgpack.encode(list(parts)))


FIELDS: dict[str, list[Step]] = {
    "a set": [("a", 1, put({"title": "milk", "done": False, "amount": 2, "price": 1.5}))],
    "an update of what was seen": [("a", 1, put({"t": 1})), MEET, ("b", 2, update({"t": 2}))],
    "two updates at once": [("a", 1, put({"t": 0})), MEET, ("b", 3, update({"t": "b"})), ("a", 2, update({"t": "a"}))],
    "two updates at once that agree": [
        ("a", 1, put({"t": 0})),
        MEET,
        ("b", 3, update({"t": 1})),
        ("a", 2, update({"t": 1})),
    ],
    "an int and a float are two values": [
        ("a", 1, put({"t": 0})),
        MEET,
        ("b", 3, update({"t": 1.0})),
        ("a", 2, update({"t": 1})),
    ],
    "three updates at once": [
        ("a", 1, put({"t": 0})),
        MEET,
        ("c", 4, update({"t": "c"})),
        ("b", 3, update({"t": "b"})),
        ("a", 2, update({"t": "a"})),
    ],
    "the next write ends a conflict": [
        ("a", 1, update({"t": "a"})),
        ("b", 2, update({"t": "b"})),
        MEET,
        ("a", 3, update({"t": "both"})),
    ],
    "one moment, two devices": [("a", 1, update({"t": "a"})), ("b", 1, update({"t": "b"}))],
    "one stamp, two values": [
        ("a", 1, raw([PUT, NEVER, {"t": "x"}])),
        ("a", 1, raw([PUT, NEVER, {"t": "y"}])),
    ],
    "one stamp, one value, two that were seen": [
        ("a", 2, raw([PUT, NEVER, {"t": "x"}])),
        ("a", 2, raw([PUT, stamp("b", 1), {"t": "x"}])),
    ],
    "an edit that was made offline long ago": [("a", 1, update({"t": "old", "u": 1})), ("b", 9, update({"t": "new"}))],
    "the stamp's own time": [("a", 1, update({"at": server_timestamp})), MEET, ("b", 2, put({"at": server_timestamp}))],
    "a value of a newer version": [("a", 1, raw([PUT, NEVER, {"t": Ext(77, b"new")}]))],
}

OBJECTS: dict[str, list[Step]] = {
    "fields of one object": [
        ("a", 1, put({"o": {"x": 1, "y": 1}})),
        MEET,
        ("a", 2, update({"o.x": 2})),
        ("b", 3, update({"o.y": 3, "o.z": 3})),
    ],
    "a set over what was seen": [("a", 1, put({"x": 1, "y": {"z": 1}})), MEET, ("b", 2, put({"x": 2}))],
    "a set over what was not seen": [
        ("a", 1, put({"x": 1})),
        MEET,
        ("a", 2, update({"y": 2})),
        ("b", 3, put({"x": 3})),
    ],
    "an earlier set": [("a", 1, put({"x": 1})), MEET, ("a", 3, update({"y": 3})), ("b", 2, put({"x": 2}))],
    "an empty document": [("a", 1, put({}))],
    "an empty object": [("a", 1, put({"o": {}})), MEET, ("b", 2, update({"o.x": 1}))],
    "an object for an object": [("a", 1, put({"o": {"x": 1, "y": 1}})), MEET, ("b", 2, update({"o": {"z": 2}}))],
    "a value over an object, at once with a field of it": [
        ("a", 1, put({"o": {"x": 1}})),
        MEET,
        ("a", 2, update({"o.x": 2})),
        ("b", 3, update({"o": 3})),
    ],
    "a field of an object, at once with a value over it": [
        ("a", 1, put({"o": {"x": 1}})),
        MEET,
        ("a", 3, update({"o.x": 3})),
        ("b", 2, update({"o": 2})),
    ],
    "the last field of an object": [("a", 1, put({"o": {"x": 1}})), MEET, ("b", 2, update({"o.x": delete_field()}))],
    "32 levels": [("a", 1, update({tuple(["k"] * 32): 1}))],
}

DELETES: dict[str, list[Step]] = {
    "a delete": [("a", 1, put({"x": 1})), MEET, ("b", 2, delete())],
    "a later write revives with itself alone": [
        ("a", 1, put({"x": 1, "y": 1})),
        MEET,
        ("b", 2, delete()),
        ("a", 3, update({"x": 3})),
    ],
    "an earlier write that the delete had not seen": [
        ("a", 1, put({"x": 1})),
        MEET,
        ("a", 2, update({"y": 2})),
        ("b", 3, delete()),
    ],
    "removing a field does not revive": [
        ("a", 1, put({"x": 1, "y": 1})),
        MEET,
        ("b", 2, delete()),
        ("a", 3, update({"x": delete_field()})),
    ],
    "a field, at once with its removal": [
        ("a", 1, put({"x": 1, "y": 1})),
        MEET,
        ("a", 2, update({"x": 2})),
        ("b", 3, update({"x": delete_field()})),
    ],
    "clears, one above the other": [
        ("a", 1, put({"o": {"x": {"y": 1, "z": 1}}})),
        MEET,
        ("a", 4, update({"o.x.y": delete_field()})),
        ("b", 3, update({"o": delete_field()})),
        ("c", 2, update({"o.x.z": 2})),
    ],
    "a clear that says it saw the future": [
        ("a", 5, raw([PUT, NEVER, {"x": 5}])),
        ("b", 2, raw([CLEAR, stamp("c", 9), "x"])),
        ("c", 1, raw([PUT, NEVER, {"x": 1}])),
    ],
}

COUNTERS: dict[str, list[Step]] = {
    "two devices count": [
        ("a", 1, put({"n": 10})),
        MEET,
        ("a", 2, update({"n": increment(1)})),
        ("b", 2, update({"n": increment(5)})),
        ("a", 3, update({"n": increment(1)})),
    ],
    "counting from nothing": [("a", 1, update({"n": increment(2)})), ("b", 1, update({"n": increment(-5)}))],
    "a set, at once with an increment": [
        ("a", 1, put({"n": 1})),
        MEET,
        ("a", 2, update({"n": increment(1)})),
        ("b", 3, update({"n": 100})),
    ],
    "an increment after a set that it had not seen": [
        ("a", 1, put({"n": 1})),
        MEET,
        ("a", 3, update({"n": increment(1)})),
        ("b", 2, update({"n": 100})),
    ],
    "counting on after a delete": [
        ("a", 1, put({"n": 1})),
        ("a", 2, update({"n": increment(7)})),
        MEET,
        ("b", 3, delete()),
        ("b", 4, update({"n": increment(1)})),
        ("a", 5, update({"n": increment(1)})),
    ],
    "floats are added in the order of devices": [
        ("c", 1, update({"n": increment(0.3)})),
        ("b", 1, update({"n": increment(0.2)})),
        ("a", 1, update({"n": increment(0.1)})),
    ],
    "a sum over 64 bits": [("a", 1, put({"n": INT_MAX})), MEET, ("b", 2, update({"n": increment(1)}))],
    "an increment of a text": [("a", 1, put({"n": "x"})), MEET, ("b", 2, update({"n": increment(1)}))],
    "a text, at once with an increment": [("a", 1, update({"n": "x"})), ("b", 2, update({"n": increment(1)}))],
    "an increment below a text": [("a", 1, update({"n": "x"})), ("b", 2, update({"n.deep": increment(1)}))],
    "two totals of one stamp": [
        ("a", 1, raw([INCREMENT, NEVER, "n", 1])),
        ("a", 1, raw([INCREMENT, NEVER, "n", 2])),
    ],
    "an increment from a base that nobody knows": [
        ("a", 1, update({"n": 1})),
        ("b", 2, raw([INCREMENT, stamp("c", 1), "n", 1])),
    ],
}

SETS: dict[str, list[Step]] = {
    "two devices add": [
        ("b", 1, update({"tags": array_union("x", "y")})),
        ("a", 2, update({"tags": array_union("z", "y")})),
    ],
    "a removal, at once with an add": [
        ("a", 1, update({"tags": array_union("x", "y")})),
        MEET,
        ("a", 2, update({"tags": array_remove("x", "y")})),
        ("b", 2, update({"tags": array_union("x")})),
    ],
    "adding again after a removal": [
        ("a", 1, update({"tags": array_union("x")})),
        ("a", 2, update({"tags": array_remove("x")})),
        ("a", 3, update({"tags": array_union("x")})),
    ],
    "adding to a written list": [
        ("a", 1, put({"tags": ["q", "p", "q"]})),
        MEET,
        ("b", 2, update({"tags": array_union("a", "q")})),
    ],
    "removing from a written list": [
        ("a", 1, put({"tags": ["q", "p", "q"]})),
        MEET,
        ("b", 2, update({"tags": array_remove("q")})),
    ],
    "an add, at once with a written list": [
        ("a", 1, update({"tags": array_union("x")})),
        MEET,
        ("a", 2, update({"tags": array_union("y")})),
        ("b", 3, update({"tags": ["z"]})),
    ],
    "an add, at once with a text": [("a", 1, update({"tags": "text"})), ("b", 2, update({"tags": array_union("x")}))],
    "a set and a counter at one path": [
        ("a", 1, update({"f": array_union("x")})),
        ("b", 2, update({"f": increment(3)})),
    ],
    "elements of every type": [
        ("a", 1, update({"s": array_union(None, True, 1, 1.0, "1", b"1", [1], {"k": 1}, Ext(77, b"1"))})),
    ],
    "a removal before its add comes": [
        ("b", 2, raw([REMOVE, "s", [["x", [stamp("a", 1)]]]])),
        ("a", 1, raw([UNION, "s", ["x"]])),
    ],
    "adds to a deleted document": [
        ("a", 1, update({"s": array_union("x")})),
        MEET,
        ("b", 2, delete()),
        ("a", 3, update({"s": array_union("y")})),
    ],
}

LISTS: dict[str, list[Step]] = {
    "inserts": [("a", 1, insert(0, "e1", "one")), ("a", 2, insert(1, "e3", "three")), ("a", 3, insert(1, "e2", "two"))],
    "two inserts at one spot": [
        ("a", 1, insert(0, "e1", "one")),
        MEET,
        ("a", 2, insert(1, "ea", "a")),
        ("b", 2, insert(1, "eb", "b")),
    ],
    "a move, at once with a new value": [
        ("a", 1, insert(0, "e1", "one")),
        ("a", 2, insert(1, "e2", "two")),
        MEET,
        ("a", 3, move("e1", 1)),
        ("b", 3, change_element("e1", {"text": "uno"})),
    ],
    "a removal, at once with a new value": [
        ("a", 1, insert(0, "e1", "one")),
        ("a", 2, insert(1, "e2", "two")),
        MEET,
        ("a", 3, remove_element("e1")),
        ("b", 4, change_element("e1", "again")),
    ],
    "two devices turn a written list into an ordered one": [
        ("a", 1, put({LIST: ["one", "two"]})),
        MEET,
        ("a", 2, insert(2, "ea", "a")),
        ("b", 3, insert(0, "eb", "b")),
    ],
    "a list written whole over an ordered one": [
        ("a", 1, insert(0, "e1", "one")),
        MEET,
        ("a", 2, insert(1, "e2", "two")),
        ("b", 3, update({LIST: ["new"]})),
    ],
}

NEWER: dict[str, list[Step]] = {
    "an unknown operation is kept": [("a", 1, put({"x": 1})), ("a", 2, raw(unknown(77, "x", {"later": 1.5})))],
    "the operation kept for text": [("a", 1, raw(unknown(6, "text", b"update"), [PUT, NEVER, {"x": 1}]))],
    "an unknown operation alone": [("a", 1, raw(unknown(78)))],
    "an unknown operation outlasts a delete": [
        ("a", 1, raw(unknown(79, b"\x00"))),
        MEET,
        ("b", 2, raw([CLEAR, stamp("a", 1), ""])),
    ],
}

TOPICS = [FIELDS, OBJECTS, DELETES, COUNTERS, SETS, LISTS, NEWER]


def merging() -> Vector:
    """Every kind of field, deletes, and operations that are unknown."""
    accept = [_played(name, steps) for topic in TOPICS for name, steps in topic.items()]
    return vector("merge", "documents.md, sections 3 to 7", accept, [])


def _played(name: str, steps: list[Step]) -> Case:
    """Let devices write, each knowing its own edits and what it was told of, and describe what all of it makes."""
    known: dict[str, tuple[Document, list[int]]] = {who: (Document.empty(), []) for who in DEVICES}
    changes: list[Case] = []
    whole = Document.empty()
    for step in steps:
        if isinstance(step, str):
            for document, heard in known.values():
                document.merge(whole)
                heard[:] = range(len(changes))
            continue
        who, tick, make = step
        document, heard = known[who]
        payload = encode_change([Edit("things", "thing", at(tick), make(document, DEVICES[who]))])
        change = _described(DEVICES[who], payload)
        if isinstance(make, Request):
            change |= {"knows": list(heard), "wrote": make.note}
        (received,) = decode_change(payload).edits
        for knowing in (document, whole):
            knowing.apply(received, DEVICES[who])
        heard.append(len(changes))
        changes.append(change)
    return {
        "name": name,
        "changes": changes,
        "state": whole.encode().hex(),
        "value": written(whole.value()),
        "conflicts": [
            {
                "path": list(conflict.path),
                "value": written(conflict.value),
                "stamp": stamp_of(conflict.stamp, conflict.device).hex(),
                "added": conflict.added,
            }
            for conflict in whole.conflicts()
        ],
    }


def _described(device: DeviceId, payload: bytes) -> Case:
    (edit,) = msgspec.msgpack.decode(payload)[1]
    return {
        "device": device.hex(),
        "payload": payload.hex(),
        "clock": f"{edit[2]:016x}",
        "operations": written(edit[3]),
    }


MAKERS = {"merge": merging}
