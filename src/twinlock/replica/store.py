"""What a replica asks of the file it lives in: one space's documents, outbox, chains and quarantine.

Synchronous and transactional, so that the replica itself stays free of I/O. `twinlock.client.local_store` keeps it in
an encrypted SQLite file, `twinlock.testing.memory_store` in memory.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import msgspec

from twinlock.document.query import Query
from twinlock.ids import Counter, DeviceId, EnvelopeId, Seq

DocumentKey = tuple[str, str]
"""A document's collection and id."""

UNSEALED = Counter(0)
"""What a write that is in no envelope yet has for a counter."""

_value_encoder = msgspec.msgpack.Encoder()
_value_decoder = msgspec.msgpack.Decoder(dict[str, Any])


def encode_value(value: dict[str, Any]) -> bytes:
    """Return a document's shown value as the MessagePack that stores keep."""
    return _value_encoder.encode(value)


def decode_value(data: bytes) -> dict[str, Any]:
    """Read what `encode_value` made."""
    return _value_decoder.decode(data)


class StoredDocument(msgspec.Struct, frozen=True, gc=False):
    """A document as the replica keeps it.

    `confirmed` is the merge state of everything that the server has (empty: nothing yet), `overlay` the same with
    this device's pending writes (empty: no write is pending), `value` what is shown: MessagePack, or None if there
    is no such document (never written, or deleted). `base_seq` is the oldest entry still needed to rebuild
    `confirmed` (0 while that is empty) and `last_seq` the newest that changed it. `pending` counts the outbox's
    writes that touch it. `lost` marks a document that a restored server may not have in this state.
    """

    collection: str
    id: str
    confirmed: bytes
    overlay: bytes
    value: bytes | None
    base_seq: Seq
    last_seq: Seq
    pending: int = 0
    lost: bool = False

    @property
    def key(self) -> DocumentKey:
        """The collection and the id."""
        return (self.collection, self.id)


class PendingWrite(msgspec.Struct, frozen=True, gc=False):
    """A write of this device that the server has not confirmed: an encoded change and the documents it touches.

    Tokens grow in the order of writing and are never used twice. `counter` is that of the envelope which carries the
    write, or `UNSEALED`.
    """

    token: int
    payload: bytes
    keys: tuple[DocumentKey, ...]
    counter: Counter = UNSEALED


class RefusedWrite(msgspec.Struct, frozen=True, gc=False):
    """A write that the server refused for good, kept until the application has dealt with it."""

    token: int
    payload: bytes
    keys: tuple[DocumentKey, ...]
    code: str
    detail: str


class OwnEnvelope(msgspec.Struct, frozen=True, gc=False):
    """An envelope of this device, with the exact bytes that are or were sent.

    `seq` is 0 while it is frozen in the outbox; afterwards the envelope is kept to heal a restored server.
    """

    counter: Counter
    id: EnvelopeId
    kind: int
    data: bytes
    confirmed_ms: int = 0
    seq: Seq = Seq(0)


class QuarantinedEnvelope(msgspec.Struct, frozen=True, gc=False):
    """A delivered envelope that could not be merged, and the code of the reason."""

    seq: Seq
    received_ms: int
    data: bytes
    reason: str


