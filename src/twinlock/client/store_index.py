"""Index tables of a replica file: made and filled at the first query that needs them, then kept up by every write."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import msgspec

from twinlock.client.index_plan import Column, IndexShape, Plan, direction, field_of, plan_query
from twinlock.client.store_file import StoreFile
from twinlock.document.ordering import order_key
from twinlock.document.query import Query
from twinlock.document.search import text_of, words_of
from twinlock.document.values import Value
from twinlock.errors import StoreDamagedError
from twinlock.replica.store import decode_value

INDEXES_MAX = 16
"""Indexes of one collection; beyond them the one that was used longest ago is dropped."""

SCHEMA = """
CREATE TABLE IF NOT EXISTS indexes(
    number INTEGER PRIMARY KEY AUTOINCREMENT, kind TEXT NOT NULL, shape BLOB NOT NULL, collection TEXT NOT NULL);
"""
_FIELDS, _ELEMENTS, _WORDS = "fields", "elements", "words"
_KINDS = {_FIELDS: "ix", _ELEMENTS: "el", _WORDS: "ft"}
_encoder = msgspec.msgpack.Encoder()


class Index:
    """One index table."""

    __slots__ = ("kind", "number", "shape", "table")

    def __init__(self, number: int, kind: str, shape: IndexShape) -> None:
        self.number = number
        self.kind = kind
        self.shape = shape
        self.table = f"{_KINDS[kind]}_{number}"

    @property
    def key(self) -> tuple[str, IndexShape]:
        """What tells this index from others."""
        return (self.kind, self.shape)


class IndexTables:
    """Every index of the file, and the queries that they answer."""

    __slots__ = ("_by_collection", "_file")

    def __init__(self, file: StoreFile) -> None:
        self._file = file
        self._by_collection: dict[str, dict[tuple[str, IndexShape], Index]] = {}
        self.reload()

    def reload(self) -> None:
        """Read again which indexes there are, after opening or after a transaction that was taken back."""
        self._by_collection = {}
        for number, kind, shape in self._file.rows("SELECT number, kind, shape FROM indexes ORDER BY number"):
            try:
                index = Index(number, kind, msgspec.msgpack.decode(shape, type=IndexShape))
            except (msgspec.DecodeError, KeyError) as exc:
                raise StoreDamagedError("an index of the replica file") from exc
            self._by_collection.setdefault(index.shape.collection, {})[index.key] = index

    def put(self, doc: int, collection: str, id: str, value: bytes | None) -> None:
        """Bring a document's rows in every index of its collection up to its value."""
        indexes = self._by_collection.get(collection)
        if indexes:
            decoded = None if value is None else decode_value(value)
            for index in indexes.values():
                self._put(index, doc, id, decoded)

    def query(self, query: Query) -> list[tuple[str, dict[str, Any]]]:
        """Return ids and values in the query's order."""
        plan = plan_query(query)
        if not plan.conditions and not query.order:
            return self._listing(query)
        limit = "" if query.limit_count is None else f" LIMIT {query.limit_count:d}"
        chosen = self._select("doc", plan) + f" ORDER BY {plan.order}{limit}"
        found = []
        for (doc,) in self._file.rows(chosen, plan.parameters):
            row = self._file.row("SELECT id, value FROM documents WHERE doc = ?", (doc,))
            assert row is not None
            found.append((row[0], decode_value(row[1])))
        return found

    def count(self, query: Query) -> int:
        """Return how many documents match a query with a condition, whatever the start and the limit."""
        plan = plan_query(query, counts=True)
        (count,) = self._file.rows(self._select("count(*)", plan), plan.parameters)[0]
        return int(count)

    def _listing(self, query: Query) -> list[tuple[str, dict[str, Any]]]:
        limit = -1 if query.limit_count is None else query.limit_count
        rows = self._file.rows(
            "SELECT id, value FROM documents WHERE collection = ? AND value IS NOT NULL ORDER BY id LIMIT ?",
            (query.collection, limit),
        )
        return [(id, decode_value(value)) for id, value in rows]

    def _select(self, what: str, plan: Plan) -> str:
        table = self._index(_FIELDS, plan.shape).table
        names = {f"elements:{at}": self._elements(plan, path) for at, path in enumerate(plan.elements)}
        if plan.words:
            names["words"] = self._index(_WORDS, IndexShape(plan.shape.collection, ())).table
        where = " AND ".join(plan.conditions) or "1"
        for name, found in names.items():
            where = where.replace(f"{{{name}}}", found)
        # Table and column names are made here; values travel as parameters.
        return f"SELECT {what} FROM {table} WHERE {where}"  # noqa: S608

    def _elements(self, plan: Plan, path: str) -> str:
        return self._index(_ELEMENTS, IndexShape(plan.shape.collection, (Column(path),))).table

    def _index(self, kind: str, shape: IndexShape) -> Index:
        indexes = self._by_collection.setdefault(shape.collection, {})
        index = indexes.pop((kind, shape), None)
        if index is None:
            with self._own_transaction():
                index = self._make(kind, shape)
                if len(indexes) >= INDEXES_MAX:
                    self._drop(indexes.pop(next(iter(indexes))))
        # The one used last stands last.
        indexes[index.key] = index
        return index

    def _make(self, kind: str, shape: IndexShape) -> Index:
        self._file.run(
            "INSERT INTO indexes(kind, shape, collection) VALUES(?, ?, ?)",
            (kind, _encoder.encode(shape), shape.collection),
        )
        index = Index(self._file.inserted_row(), kind, shape)
        for statement in _definition(index):
            self._file.run(statement)
        sql = "SELECT doc, id, value FROM documents WHERE collection = ? AND value IS NOT NULL"
        for doc, id, value in self._file.rows(sql, (shape.collection,)):
            self._insert(index, doc, id, decode_value(value))
        return index

    def _drop(self, index: Index) -> None:
        self._file.run("DELETE FROM indexes WHERE number = ?", (index.number,))
        self._file.run(f"DROP TABLE {index.table}")

    def _put(self, index: Index, doc: int, id: str, value: dict[str, Value] | None) -> None:
        column = "rowid" if index.kind == _WORDS else "doc"
        self._file.run(f"DELETE FROM {index.table} WHERE {column} = ?", (doc,))  # noqa: S608
        if value is not None:
            self._insert(index, doc, id, value)

    def _insert(self, index: Index, doc: int, id: str, value: dict[str, Value]) -> None:
        match index.kind:
            case "fields":
                row = index.shape.row(value)
                if row is not None:
                    self._file.run(f"INSERT INTO {index.table} VALUES({_marks(2 + len(row))})", (doc, id, *row))
            case "elements":
                found = field_of(value, index.shape.columns[0].path)
                keys = {order_key(item) for item in found} if isinstance(found, list) else set()
                self._file.run_many(f"INSERT INTO {index.table} VALUES(?, ?)", [(key, doc) for key in keys])
            case "words":
                words = " ".join(words_of(text_of(value)))
                self._file.run(f"INSERT INTO {index.table}(rowid, words) VALUES(?, ?)", (doc, words))

    @contextmanager
    def _own_transaction(self) -> Iterator[None]:
        opened = self._file.savepoint() if self._file.in_transaction else self._file.transaction(durable=False)
        try:
            with opened:
                yield
        except BaseException:
            self.reload()
            raise


