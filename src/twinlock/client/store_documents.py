"""The documents of a replica file, and what healing and compaction ask about them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from twinlock.client.store_file import Row, StoreFile, within_bytes
from twinlock.client.store_index import IndexTables
from twinlock.ids import Seq
from twinlock.replica.store import DocumentKey, StoredDocument

SCHEMA = """
CREATE TABLE IF NOT EXISTS documents(
    doc INTEGER PRIMARY KEY, collection TEXT NOT NULL, id TEXT NOT NULL,
    base_seq INTEGER NOT NULL, last_seq INTEGER NOT NULL, pending INTEGER NOT NULL, is_lost INTEGER NOT NULL,
    value BLOB, overlay BLOB NOT NULL, confirmed BLOB NOT NULL);
CREATE UNIQUE INDEX IF NOT EXISTS documents_by_id ON documents(collection, id);
CREATE INDEX IF NOT EXISTS documents_by_base ON documents(base_seq, collection, id) WHERE confirmed != x'';
CREATE INDEX IF NOT EXISTS lost_documents ON documents(collection, id) WHERE is_lost;
"""
_COLUMNS = "collection, id, confirmed, overlay, value, base_seq, last_seq, pending, is_lost"
_CONFIRMED = 2
RECENT_MAX = 512
RECENT_BYTES_MAX = 8 << 10
"""What was just read or written is soon looked at again: so many documents are kept in memory, the small ones."""


class DocumentTables:
    """Every document of the space, with the sum of their states kept beside them."""

    __slots__ = ("_file", "_indexes", "_recent", "_shown_counts", "live_bytes")

    def __init__(self, file: StoreFile, indexes: IndexTables) -> None:
        self._file = file
        self._indexes = indexes
        self._recent: dict[DocumentKey, tuple[int, StoredDocument] | None] = {}
        self._shown_counts: dict[str, int] = {}
        self.live_bytes = 0
        self.recount()

    def recount(self) -> None:
        """Sum up again, after opening or after a transaction that was taken back."""
        names = "length(CAST(collection AS BLOB)) + length(CAST(id AS BLOB))"
        total = f"SELECT coalesce(sum(length(confirmed) + {names}), 0) FROM documents WHERE length(confirmed) > 0"  # noqa: S608
        (live_bytes,) = self._file.rows(total)[0]
        self.take_back(live_bytes)

    def take_back(self, live_bytes: int) -> None:
        """Go on from an earlier sum, after a part of a transaction was taken back."""
        self.live_bytes = live_bytes
        self._recent.clear()
        self._shown_counts.clear()

    def shown_count(self, collection: str) -> int:
        """Return how many documents of a collection show a value; counted once, then kept up."""
        if collection not in self._shown_counts:
            counted = "SELECT count(*) FROM documents WHERE collection = ? AND value IS NOT NULL"
            (self._shown_counts[collection],) = self._file.rows(counted, (collection,))[0]
        return self._shown_counts[collection]

    def get_document(self, collection: str, id: str) -> StoredDocument | None:
        """Return one document."""
        found = self._find((collection, id))
        return None if found is None else found[1]

    def _find(self, key: DocumentKey) -> tuple[int, StoredDocument] | None:
        """Return a document and its row."""
        if key in self._recent:
            return self._recent[key]
        row = self._file.row(f"SELECT {_COLUMNS}, doc FROM documents WHERE collection = ? AND id = ?", key)  # noqa: S608
        return self._note(key, None if row is None else (row[-1], _document(row[:-1])))

    def _note(self, key: DocumentKey, found: tuple[int, StoredDocument] | None) -> tuple[int, StoredDocument] | None:
        self._recent.pop(key, None)
        if found is None or len(found[1].confirmed) + len(found[1].overlay) <= RECENT_BYTES_MAX:
            if len(self._recent) >= RECENT_MAX:
                del self._recent[next(iter(self._recent))]
            self._recent[key] = found
        return found

    def get_documents(self, keys: Iterable[DocumentKey]) -> dict[DocumentKey, StoredDocument]:
        """Return those that exist."""
        found = (self.get_document(*key) for key in keys)
        return {document.key: document for document in found if document is not None}

    def documents_after(self, key: DocumentKey, count: int) -> list[StoredDocument]:
        """Return the first documents above a key."""
        rows = self._file.rows(
            f"SELECT {_COLUMNS} FROM documents WHERE (collection, id) > (?, ?) ORDER BY collection, id LIMIT ?",  # noqa: S608
            (*key, count),
        )
        return [_document(row) for row in rows]

    def put_documents(self, documents: Sequence[StoredDocument]) -> None:
        """Insert or replace documents together with their rows in every index of their collection."""
        for document in documents:
            self._indexes.put(self._put(document), document.collection, document.id, document.value)

    def oldest_documents(self, bytes_max: int) -> list[StoredDocument]:
        """Return confirmed documents by growing base_seq."""
        rows = self._file.each(
            f"SELECT {_COLUMNS} FROM documents WHERE confirmed != x'' ORDER BY base_seq, collection, id"  # noqa: S608
        )
        return [_document(row) for row in within_bytes(rows, bytes_max, _CONFIRMED)]

    def lowest_base_seq(self) -> Seq | None:
        """Return the lowest base_seq of confirmed documents."""
        row = self._file.row("SELECT base_seq FROM documents WHERE confirmed != x'' ORDER BY base_seq LIMIT 1")
        return None if row is None else Seq(row[0])

    def mark_lost_above(self, seq: Seq) -> int:
        """Mark what changed above a seq as lost; return how many documents became so."""
        self._file.run(
            "UPDATE documents SET is_lost = 1, last_seq = ?1, base_seq = min(base_seq, ?1 + 1) WHERE last_seq > ?1",
            (seq,),
        )
        self._recent.clear()
        return self._file.changed_rows()

    def lost_documents(self, bytes_max: int) -> list[StoredDocument]:
        """Return lost documents by key."""
        rows = self._file.each(f"SELECT {_COLUMNS} FROM documents WHERE is_lost ORDER BY collection, id")  # noqa: S608
        return [_document(row) for row in within_bytes(rows, bytes_max, _CONFIRMED)]

    def clear_lost(self) -> None:
        """Declare that none is lost."""
        self._file.run("UPDATE documents SET is_lost = 0 WHERE is_lost")
        self._recent.clear()

    def _put(self, document: StoredDocument) -> int:
        state = (
            document.base_seq,
            document.last_seq,
            document.pending,
            document.lost,
            document.value,
            document.overlay,
            document.confirmed,
        )
        known = self._find(document.key)
        if known is None:
            self._file.run(
                "INSERT INTO documents(collection, id, base_seq, last_seq, pending, is_lost, value, overlay, confirmed)"
                " VALUES(?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (*document.key, *state),
            )
            doc = self._file.inserted_row()
        else:
            doc = known[0]
            self.live_bytes -= _live_bytes(known[1])
            self._file.run(
                "UPDATE documents SET base_seq = ?, last_seq = ?, pending = ?, is_lost = ?, value = ?, overlay = ?,"
                " confirmed = ? WHERE doc = ?",
                (*state, doc),
            )
        self.live_bytes += _live_bytes(document)
        if document.collection in self._shown_counts:
            was_shown = known is not None and known[1].value is not None
            self._shown_counts[document.collection] += (document.value is not None) - was_shown
        self._note(document.key, (doc, document))
        return doc


def _document(row: Row) -> StoredDocument:
    collection, identifier, confirmed, overlay, value, base_seq, last_seq, pending, is_lost = row
    return StoredDocument(
        collection, identifier, confirmed, overlay, value, Seq(base_seq), Seq(last_seq), pending, bool(is_lost)
    )


def _live_bytes(document: StoredDocument) -> int:
    """Return what a document's confirmed state weighs in a snapshot."""
    state_bytes = len(document.confirmed)
    return state_bytes and state_bytes + len(document.collection.encode()) + len(document.id.encode())
