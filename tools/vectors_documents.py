"""The vectors of values, their order, changes, states, snapshots and the clock."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec

from tools.vector_notation import written
from tools.vectors_keys import Vector, vector
from tools.vectors_merging import DEVICES, at, merging, stamp
from twinlock.document import Document, encode_change
from twinlock.document.operations import Edit, decode_change, restamp
from twinlock.document.ordering import descending, order_key
from twinlock.document.snapshot import ChainHead, PackedDocument, encode_snapshot, fragments_of
from twinlock.document.stamps import NEVER, stamp_of
from twinlock.document.values import INT_MAX, INT_MIN, LIST_MARKER, STAMP_TIME_MARKER, Ext, canonical
from twinlock.errors import ClockSkewError
from twinlock.ids import Counter, EnvelopeId, Seq
from twinlock.protocol.clock import Hlc, HybridClock, pack
from twinlock.protocol.limits import CLOCK_SKEW_MS_MAX

Case = dict[str, Any]

A = DEVICES["a"]
REFUSED = "invalid_data"
packed = msgspec.msgpack.Encoder().encode

VALUES: dict[str, Any] = {
    "null": None,
    "false": False,
    "true": True,
    "0": 0,
    "127": 127,
    "128": 128,
    "-32": -32,
    "-33": -33,
    "2^53 + 1": 2**53 + 1,
    "the largest int": INT_MAX,
    "the smallest int": INT_MIN,
    "float 0": 0.0,
    "float -0": -0.0,
    "float 1": 1.0,
    "float 0.1": 0.1,
    "infinity": float("inf"),
    "-infinity": float("-inf"),
    "empty string": "",
    "string": "Grüße, 世界 🔑",
    "string of 32 bytes": "x" * 32,
    "empty bytes": b"",
    "bytes": bytes(range(8)),
    "1970": datetime(1970, 1, 1, tzinfo=UTC),
    "a whole second": datetime(2026, 2, 3, 4, 5, 6, tzinfo=UTC),
    "a microsecond": datetime(2026, 2, 3, 4, 5, 6, 1, tzinfo=UTC),
    "before 1970": datetime(1969, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC),
    "year 1": datetime(1, 1, 1, tzinfo=UTC),
    "year 9999": datetime(9999, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC),
    "empty list": [],
    "list": [1, "1", [None]],
    "empty object": {},
    "object": {"b": 1, "a": {"z": 1, "é": 2, "aa": 3}},
    "keys in the order of UTF-8, not of UTF-16": {"\U0001f511": 1, "\uff5e": 2},
    "a value of a newer version": Ext(77, b"new"),
}

RECEIVED: dict[str, bytes] = {
    "an int in 64 bits": b"\xcf" + bytes(7) + b"\x05",
    "a float in 32 bits": b"\xca\x3f\xc0\x00\x00",
    "a string with a long length": b"\xdb\x00\x00\x00\x01x",
    "keys in another order": b"\x82\xa1b\x01\xa1a\x02",
    "499 nanoseconds": b"\xd7\xff" + ((499 << 34) | 1).to_bytes(8, "big"),
    "500 nanoseconds": b"\xd7\xff" + ((500 << 34) | 1).to_bytes(8, "big"),
    "1500 nanoseconds": b"\xd7\xff" + ((1500 << 34) | 1).to_bytes(8, "big"),
    "a second in the longest form": b"\xc7\x0c\xff" + bytes(4) + (1).to_bytes(8, "big"),
}

NO_VALUES: dict[str, bytes] = {
    "NaN": b"\xcb\x7f\xf8" + bytes(6),
    "an int over 64 bits": b"\xcf" + b"\xff" * 8,
    "a key that is a number": b"\x81\x01\x01",
    "an empty key": b"\x81\xa0\x01",
    "a key with NUL": b"\x81\xa3a\x00b\x01",
    "a lone surrogate": b"\xa3\xed\xa0\x80",
    "no UTF-8": b"\xa1\xff",
    "a timestamp of the year 10000": b"\xc7\x0c\xff" + bytes(4) + (253_402_300_800).to_bytes(8, "big"),
    "a timestamp of the year 0": b"\xc7\x0c\xff" + bytes(4) + (-62_135_596_801).to_bytes(8, "big", signed=True),
    "a timestamp of 5 bytes": b"\xc7\x05\xff" + bytes(5),
    "cut off": b"\xa5abc",
    "an unused code": b"\xc1",
}


def values() -> Vector:
    """Each value's one encoding; other encodings of it that are read; and what no value is."""
    accept: list[Case] = [
        {"name": name, "value": written(value), "encoding": canonical(value).hex()} for name, value in VALUES.items()
    ]
    for name, received in RECEIVED.items():
        value = msgspec.msgpack.decode(received)
        accept.append(
            {"name": name, "received": received.hex(), "value": written(value), "encoding": canonical(value).hex()}
        )
    reject: list[Case] = [
        {"name": name, "received": received.hex(), "error": REFUSED} for name, received in NO_VALUES.items()
    ]
    return vector("document_values", "documents.md, section 1", accept, reject)


