"""The one thread in which the key service works: what waits runs in one transaction, so that its syncs are shared."""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import threading
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import Any, Generic, TypeVar

from twinlock.errors import ClosedError, KeyServiceError, OverloadedError, TwinlockError

logger = logging.getLogger(__name__)

WAITING_MAX = 10_000
"""Requests that may wait; past it callers are told to come later."""

OVERLOAD_RETRY_MS = 500
GROUP_MAX = 256

T = TypeVar("T")


class _Task(Generic[T]):
    __slots__ = ("call", "error", "future", "outcome")

    def __init__(self, call: Callable[[], T]) -> None:
        self.call = call
        self.future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self.outcome: T | None = None
        self.error: TwinlockError | None = None


class Worker:
    """Runs calls one after the other; each answer is given once everything it wrote is durable."""

    __slots__ = ("_closed", "_connection", "_forget", "_queue", "_scrub", "_thread", "_waiting_count")

    def __init__(self, connection: sqlite3.Connection, forget: Callable[[], None], scrub: Callable[[], None]) -> None:
        """Begin to work.

        Args:
            connection: the database; used from no other thread from now on.
            forget: called when a transaction failed: what memory holds of it is void.
            scrub: called after each transaction, before its answers are given: what was deleted leaves the disk.
        """
        self._connection = connection
        self._forget = forget
        self._scrub = scrub
        self._queue: SimpleQueue[_Task[Any] | None] = SimpleQueue()
        self._waiting_count = 0
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="twinlock-keyservice", daemon=True)
        self._thread.start()

    @property
    def waiting_count(self) -> int:
        """How many calls wait or are at work."""
        return self._waiting_count

    async def run(self, call: Callable[[], T]) -> T:
        """Return what a call returns. A `TwinlockError` is an answer like any other: it undoes nothing.

        Raises:
            ClosedError, OverloadedError: the call was not taken.
            KeyServiceError: the call or its transaction failed; nothing was stored.
        """
        if self._closed:
            raise ClosedError
        if self._waiting_count >= WAITING_MAX:
            raise OverloadedError("too many wait for the key service", retry_after_ms=OVERLOAD_RETRY_MS)
        task = _Task(call)
        self._waiting_count += 1
        self._queue.put(task)
        return await task.future

    async def close(self) -> None:
        """Finish what waits, end the thread and close the connection."""
        if not self._closed:
            self._closed = True
            self._queue.put(None)
        await asyncio.to_thread(self._thread.join)

    def _work(self) -> None:
        last = False
        while not last:
            group, last = self._next_group()
            if group:
                self._serve(group)
        self._connection.close()

    def _next_group(self) -> tuple[list[_Task[Any]], bool]:
        task = self._queue.get()
        group: list[_Task[Any]] = []
        try:
            while task is not None:
                group.append(task)
                if len(group) == GROUP_MAX:
                    return group, False
                task = self._queue.get_nowait()
        except Empty:
            return group, False
        return group, True

    def _serve(self, group: list[_Task[Any]]) -> None:
        try:
            self._connection.execute("BEGIN")
            for task in group:
                self._run(task)
            self._connection.execute("COMMIT")
        except Exception as exc:
            # The top frame of this thread: later requests must still be served.
            logger.exception("a transaction of the key service failed", extra={"requests_count": len(group)})
            self._roll_back()
            for task in group:
                task.error = _failure(exc)
        try:
            self._scrub()
        except sqlite3.Error:
            # What was answered is durable all the same; it is tried again after the next transaction.
            logger.exception("what was deleted could not be taken off the disk")
        try:
            group[0].future.get_loop().call_soon_threadsafe(self._finish, group)
        except RuntimeError:
            logger.warning("the event loop ended before the key service answered")

    def _run(self, task: _Task[Any]) -> None:
        self._connection.execute("SAVEPOINT task")
        try:
            task.outcome = task.call()
        except TwinlockError as exc:
            task.error = exc
        except Exception as exc:
            if not self._connection.in_transaction:
                # SQLite itself has given up the whole transaction, as on a full disk.
                raise
            # What one request cannot do must not refuse those that came at the same time.
            logger.exception("a request to the key service failed")
            self._connection.execute("ROLLBACK TO task")
            self._forget()
            task.error = _failure(exc)
        self._connection.execute("RELEASE task")

    def _roll_back(self) -> None:
        try:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            self._forget()
        except sqlite3.Error:
            # The next transaction fails as well then, and tells its callers.
            logger.exception("a failed transaction of the key service could not be rolled back")

    def _finish(self, group: list[_Task[Any]]) -> None:
        self._waiting_count -= len(group)
        for task in group:
            if task.future.done():
                continue
            if task.error is None:
                task.future.set_result(task.outcome)
            else:
                task.future.set_exception(task.error)


def _failure(cause: Exception) -> KeyServiceError:
    error = KeyServiceError("its store failed")
    error.__cause__ = cause
    return error
