"""The embedded engine: one SQLite file, one process. See docs/internals/engines.md."""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing
from pathlib import Path

from twinlock.engines.one_process import OneProcessBroker
from twinlock.engines.sqlite_directory import SqliteDirectory
from twinlock.engines.sqlite_group import LogGroup
from twinlock.engines.sqlite_log import SqliteLog
from twinlock.engines.sqlite_readers import Readers
from twinlock.engines.sqlite_schema import (
    NO_LOCK,
    lock_file,
    open_beside,
    open_for_writing,
    read_incarnation,
    refuse_if_moved,
    replace_incarnation,
)
from twinlock.engines.sqlite_writer import NoWriter, Writer
from twinlock.errors import StoreError
from twinlock.ids import Incarnation


class SqliteEngine:
    """An open database with its log, its directory and a broker. Used from one event loop."""

    __slots__ = ("_is_open", "_lock", "_readers", "_writer", "broker", "directory", "log")

    def __init__(self, connection: sqlite3.Connection, path: Path, lock: int) -> None:
        is_beside = lock == NO_LOCK
        group = LogGroup(connection)
        self._is_open = True
        self._lock = lock
        self._readers = Readers(path, is_beside=is_beside)
        self._writer = NoWriter(connection, group) if is_beside else Writer(connection, group)
        self.log = SqliteLog(read_incarnation(connection), self._writer, group, self._readers)
        self.directory = SqliteDirectory(connection, self._writer, self._readers)
        self.broker = OneProcessBroker()

    @classmethod
    def open(cls, path: str | os.PathLike[str], *, even_moved: bool = False) -> SqliteEngine:
        """Open or create a database; a new one is readable by its owner alone.

        Args:
            path: the file.
            even_moved: open it also if it must not be served: to move it, or to go on with a move.

        Raises:
            StoreError: it cannot be opened, another process has it open, or it was moved to another engine.
            UpdateNeededError: a newer version of Twinlock wrote it.
        """
        file = Path(path)
        try:
            file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as exc:
            raise StoreError(f"{file.parent.name}: {exc.strerror}") from exc
        lock = lock_file(file)
        try:
            connection = open_for_writing(file)
            try:
                if not even_moved:
                    refuse_if_moved(connection)
                return cls(connection, file, lock)
            except BaseException:
                connection.close()
                raise
        except BaseException:
            os.close(lock)
            raise

    @classmethod
    def open_reading(cls, path: str | os.PathLike[str]) -> SqliteEngine:
        """Open a database that a server may have open at the same time: for backups and moves.

        Reads see all that is durable. Every write raises `StoreError`; watches tell of what is there and of nothing
        that comes later, which only the process that writes could tell.

        Raises:
            StoreError: there is none, or it cannot be read.
            UpdateNeededError: a newer version of Twinlock wrote it.
        """
        connection = open_beside(Path(path))
        try:
            return cls(connection, Path(path), NO_LOCK)
        except BaseException:
            connection.close()
            raise

    async def close(self) -> None:
        """Finish what was begun, end every watch, and let another process open the file."""
        if not self._is_open:
            return
        self._is_open = False
        await self.log.close()
        self.directory.close()
        await self._writer.close()
        await self._readers.close()
        if self._lock != NO_LOCK:
            os.close(self._lock)


def begin_new_life(path: str | os.PathLike[str]) -> Incarnation:
    """Give a database that was set back to an older state a new incarnation, and its file to its owner alone.

    For one that another tool restored as a file: its seqs are those that devices know, up to where it was set back.

    Raises:
        StoreError: there is none, or a server has it open.
        UpdateNeededError: a newer version of Twinlock wrote it.
    """
    file = Path(path)
    if not file.is_file():
        raise StoreError(f"there is no database {file.name}")
    lock = lock_file(file)
    try:
        file.chmod(0o600)
        with closing(open_for_writing(file)) as connection:
            return replace_incarnation(connection)
    except (OSError, sqlite3.Error) as exc:
        raise StoreError(f"{file.name}: {exc}") from exc
    finally:
        os.close(lock)