def _definition(index: Index) -> list[str]:
    match index.kind:
        case "fields":
            names = [f"k{number}" for number in range(len(index.shape.columns))]
            declared = "".join(f", {name} BLOB NOT NULL" for name in names)
            sorted_by = [
                f"{name} {direction(column.descending)}"
                for name, column in zip(names, index.shape.columns, strict=True)
            ]
            sorted_by.insert(index.shape.id_at, f"id {direction(index.shape.id_descending)}")
            return [
                f"CREATE TABLE {index.table}(doc INTEGER PRIMARY KEY, id TEXT NOT NULL{declared})",
                f"CREATE INDEX {index.table}_sorted ON {index.table}({', '.join(sorted_by)})",
            ]
        case "elements":
            return [
                f"CREATE TABLE {index.table}(key BLOB, doc INTEGER, PRIMARY KEY(key, doc)) WITHOUT ROWID",
                f"CREATE INDEX {index.table}_docs ON {index.table}(doc)",
            ]
    # Words come in their normal form; this tokenizer leaves everything beyond ASCII as it is.
    return [
        f"CREATE VIRTUAL TABLE {index.table} USING fts5("
        "words, content='', contentless_delete=1, tokenize='ascii', detail='none', prefix='2 3')"
    ]


def _marks(count: int) -> str:
    return ", ".join("?" * count)
