"""What collections and documents need of their space: reads from this device, writes with one flush a loop turn."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from twinlock.client.courier import Courier
from twinlock.client.device_context import DeviceContext
from twinlock.client.file_service import FileService
from twinlock.client.sharing import Sharing
from twinlock.client.space_runtime import SpaceRuntime
from twinlock.client.subscriptions import Listener
from twinlock.client.writes import Write
from twinlock.document.document import Document
from twinlock.document.query import Query
from twinlock.errors import ClosedError, LeaseExpiredError, RoleError, StoreError, TwinlockError
from twinlock.ids import SpaceId
from twinlock.replica.batch import Batch
from twinlock.replica.replica import Replica
from twinlock.replica.sender_writes import own_prefix

GROUP_WRITES_MAX = 512
"""Writes that share one flush; more are flushed in the next loop turn, so that the application is not kept waiting."""

_Waiting = tuple[Batch, Write, "asyncio.Future[None]"]


class SpaceHandle:
    """One space of an open database, as seen from above."""

    __slots__ = ("_closed_by", "_closers", "_context", "_courier", "_runtime", "_sharing", "_waiting", "files")

    def __init__(
        self,
        context: DeviceContext,
        courier: Courier,
        runtime: SpaceRuntime,
        sharing: Sharing,
        files: FileService,
    ) -> None:
        self.files = files
        self._context = context
        self._courier = courier
        self._runtime = runtime
        self._sharing = sharing
        self._waiting: list[_Waiting] = []
        self._closers: list[Callable[[], None]] = []
        self._closed_by: TwinlockError | None = None
        runtime.on_end.append(lambda end: self.close(end.error()))

    @property
    def is_closed(self) -> bool:
        """Whether everything is refused."""
        return self._closed_by is not None

    @property
    def id(self) -> SpaceId:
        """The space's id."""
        return self._runtime.space

    @property
    def runtime(self) -> SpaceRuntime:
        """The space's state."""
        return self._runtime

    @property
    def sharing(self) -> Sharing:
        """What can be done with the space's membership.

        Raises:
            ClosedError, RemovedError, ShreddedError: nothing any more.
        """
        self.check_open()
        return self._sharing

    def new_id(self) -> str:
        """Return a random id for a document; a sender's begins with its account."""
        own = own_prefix(self._runtime.keyring.account) + "-" if self._runtime.is_sender else ""
        return own + self._context.entropy(16).hex()

    # Reading

    def get(self, collection: str, id: str) -> dict[str, Any] | None:
        """Return a document's value."""
        return self._open().get(collection, id, self.now_ms())

    def document(self, collection: str, id: str) -> Document:
        """Return a document's state."""
        return self._open().document(collection, id, self.now_ms())

    def conflicts(self, collection: str, id: str) -> dict[str, Any]:
        """Return the losing values of a document's fields, by dotted path."""
        found = self._open().conflicts(collection, id, self.now_ms())
        return {".".join(conflict.path): conflict.value for conflict in found}

    def run(self, query: Query) -> list[tuple[str, dict[str, Any]]]:
        """Answer a query."""
        return self._open().query(query, self.now_ms())

    def count(self, query: Query) -> int:
        """Count a query's documents."""
        return self._open().count(query, self.now_ms())

    def subscribe(
        self, query: Query, listener: Listener, closed: Callable[[], None] | None = None
    ) -> Callable[[], None]:
        """Tell a listener a query's result, now and later; while locked it is told once there is a lease."""
        self.check_reads()
        if closed is not None:
            self._closers.append(closed)
        return self._runtime.subscriptions.add(query, listener, self.now_ms())

    def watch_document(self, collection: str, id: str, listener: Listener) -> Callable[[], None]:
        """Tell a listener a document, now and later."""
        self.check_reads()
        return self._runtime.subscriptions.watch(collection, id, listener)

    # Writing

    async def write(self, batch: Batch, id: str = "") -> Write:
        """Store a batch durably on this device, together with what else is written in this loop turn.

        Raises:
            TwinlockError: the batch was refused; nothing of it was written.
        """
        self.check_open()
        loop = asyncio.get_running_loop()
        write, stored = Write(id), loop.create_future()
        self._waiting.append((batch, write, stored))
        if len(self._waiting) == 1:
            loop.call_soon(self._flush)
        await stored
        return write

    def close(self, reason: TwinlockError | None = None) -> None:
        """Refuse everything from now on, for a reason; writes that still wait are stored first."""
        while self._waiting:
            self._flush()
        self._closed_by = reason or ClosedError()
        for closed in self._closers:
            closed()

    def _flush(self) -> None:
        group, self._waiting = self._waiting[:GROUP_WRITES_MAX], self._waiting[GROUP_WRITES_MAX:]
        if self._waiting:
            asyncio.get_running_loop().call_soon(self._flush)
        if not group:
            return
        try:
            results = self._runtime.write_all([(batch, write) for batch, write, _ in group], self.now_ms())
        except StoreError as exc:
            # What the replica holds in memory may be ahead of the disk.
            self._courier.renew(self._runtime)
            results = [exc] * len(group)
        except TwinlockError as exc:
            results = [exc] * len(group)
        except Exception as exc:
            # The waiting must hear of it; the fault itself is for the log of the loop.
            results = [StoreError(type(exc).__name__)] * len(group)
            self._answer(group, results)
            raise
        self._answer(group, results)
        # The wire first: what other devices wait for is not held up by this application's callbacks.
        self._courier.push()
        self._runtime.subscriptions.publish(self.now_ms())

    @staticmethod
    def _answer(group: list[_Waiting], results: list[Any]) -> None:
        for (_, _, stored), error in zip(group, results, strict=True):
            if stored.done():
                continue
            if error is None:
                stored.set_result(None)
            else:
                stored.set_exception(error)

    def _open(self) -> Replica:
        self.check_reads()
        replica = self._runtime.replica
        if replica is None or self._runtime.keyring.locked(self.now_ms()):
            raise LeaseExpiredError
        return replica

    def check_reads(self) -> None:
        """Refuse what a sender may not do, and everything once the space or the database is closed."""
        self.check_open()
        if self._runtime.is_sender:
            raise RoleError("a sender reads nothing")

    def check_open(self) -> None:
        """Refuse everything once the space or the database is closed."""
        if self._closed_by is not None:
            raise self._closed_by

    def now_ms(self) -> int:
        """Return the corrected time."""
        return self._context.clock.now_ms()
