"""Live queries: results kept up to date from the changed documents, not from the collection. See documents.md."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from enum import StrEnum
from typing import Any

import msgspec

from twinlock.document.query import Query
from twinlock.replica.documents import Shown
from twinlock.replica.rows import SortedRows
from twinlock.replica.store import ReplicaStore, decode_value


class ChangeKind(StrEnum):
    """What happened to a document of a result."""

    ADDED = "added"
    MODIFIED = "modified"
    REMOVED = "removed"


class DocumentChange(msgspec.Struct, frozen=True, gc=False):
    """One step from the result before to the result now; an index is -1 where the document is not there.

    Steps are to be taken in order: `old_index` counts in the list as the steps before have left it.
    """

    kind: ChangeKind
    id: str
    value: dict[str, Any]
    old_index: int
    new_index: int


class QuerySnapshot(msgspec.Struct, frozen=True):
    """The result of a live query at one moment. Values are shared between snapshots: do not change them.

    `from_cache` tells that the server is not connected or its head not reached, `syncing` that it is connected and
    the head is still being read, `pending` that writes to documents of the result are not yet on the server.
    """

    documents: Sequence[tuple[str, dict[str, Any]]]
    changes: Sequence[DocumentChange]
    from_cache: bool
    syncing: bool
    pending: bool


class LiveQuery:
    """The result of one query, kept up to date. Made by `Replica.live`; `close` it to stop."""

    __slots__ = ("_changes", "_flags", "_is_stale", "_keys", "_pending", "_rows", "_values", "is_open", "query")

    def __init__(self, query: Query) -> None:
        self.query = query
        self.is_open = True
        self._rows = SortedRows()
        self._keys: dict[str, bytes] = {}
        self._values: dict[str, dict[str, Any]] = {}
        self._pending: set[str] = set()
        self._changes: list[DocumentChange] = []
        self._flags: tuple[bool, bool, bool] | None = None
        self._is_stale = True

    def close(self) -> None:
        """Stop: no more snapshots come."""
        self.is_open = False

    def apply(self, shown: Iterable[Shown]) -> None:
        """Take in what a transaction changed."""
        if self._is_stale:
            return
        query = self.query
        limit = query.limit_count
        was_full = limit is not None and len(self._rows) >= limit
        for document in shown:
            collection, identifier = document.key
            if collection != query.collection:
                continue
            (self._pending.add if document.pending else self._pending.discard)(identifier)
            self._place(identifier, decode_value(document.value) if document.value is not None else None)
        # A full result that lost a document does not know which one follows: only the store does.
        self._is_stale = was_full and limit is not None and len(self._rows) < limit

    def _place(self, identifier: str, value: dict[str, Any] | None) -> None:
        query = self.query
        key = query.sort_key(identifier, value) if value is not None and query.matches(value) else None
        if key is not None and not query.is_after_start(key):
            key = None
        known = self._keys.get(identifier)
        if known is None and key is None:
            return
        if known is None:
            assert key is not None
            assert value is not None
            self._insert(key, identifier, value)
        elif key is None:
            self._remove(identifier)
        else:
            assert value is not None
            self._replace(known, key, identifier, value)

    def _insert(self, key: bytes, identifier: str, value: dict[str, Any]) -> None:
        limit = self.query.limit_count
        if limit is not None and len(self._rows) >= limit:
            if (key, identifier) > self._rows.last:
                return
            self._remove(self._rows.last[1])
        index = self._rows.insert((key, identifier, value))
        self._keys[identifier] = key
        self._values[identifier] = value
        self._changes.append(DocumentChange(ChangeKind.ADDED, identifier, value, -1, index))

    def _remove(self, identifier: str) -> None:
        index = self._rows.remove((self._keys.pop(identifier), identifier))
        value = self._values.pop(identifier)
        self._changes.append(DocumentChange(ChangeKind.REMOVED, identifier, value, index, -1))

    def _replace(self, known: bytes, key: bytes, identifier: str, value: dict[str, Any]) -> None:
        if value == self._values[identifier] and known == key:
            return
        limit = self.query.limit_count
        if limit is not None and len(self._rows) >= limit and (key, identifier) > self._rows.last:
            # It moved beyond the end: another document may come before it now.
            self._remove(identifier)
            return
        old_index = self._rows.remove((known, identifier))
        new_index = self._rows.insert((key, identifier, value))
        self._keys[identifier] = key
        self._values[identifier] = value
        self._changes.append(DocumentChange(ChangeKind.MODIFIED, identifier, value, old_index, new_index))

    def _fill(self, answer: Sequence[tuple[str, dict[str, Any]]]) -> None:
        """Take the first answer whole."""
        rows = [(self.query.sort_key(identifier, value), identifier, value) for identifier, value in answer]
        self._rows.fill(rows)
        self._keys = {identifier: key for key, identifier, _ in rows}
        self._values = dict(answer)
        self._changes += [
            DocumentChange(ChangeKind.ADDED, identifier, value, -1, index)
            for index, (identifier, value) in enumerate(answer)
        ]

    def refresh(self, store: ReplicaStore) -> None:
        """Ask the store anew where the result alone does not tell what belongs to it; note what differs."""
        if not self._is_stale:
            return
        self._is_stale = False
        answer = store.query(self.query)
        if not self._keys:
            self._fill(answer)
        else:
            wanted = {identifier for identifier, _ in answer}
            for identifier in [identifier for identifier in self._keys if identifier not in wanted]:
                self._remove(identifier)
            for identifier, value in answer:
                self._place(identifier, value)
        self._pending = store.pending_ids(self.query.collection)

    def take(self, from_cache: bool, syncing: bool) -> QuerySnapshot | None:
        """Return a snapshot if the result or a flag has changed since the last one."""
        pending = not self._keys.keys().isdisjoint(self._pending)
        flags = (from_cache, syncing, pending)
        if not self._changes and flags == self._flags:
            return None
        self._flags = flags
        changes, self._changes = self._changes, []
        return QuerySnapshot(self._rows.documents(), changes, from_cache, syncing, pending)


class LiveQueries:
    """All live queries of a space; what goes wrong with one does not touch the others."""

    __slots__ = ("_queries",)

    def __init__(self) -> None:
        self._queries: list[LiveQuery] = []

    def open(self, query: Query) -> LiveQuery:
        """Begin to keep a query's result."""
        live = LiveQuery(query)
        self._queries.append(live)
        return live

    def apply(self, shown: Sequence[Shown]) -> None:
        """Tell every query what a transaction changed."""
        self._queries = [live for live in self._queries if live.is_open]
        for live in self._queries:
            live.apply(shown)

    def take(self, store: ReplicaStore, from_cache: bool, syncing: bool) -> list[tuple[LiveQuery, QuerySnapshot]]:
        """Return a snapshot for every query that has changed."""
        taken = []
        for live in self._queries:
            if live.is_open:
                live.refresh(store)
                snapshot = live.take(from_cache, syncing)
                if snapshot is not None:
                    taken.append((live, snapshot))
        return taken
