"""A sorted table in a scratch file: what comes in any order and may be too much for the memory."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager

PAGE_ROWS = 500


class Spool:
    """Keys with values and whether they were met lately. Nothing of it outlives the process."""

    __slots__ = ("_connection",)

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        connection.execute("CREATE TABLE kept (key TEXT PRIMARY KEY, value BLOB, met INTEGER) WITHOUT ROWID")

    def put(self, key: str, value: bytes, met: int = 0) -> None:
        """Keep a value, in place of the one that was there."""
        self._connection.execute("INSERT OR REPLACE INTO kept VALUES (?, ?, ?)", (key, value, met))

    def get(self, key: str) -> bytes | None:
        """Return a key's value."""
        row = self._connection.execute("SELECT value FROM kept WHERE key = ?", (key,)).fetchone()
        return None if row is None else row[0]

    def meet(self, key: str, met: int) -> None:
        """Note that a key was met in a round."""
        self._connection.execute("UPDATE kept SET met = ? WHERE key = ?", (met, key))

    def not_met(self, met: int) -> list[str]:
        """Return the keys that were not met in a round."""
        return [key for (key,) in self._connection.execute("SELECT key FROM kept WHERE met <> ? ORDER BY key", (met,))]

    def delete(self, key: str) -> None:
        """Forget a key."""
        self._connection.execute("DELETE FROM kept WHERE key = ?", (key,))

    def count(self) -> int:
        """Return how many keys there are."""
        (count,) = self._connection.execute("SELECT count(*) FROM kept").fetchone()
        return int(count)

    def rows(self, after: str = "") -> Iterator[tuple[str, bytes]]:
        """Yield all keys above one with their values, sorted."""
        while True:
            sql = "SELECT key, value FROM kept WHERE key > ? ORDER BY key LIMIT ?"
            page = self._connection.execute(sql, (after, PAGE_ROWS)).fetchall()
            if not page:
                return
            yield from page
            after = page[-1][0]


@contextmanager
def new_spool() -> Iterator[Spool]:
    """Give a table in a scratch file that is deleted at the end."""
    # An empty name is SQLite's own scratch file: it stays in memory while it is small, and has no name to leave behind.
    connection = sqlite3.connect("", isolation_level=None)
    try:
        connection.execute("PRAGMA journal_mode = OFF")
        connection.execute("PRAGMA synchronous = OFF")
        yield Spool(connection)
    finally:
        connection.close()