class ReplicaStore(ABC):
    """One space's durable state on this device.

    Every change happens inside `transaction()`; reads inside one see its own changes. Reads are allowed outside.

    Raises:
        StoreError: the disk or the store refused; the transaction left nothing behind.
        StoreDamagedError: the file is not what this device wrote.
    """

    @abstractmethod
    def transaction(self, durable: bool) -> AbstractContextManager[None]:
        """Open a transaction: all of it happens, or, when the block raises, nothing.

        With `durable` it has reached the disk when the block ends; without, a power cut may take back this and
        later transactions together, never one without the others. Transactions do not nest.
        """

    @abstractmethod
    def close(self) -> None:
        """Release the file; the store must not be used afterwards."""

    # Small named values: cursor, clock, own chain head.

    @abstractmethod
    def get_meta(self, name: str) -> bytes | None:
        """Return a named value, or None."""

    @abstractmethod
    def put_meta(self, name: str, value: bytes) -> None:
        """Set a named value."""

    # Documents.

    @abstractmethod
    def get_document(self, collection: str, id: str) -> StoredDocument | None:
        """Return a document, also a deleted one, or None."""

    @abstractmethod
    def get_documents(self, keys: Iterable[DocumentKey]) -> dict[DocumentKey, StoredDocument]:
        """Return those of the documents that exist."""

    @abstractmethod
    def documents_after(self, key: DocumentKey, count: int) -> list[StoredDocument]:
        """Return the first `count` documents above a key by (collection, id), deleted ones too."""

    @abstractmethod
    def put_documents(self, documents: Sequence[StoredDocument]) -> None:
        """Insert or replace documents, and everything that queries and searches need of their values."""

    @abstractmethod
    def oldest_documents(self, bytes_max: int) -> list[StoredDocument]:
        """Return confirmed documents by (base_seq, collection, id): at least one if any, about `bytes_max` of state."""

    @abstractmethod
    def lowest_base_seq(self) -> Seq | None:
        """Return the lowest base_seq of all documents with confirmed state, or None where there is none."""

    @abstractmethod
    def live_bytes(self) -> int:
        """Return the bytes of all confirmed states with their collections and ids. Must be quick: not counted anew."""

    @abstractmethod
    def mark_lost_above(self, seq: Seq) -> int:
        """Forget seqs above `seq`; return how many documents are lost now.

        Every document with `last_seq > seq` becomes `lost`, with `last_seq = seq` and `base_seq` at most `seq + 1`.
        """

    @abstractmethod
    def lost_documents(self, bytes_max: int) -> list[StoredDocument]:
        """Return lost documents by (collection, id): at least one if there is any, about `bytes_max` of state."""

    @abstractmethod
    def clear_lost(self) -> None:
        """Declare that no document is lost."""

    @abstractmethod
    def query(self, query: Query) -> list[tuple[str, dict[str, Any]]]:
        """Return the ids and shown values that a query (search, order, start and limit included) asks for, in order."""

    @abstractmethod
    def count(self, query: Query) -> int:
        """Return how many documents `query` would return."""

    # Outbox: writes wait unsealed, then in frozen envelopes; a confirmed envelope is kept for healing.

    @abstractmethod
    def add_write(self, payload: bytes, keys: Sequence[DocumentKey], counter: Counter = UNSEALED) -> int:
        """Append a write to the outbox and return its token (growing, never reused).

        With `counter` it is carried by the envelope that is frozen next, in the same transaction.
        """

    @abstractmethod
    def pending_ids(self, collection: str) -> set[str]:
        """Return the documents of a collection that pending writes touch."""

    @abstractmethod
    def put_write(self, token: int, payload: bytes) -> None:
        """Replace the payload of an unsealed write (its stamps were clamped)."""

    @abstractmethod
    def unsealed_count(self) -> int:
        """Return the number of unsealed writes. Must be quick."""

    @abstractmethod
    def unsealed_writes(self, bytes_max: int) -> list[PendingWrite]:
        """Return the first unsealed writes in order: at least one if there is any, about `bytes_max` of payload."""

    @abstractmethod
    def writes_of(self, counter: Counter) -> list[PendingWrite]:
        """Return the writes that an own envelope carries, in order (empty after its confirmation)."""

    @abstractmethod
    def writes_touching(self, key: DocumentKey) -> list[PendingWrite]:
        """Return every pending write that touches a document, in order of writing."""

    @abstractmethod
    def pending_count(self) -> int:
        """Return the number of writes in the outbox. Must be quick."""

    @abstractmethod
    def freeze(self, envelope: OwnEnvelope, tokens: Sequence[int]) -> None:
        """Put an envelope into the outbox; it now carries the named writes (none, for a snapshot)."""

    @abstractmethod
    def frozen_envelopes(self, after: Counter, bytes_max: int) -> list[OwnEnvelope]:
        """Return frozen envelopes above a counter by counter: at least one if there is any, about `bytes_max`."""

    @abstractmethod
    def frozen_count(self) -> int:
        """Return the number of frozen envelopes. Must be quick."""

    @abstractmethod
    def confirm(self, counter: Counter, seq: Seq, now_ms: int) -> list[PendingWrite]:
        """The server has this frozen envelope: keep it for healing, and remove its writes from the outbox.

        Returns:
            the writes it carried, in order (empty when it was not frozen any more).
        """

    @abstractmethod
    def thaw(self, from_counter: Counter) -> int:
        """Drop the frozen envelopes from a counter on; their writes are unsealed again. Return how many."""

    @abstractmethod
    def refuse(self, tokens: Sequence[int], code: str, detail: str) -> None:
        """Move writes from the outbox to the list of refused ones."""

    @abstractmethod
    def refused_writes(self) -> list[RefusedWrite]:
        """Return what was refused, in order of writing."""

    @abstractmethod
    def forget_refused(self, tokens: Sequence[int]) -> None:
        """Drop refused writes that the application has dealt with."""

    # Own envelopes that the server has, kept so that a server restored to an older state can be healed.

    @abstractmethod
    def own_envelope(self, counter: Counter) -> OwnEnvelope | None:
        """Return an own envelope, frozen or kept, or None."""

    @abstractmethod
    def kept_envelopes(self, after: Counter, bytes_max: int) -> list[OwnEnvelope]:
        """Return kept envelopes above a counter by counter: at least one if there is any, about `bytes_max` in all."""

    @abstractmethod
    def refreeze(self, after: Counter) -> int:
        """Make the kept envelopes above a counter frozen again (`seq` 0), carrying no writes: the server lost them.

        Returns:
            how many there were.
        """

    @abstractmethod
    def forget_kept(self, upto_seq: Seq, confirmed_before_ms: int) -> int:
        """Drop kept envelopes that are both at or below a seq and confirmed before a time; return how many."""

    # Chains and quarantine. A chain's bytes are the affair of twinlock.sealing.reader.

    @abstractmethod
    def chains(self) -> dict[DeviceId, bytes]:
        """Return the state of every device's chain."""

    @abstractmethod
    def put_chains(self, chains: Mapping[DeviceId, bytes]) -> None:
        """Insert or replace the state of some devices' chains."""

    @abstractmethod
    def quarantine(self, envelopes: Sequence[QuarantinedEnvelope]) -> None:
        """Insert or replace quarantined envelopes, by seq."""

    @abstractmethod
    def quarantined(self) -> list[QuarantinedEnvelope]:
        """Return everything in quarantine, by seq."""

    @abstractmethod
    def release(self, seqs: Sequence[Seq]) -> None:
        """Remove envelopes from quarantine."""
