"""A replica store in memory that can crash: the reference for stores, and the disk of the simulator's devices."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import msgspec

from twinlock.document.query import Query
from twinlock.ids import Counter, DeviceId, Seq
from twinlock.replica.store import (
    UNSEALED,
    DocumentKey,
    OwnEnvelope,
    PendingWrite,
    QuarantinedEnvelope,
    RefusedWrite,
    ReplicaStore,
    StoredDocument,
    decode_value,
)

_ABSENT: Any = ...
_Item = TypeVar("_Item")


class MemoryStore(ReplicaStore):
    """Everything in dictionaries, with a journal of what the last durable transaction does not cover yet."""

    __slots__ = (
        "_chains",
        "_documents",
        "_journal",
        "_meta",
        "_numbers",
        "_open",
        "_own",
        "_quarantine",
        "_refused",
        "_writes",
    )

    def __init__(self) -> None:
        self._meta: dict[str, bytes] = {}
        self._documents: dict[DocumentKey, StoredDocument] = {}
        self._writes: dict[int, PendingWrite] = {}
        self._own: dict[Counter, OwnEnvelope] = {}
        self._refused: dict[int, RefusedWrite] = {}
        self._chains: dict[DeviceId, bytes] = {}
        self._quarantine: dict[Seq, QuarantinedEnvelope] = {}
        self._numbers: dict[str, int] = {"token": 0, "live_bytes": 0, "frozen": 0}
        self._journal: list[tuple[dict[Any, Any], Any, Any]] = []
        self._open = False

    # Transactions

    @contextmanager
    def transaction(self, durable: bool) -> Iterator[None]:
        """See `ReplicaStore`."""
        assert not self._open, "transactions do not nest"
        mark = len(self._journal)
        self._open = True
        try:
            yield
        except BaseException:
            self._undo(mark)
            raise
        finally:
            self._open = False
        if durable:
            self._journal.clear()

    def crash(self) -> None:
        """Take back everything since the last durable transaction, as a power cut may."""
        assert not self._open
        self._undo(0)

    def close(self) -> None:
        """Keep everything: the simulator opens the same store again."""

    def _put(self, table: dict[Any, Any], key: Any, value: Any) -> None:
        assert self._open, "changes happen in transactions only"
        self._journal.append((table, key, table.get(key, _ABSENT)))
        if value is _ABSENT:
            del table[key]
        else:
            table[key] = value

    def _undo(self, mark: int) -> None:
        while len(self._journal) > mark:
            table, key, before = self._journal.pop()
            if before is _ABSENT:
                table.pop(key, None)
            else:
                table[key] = before

    def _add(self, name: str, amount: int) -> int:
        self._put(self._numbers, name, self._numbers[name] + amount)
        return self._numbers[name]

    # Meta

    def get_meta(self, name: str) -> bytes | None:
        """See `ReplicaStore`."""
        return self._meta.get(name)

    def put_meta(self, name: str, value: bytes) -> None:
        """See `ReplicaStore`."""
        self._put(self._meta, name, value)

    # Documents

    def get_document(self, collection: str, id: str) -> StoredDocument | None:
        """See `ReplicaStore`."""
        return self._documents.get((collection, id))

    def get_documents(self, keys: Iterable[DocumentKey]) -> dict[DocumentKey, StoredDocument]:
        """See `ReplicaStore`."""
        return {key: self._documents[key] for key in keys if key in self._documents}

    def documents_after(self, key: DocumentKey, count: int) -> list[StoredDocument]:
        """See `ReplicaStore`."""
        return [document for document in self.documents() if document.key > key][:count]

    def put_documents(self, documents: Sequence[StoredDocument]) -> None:
        """See `ReplicaStore`."""
        grown = 0
        for document in documents:
            before = self._documents.get(document.key)
            grown += _live_bytes(document) - (_live_bytes(before) if before is not None else 0)
            self._put(self._documents, document.key, document)
        self._add("live_bytes", grown)

    def documents(self) -> list[StoredDocument]:
        """Return every document by key, for tests."""
        return [self._documents[key] for key in sorted(self._documents)]

    def oldest_documents(self, bytes_max: int) -> list[StoredDocument]:
        """See `ReplicaStore`."""
        confirmed = (document for document in self._documents.values() if document.confirmed)
        oldest = sorted(confirmed, key=lambda document: (document.base_seq, document.key))
        return _first(oldest, bytes_max, lambda document: len(document.confirmed))

    def lowest_base_seq(self) -> Seq | None:
        """See `ReplicaStore`."""
        return min((document.base_seq for document in self._documents.values() if document.confirmed), default=None)

    def live_bytes(self) -> int:
        """See `ReplicaStore`."""
        return self._numbers["live_bytes"]

    def mark_lost_above(self, seq: Seq) -> int:
        """See `ReplicaStore`."""
        lost = [document for document in self._documents.values() if document.last_seq > seq]
        for document in lost:
            base_seq = min(document.base_seq, Seq(seq + 1))
            changed = msgspec.structs.replace(document, lost=True, last_seq=seq, base_seq=base_seq)
            self._put(self._documents, document.key, changed)
        return len(lost)

    def lost_documents(self, bytes_max: int) -> list[StoredDocument]:
        """See `ReplicaStore`."""
        lost = sorted((document for document in self._documents.values() if document.lost), key=lambda d: d.key)
        return _first(lost, bytes_max, lambda document: len(document.confirmed))

    def clear_lost(self) -> None:
        """See `ReplicaStore`."""
        for document in [document for document in self._documents.values() if document.lost]:
            self._put(self._documents, document.key, msgspec.structs.replace(document, lost=False))

    # Outbox

    def add_write(self, payload: bytes, keys: Sequence[DocumentKey], counter: Counter = UNSEALED) -> int:
        """See `ReplicaStore`."""
        token = self._add("token", 1)
        self._put(self._writes, token, PendingWrite(token, payload, tuple(keys), counter))
        return token

    def pending_ids(self, collection: str) -> set[str]:
        """See `ReplicaStore`."""
        return {name for write in self._writes.values() for place, name in write.keys if place == collection}

    def unsealed_count(self) -> int:
        """See `ReplicaStore`."""
        return sum(write.counter == UNSEALED for write in self._writes.values())

    def put_write(self, token: int, payload: bytes) -> None:
        """See `ReplicaStore`."""
        self._put(self._writes, token, msgspec.structs.replace(self._writes[token], payload=payload))

    def unsealed_writes(self, bytes_max: int) -> list[PendingWrite]:
        """See `ReplicaStore`."""
        unsealed = (write for write in self._pending() if write.counter == UNSEALED)
        return _first(unsealed, bytes_max, lambda write: len(write.payload))

    def writes_of(self, counter: Counter) -> list[PendingWrite]:
        """See `ReplicaStore`."""
        return [write for write in self._pending() if write.counter == counter]

    def writes_touching(self, key: DocumentKey) -> list[PendingWrite]:
        """See `ReplicaStore`."""
        return [write for write in self._pending() if key in write.keys]

    def pending_count(self) -> int:
        """See `ReplicaStore`."""
        return len(self._writes)

    def freeze(self, envelope: OwnEnvelope, tokens: Sequence[int]) -> None:
        """See `ReplicaStore`."""
        assert envelope.seq == 0
        self._put(self._own, envelope.counter, envelope)
        self._add("frozen", 1)
        for token in tokens:
            self._put(self._writes, token, msgspec.structs.replace(self._writes[token], counter=envelope.counter))

    def frozen_envelopes(self, after: Counter, bytes_max: int) -> list[OwnEnvelope]:
        """See `ReplicaStore`."""
        frozen = [self._own[counter] for counter in sorted(self._own) if counter > after and not self._own[counter].seq]
        return _first(frozen, bytes_max, lambda envelope: len(envelope.data))

    def frozen_count(self) -> int:
        """See `ReplicaStore`."""
        return self._numbers["frozen"]

    def confirm(self, counter: Counter, seq: Seq, now_ms: int) -> list[PendingWrite]:
        """See `ReplicaStore`."""
        envelope = self._own.get(counter)
        if envelope is None or envelope.seq:
            return []
        self._put(self._own, counter, msgspec.structs.replace(envelope, seq=seq, confirmed_ms=now_ms))
        self._add("frozen", -1)
        writes = self.writes_of(counter)
        for write in writes:
            self._put(self._writes, write.token, _ABSENT)
        return writes

    def thaw(self, from_counter: Counter) -> int:
        """See `ReplicaStore`."""
        frozen = [counter for counter in sorted(self._own) if counter >= from_counter and not self._own[counter].seq]
        for write in [write for write in self._writes.values() if write.counter in frozen]:
            self._put(self._writes, write.token, msgspec.structs.replace(write, counter=UNSEALED))
        for counter in frozen:
            self._put(self._own, counter, _ABSENT)
        self._add("frozen", -len(frozen))
        return len(frozen)

    def refuse(self, tokens: Sequence[int], code: str, detail: str) -> None:
        """See `ReplicaStore`."""
        for token in tokens:
            write = self._writes[token]
            self._put(self._refused, token, RefusedWrite(token, write.payload, write.keys, code, detail))
            self._put(self._writes, token, _ABSENT)

    def refused_writes(self) -> list[RefusedWrite]:
        """See `ReplicaStore`."""
        return [self._refused[token] for token in sorted(self._refused)]

    def forget_refused(self, tokens: Sequence[int]) -> None:
        """See `ReplicaStore`."""
        for token in tokens:
            self._put(self._refused, token, _ABSENT)

    def _pending(self) -> list[PendingWrite]:
        return [self._writes[token] for token in sorted(self._writes)]

    # Own envelopes

    def own_envelope(self, counter: Counter) -> OwnEnvelope | None:
        """See `ReplicaStore`."""
        return self._own.get(counter)

    def kept_envelopes(self, after: Counter, bytes_max: int) -> list[OwnEnvelope]:
        """See `ReplicaStore`."""
        kept = [self._own[counter] for counter in sorted(self._own) if counter > after and self._own[counter].seq]
        return _first(kept, bytes_max, lambda envelope: len(envelope.data))

    def refreeze(self, after: Counter) -> int:
        """See `ReplicaStore`."""
        lost = [counter for counter, envelope in self._own.items() if counter > after and envelope.seq]
        for counter in lost:
            self._put(self._own, counter, msgspec.structs.replace(self._own[counter], seq=Seq(0)))
        self._add("frozen", len(lost))
        return len(lost)

    def forget_kept(self, upto_seq: Seq, confirmed_before_ms: int) -> int:
        """See `ReplicaStore`."""
        old = [
            envelope.counter
            for envelope in self._own.values()
            if 0 < envelope.seq <= upto_seq and envelope.confirmed_ms < confirmed_before_ms
        ]
        for counter in old:
            self._put(self._own, counter, _ABSENT)
        return len(old)

    # Chains and quarantine

    def chains(self) -> dict[DeviceId, bytes]:
        """See `ReplicaStore`."""
        return dict(self._chains)

    def put_chains(self, chains: Mapping[DeviceId, bytes]) -> None:
        """See `ReplicaStore`."""
        for device, chain in chains.items():
            self._put(self._chains, device, chain)

    def quarantine(self, envelopes: Sequence[QuarantinedEnvelope]) -> None:
        """See `ReplicaStore`."""
        for envelope in envelopes:
            self._put(self._quarantine, envelope.seq, envelope)

    def quarantined(self) -> list[QuarantinedEnvelope]:
        """See `ReplicaStore`."""
        return [self._quarantine[seq] for seq in sorted(self._quarantine)]

    def release(self, seqs: Sequence[Seq]) -> None:
        """See `ReplicaStore`."""
        for seq in seqs:
            if seq in self._quarantine:
                self._put(self._quarantine, seq, _ABSENT)

    # Queries

    def query(self, query: Query) -> list[tuple[str, dict[str, Any]]]:
        """See `ReplicaStore`."""
        return query.run(self._shown(query.collection))

    def count(self, query: Query) -> int:
        """See `ReplicaStore`."""
        return query.count(value for _, value in self._shown(query.collection))

    def _shown(self, collection: str) -> Iterator[tuple[str, dict[str, Any]]]:
        for document in self._documents.values():
            if document.collection == collection and document.value is not None:
                yield document.id, decode_value(document.value)


def _live_bytes(document: StoredDocument) -> int:
    if not document.confirmed:
        return 0
    return len(document.confirmed) + len(document.collection.encode()) + len(document.id.encode())


def _first(items: Iterable[_Item], bytes_max: int, weight: Callable[[_Item], int]) -> list[_Item]:
    """Return the first items: at least one if there is any, about `bytes_max` in all."""
    taken: list[_Item] = []
    room = bytes_max
    for item in items:
        room -= weight(item)
        if taken and room < 0:
            break
        taken.append(item)
    return taken
