"""A space's replica in one SQLite file, encrypted as a whole. See spec/sealing.md, section 9.

The file's key is random and wrapped by the local key, which takes the member key, the service key and the StoreKey:
what lies on the disk needs both keys, as everything else does.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from twinlock.client import store_chains, store_documents, store_index, store_outbox
from twinlock.client.store_chains import ChainTables
from twinlock.client.store_documents import DocumentTables
from twinlock.client.store_file import StoreFile
from twinlock.client.store_index import IndexTables
from twinlock.client.store_outbox import OutboxTables
from twinlock.document.query import Query
from twinlock.document.search import words_of
from twinlock.errors import StoreError, UpdateNeededError
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
)

FORMAT = b"1"
_SCHEMAS = (store_chains.SCHEMA, store_outbox.SCHEMA, store_documents.SCHEMA, store_index.SCHEMA)


class LocalStore(ReplicaStore):
    """The replica file, opened under its key."""

    __slots__ = ("_chains", "_documents", "_file", "_in_group", "_indexes", "_outbox")

    def __init__(self, file: StoreFile) -> None:
        self._file = file
        self._in_group = False
        with file.transaction(durable=True):
            for schema in _SCHEMAS:
                file.run(schema)
            self._chains = ChainTables(file)
            self._check_format()
        self._indexes = IndexTables(file)
        self._documents = DocumentTables(file, self._indexes)
        self._outbox = OutboxTables(file)

    @classmethod
    def open(cls, path: Path, key: bytes) -> LocalStore:
        """Open or make the file under a key of 32 bytes.

        Raises:
            StoreDamagedError: the key is not the file's, or the file was altered.
            UpdateNeededError: a newer version wrote it.
        """
        file = StoreFile.open(path, key)
        try:
            return cls(file)
        except BaseException:
            file.close()
            raise

    @contextmanager
    def transaction(self, durable: bool) -> Iterator[None]:
        """Open a transaction, or a part of the open group that is taken back by itself when its block raises."""
        opened = self._file.savepoint() if self._in_group else self._file.transaction(durable)
        before = self._documents.live_bytes, self._outbox.counts()
        try:
            with opened:
                yield
        except StoreError:
            # More than this part may be gone.
            self._recount()
            raise
        except BaseException:
            self._documents.take_back(before[0])
            self._outbox.take_back(before[1])
            self._chains.recount()
            self._indexes.reload()
            raise

    @contextmanager
    def group(self) -> Iterator[None]:
        """Let the transactions inside reach the disk together, when the block ends: one flush for all of them."""
        try:
            with self._file.transaction(durable=True):
                self._in_group = True
                try:
                    yield
                finally:
                    self._in_group = False
        except BaseException:
            self._recount()
            raise

    def flush(self) -> None:
        """Commit what transactions that need not be durable have left open; to be called soon after them.

        Raises:
            StoreError: the disk refused; what the replica holds in memory is ahead of it.
        """
        try:
            self._file.flush()
        except BaseException:
            self._recount()
            raise

    @property
    def is_flushed(self) -> bool:
        """Tell whether everything has been committed."""
        return not self._file.in_transaction

    def close(self) -> None:
        """Release the file."""
        self._file.close()

    def get_meta(self, name: str) -> bytes | None:
        """Return a named value."""
        return self._chains.get_meta(name)

    def put_meta(self, name: str, value: bytes) -> None:
        """Set a named value."""
        self._chains.put_meta(name, value)

    def get_document(self, collection: str, id: str) -> StoredDocument | None:
        """Return a document."""
        return self._documents.get_document(collection, id)

    def get_documents(self, keys: Iterable[DocumentKey]) -> dict[DocumentKey, StoredDocument]:
        """Return those of the documents that exist."""
        return self._documents.get_documents(keys)

    def documents_after(self, key: DocumentKey, count: int) -> list[StoredDocument]:
        """Return the documents above a key."""
        return self._documents.documents_after(key, count)

    def put_documents(self, documents: Sequence[StoredDocument]) -> None:
        """Insert or replace documents and their index rows."""
        self._documents.put_documents(documents)

    def oldest_documents(self, bytes_max: int) -> list[StoredDocument]:
        """Return confirmed documents by base_seq."""
        return self._documents.oldest_documents(bytes_max)

    def lowest_base_seq(self) -> Seq | None:
        """Return the lowest base_seq."""
        return self._documents.lowest_base_seq()

    def live_bytes(self) -> int:
        """Return the length of all confirmed states."""
        return self._documents.live_bytes

    def mark_lost_above(self, seq: Seq) -> int:
        """Forget seqs above `seq`."""
        return self._documents.mark_lost_above(seq)

    def lost_documents(self, bytes_max: int) -> list[StoredDocument]:
        """Return lost documents."""
        return self._documents.lost_documents(bytes_max)

    def clear_lost(self) -> None:
        """Declare that no document is lost."""
        self._documents.clear_lost()

    def query(self, query: Query) -> list[tuple[str, dict[str, Any]]]:
        """Answer a query by its index."""
        return self._indexes.query(query)

    def count(self, query: Query) -> int:
        """Count a query's documents by its index."""
        if not (query.filters or query.order or words_of(query.search_text)):
            return self._documents.shown_count(query.collection)
        return self._indexes.count(query)

    def pending_ids(self, collection: str) -> set[str]:
        """Return the documents that pending writes touch."""
        return self._outbox.pending_ids(collection)

    def add_write(self, payload: bytes, keys: Sequence[DocumentKey], counter: Counter = UNSEALED) -> int:
        """Append a write to the outbox."""
        return self._outbox.add_write(payload, keys, counter)

    def put_write(self, token: int, payload: bytes) -> None:
        """Replace a write's payload."""
        self._outbox.put_write(token, payload)

    def unsealed_count(self) -> int:
        """Return the number of unsealed writes."""
        return self._outbox.unsealed_count

    def unsealed_writes(self, bytes_max: int) -> list[PendingWrite]:
        """Return the first unsealed writes."""
        return self._outbox.unsealed_writes(bytes_max)

    def writes_of(self, counter: Counter) -> list[PendingWrite]:
        """Return an envelope's writes."""
        return self._outbox.writes_of(counter)

    def writes_touching(self, key: DocumentKey) -> list[PendingWrite]:
        """Return the pending writes of a document."""
        return self._outbox.writes_touching(key)

    def pending_count(self) -> int:
        """Return the number of writes in the outbox."""
        return self._outbox.pending_count

    def freeze(self, envelope: OwnEnvelope, tokens: Sequence[int]) -> None:
        """Put an envelope into the outbox."""
        self._outbox.freeze(envelope, tokens)

    def frozen_envelopes(self, after: Counter, bytes_max: int) -> list[OwnEnvelope]:
        """Return frozen envelopes."""
        return self._outbox.frozen_envelopes(after, bytes_max)

    def frozen_count(self) -> int:
        """Return the number of frozen envelopes."""
        return self._outbox.frozen_count

    def confirm(self, counter: Counter, seq: Seq, now_ms: int) -> list[PendingWrite]:
        """Note that the server has an envelope."""
        return self._outbox.confirm(counter, seq, now_ms)

    def thaw(self, from_counter: Counter) -> int:
        """Drop frozen envelopes; their writes are unsealed again."""
        return self._outbox.thaw(from_counter)

    def refuse(self, tokens: Sequence[int], code: str, detail: str) -> None:
        """Move writes to the refused ones."""
        self._outbox.refuse(tokens, code, detail)

    def refused_writes(self) -> list[RefusedWrite]:
        """Return what was refused."""
        return self._outbox.refused_writes()

    def forget_refused(self, tokens: Sequence[int]) -> None:
        """Drop refused writes."""
        self._outbox.forget_refused(tokens)

    def own_envelope(self, counter: Counter) -> OwnEnvelope | None:
        """Return an own envelope."""
        return self._outbox.own_envelope(counter)

    def kept_envelopes(self, after: Counter, bytes_max: int) -> list[OwnEnvelope]:
        """Return kept envelopes."""
        return self._outbox.kept_envelopes(after, bytes_max)

    def refreeze(self, after: Counter) -> int:
        """Make kept envelopes frozen again."""
        return self._outbox.refreeze(after)

    def forget_kept(self, upto_seq: Seq, confirmed_before_ms: int) -> int:
        """Drop kept envelopes."""
        return self._outbox.forget_kept(upto_seq, confirmed_before_ms)

    def chains(self) -> dict[DeviceId, bytes]:
        """Return every chain's state."""
        return self._chains.chains()

    def put_chains(self, chains: Mapping[DeviceId, bytes]) -> None:
        """Set the state of chains."""
        self._chains.put_chains(chains)

    def quarantine(self, envelopes: Sequence[QuarantinedEnvelope]) -> None:
        """Store quarantined envelopes."""
        self._chains.quarantine(envelopes)

    def quarantined(self) -> list[QuarantinedEnvelope]:
        """Return what is in quarantine."""
        return self._chains.quarantined()

    def release(self, seqs: Sequence[Seq]) -> None:
        """Remove envelopes from quarantine."""
        self._chains.release(seqs)

    def _check_format(self) -> None:
        found = self._chains.get_meta("format")
        if found is None:
            self._chains.put_meta("format", FORMAT)
        elif found != FORMAT:
            raise UpdateNeededError(f"a replica file of format {found.decode(errors='replace')}")

    def _recount(self) -> None:
        """Count again what is kept beside the tables, after a transaction was taken back."""
        self._chains.recount()
        self._indexes.reload()
        self._documents.recount()
        self._outbox.recount()