def _in_order() -> Iterable[Any]:
    yield from (None, False, True)
    yield from (float("-inf"), -1e300, INT_MIN, -(2**53) - 1, -2, -1.5, -1, -5e-324, 0, 0.0, -0.0, 5e-324, 0.5, 1, 1.0)
    yield from (1.5, 2**53, 2.0**53, 2**53 + 1, 2**62 + 1, INT_MAX, 2.0**63, 1e300, float("inf"))
    yield datetime(1, 1, 1, tzinfo=UTC)
    yield from (datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=n) for n in (-1, 0, 1, 1_750_000_000_000_000))
    yield from ("", "\x00", "\x00\x00", "\x01", "a", "a\x00", "a\x00b", "a\x01", "aa", "b", "é", "\uff5e", "\U0001f511")
    yield from (b"", b"\x00", b"\x00\x01", b"\x01", b"\xff")
    yield from ([], [None], [None, None], [1], [1, 2], [2], ["a"], ["a", "b"], [[]], [{}])
    yield from ({}, {"a": 1}, {"a": 1, "b": 1}, {"a": 2}, {"b": 0})
    yield from (Ext(77, b"a"), Ext(77, b"b"))


def order() -> Vector:
    """Values in ascending order, with their order keys; neighbours with the same key are equal in the order."""
    accept: list[Case] = []
    for index, value in enumerate(_in_order()):
        key = order_key(value)
        accept.append(
            {
                "name": f"{index:02} {type(value).__name__}",
                "value": written(value),
                "key": key.hex(),
                "descending": descending(key).hex(),
            }
        )
    return vector("order", "documents.md, section 8", accept, [])


def _raw_change(*operations: Any, **altered: Any) -> bytes:
    """Return a change of one edit, right or wrong."""
    edit = {"collection": "c", "id": "d", "clock": at(1), "ops": list(operations), **altered}
    return packed([altered.get("schema", 1), [[edit[field] for field in ("collection", "id", "clock", "ops")]]])


SEEN = stamp("a", 1)
DEEP_PATH = "\0".join(["k"] * 32)

CHANGES: dict[str, bytes] = {
    "put": _raw_change([0, NEVER, {"title": "milk", "o\0x": 1.5}]),
    "put over what was seen": _raw_change([0, SEEN, {"title": "milk"}]),
    "put of the stamp's time": _raw_change([0, NEVER, {"at": STAMP_TIME_MARKER}]),
    "put of an ordered list's marker": _raw_change([0, NEVER, {"l": LIST_MARKER, "l\0e\0v": 1, "l\0e\0p": "V"}]),
    "replace": _raw_change([1, SEEN, {"title": "milk"}]),
    "replace by nothing": _raw_change([1, NEVER, {}]),
    "clear of a field": _raw_change([2, SEEN, "o\0x"]),
    "clear of the document": _raw_change([2, SEEN, ""]),
    "increment": _raw_change([3, SEEN, "n", -5]),
    "increment by a float": _raw_change([3, NEVER, "n", 0.5]),
    "union": _raw_change([4, "tags", ["x", 1, None]]),
    "remove": _raw_change([5, "tags", [["x", [SEEN]], [1, [SEEN, stamp("b", 2)]]]]),
    "a path of 32 keys": _raw_change([0, NEVER, {DEEP_PATH: 1}]),
    "names of 256 bytes": _raw_change([2, NEVER, ""], collection="é" * 128, id="x" * 256),
    "a reserved collection": _raw_change([2, NEVER, ""], collection="$files"),
    "an operation of a newer version": _raw_change([77, {"later": 1}], [0, NEVER, {"x": 1}]),
    "a newer schema": _raw_change([2, NEVER, ""], schema=2),
    "no edit": packed([1, []]),
    "several edits": packed([1, [["c", "d", at(1), [[2, b"", ""]]], ["c2", "d2", at(2), [[0, b"", {"x": 1}]]]]]),
}

