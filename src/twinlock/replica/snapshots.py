"""Writing documents into snapshots, and reading them back part by part. See spec/sealing.md, section 5."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import msgspec

from twinlock.document.snapshot import ChainHead as PackedHead
from twinlock.document.snapshot import PackedDocument, encode_snapshot, fragments_of
from twinlock.ids import DeviceId, Incarnation, Seq
from twinlock.replica.store import StoredDocument
from twinlock.sealing.chains import ChainHead
from twinlock.sealing.padding import PAYLOAD_BYTES_MAX

PART_BYTES_MAX = PAYLOAD_BYTES_MAX - (16 << 10)
"""The largest state that goes into a snapshot whole: room is left for names and heads."""

HEADS_MAX = 128
"""How many chain heads a snapshot names; they are advisory."""

FragmentKey = tuple[DeviceId, Seq, str, str]
"""Author, as_of, collection and id: what belongs together."""


class Fragments(msgspec.Struct, frozen=True):
    """The parts of one document that have come so far, as bits, and the entry that held the first of them."""

    first_seq: Seq
    seen: int


def snapshot_payloads(
    documents: Sequence[StoredDocument], as_of: Seq, heads: Mapping[DeviceId, ChainHead], incarnation: Incarnation
) -> list[bytes]:
    """Return the payloads of as few snapshots as hold the documents' confirmed states."""
    named = [PackedHead(device, head.counter, head.id) for device, head in sorted(heads.items())[:HEADS_MAX]]
    payloads: list[bytes] = []
    whole: list[PackedDocument] = []
    for document in documents:
        if len(document.confirmed) <= PART_BYTES_MAX:
            whole.append(PackedDocument(document.collection, document.id, document.confirmed))
            continue
        parts = fragments_of(document.confirmed, PART_BYTES_MAX)
        for number, part in enumerate(parts):
            packed = PackedDocument(document.collection, document.id, part, number, len(parts))
            payloads.append(encode_snapshot(as_of, named, [packed], incarnation))
    payloads += [encode_snapshot(as_of, named, group, incarnation) for group in _groups(whole)]
    return payloads


def _groups(documents: Iterable[PackedDocument]) -> list[list[PackedDocument]]:
    groups: list[list[PackedDocument]] = []
    room = 0
    for document in documents:
        needed = len(document.state) + len(document.collection.encode()) + len(document.id.encode()) + 16
        if needed > room:
            groups.append([])
            room = PART_BYTES_MAX
        groups[-1].append(document)
        room -= needed
    return groups


def note_part(
    fragments: dict[FragmentKey, Fragments], author: DeviceId, as_of: Seq, seq: Seq, packed: PackedDocument
) -> Seq | None:
    """Take note of a part; return the entry of the first one once all have come, None before.

    A whole document is its own first part.
    """
    if packed.parts == 1:
        return seq
    key = (author, as_of, packed.collection, packed.id)
    known = fragments.get(key, Fragments(seq, 0))
    seen = known.seen | 1 << packed.part
    if seen == (1 << packed.parts) - 1:
        fragments.pop(key, None)
        return known.first_seq
    fragments[key] = Fragments(known.first_seq, seen)
    return None
