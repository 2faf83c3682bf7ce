"""Reading from the SQLite file beside its writer: a few threads, each with a connection of its own."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from typing import Concatenate, ParamSpec, TypeVar

from twinlock.engines.sqlite_schema import open_beside, open_for_reading
from twinlock.errors import ClosedError, StoreError

READERS_COUNT = 2

P = ParamSpec("P")
T = TypeVar("T")


class Readers:
    """Runs reads in threads. Each sees everything that was durable when it began."""

    __slots__ = ("_connections", "_pool")

    def __init__(self, path: Path, *, is_beside: bool = False) -> None:
        self._connections: SimpleQueue[sqlite3.Connection] = SimpleQueue()
        for _ in range(READERS_COUNT):
            self._connections.put(open_beside(path) if is_beside else open_for_reading(path))
        self._pool: ThreadPoolExecutor | None = ThreadPoolExecutor(READERS_COUNT, "twinlock-sqlite-reader")

    async def run(
        self, read: Callable[Concatenate[sqlite3.Connection, P], T], /, *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """Return `read(connection, ...)`.

        Raises:
            ClosedError: the store is closed.
            StoreError: the store cannot be read.
        """
        if self._pool is None:
            raise ClosedError
        return await asyncio.wrap_future(self._pool.submit(self._read, read, *args, **kwargs))

    async def close(self) -> None:
        """Let running reads end, then close the connections."""
        if self._pool is None:
            return
        pool, self._pool = self._pool, None
        await asyncio.to_thread(pool.shutdown)
        while not self._connections.empty():
            self._connections.get().close()

    def _read(self, read: Callable[Concatenate[sqlite3.Connection, P], T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        connection = self._connections.get()
        try:
            return read(connection, *args, **kwargs)
        except sqlite3.Error as exc:
            raise StoreError(str(exc)) from exc
        finally:
            self._connections.put(connection)