NO_CHANGES: dict[str, bytes] = {
    "nothing": b"",
    "no array": packed({"schema": 1}),
    "a byte too many": _raw_change([2, NEVER, ""]) + b"\0",
    "an empty collection": _raw_change([2, NEVER, ""], collection=""),
    "an id of 257 bytes": _raw_change([2, NEVER, ""], id="x" * 257),
    "an id with NUL": _raw_change([2, NEVER, ""], id="a\0b"),
    "an id that is no text": _raw_change([2, NEVER, ""], id=b"d"),
    "clock 0": _raw_change([2, NEVER, ""], clock=0),
    "a clock after the year 9999": _raw_change([2, NEVER, ""], clock=253_402_300_800_000 << 16),
    "an operation that is no array": _raw_change("put"),
    "an operation without a code": _raw_change([]),
    "a code that is no number": _raw_change(["put", NEVER, {}]),
    "a field too few": _raw_change([0, NEVER]),
    "a field too many": _raw_change([2, NEVER, "x", 1]),
    "a seen stamp of 23 bytes": _raw_change([0, SEEN[:23], {"x": 1}]),
    "a seen stamp that is text": _raw_change([0, "never", {"x": 1}]),
    "leaves that are no map": _raw_change([0, NEVER, [["x", 1]]]),
    "a put of the empty path": _raw_change([0, NEVER, {"": 1}]),
    "a path with an empty key": _raw_change([0, NEVER, {"a\0\0b": 1}]),
    "a path of 33 keys": _raw_change([0, NEVER, {DEEP_PATH + "\0k": 1}]),
    "a list below 32 keys": _raw_change([0, NEVER, {DEEP_PATH: []}]),
    "an object as a leaf": _raw_change([0, NEVER, {"o": {"x": 1}}]),
    "a number as a path": _raw_change([2, NEVER, 1]),
    "an increment of the document": _raw_change([3, NEVER, "", 1]),
    "an increment by infinity": _raw_change([3, NEVER, "n", float("inf")]),
    "an increment by a text": _raw_change([3, NEVER, "n", "1"]),
    "an increment by true": _raw_change([3, NEVER, "n", True]),
    "a union of no list": _raw_change([4, "tags", "x"]),
    "a remove of no adds": _raw_change([5, "tags", [["x"]]]),
    "a remove of a stamp of 1 byte": _raw_change([5, "tags", [["x", [b"1"]]]]),
}


def changes() -> Vector:
    """Payloads of changes: operations of every kind, and what no honest device writes."""
    accept = [
        {"name": name, "payload": payload.hex(), "change": written(msgspec.msgpack.decode(payload))}
        for name, payload in CHANGES.items()
    ]
    reject = [{"name": name, "payload": payload.hex(), "error": REFUSED} for name, payload in NO_CHANGES.items()]
    return vector("document_changes", "documents.md, section 3", accept, reject)


def _state(*parts: Any) -> bytes:
    return packed([1, *parts])


STATES: dict[str, bytes] = {
    "nothing": _state(),
    "parts that are empty": _state(b"", [], {}, [], {}, {}, []),
    "alive told twice": _state(SEEN, [[SEEN, NEVER, {"x": 1}]]),
    "writes out of order": _state(b"", [[stamp("b", 2), NEVER, {"y": 2}], [SEEN, NEVER, {"x": 1}]]),
    "two writes of one path": _state(b"", [[SEEN, NEVER, {"x": 1}], [stamp("b", 2), NEVER, {"x": 2}]]),
    "a loser that is seen": _state(b"", [[stamp("b", 2), SEEN, {"x": 2}]], {}, [[SEEN, NEVER, {"x": 1}]]),
    "a clear below a newer one": _state(SEEN, [], {"o": [stamp("b", 2), SEEN], "o\0x": [SEEN, NEVER]}),
    "a write that a clear has seen": _state(stamp("b", 2), [[SEEN, NEVER, {"x": 1}]], {"": [stamp("b", 2), SEEN]}),
    "totals out of order": _state(
        b"", [], {}, [], {"n": [[stamp("b", 2), NEVER, 2], [SEEN, NEVER, 1], [stamp("b", 1), NEVER, 9]]}
    ),
    "elements out of order": _state(
        SEEN, [], {}, [], {}, {"s": [["y", [[stamp("b", 2), True], [SEEN, False]]], ["x", [[SEEN, False]]]]}
    ),
    "operations out of order": _state(b"", [], {}, [], {}, {}, [[stamp("b", 2), packed([77])], [SEEN, packed([78])]]),
}

