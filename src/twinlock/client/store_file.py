"""One encrypted SQLite file: opening it under its key, transactions, and errors said in this project's words."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import apsw

from twinlock.client.private_files import make_private_file
from twinlock.errors import StoreDamagedError, StoreError, TwinlockError

CACHE_KIB = 16 << 10
CHECKPOINT_PAGES = 2_000
"""How long the write-ahead log grows before it is copied into the file: so long that pages are copied once for many
changes, and not so long that a copy, some milliseconds, is felt."""

Row = tuple[Any, ...]
Parameters = Sequence[Any]


class StoreFile:
    """A connection to one file. Every failure is a StoreError; wrong key or alteration is a StoreDamagedError."""

    __slots__ = ("_connection", "_has_durable", "_is_full", "path")

    def __init__(self, path: Path, connection: apsw.Connection) -> None:
        self.path = path
        self._connection = connection
        self._is_full = True
        self._has_durable = False

    @classmethod
    def open(cls, path: Path, key: bytes) -> StoreFile:
        """Open a file, made if it is not there, encrypted as a whole under a key of 32 bytes."""
        make_private_file(path)
        with _translated():
            connection = apsw.Connection(str(path))
            try:
                connection.pragma("cipher", "chacha20")
                connection.pragma("key", f"raw:{key.hex()}")
                # Intermediate results would otherwise be spilled in clear text.
                connection.pragma("temp_store", "memory")
                connection.pragma("cache_size", -CACHE_KIB)
                connection.pragma("journal_mode", "wal")
                connection.pragma("synchronous", "full")
                connection.pragma("wal_autocheckpoint", CHECKPOINT_PAGES)
                connection.execute("SELECT count(*) FROM sqlite_schema").fetchall()
            except BaseException:
                connection.close()
                raise
        return cls(path, connection)

    @contextmanager
    def transaction(self, durable: bool) -> Iterator[None]:
        """Open a transaction; with `durable` it is on the disk when the block ends.

        One that is not stays open for those that follow, as a part of theirs: nothing of it is written before a
        durable one, `flush` or `close` ends it.
        """
        if durable and not self._is_full:
            self.flush()
        if self.in_transaction:
            with self.savepoint():
                yield
        else:
            self._begin(durable)
            try:
                yield
            except BaseException:
                # SQLite has ended the transaction by itself after some failures.
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise
        if durable:
            self._has_durable = True
            self.flush()

    def _begin(self, durable: bool) -> None:
        # Where every transaction so far had a durable part the next one will: it is begun as one that may be flushed,
        # since that cannot be changed any more once it is open.
        wants_full = durable or self._has_durable
        self._has_durable = False
        try:
            if wants_full is not self._is_full:
                self._connection.pragma("synchronous", "full" if wants_full else "normal")
                self._is_full = wants_full
            self._connection.execute("BEGIN IMMEDIATE")
        except apsw.Error as exc:
            raise _translation(exc) from exc

    def flush(self) -> None:
        """Commit what was put off.

        Raises:
            StoreError: the disk refused; all of it is gone, as after a power cut.
        """
        if not self.in_transaction:
            return
        try:
            self._connection.execute("COMMIT")
        except apsw.Error as exc:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            raise _translation(exc) from exc

    @contextmanager
    def savepoint(self) -> Iterator[None]:
        """Open a part of the open transaction, which is taken back alone when the block raises."""
        self.run("SAVEPOINT part")
        try:
            yield
        except BaseException:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK TO part")
                self._connection.execute("RELEASE part")
            raise
        self.run("RELEASE part")

    @property
    def in_transaction(self) -> bool:
        """Tell whether a transaction is open."""
        return self._connection.in_transaction

    # These are called some dozen times for each change: a plain `except` costs nothing until something fails.

    def run(self, sql: str, parameters: Parameters = ()) -> None:
        """Run a statement for its effect."""
        try:
            self._connection.execute(sql, parameters)
        except apsw.Error as exc:
            raise _translation(exc) from exc

    def run_many(self, sql: str, rows: Iterable[Parameters]) -> None:
        """Run a statement once for each row of parameters."""
        try:
            self._connection.executemany(sql, rows)
        except apsw.Error as exc:
            raise _translation(exc) from exc

    def rows(self, sql: str, parameters: Parameters = ()) -> list[Row]:
        """Return all rows of a query."""
        try:
            return self._connection.execute(sql, parameters).fetchall()
        except apsw.Error as exc:
            raise _translation(exc) from exc

    def row(self, sql: str, parameters: Parameters = ()) -> Row | None:
        """Return the first row of a query, or None."""
        try:
            cursor = self._connection.execute(sql, parameters)
            found: Row | None = cursor.fetchone()
            cursor.close()
        except apsw.Error as exc:
            raise _translation(exc) from exc
        return found

    def each(self, sql: str, parameters: Parameters = ()) -> Generator[Row]:
        """Yield the rows of a query one by one; the caller may stop early."""
        try:
            cursor = self._connection.execute(sql, parameters)
            try:
                yield from cursor
            finally:
                cursor.close()
        except apsw.Error as exc:
            raise _translation(exc) from exc

    def changed_rows(self) -> int:
        """Return how many rows the last statement changed."""
        return self._connection.changes()

    def inserted_row(self) -> int:
        """Return the row id of the last insertion."""
        return self._connection.last_insert_rowid()

    def close(self) -> None:
        """Close the file, with all that was put off."""
        try:
            self.flush()
        finally:
            with _translated():
                self._connection.close()


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except apsw.Error as exc:
        raise _translation(exc) from exc


def _translation(exc: apsw.Error) -> TwinlockError:
    if isinstance(exc, apsw.NotADBError | apsw.CorruptError):
        return StoreDamagedError("the replica file does not open under its key")
    return StoreError(type(exc).__name__)


def within_bytes(rows: Generator[Row], bytes_max: int, sized_column: int) -> list[Row]:
    """Return the first rows: at least one if there is any, about `bytes_max` in one column in all."""
    taken: list[Row] = []
    total = 0
    for row in rows:
        taken.append(row)
        total += len(row[sized_column])
        if total >= bytes_max:
            break
    rows.close()
    return taken
