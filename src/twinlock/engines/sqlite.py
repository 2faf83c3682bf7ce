"""The embedded engine: one SQLite file, one process. See docs/internals/engines.md."""

from __future__ import annotations

import os
from pathlib import Path

from twinlock.engines.one_process import OneProcessBroker
from twinlock.engines.sqlite_directory import SqliteDirectory
from twinlock.engines.sqlite_group import LogGroup
from twinlock.engines.sqlite_log import SqliteLog
from twinlock.engines.sqlite_readers import Readers
from twinlock.engines.sqlite_schema import lock_file, open_for_writing, read_incarnation
from twinlock.engines.sqlite_writer import Writer
from twinlock.errors import StoreError


class SqliteEngine:
    """An open database with its log, its directory and a broker. Used from one event loop."""

    __slots__ = ("_lock", "_readers", "_writer", "broker", "directory", "log")

    def __init__(self, path: Path, lock: int) -> None:
        connection = open_for_writing(path)
        group = LogGroup(connection)
        self._lock = lock
        self._readers = Readers(path)
        self._writer = Writer(connection, group)
        self.log = SqliteLog(read_incarnation(connection), self._writer, group, self._readers)
        self.directory = SqliteDirectory(connection, self._writer, self._readers)
        self.broker = OneProcessBroker()

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> SqliteEngine:
        """Open or create a database; a new one is readable by its owner alone.

        Raises:
            StoreError: it cannot be opened, or another process has it open.
            UpdateNeededError: a newer version of Twinlock wrote it.
        """
        file = Path(path)
        try:
            file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as exc:
            raise StoreError(f"{file.parent.name}: {exc.strerror}") from exc
        lock = lock_file(file)
        try:
            return cls(file, lock)
        except BaseException:
            os.close(lock)
            raise

    async def close(self) -> None:
        """Finish what was begun, end every watch, and let another process open the file."""
        if self._lock < 0:
            return
        await self.log.close()
        self.directory.close()
        await self._writer.close()
        await self._readers.close()
        os.close(self._lock)
        self._lock = -1
