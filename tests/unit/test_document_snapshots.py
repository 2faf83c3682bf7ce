"""Snapshots carry the merged states of many documents, large ones in fragments."""

import msgspec
import pytest

from twinlock.document import Document, Edit, array_union, increment
from twinlock.document.intent import set_ops, update_ops
from twinlock.document.snapshot import ChainHead, PackedDocument, decode_snapshot, encode_snapshot, fragments_of
from twinlock.errors import InvalidDataError

ANNA = bytes([1]) * 16


def large_document():
    document = Document.empty()
    data = {"fields": {f"f{n}": "x" * 100 for n in range(100)}, "n": 1, "tags": []}
    document.apply(Edit("c", "d", 1, set_ops(document, data, device=ANNA)), ANNA)
    changes = {"tags": array_union(*[f"tag {n}" for n in range(200)]), "n": increment(4)}
    document.apply(Edit("c", "d", 2, update_ops(document, changes, device=ANNA)), ANNA)
    return document


def test_a_snapshot_comes_back_as_it_was():
    heads = [ChainHead(ANNA, 7, b"e" * 32)]
    documents = [PackedDocument("c", "d", large_document().encode()), PackedDocument("$files", "x", b"\x91\x01")]

    snapshot = decode_snapshot(encode_snapshot(42, heads, documents))

    assert (snapshot.as_of, snapshot.heads, snapshot.documents) == (42, heads, documents)


def test_a_large_document_travels_in_fragments():
    document = large_document()

    fragments = fragments_of(document.encode(), 2000)
    assert len(fragments) > 5
    assert max(map(len, fragments)) <= 2000

    whole = Document.empty()
    for fragment in reversed(fragments):
        whole.merge(Document.decode(fragment))
    assert whole.encode() == document.encode()
    assert whole.value() == document.value()


def test_a_small_document_is_one_fragment():
    state = large_document().encode()

    assert fragments_of(state) == [state]


@pytest.mark.parametrize(
    "payload",
    [b"", b"\xc0", msgspec.msgpack.encode([2, 0, [], []]), msgspec.msgpack.encode([1, -1, [], []]),
     msgspec.msgpack.encode([1, 0, [], [["c", "", b""]]]), msgspec.msgpack.encode([1, 0, [], [["", "d", b""]]])],
)  # fmt: skip
def test_a_hostile_snapshot_is_refused(payload):
    with pytest.raises(InvalidDataError):
        decode_snapshot(payload)