NO_STATES: dict[str, tuple[bytes, str]] = {
    "no bytes": (b"", REFUSED),
    "no version": (b"\x90", REFUSED),
    "version 2": (packed([2, b"", []]), "update_needed"),
    "alive of 8 bytes": (_state(bytes(8)), REFUSED),
    "a write without a stamp": (_state(b"", [[b"", b"", {"x": 1}]]), REFUSED),
    "a write of the empty path": (_state(b"", [[SEEN, b"", {"": 1}]]), REFUSED),
    "an object as a leaf": (_state(b"", [[SEEN, b"", {"x": {"y": 1}}]]), REFUSED),
    "a clear's stamp of 1 byte": (_state(b"", [], {"x": [b"1", b""]}), REFUSED),
    "a total that is a text": (_state(b"", [], {}, [], {"n": [[SEEN, b"", "1"]]}), REFUSED),
    "a removed that is a number": (_state(b"", [], {}, [], {}, {"s": [["x", [[SEEN, 1]]]]}), REFUSED),
}


def states() -> Vector:
    """States as they may come, with the one form that they are kept in; and fragments of a large one."""
    accept: list[Case] = []
    for name, received in STATES.items():
        document = Document.decode(received)
        accept.append(
            {
                "name": name,
                "fragments": [received.hex()],
                "state": document.encode().hex(),
                "value": written(document.value()),
            }
        )
    for case in _merged("two devices count", "a removal, at once with an add", "clears, one above the other"):
        state = bytes.fromhex(case["state"])
        fragments = [fragment.hex() for fragment in fragments_of(state, 40)]
        accept.append(
            {
                "name": f"fragments: {case['name']}",
                "fragments": fragments,
                "state": state.hex(),
                "value": case["value"],
            }
        )
    reject = [{"name": name, "received": data.hex(), "error": error} for name, (data, error) in NO_STATES.items()]
    return vector("document_states", "documents.md, sections 5 and 10", accept, reject)


def _merged(*names: str) -> list[Case]:
    cases = merging()["accept"]
    assert isinstance(cases, list)
    return [case for case in cases if case["name"] in names]


def snapshots() -> Vector:
    """Payloads of snapshots."""
    (counted,) = _merged("two devices count")
    state = bytes.fromhex(counted["state"])
    parts = fragments_of(state, 40)
    heads = [ChainHead(DEVICES["a"], Counter(3), EnvelopeId(bytes(range(32))))]
    life = bytes(range(16))
    large = [PackedDocument("things", "large", data, part, len(parts)) for part, data in enumerate(parts)]
    packs: dict[str, tuple[Seq, list[ChainHead], list[PackedDocument], bytes]] = {
        "nothing": (Seq(0), [], [], b""),
        "a document": (Seq(42), heads, [PackedDocument("things", "thing", state)], life),
        "fragments of a document": (Seq(42), heads, large, life),
    }
    accept: list[Case] = [
        {
            "name": name,
            "payload": encode_snapshot(*pack).hex(),
            "snapshot": written(msgspec.msgpack.decode(encode_snapshot(*pack))),
        }
        for name, pack in packs.items()
    ]
    wrong = {
        "no bytes": b"",
        "version 2": packed([2, 0, [], []]),
        "a cursor below 0": packed([1, -1, [], []]),
        "a document without an id": packed([1, 0, [], [["c", "", state, 0, 1]]]),
        "a document without a collection": packed([1, 0, [], [["", "d", state, 0, 1]]]),
        "part 1 of 1": packed([1, 0, [], [["c", "d", state, 1, 1]]]),
        "part -1": packed([1, 0, [], [["c", "d", state, -1, 1]]]),
        "65537 parts": packed([1, 0, [], [["c", "d", state, 0, 65537]]]),
        "a state that is no state": packed([1, 0, [], [["c", "d", b"\xc0", 0, 1]]]),
    }
    reject = [{"name": name, "payload": payload.hex(), "error": REFUSED} for name, payload in wrong.items()]
    return vector("snapshot", "documents.md, section 10", accept, reject)


NOW_MS = 1_750_000_000_000


