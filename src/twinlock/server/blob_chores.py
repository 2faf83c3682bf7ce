"""What is done about blobs from time to time: what was given up, deleted, or belongs to nobody goes.

Several servers may do this at the same time: each step may be repeated.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable

import msgspec
import structlog

from twinlock.contracts import BlobStore, Directory, StoredPart
from twinlock.errors import RevisionError, TwinlockError
from twinlock.ids import BlobId, SpaceId, short
from twinlock.protocol.labels import u64
from twinlock.server.blob_book import BlobBook, BlobRecord, HeldBlob
from twinlock.server.blob_due import HOUR_MS, BlobDue, Due
from twinlock.server.blob_places import ALL_BLOBS, blob_of, blob_place, space_place
from twinlock.server.metrics import Metrics
from twinlock.server.settings import Settings
from twinlock.server.together import together

logger = structlog.get_logger(__name__)

DAY_MS = 24 * HOUR_MS
DELETES_AT_ONCE = 16
SWEEP_MS = DAY_MS
"""How often all objects are compared with the records."""

SWEEP_S_MAX = 2.0
"""For how long at a time: other chores wait."""

_SWEPT = "blob_swept"
_KNOWN_MAX = 100_000


class BlobChores:
    """Deletes what is due, and the blobs of a space as a whole."""

    __slots__ = ("_book", "_directory", "_due", "_metrics", "_now_ms", "_settings", "_store", "_sweeping")

    def __init__(
        self,
        store: BlobStore,
        directory: Directory,
        book: BlobBook,
        due: BlobDue,
        settings: Settings,
        metrics: Metrics,
        now_ms: Callable[[], int],
    ) -> None:
        self._store = store
        self._directory = directory
        self._book = book
        self._due = due
        self._settings = settings
        self._metrics = metrics
        self._now_ms = now_ms
        self._sweeping: AsyncIterator[None] | None = None

    async def clean(self) -> None:
        """Look at every blob whose time has come."""
        has_failed = False
        async for due in self._due.due():
            try:
                await self._look_at(due)
            except TwinlockError as error:
                has_failed = True
                logger.warning("a blob could not be looked at", space=short(due.space), code=error.code)
        if not has_failed:
            await self._due.finished()
        await self._sweep()

    async def purge(self, space: SpaceId) -> None:
        """Delete every blob of a space."""
        await self._delete_below(space_place(space))
        await self._book.forget_all(space)

    @property
    def _grace_ms(self) -> int:
        return int(self._settings.grace_days * DAY_MS)

    async def _look_at(self, due: Due) -> None:
        held = await self._book.get(due.space, due.blob)
        again_ms = await self._carry_out(due, held)
        if not await self._book.recount(due.space):
            again_ms = self._now_ms()
        if again_ms:
            await self._due.note(due.space, due.blob, again_ms)
        await self._due.taken(due)

    async def _carry_out(self, due: Due, held: HeldBlob | None) -> int:
        """Delete a blob if it is time; return when to look again, or 0."""
        if held is None:
            await self._delete_below(blob_place(due.space, due.blob))
            return 0
        ends_ms = await self._ends_ms(due, held.record)
        if not ends_ms or ends_ms > self._now_ms():
            return ends_ms
        return 0 if await self._end(due, held) else self._now_ms()

    async def _ends_ms(self, due: Due, record: BlobRecord) -> int:
        """Return when a blob is to be deleted; 0 if it stays."""
        if record.is_ending:
            return 1
        if record.deleted_ms:
            return record.deleted_ms + self._grace_ms
        if record.is_finished:
            return 0
        newest_ms = record.begun_ms
        async for part in self._store.list(blob_place(due.space, due.blob)):
            newest_ms = max(newest_ms, part.written_ms)
        return newest_ms + int(self._settings.blob_begun_hours * HOUR_MS)

    async def _end(self, due: Due, held: HeldBlob) -> bool:
        """Delete a blob's bytes and then its record; return False if somebody changed it meanwhile."""
        if not held.record.is_ending:
            # From here on it is not restored, finished or put to.
            ending = msgspec.structs.replace(held.record, is_ending=True)
            try:
                await self._book.replace(due.space, held, ending)
            except RevisionError:
                return False
            changed = await self._book.get(due.space, due.blob)
            if changed is None or not changed.record.is_ending:
                return False
            held = changed
        await self._delete_below(blob_place(due.space, due.blob))
        try:
            await self._book.remove(due.space, held)
        except RevisionError:
            return False
        self._metrics.blobs_deleted.inc()
        return True

    async def _sweep(self) -> None:
        """Once a day compare all objects with the records, for some seconds each time."""
        if self._sweeping is None:
            if not await self._take_turn():
                return
            self._sweeping = self._compare()
        ends_s = time.monotonic() + SWEEP_S_MAX
        try:
            async for _ in self._sweeping:
                if time.monotonic() > ends_s:
                    return
        except TwinlockError as error:
            logger.warning("objects could not be compared with the records", code=error.code)
        self._sweeping = None

    async def _compare(self) -> AsyncIterator[None]:
        """Have what belongs to no record looked at after the grace: a device may bring back what a restore has lost."""
        known: dict[tuple[SpaceId, BlobId], bool] = {}
        async for part in self._store.list(ALL_BLOBS):
            name = blob_of(part.name)
            if name is None or name in known:
                continue
            if len(known) >= _KNOWN_MAX:
                known.clear()
            space, blob = name
            known[name] = await self._book.get(space, blob) is not None
            if not known[name]:
                await self._due.note(space, blob, self._now_ms() + self._grace_ms)
            yield

    async def _delete_below(self, prefix: str) -> None:
        waiting: list[StoredPart] = []
        async for part in self._store.list(prefix):
            waiting.append(part)
            if len(waiting) == DELETES_AT_ONCE:
                await self._delete(waiting)
                waiting = []
        await self._delete(waiting)

    async def _delete(self, parts: list[StoredPart]) -> None:
        await together(self._store.delete(part.name) for part in parts)

    async def _take_turn(self) -> bool:
        """Tell whether this server is to sweep now; none does at the first start, and one of several."""
        stored = await self._directory.get(_SWEPT)
        now_ms = self._now_ms()
        if stored is not None and int.from_bytes(stored.value, "big") > now_ms - SWEEP_MS:
            return False
        try:
            await self._directory.put(_SWEPT, u64(now_ms), stored.revision if stored else 0)
        except RevisionError:
            return False
        return stored is not None
