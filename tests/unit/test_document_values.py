"""What can be stored, what is refused, and what bytes from elsewhere may hold."""

from datetime import UTC, datetime, timedelta, timezone

import msgspec
import pytest

from twinlock.document import Document, Edit, decode_change, encode_change, increment
from twinlock.document.intent import set_ops, update_ops
from twinlock.document.operations import restamp
from twinlock.document.search import matches_text, text_of, words_of
from twinlock.document.stamps import stamp_of
from twinlock.document.values import (
    Ext,
    check_collection,
    check_document_id,
    keys_of,
    parse_path,
    prefixes_of,
)
from twinlock.errors import InvalidDataError, UpdateNeededError
from twinlock.protocol.clock import pack

ANNA = bytes([1]) * 16


def nested(depth, make):
    value = make()
    for _ in range(depth - 1):
        value = {"x": value} if make is dict else [value]
    return value


def round_trip(data):
    document = Document.empty()
    ops = set_ops(document, data, device=ANNA)
    document.apply(decode_change(encode_change([Edit("c", "d", pack(1), ops)])).edits[0], ANNA)
    return Document.decode(document.encode()).value()


def test_every_type_comes_back_as_it_went_in():
    data = {
        "null": None, "yes": True, "no": False, "small": -(1 << 63), "large": (1 << 63) - 1, "zero": 0.0,
        "float": 1.5e300, "infinite": float("inf"), "text": "Grüße \U0001f600 \0", "bytes": b"\x00\xff",
        "time": datetime(2026, 11, 23, 12, 0, 0, 123456, tzinfo=UTC), "early": datetime(1, 1, 1, tzinfo=UTC),
        "late": datetime(9999, 12, 31, 23, 59, 59, 999999, tzinfo=UTC), "list": [1, [2, {"a": []}], {}],
        "object": {"a": {"b": {}}, "c": [None]}, "a.b": 1, "$x": 1, "key with ünïcode": 1,
    }  # fmt: skip

    assert round_trip(data) == data
    assert [type(value) for value in round_trip(data).values()] == [type(data[key]) for key in round_trip(data)]


def test_times_are_kept_in_utc():
    local = datetime(2026, 1, 1, 1, 30, tzinfo=timezone(timedelta(hours=2)))

    assert round_trip({"t": local})["t"].isoformat() == "2025-12-31T23:30:00+00:00"


@pytest.mark.parametrize(
    "value",
    [
        1 << 63, -(1 << 63) - 1, float("nan"), "\ud800", datetime(2026, 1, 1), object(), {1}, {1: 2}, {"": 1},
        {"a\0b": 1}, {"\ud800": 1}, [float("nan")], [{"": 1}], [1 << 64], Ext(1, b""), Ext(3, b""), increment,
        datetime(1, 1, 1, tzinfo=timezone(timedelta(hours=2))), [increment(1)],
    ],
)  # fmt: skip
def test_what_cannot_be_stored_is_refused(value):
    with pytest.raises(InvalidDataError):
        set_ops(Document.empty(), {"x": value}, device=ANNA)
    with pytest.raises(InvalidDataError):
        update_ops(Document.empty(), {"x": value}, device=ANNA)


@pytest.mark.parametrize("make", [list, dict])
def test_nesting_ends_at_depth_32_on_both_sides(make):
    assert round_trip({"x": nested(31, make)}) == {"x": nested(31, make)}
    with pytest.raises(InvalidDataError, match="deeper"):
        set_ops(Document.empty(), {"x": nested(32, make)}, device=ANNA)


def test_a_document_is_an_object():
    with pytest.raises(InvalidDataError):
        set_ops(Document.empty(), [1], device=ANNA)


def test_names_are_checked():
    assert check_document_id("ü" * 128)
    for wrong in ("", "ü" * 129, "a\0", "\ud800", 5):
        with pytest.raises(InvalidDataError):
            check_document_id(wrong)
    with pytest.raises(InvalidDataError, match="reserved"):
        check_collection("$files")
    assert check_collection("$files", reserved=True) == "$files"


def test_paths_are_parsed_and_taken_apart():
    assert parse_path("a.b") == parse_path(("a", "b"))
    assert keys_of(parse_path(("a.b", "c"))) == ("a.b", "c")
    assert prefixes_of(parse_path("a.b.c")) == ["", "a", "a\0b", "a\0b\0c"]
    for wrong in ("", "a..b", ".a", "a.", (), ("a", ""), ("a\0",), ("a", 1), "a" + ".a" * 32):
        with pytest.raises(InvalidDataError):
            parse_path(wrong)


def raw_change(*ops, stamp=1 << 16, collection="c", document_id="d"):
    return msgspec.msgpack.encode([1, [[collection, document_id, stamp, list(ops)]]])


BOMB = b"\x91" * 100_000 + b"\xc0"