def clock() -> Vector:
    """What a clock gives out: steps `tick` and `observe`, in order."""
    late, too_late = pack(NOW_MS + CLOCK_SKEW_MS_MAX), pack(NOW_MS + CLOCK_SKEW_MS_MAX + 1)
    tick = ("tick", NOW_MS, Hlc(0))
    runs: dict[str, list[tuple[str, int, Hlc]]] = {
        "time goes on": [tick, ("tick", NOW_MS, Hlc(0)), ("tick", NOW_MS + 1, Hlc(0))],
        "time goes back": [tick, ("tick", NOW_MS - 1000, Hlc(0))],
        "a stamp from elsewhere": [("observe", NOW_MS, pack(NOW_MS + 5, 7)), tick],
        "an older stamp from elsewhere": [
            ("tick", NOW_MS, Hlc(0)),
            ("observe", NOW_MS, Hlc(1)),
            ("tick", NOW_MS, Hlc(0)),
        ],
        "the counter is full": [("observe", NOW_MS, pack(NOW_MS, 0xFFFF)), tick],
        "a stamp 5 minutes ahead": [("observe", NOW_MS, late), tick],
        "a stamp more than 5 minutes ahead": [("observe", NOW_MS, too_late), tick],
    }
    return vector("clock", "documents.md, section 2", [_run(name, steps) for name, steps in runs.items()], [])


def _run(name: str, steps: list[tuple[str, int, Hlc]]) -> Case:
    ticking, told = HybridClock(), []
    for step, now_ms, seen in steps:
        if step == "tick":
            told.append({"do": "tick", "now_ms": now_ms, "clock": f"{ticking.tick(now_ms):016x}"})
            continue
        note: Case = {"do": "observe", "now_ms": now_ms, "clock": f"{seen:016x}"}
        try:
            ticking.observe(seen, now_ms, CLOCK_SKEW_MS_MAX)
        except ClockSkewError as error:
            note["error"] = error.code
        told.append(note)
    return {"name": name, "steps": told, "latest": f"{ticking.latest:016x}"}


def arrivals() -> Vector:
    """Changes on both sides of how far a stamp may lie after the receive time."""

    def arrived(stamp_ms: int) -> Case:
        payload = encode_change([Edit("c", "d", pack(stamp_ms, 0xFFFF), [[2, NEVER, ""]])])
        return {"received_ms": NOW_MS, "payload": payload.hex()}

    limit_ms = NOW_MS + CLOCK_SKEW_MS_MAX
    accept = [{"name": "at the limit", **arrived(limit_ms)}, {"name": "years old", **arrived(1)}]
    reject = [{"name": "over the limit", **arrived(limit_ms + 1), "error": "clock_skew"}]
    return vector("clock_skew", "documents.md, section 2", accept, reject)


def clamping() -> Vector:
    """Waiting edits whose stamps were moved, and what in their operations moves with them."""
    moved = {at(5): at(1), at(6): at(2)}
    waiting = [
        Edit("c", "d", at(5), [[0, NEVER, {"n": 1, "tags": ["x"]}]]),
        Edit("c", "d", at(6), [[3, stamp("a", 5), "n", 2], [5, "tags", [["x", [stamp("a", 5), stamp("b", 5)]]]]]),
        Edit("c", "d", at(3), [[2, stamp("b", 6), "o"], [1, stamp("a", 6), {"x": 1}], [0, stamp("a", 4), {"y": 1}]]),
        Edit("c", "d", at(4), [[4, "tags", ["y"]], msgspec.Raw(packed([77, stamp("a", 5)]))]),
    ]
    stamps = {stamp_of(before, A): stamp_of(after, A) for before, after in moved.items()}
    accept = []
    for number, edit in enumerate(waiting):
        (given,) = decode_change(encode_change([edit])).edits
        accept.append(
            {
                "name": f"edit {number}",
                "device": A.hex(),
                "moved": {f"{before:016x}": f"{after:016x}" for before, after in moved.items()},
                "payload": encode_change([given]).hex(),
                "clamped": encode_change([restamp(given, moved.get(given.stamp, given.stamp), stamps)]).hex(),
            }
        )
    return vector("clamp", "documents.md, section 2", accept, [])


MAKERS = {
    "document_values": values,
    "order": order,
    "document_changes": changes,
    "document_states": states,
    "snapshot": snapshots,
    "clock": clock,
    "clock_skew": arrivals,
    "clamp": clamping,
}
