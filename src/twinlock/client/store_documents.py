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


class DocumentTables:
    """Every document of the space, with the sum of their states kept beside them."""

    __slots__ = ("_file", "_indexes", "live_bytes")

    def __init__(self, file: StoreFile, indexes: IndexTables) -> None:
        self._file = file
        self._indexes = indexes
        self.live_bytes = 0
        self.recount()

    def recount(self) -> None:
        """Sum up again, after opening or after a transaction that was taken back."""
        names = "length(CAST(collection AS BLOB)) + length(CAST(id AS BLOB))"
        total = f"SELECT coalesce(sum(length(confirmed) + {names}), 0) FROM documents WHERE length(confirmed) > 0"  # noqa: S608
        (self.live_bytes,) = self._file.rows(total)[0]

    def get_document(self, collection: str, id: str) -> StoredDocument | None:
        """Return one document."""
        row = self._file.row(f"SELECT {_COLUMNS} FROM documents WHERE collection = ? AND id = ?", (collection, id))  # noqa: S608
        return None if row is None else _document(row)

    def get_documents(self, keys: Iterable[DocumentKey]) -> dict[DocumentKey, StoredDocument]:
        """Return those that exist."""
        found = (self.get_document(*key) for key in keys)
        return {document.key: document for document in found if document is not None}

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
        return self._file.changed_rows()

    def lost_documents(self, bytes_max: int) -> list[StoredDocument]:
        """Return lost documents by key."""
        rows = self._file.each(f"SELECT {_COLUMNS} FROM documents WHERE is_lost ORDER BY collection, id")  # noqa: S608
        return [_document(row) for row in within_bytes(rows, bytes_max, _CONFIRMED)]

    def clear_lost(self) -> None:
        """Declare that none is lost."""
        self._file.run("UPDATE documents SET is_lost = 0 WHERE is_lost")

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
        self.live_bytes += _live_bytes(document, len(document.confirmed))
        row = self._file.row(
            "SELECT doc, length(confirmed) FROM documents WHERE collection = ? AND id = ?", document.key
        )
        if row is None:
            self._file.run(
                "INSERT INTO documents(collection, id, base_seq, last_seq, pending, is_lost, value, overlay, confirmed)"
                " VALUES(?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (*document.key, *state),
            )
            return self._file.inserted_row()
        doc, old_bytes = row
        self.live_bytes -= _live_bytes(document, old_bytes)
        self._file.run(
            "UPDATE documents SET base_seq = ?, last_seq = ?, pending = ?, is_lost = ?, value = ?, overlay = ?,"
            " confirmed = ? WHERE doc = ?",
            (*state, doc),
        )
        return int(doc)


def _document(row: Row) -> StoredDocument:
    collection, identifier, confirmed, overlay, value, base_seq, last_seq, pending, is_lost = row
    return StoredDocument(
        collection, identifier, confirmed, overlay, value, Seq(base_seq), Seq(last_seq), pending, bool(is_lost)
    )


def _live_bytes(document: StoredDocument, state_bytes: int) -> int:
    """Return what a document with a confirmed state of some length weighs in a snapshot."""
    return state_bytes and state_bytes + len(document.collection.encode()) + len(document.id.encode())
