"""The vectors of documents, read as another implementation would read them. See spec/vectors/README.md."""

import itertools
import json
from pathlib import Path

import msgspec
import pytest

from tests.vectors import plain_merge, plain_view
from tools.vector_notation import read_value, written
from twinlock.document import (
    Document,
    array_remove,
    array_union,
    decode_change,
    delete_field,
    encode_change,
    increment,
    server_timestamp,
)
from twinlock.document.intent import delete_ops, set_ops, update_ops
from twinlock.document.operations import restamp
from twinlock.document.ordering import descending, order_key
from twinlock.document.snapshot import decode_snapshot, encode_snapshot
from twinlock.document.stamps import stamp_of
from twinlock.document.values import canonical
from twinlock.errors import ClockSkewError, TwinlockError
from twinlock.ids import DeviceId
from twinlock.protocol.clock import Hlc, HybridClock
from twinlock.protocol.envelope import Kind
from twinlock.protocol.limits import CLOCK_SKEW_MS_MAX
from twinlock.replica.contents import decode_content
from twinlock.sealing.reader import Source

FOLDER = Path(__file__).parents[2] / "spec" / "vectors"
CONSTRUCTS = [
    "clamp",
    "clock",
    "clock_skew",
    "document_changes",
    "document_states",
    "document_values",
    "merge",
    "order",
    "snapshot",
]


def read(construct: str) -> dict:
    return json.loads((FOLDER / f"{construct}.json").read_text(encoding="utf-8"))


def of(case, name: str) -> bytes:
    """Return a field that is written in hexadecimal."""
    return bytes.fromhex(case[name])


CASES = [
    pytest.param(construct, part, case, id=f"{construct}: {case['name']}")
    for construct in CONSTRUCTS
    for part in ("accept", "reject")
    for case in read(construct)[part]
]


@pytest.mark.parametrize(("construct", "part", "case"), CASES)
def test_a_vector_is_read_as_the_spec_says(construct, part, case):
    check = globals()[f"check_{construct}"]
    if part == "accept":
        check(case)
        return
    with pytest.raises(TwinlockError) as refused:
        check(case)
    assert refused.value.code == case["error"]


def change_of_one_value(encoded: bytes) -> bytes:
    """Wrap a value in a list, so that it may be an object, and in a change that writes it."""
    leaves = {"f": [msgspec.Raw(encoded)]}
    return msgspec.msgpack.encode([1, [["c", "d", 1 << 16, [[0, b"", leaves]]]]])


def check_document_values(case):
    received = of(case, "received" if "received" in case else "encoding")
    (edit,) = decode_change(change_of_one_value(received)).edits
    (value,) = edit.ops[0][2]["f"]
    assert written(value) == case["value"]
    assert canonical(value) == canonical(read_value(case["value"])) == of(case, "encoding")


def check_order(case):
    key = order_key(read_value(case["value"]))
    assert (key, descending(key)) == (of(case, "key"), of(case, "descending"))


def test_order_keys_ascend_as_the_vectors_stand():
    cases = read("order")["accept"]

    for below, above in itertools.pairwise(cases):
        assert of(below, "key") <= of(above, "key"), above["name"]
        assert of(below, "descending") >= of(above, "descending"), above["name"]
        assert below["key"] == above["key"] or not above["key"].startswith(below["key"]), above["name"]


def check_document_changes(case):
    payload = of(case, "payload")
    change = decode_change(payload)
    assert written(msgspec.msgpack.decode(payload)) == case["change"]
    again = msgspec.msgpack.encode([case["change"][0], change.edits])
    assert again == payload


def check_document_states(case):
    if "received" in case:
        Document.decode(of(case, "received"))
        return
    for order in (case["fragments"], reversed(case["fragments"])):
        whole = Document.empty()
        for fragment in order:
            whole.merge(Document.decode(bytes.fromhex(fragment)))
        assert whole.encode() == of(case, "state")
        assert written(whole.value()) == case["value"]
    assert Document.decode(of(case, "state")).encode() == of(case, "state")


def check_merge(case):
    expected = of(case, "state")
    for order in orders_of(case["changes"]):
        assert merged(order).encode() == expected
    document = merged(case["changes"])
    assert written(document.value()) == case["value"]
    assert conflicts_of(document) == case["conflicts"]
    halves = case["changes"][::2], case["changes"][1::2]
    left, right = merged(halves[0]), merged(halves[1])
    left.merge(right)
    assert left.encode() == expected
    assert Document.decode(expected).encode() == expected


