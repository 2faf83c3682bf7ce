"""Snapshots: the merge states of many documents in one payload. See spec/documents.md, section 10."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

import msgspec

from twinlock.document.merge import State
from twinlock.document.state_codec import decode_state, encode_state
from twinlock.document.values import check_collection, check_document_id
from twinlock.errors import InvalidDataError
from twinlock.ids import Counter, DeviceId, EnvelopeId, Seq

SNAPSHOT_VERSION: Final = 1
FRAGMENT_BYTES_MAX: Final = 512 << 10
"""The size that a pack of documents, and a fragment of a large one, is made to."""

PARTS_MAX: Final = 1 << 16
"""How many snapshots a document may span."""


class ChainHead(msgspec.Struct, array_like=True, frozen=True):
    """The last envelope of a device that the snapshot's author had seen."""

    device: DeviceId
    counter: Counter
    envelope: EnvelopeId


class PackedDocument(msgspec.Struct, array_like=True, frozen=True):
    """A document's state, or a fragment of it: merge it into what is known.

    A document that does not fit into one envelope spans `parts` snapshots of one author with one `as_of`; this is
    the one numbered `part`, from 0.
    """

    collection: str
    id: str
    state: bytes
    part: int = 0
    parts: int = 1


class Snapshot(msgspec.Struct, array_like=True, frozen=True):
    """Merged states, the author's cursor when they were read, and the heads it had seen (advisory)."""

    version: int
    as_of: Seq
    heads: list[ChainHead]
    documents: list[PackedDocument]
    incarnation: bytes = b""
    """The life of the server's database that `as_of` counts in; after a restore the same numbers mean other entries."""


_encoder = msgspec.msgpack.Encoder()
_decoder: msgspec.msgpack.Decoder[Snapshot] = msgspec.msgpack.Decoder(Snapshot)


def encode_snapshot(
    as_of: Seq, heads: list[ChainHead], documents: list[PackedDocument], incarnation: bytes = b""
) -> bytes:
    """Return the payload of a snapshot envelope."""
    return _encoder.encode(Snapshot(SNAPSHOT_VERSION, as_of, heads, documents, incarnation))


def decode_snapshot(payload: bytes) -> Snapshot:
    """Read the payload of a snapshot envelope. The states in it are checked when they are decoded.

    Raises:
        InvalidDataError: no honest device wrote this; the envelope goes into quarantine.
    """
    try:
        snapshot = _decoder.decode(payload)
    except (msgspec.DecodeError, ValueError, RecursionError) as exc:
        raise InvalidDataError(f"a snapshot that cannot be read: {exc}") from exc
    if snapshot.version != SNAPSHOT_VERSION or snapshot.as_of < 0:
        raise InvalidDataError("a snapshot of an unknown version, or with a wrong cursor")
    for document in snapshot.documents:
        check_collection(document.collection, reserved=True)
        check_document_id(document.id)
        if not 0 <= document.part < document.parts <= PARTS_MAX:
            raise InvalidDataError("a fragment without a place among its document's parts")
    return snapshot


def fragments_of(state: bytes, bytes_max: int = FRAGMENT_BYTES_MAX) -> list[bytes]:
    """Split a document's state into states that merge to it again, in any order, each about `bytes_max` at most.

    A single leaf that is larger stays whole, so the result is over `bytes_max` only if such a leaf is.
    """
    if len(state) <= bytes_max:
        return [state]
    return [encode_state(part) for part in _split(decode_state(state), bytes_max)]


def _split(state: State, bytes_max: int) -> Iterator[State]:
    """Fill one part after another with facts; the first carries no fact of a path, only the document's life."""
    part, size = State(), 0
    part.revive(state.alive)
    for fact, weight in _facts(state):
        if size and size + weight > bytes_max:
            yield part
            part, size = State(), 0
        part.merge(fact)
        size += weight
    yield part


def _facts(state: State) -> Iterator[tuple[State, int]]:
    for fact in _single_facts(state):
        yield fact, len(encode_state(fact))


def _single_facts(state: State) -> Iterable[State]:
    for path, cleared in state.clears.items():
        fact = State()
        fact.clears[path] = cleared
        yield fact
    for writes in (state.writes, state.losers):
        for path, write in writes.items():
            fact = State()
            fact.put(path, write)
            fact.revive(write[0])
            yield fact
    for path, devices in state.counters.items():
        fact = State()
        fact.counters[path] = devices
        yield fact
    for path, elements in state.members.items():
        for element, memberships in elements.items():
            fact = State()
            fact.members[path] = {element: memberships}
            yield fact
    for operation in state.unknown:
        fact = State()
        fact.unknown.add(operation)
        yield fact