@pytest.mark.parametrize(
    "payload",
    [
        b"", b"\xc1", BOMB, raw_change()[:-1] + b"\x91" + BOMB, raw_change() + b"x", msgspec.msgpack.encode([1]),
        raw_change(stamp=0), raw_change(stamp=(1 << 64) - 1), raw_change(document_id=""),
        raw_change(collection="x" * 257),
        raw_change(7), raw_change([]), raw_change(["0"]), raw_change([True, b"", {}]), raw_change([0, b"", {}, 1]),
        raw_change([0, b"short", {"a": 1}]), raw_change([0, b"", {"": 1}]), raw_change([0, b"", {1: 1}]),
        raw_change([0, b"", []]), raw_change([0, b"", {"a": {"b": 1}}]), raw_change([0, b"", {"a": float("nan")}]),
        raw_change([0, b"", {"a": (1 << 64) - 1}]), raw_change([0, b"", {"a\0": 1}]),
        raw_change([0, b"", {"a": [{1: 2}]}]),
        raw_change([0, b"", {"a": nested(32, list)}]), raw_change([0, b"", {"\0".join("a" * 33): 1}]),
        raw_change([2, b"", 5]), raw_change([3, b"", "a", "1"]), raw_change([3, b"", "a", float("inf")]),
        raw_change([4, "a", "b"]), raw_change([5, "a", [["x"]]]), raw_change([5, "a", [["x", [b"1"]]]]),
        raw_change([5, "a", 1]),
    ],
)  # fmt: skip
def test_a_hostile_change_is_refused(payload):
    with pytest.raises(InvalidDataError):
        decode_change(payload)


@pytest.mark.parametrize(
    "state",
    [
        [], [1, b"x"], [1, b"", [[b"short", b"", {}]]], [1, b"", [[b"s" * 24, b"", {"": 1}]]],
        [1, b"", [], {"a": [b"1", b""]}],
        [1, b"", [], {}, [], {"a": [[b"s" * 24, b"", float("inf")]]}], [1, b"", [], {}, [], {}, {"a": [[{1: 2}, []]]}],
        [1, b"", [], {}, [], {}, {}, [[b"s", b""]]], {"a": 1},
        [1, b"", [[b"s" * 24, b"", {"a": nested(32, list)}]]],
    ],
)  # fmt: skip
def test_a_hostile_state_is_refused(state):
    with pytest.raises(InvalidDataError):
        Document.decode(msgspec.msgpack.encode(state))


def test_a_state_of_a_newer_version_asks_for_an_update():
    with pytest.raises(UpdateNeededError):
        Document.decode(msgspec.msgpack.encode([2, b""]))
    with pytest.raises(InvalidDataError):
        Document.decode(BOMB)


def test_operations_of_a_newer_sdk_are_passed_on_byte_for_byte():
    # A float of 32 bits and a long form of a small int: decoding and encoding again would shorten or widen them.
    strange = b"\x94\x4d\xca\x3f\x80\x00\x00\xd2\x00\x00\x00\x01\xc7\x03\x2aabc"
    payload = raw_change([0, b"", {"a": 1}]).replace(b"\x91\x93\x00", b"\x92" + strange + b"\x93\x00")

    change = decode_change(payload)
    document = Document.empty()
    document.apply(change.edits[0], ANNA)
    document.apply(change.edits[0], ANNA)

    assert document.value() == {"a": 1}
    assert document.has_unknown
    assert document.encode().count(strange) == 1
    assert Document.decode(document.encode()).encode() == document.encode()
    assert encode_change(change.edits) == payload


def test_values_of_a_newer_sdk_survive_reading_and_writing_back():
    newer = Ext(42, b"something new")
    document = Document.empty()
    document.apply(decode_change(raw_change([0, b"", {"a": newer, "b": [newer]}])).edits[0], ANNA)

    value = document.value()
    document.apply(Edit("c", "d", pack(2), set_ops(document, value, device=ANNA)), ANNA)

    assert document.value()["a"].data == b"something new"
    assert document.value()["b"][0].code == 42


def test_waiting_edits_moved_in_time_keep_their_sense():
    late, early = pack(9_000), pack(1_000)
    document = Document.empty()
    edits = []
    for n, make in enumerate(
        [
            lambda d: set_ops(d, {"n": 5, "tags": ["a"]}, device=ANNA),
            lambda d: update_ops(d, {"n": increment(2)}, device=ANNA),
        ]
    ):
        edit = Edit("c", "d", late + n, make(document))
        document.apply(edit, ANNA)
        edits.append(edit)

    moved = {stamp_of(late + n, ANNA): stamp_of(early + n, ANNA) for n in range(2)}
    clamped = Document.empty()
    for n, edit in enumerate(edits):
        clamped.apply(restamp(edit, early + n, moved), ANNA)

    assert clamped.value() == {"n": 7, "tags": ["a"]}
    assert clamped.latest == early + 1


def test_the_text_of_a_document_is_all_its_strings():
    value = {"b": ["two", 3, {"x": "three"}], "a": "One", "c": b"no", "d": ""}

    assert text_of(value) == "One\ntwo\nthree"
    assert words_of("Crème-brûlée, STRASSE 7!") == ["creme", "brulee", "strasse", "7"]
    assert matches_text(value, ["thr", "one"])
    assert not matches_text(value, ["four"])
