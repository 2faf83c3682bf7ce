"""The vault: a small SQLite file of records that are sealed under the StoreKey. See spec/sealing.md, section 9."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from twinlock.client.private_files import make_private_file
from twinlock.errors import StoreDamagedError, StoreError
from twinlock.sealing.suite import Entropy, StoreKey
from twinlock.sealing.vault import open_record, seal_record

_SCHEMA = "CREATE TABLE IF NOT EXISTS records(name TEXT PRIMARY KEY, sealed BLOB NOT NULL) WITHOUT ROWID"


class VaultFile:
    """Named records, each sealed to its name, so that none can stand in for another."""

    __slots__ = ("_connection", "_entropy", "_store_key")

    def __init__(self, path: Path, store_key: StoreKey, entropy: Entropy) -> None:
        make_private_file(path)
        self._store_key = store_key
        self._entropy = entropy
        with _translated():
            self._connection = sqlite3.connect(path, isolation_level=None)
            self._connection.execute("PRAGMA journal_mode = DELETE")
            self._connection.execute("PRAGMA synchronous = FULL")
            self._connection.execute("PRAGMA secure_delete = ON")
            self._connection.execute(_SCHEMA)

    def get(self, name: str) -> bytes | None:
        """Return a record.

        Raises:
            StoreDamagedError: it was altered, or sealed under another StoreKey.
        """
        with _translated():
            row = self._connection.execute("SELECT sealed FROM records WHERE name = ?", (name,)).fetchone()
        return None if row is None else open_record(self._store_key, name, row[0])

    def names(self, prefix: str) -> list[str]:
        """Return the names that begin with a prefix, sorted."""
        with _translated():
            rows = self._connection.execute("SELECT name FROM records ORDER BY name").fetchall()
        return [name for (name,) in rows if name.startswith(prefix)]

    def put(self, records: Mapping[str, bytes | None]) -> None:
        """Set records, or delete those that are None, all at once and durably."""
        with _translated():
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                for name, content in records.items():
                    self._put(name, content)
                self._connection.execute("COMMIT")
            except BaseException:
                self._connection.execute("ROLLBACK")
                raise

    def close(self) -> None:
        """Release the file."""
        self._connection.close()

    def _put(self, name: str, content: bytes | None) -> None:
        if content is None:
            self._connection.execute("DELETE FROM records WHERE name = ?", (name,))
            return
        sealed = seal_record(self._store_key, name, content, self._entropy)
        self._connection.execute("INSERT OR REPLACE INTO records VALUES(?, ?)", (name, sealed))


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except sqlite3.DatabaseError as exc:
        damaged = isinstance(exc, sqlite3.DatabaseError) and not isinstance(exc, sqlite3.OperationalError)
        error = StoreDamagedError if damaged else StoreError
        raise error(f"vault.db: {exc}") from exc
