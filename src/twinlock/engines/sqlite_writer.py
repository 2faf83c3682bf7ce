"""The one thread that writes to a SQLite file: takes whatever waits, commits it as one group, then tells everybody.

The server shares one core with this thread, and `sqlite3` gives up the interpreter at every statement. So a group is
written with as few statements as possible, and its results cross over to the event loop in a single call.
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import Any, Generic, TypeVar, cast

from twinlock.errors import ClosedError, OverloadedError, StoreError, TwinlockError

logger = logging.getLogger(__name__)

GROUP_JOBS_MAX = 4096
WAITING_BYTES_MAX = 64 << 20
"""Bytes that may wait for the writer; past it callers are told to come later."""

OVERLOAD_RETRY_MS = 200

T = TypeVar("T")


class GroupState(ABC):
    """What the jobs of a group share while they run; told how the group ends. Called in the writer's thread."""

    @abstractmethod
    def flush(self) -> None:
        """Write what jobs have buffered."""

    @abstractmethod
    def committed(self) -> None:
        """Note that the group is durable."""

    @abstractmethod
    def failed(self) -> None:
        """Forget everything that the group had changed in memory."""


class Job(ABC, Generic[T]):
    """One caller's piece of a group. A `TwinlockError` it raises is its own; it must then not have written anything."""

    __slots__ = ("cost_bytes", "error", "future", "outcome")

    def __init__(self, cost_bytes: int) -> None:
        self.cost_bytes = cost_bytes
        self.future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self.outcome: T | None = None
        self.error: TwinlockError | None = None

    @abstractmethod
    def run(self) -> T:
        """Do the work inside the group's transaction, in the writer's thread."""

    def tell(self) -> None:
        """Tell others, now that the work is durable; in the event loop, before any caller of the group goes on."""

    def end(self) -> None:
        """Tell the caller how it went; in the event loop."""
        if self.future.done():
            return
        if self.error is None:
            self.future.set_result(cast(T, self.outcome))
        else:
            self.future.set_exception(self.error)


class CallJob(Job[T]):
    """Runs a function on the writer's connection, after everything that came before it."""

    __slots__ = ("_call", "_connection", "_group_state", "_told")

    def __init__(
        self,
        connection: sqlite3.Connection,
        group_state: GroupState,
        call: Callable[[sqlite3.Connection], T],
        *,
        cost_bytes: int = 0,
        tell: Callable[[T], None] | None = None,
    ) -> None:
        super().__init__(cost_bytes)
        self._connection = connection
        self._group_state = group_state
        self._call = call
        self._told = tell

    def run(self) -> T:
        """Call the function."""
        self._group_state.flush()
        return self._call(self._connection)

    def tell(self) -> None:
        """Pass it on."""
        if self._told is not None:
            self._told(cast(T, self.outcome))


class Writer:
    """Feeds jobs to its thread. All calls come from one event loop."""

    __slots__ = ("_closed", "_connection", "_group_state", "_loop", "_queue", "_thread", "_waiting_bytes")

    def __init__(self, connection: sqlite3.Connection, group_state: GroupState) -> None:
        self._connection = connection
        self._group_state = group_state
        self._queue: SimpleQueue[Job[Any] | None] = SimpleQueue()
        self._waiting_bytes = 0
        self._closed = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.Thread(target=self._work, name="twinlock-sqlite-writer", daemon=True)
        self._thread.start()

    async def submit(self, job: Job[T]) -> T:
        """Have a job run in the next group; return its outcome once that is durable.

        Raises:
            ClosedError, OverloadedError: the job was not taken.
            StoreError: the group failed; nothing of it was stored.
        """
        self.put(job)
        return await job.future

    def put(self, job: Job[Any]) -> None:
        """Have a job run in the next group; it is told how it went.

        Raises:
            ClosedError, OverloadedError: the job was not taken.
        """
        if self._closed:
            raise ClosedError
        if self._waiting_bytes + job.cost_bytes > WAITING_BYTES_MAX and self._waiting_bytes > 0:
            raise OverloadedError("too much waits for the disk", retry_after_ms=OVERLOAD_RETRY_MS)
        self._loop = job.future.get_loop()
        self._waiting_bytes += job.cost_bytes
        self._queue.put(job)

    async def call(
        self,
        call: Callable[[sqlite3.Connection], T],
        *,
        cost_bytes: int = 0,
        tell: Callable[[T], None] | None = None,
    ) -> T:
        """Submit a function of the connection; `tell` gets what it returned once that is durable."""
        return await self.submit(CallJob(self._connection, self._group_state, call, cost_bytes=cost_bytes, tell=tell))

    async def close(self) -> None:
        """Finish what was submitted and end the thread; the connection is closed then."""
        if not self._closed:
            self._closed = True
            self._queue.put(None)
        await asyncio.to_thread(self._thread.join)

    def _work(self) -> None:
        group, last = self._next_group()
        while group or not last:
            if group:
                self._commit(group)
            if last:
                break
            group, last = self._next_group()
        self._connection.close()

    def _next_group(self) -> tuple[list[Job[Any]], bool]:
        """Wait for work, then take all that is there; the flag tells that nothing comes after it."""
        job = self._queue.get()
        group: list[Job[Any]] = []
        try:
            while job is not None:
                group.append(job)
                if len(group) == GROUP_JOBS_MAX:
                    return group, False
                job = self._queue.get_nowait()
        except Empty:
            return group, False
        return group, True

    def _commit(self, group: list[Job[Any]]) -> None:
        try:
            self._run(group)
        except Exception as exc:
            # The top frame of this thread: whatever went wrong, later groups must still be served.
            logger.exception("a group of writes failed", extra={"jobs_count": len(group)})
            self._roll_back()
            for job in group:
                job.error = StoreError(str(exc))
                job.error.__cause__ = exc
        assert self._loop is not None
        try:
            self._loop.call_soon_threadsafe(self._finish, group)
        except RuntimeError:
            logger.warning("the event loop ended before a group of writes did", extra={"jobs_count": len(group)})

    def _run(self, group: list[Job[Any]]) -> None:
        self._connection.execute("BEGIN IMMEDIATE")
        for job in group:
            try:
                job.outcome = job.run()
            except TwinlockError as exc:
                job.error = exc
        self._group_state.flush()
        self._connection.execute("COMMIT")
        self._group_state.committed()

    def _roll_back(self) -> None:
        self._group_state.failed()
        try:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
        except sqlite3.Error:
            # The next group's BEGIN fails as well then, and tells its callers.
            logger.exception("a failed group could not be rolled back")

    def _finish(self, group: list[Job[Any]]) -> None:
        for job in group:
            self._waiting_bytes -= job.cost_bytes
            if job.error is None:
                job.tell()
        for job in group:
            job.end()


class NoWriter(Writer):
    """What stands in a writer's place where a database is only read: it takes nothing."""

    __slots__ = ()

    def __init__(self, connection: sqlite3.Connection, group_state: GroupState) -> None:
        self._connection = connection
        self._group_state = group_state
        self._closed = False

    def put(self, job: Job[Any]) -> None:
        """Refuse."""
        raise ClosedError if self._closed else StoreError("this database is open for reading only")

    async def close(self) -> None:
        """Close the connection."""
        if not self._closed:
            self._closed = True
            self._connection.close()
