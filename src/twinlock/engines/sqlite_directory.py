"""The directory contract on SQLite: one table, written in the same groups as the log."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator

from twinlock.contracts.directory import Change, Directory, Record, check_record
from twinlock.engines.one_process import ChangeWatchers
from twinlock.engines.sqlite_readers import Readers
from twinlock.engines.sqlite_writer import Writer
from twinlock.errors import RevisionError

SCAN_PAGE_RECORDS = 256


class SqliteDirectory(Directory):
    """Records with revisions that never repeat, not even after a delete."""

    __slots__ = ("_readers", "_revision", "_watchers", "_writer")

    def __init__(self, connection: sqlite3.Connection, writer: Writer, readers: Readers) -> None:
        self._writer = writer
        self._readers = readers
        self._watchers = ChangeWatchers()
        self._revision = _last_revision(connection)

    async def get(self, key: str) -> Record | None:
        """Return the newest record of a key."""
        return await self._readers.run(_get, key)

    async def put(self, key: str, value: bytes, expect_revision: int | None = None) -> int:
        """Store durably and return the new revision."""
        check_record(key, value)
        self._revision += 1
        revision = self._revision

        def store(connection: sqlite3.Connection) -> int:
            _check_revision(connection, key, expect_revision)
            connection.execute("INSERT OR REPLACE INTO records VALUES (?, ?, ?)", (key, value, revision))
            return revision

        change = Change(key, Record(value, revision))
        return await self._writer.call(store, cost_bytes=len(value), tell=lambda _: self._watchers.tell(change))

    async def delete(self, key: str, expect_revision: int | None = None) -> None:
        """Delete a key."""

        def remove(connection: sqlite3.Connection) -> bool:
            present = _check_revision(connection, key, expect_revision)
            connection.execute("DELETE FROM records WHERE key = ?", (key,))
            connection.execute("UPDATE meta SET value = max(value, ?) WHERE name = 'revision_floor'", (present,))
            return present > 0

        def tell(was_there: bool) -> None:
            if was_there:
                self._watchers.tell(Change(key, None))

        await self._writer.call(remove, tell=tell)

    async def list(self, prefix: str) -> dict[str, Record]:
        """Return every key that begins with a prefix, sorted by key."""
        return await self._readers.run(_list, prefix)

    async def scan(self) -> AsyncIterator[tuple[str, Record]]:
        """Yield every record there is, a page at a time."""
        after = ""
        while page := await self._readers.run(_page, after):
            for key, record in page:
                yield key, record
            after = page[-1][0]

    def watch(self, prefix: str) -> AsyncIterator[Change]:
        """Yield every later change of keys that begin with a prefix."""
        return self._watchers.watch(prefix)

    def close(self) -> None:
        """End every watch."""
        self._watchers.close()


def _last_revision(connection: sqlite3.Connection) -> int:
    (stored,) = connection.execute("SELECT coalesce(max(revision), 0) FROM records").fetchone()
    (floor,) = connection.execute("SELECT value FROM meta WHERE name = 'revision_floor'").fetchone()
    return max(int(stored), int(floor))


def _check_revision(connection: sqlite3.Connection, key: str, expected: int | None) -> int:
    row = connection.execute("SELECT revision FROM records WHERE key = ?", (key,)).fetchone()
    present = 0 if row is None else int(row[0])
    if expected is not None and expected != present:
        raise RevisionError(f"{key} is at revision {present}, not {expected}")
    return present


def _get(connection: sqlite3.Connection, key: str) -> Record | None:
    row = connection.execute("SELECT value, revision FROM records WHERE key = ?", (key,)).fetchone()
    return None if row is None else Record(*row)


def _page(connection: sqlite3.Connection, after: str) -> list[tuple[str, Record]]:
    sql = "SELECT key, value, revision FROM records WHERE key > ? ORDER BY key LIMIT ?"
    rows = connection.execute(sql, (after, SCAN_PAGE_RECORDS))
    return [(key, Record(value, revision)) for key, value, revision in rows]


def _list(connection: sqlite3.Connection, prefix: str) -> dict[str, Record]:
    # Keys are ASCII: all that begin with the prefix sort below the prefix and a character past ASCII.
    sql = "SELECT key, value, revision FROM records WHERE key >= ? AND key < ? ORDER BY key"
    return {
        key: Record(value, revision) for key, value, revision in connection.execute(sql, (prefix, prefix + "\x7f\x7f"))
    }