def orders_of(changes):
    """Return the changes in every order, if they are few, and each of them twice."""
    yield from itertools.permutations(changes) if len(changes) <= 4 else (changes, changes[::-1])
    yield [*changes, *reversed(changes)]


def merged(changes) -> Document:
    document = Document.empty()
    for change in changes:
        (edit,) = decode_change(of(change, "payload")).edits
        assert f"{edit.stamp:016x}" == change["clock"]
        document.apply(edit, DeviceId(of(change, "device")))
    return document


def conflicts_of(document):
    return [
        {
            "path": list(conflict.path),
            "value": written(conflict.value),
            "stamp": stamp_of(conflict.stamp, conflict.device).hex(),
            "added": conflict.added,
        }
        for conflict in document.conflicts()
    ]


@pytest.mark.parametrize("case", [pytest.param(case, id=case["name"]) for case in read("merge")["accept"]])
def test_a_state_is_what_the_spec_says_word_for_word(case):
    """Merge all at once by the definitions of section 4, as slowly as they are written."""
    facts = [
        (of(change, "clock") + of(change, "device"), operation, raw)
        for change in case["changes"]
        for operation, raw in plain_merge.operations_of(of(change, "payload"))
    ]

    assert plain_merge.state_bytes(facts) == of(case, "state")
    assert written(plain_view.value_of(of(case, "state"))) == case["value"]


@pytest.mark.parametrize("case", [pytest.param(case, id=case["name"]) for case in read("merge")["accept"]])
def test_a_device_writes_the_operations_of_the_vector(case):
    changes = case["changes"]
    for change in changes:
        if "wrote" in change:
            known = merged([changes[index] for index in change["knows"]])
            operations = requested(known, change["wrote"], DeviceId(of(change, "device")))
            assert written(operations) == change["operations"]


def requested(known: Document, wrote, device: DeviceId):
    """Return what a device that knows a document writes when it is asked to."""
    match wrote["do"]:
        case "set":
            return set_ops(known, {key: asked(note) for key, note in wrote["data"].items()}, device=device)
        case "update":
            return update_ops(known, {tuple(path): asked(note) for path, note in wrote["fields"]}, device=device)
        case "delete":
            return delete_ops(known)


def asked(note):
    """Return a value, or what stands in place of one in a write."""
    match note:
        case {"increment": amount}:
            return increment(read_value(amount))
        case {"union": elements}:
            return array_union(*read_value(elements))
        case {"remove": elements}:
            return array_remove(*read_value(elements))
        case {"delete": True}:
            return delete_field()
        case {"stamp_time": True}:
            return server_timestamp
        case {"object": items}:
            return {key: asked(item) for key, item in items.items()}
    return read_value(note)


def check_snapshot(case):
    payload = of(case, "payload")
    snapshot = decode_snapshot(payload)
    for packed in snapshot.documents:
        Document.decode(packed.state)
    assert written(msgspec.msgpack.decode(payload)) == case["snapshot"]
    assert encode_snapshot(snapshot.as_of, snapshot.heads, snapshot.documents, snapshot.incarnation) == payload


def check_clock(case):
    clock = HybridClock()
    for step in case["steps"]:
        if step["do"] == "tick":
            assert f"{clock.tick(step['now_ms']):016x}" == step["clock"]
        elif "error" in step:
            with pytest.raises(ClockSkewError):
                clock.observe(Hlc(int(step["clock"], 16)), step["now_ms"], CLOCK_SKEW_MS_MAX)
        else:
            clock.observe(Hlc(int(step["clock"], 16)), step["now_ms"], CLOCK_SKEW_MS_MAX)
    assert f"{clock.latest:016x}" == case["latest"]


def check_clock_skew(case):
    source = Source(1, case["received_ms"], Kind.CHANGE, 1, bytes(16), bytes(16), 1, bytes(32))
    decode_content(of(case, "payload"), source)


def check_clamp(case):
    device = DeviceId(of(case, "device"))
    clocks = {int(before, 16): int(after, 16) for before, after in case["moved"].items()}
    stamps = {stamp_of(Hlc(before), device): stamp_of(Hlc(after), device) for before, after in clocks.items()}
    (edit,) = decode_change(of(case, "payload")).edits
    moved = restamp(edit, Hlc(clocks.get(edit.stamp, edit.stamp)), stamps)
    assert encode_change([moved]) == of(case, "clamped")
