"""The upload of files in the background: part by part, several at once, from where the last try ended."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Mapping
from contextlib import asynccontextmanager
from typing import Any, Final

from twinlock.client.blob_transfer import BlobTransfer
from twinlock.client.file_cache import FileCache
from twinlock.client.file_manifests import FileState
from twinlock.client.space_runtime import SpaceRuntime
from twinlock.document.file_ref import FILES_COLLECTION
from twinlock.errors import (
    BlobConflictError,
    BlobIncompleteError,
    LeaseExpiredError,
    NotFoundError,
    OfflineError,
    StoreError,
    TwinlockError,
)
from twinlock.ids import BlobId, Epoch, SpaceId
from twinlock.protocol.blob_calls import BeginBlobResult
from twinlock.protocol.limits import BLOB_PART_BYTES
from twinlock.replica.batch import Batch, SetDocument
from twinlock.sealing.suite import Entropy

logger = logging.getLogger(__name__)

FILES_AT_ONCE: Final = 3
PARTS_AT_ONCE: Final = 3
RETRY_MS_FIRST: Final = 250
RETRY_MS_MAX: Final = 30_000
HELD_RETRY_MS: Final = 10 * 60_000
"""What was refused for good is tried again after this: room, or the role, may have come back."""

Commit = Callable[[SpaceRuntime, Batch], Awaitable[Any]]
Told = Callable[[SpaceRuntime, BlobId], None]


class _Try:
    """What is known of a file's upload in this run."""

    __slots__ = ("due_ms", "failures", "is_under_way", "sent_bytes", "task")

    def __init__(self) -> None:
        self.due_ms = 0
        self.failures = 0
        self.sent_bytes = 0
        self.is_under_way = False
        self.task: asyncio.Future[None] | None = None


class Uploads:
    """Sends what is staged in any space, for as long as `run` runs.

    Args:
        runtimes: the open spaces.
        transfer: the server.
        cache: where the chunks go that the server has.
        commit: writes the manifest of a file that is there in full.
        told: told whenever something about a file changes.
        now_ms: the corrected time.
        entropy: the source of the jitter.
    """

    def __init__(
        self,
        runtimes: Mapping[SpaceId, SpaceRuntime],
        transfer: BlobTransfer,
        cache: FileCache,
        commit: Commit,
        told: Told,
        now_ms: Callable[[], int],
        entropy: Entropy,
    ) -> None:
        self._runtimes = runtimes
        self._transfer = transfer
        self._cache = cache
        self._commit = commit
        self._told = told
        self._now_ms = now_ms
        self._entropy = entropy
        self._tries: dict[BlobId, _Try] = {}
        self._was_connected = False
        self._parts = asyncio.Semaphore(PARTS_AT_ONCE)
        self._news = asyncio.Event()

    async def run(self) -> None:
        """Send what waits, for ever."""
        async with asyncio.TaskGroup() as workers:
            for _ in range(FILES_AT_ONCE):
                workers.create_task(self._work())

    def wake(self) -> None:
        """Something new may wait."""
        news, self._news = self._news, asyncio.Event()
        news.set()

    def tend(self) -> None:
        """Look at the clock and the connection; called about once a second."""
        is_connected = self._transfer.is_connected
        if is_connected and not self._was_connected:
            # What failed for want of a connection is not kept waiting.
            for known in self._tries.values():
                known.due_ms = 0 if not known.is_under_way else known.due_ms
        self._was_connected = is_connected
        if is_connected and any(True for _ in self._due()):
            self.wake()

    def state(self, runtime: SpaceRuntime, blob: BlobId) -> tuple[FileState, int]:
        """Return where a file that is staged stands, and how many of its bytes were sent."""
        known = self._tries.get(blob)
        if known is not None and known.is_under_way:
            return FileState.UPLOADING, known.sent_bytes
        is_held = blob in runtime.staging.held
        return FileState.HELD if is_held else FileState.WAITING, known.sent_bytes if known is not None else 0

    async def cancel(self, runtime: SpaceRuntime, blob: BlobId) -> None:
        """End a file's upload and forget it on this device."""
        known = self._tries.pop(blob, None)
        if known is not None and known.task is not None:
            known.task.cancel()
            await asyncio.wait([known.task])
        runtime.staging.remove(blob)

    def _due(self) -> Iterable[tuple[SpaceRuntime, BlobId]]:
        now_ms = self._now_ms()
        for runtime in self._runtimes.values():
            for blob in runtime.staging.blobs:
                known = self._tries.get(blob)
                if known is None or (not known.is_under_way and known.due_ms <= now_ms):
                    yield runtime, blob

    async def _work(self) -> None:
        while True:
            news = self._news
            job = next(iter(self._due()), None) if self._transfer.is_connected else None
            if job is None:
                await news.wait()
                continue
            await self._try(*job)

    async def _try(self, runtime: SpaceRuntime, blob: BlobId) -> None:
        known = self._tries.setdefault(blob, _Try())
        known.is_under_way = True
        known.task = asyncio.ensure_future(self._upload(runtime, blob, known))
        self._told(runtime, blob)
        try:
            await asyncio.wait([known.task])
            if not known.task.cancelled():
                known.task.result()
                self._tries.pop(blob, None)
        except TwinlockError as exc:
            self._note_failure(runtime, blob, known, exc)
        except OSError as exc:
            self._note_failure(runtime, blob, known, StoreError(f"a staged file: {exc.strerror or exc}"))
        finally:
            known.is_under_way = False
            known.task.cancel()
            await asyncio.wait([known.task])
        self._told(runtime, blob)

    def _note_failure(self, runtime: SpaceRuntime, blob: BlobId, known: _Try, error: TwinlockError) -> None:
        if runtime.end is not None or runtime.staging.note(blob) is None:
            self._tries.pop(blob, None)
            return
        extra = {"space": runtime.space.hex(), "blob": blob.hex(), "code": error.code}
        logger.info("an upload did not come to its end", extra=extra)
        if error.retry == "no":
            runtime.staging.held[blob] = error
            known.due_ms = self._now_ms() + HELD_RETRY_MS
            return
        delay_ms_max = min(RETRY_MS_FIRST << min(known.failures, 10), RETRY_MS_MAX)
        known.failures += 1
        jitter_ms = int.from_bytes(self._entropy(4), "big") * delay_ms_max >> 32
        known.due_ms = self._now_ms() + error.retry_after_ms + jitter_ms

    async def _upload(self, runtime: SpaceRuntime, blob: BlobId, known: _Try) -> None:
        """Bring a file to the server and name it in the space."""
        note, space = runtime.staging.note(blob), runtime.space
        if note is None:
            return
        begun = await self._begin(space, blob, note.epoch, note.sealed_bytes)
        runtime.staging.held.pop(blob, None)
        if not begun.is_finished:
            try:
                await self._send_missing(runtime, blob, known, set(begun.parts))
                await self._transfer.finish(space, blob)
            except (BlobIncompleteError, NotFoundError) as exc:
                # It gave the upload up, or lost a part: the next try begins with what it has.
                raise OfflineError("the server has not kept all that was sent") from exc
        known.sent_bytes = note.sealed_bytes
        manifest = runtime.staging.manifest(blob, runtime.keyring.keys)
        if manifest is None:
            raise LeaseExpiredError("the file is sent, and named once the space is open")
        await self._commit(runtime, [SetDocument(FILES_COLLECTION, blob.hex(), manifest.stored())])
        place = await asyncio.to_thread(self._cache.place_for, space, blob, note.sealed_bytes)
        runtime.staging.remove(blob, place)
        await asyncio.to_thread(self._cache.trim)

    async def _begin(self, space: SpaceId, blob: BlobId, epoch: Epoch, sealed_bytes: int) -> BeginBlobResult:
        try:
            return await self._transfer.begin(space, blob, epoch, sealed_bytes)
        except BlobConflictError:
            # Another device took it for left behind, since it was begun so long ago.
            await self._transfer.restore(space, blob)
            return await self._transfer.begin(space, blob, epoch, sealed_bytes)

    async def _send_missing(self, runtime: SpaceRuntime, blob: BlobId, known: _Try, present: set[int]) -> None:
        note = runtime.staging.note(blob)
        assert note is not None
        sealed_bytes, path = note.sealed_bytes, runtime.staging.path(blob)
        parts_count = -(-sealed_bytes // BLOB_PART_BYTES)
        known.sent_bytes = sum(_part_bytes(sealed_bytes, part) for part in present)
        waiting = iter([part for part in range(parts_count) if part not in present])

        failures: list[TwinlockError] = []

        async def send() -> None:
            for part in waiting:
                if failures:
                    return
                try:
                    async with self._parts:
                        known.sent_bytes += await self._transfer.put_part(runtime.space, blob, part, path, sealed_bytes)
                except TwinlockError as exc:
                    # The parts that are under way come to their end: what was let through is not sent twice.
                    failures.append(exc)
                    return
                known.failures = 0
                self._told(runtime, blob)

        async with all_or_none() as start:
            for _ in range(min(PARTS_AT_ONCE, parts_count)):
                start(send())
        if failures:
            raise failures[0]


def _part_bytes(sealed_bytes: int, part: int) -> int:
    return max(0, min(BLOB_PART_BYTES, sealed_bytes - part * BLOB_PART_BYTES))


@asynccontextmanager
async def all_or_none() -> AsyncIterator[Callable[[Coroutine[None, None, None]], None]]:
    """Run coroutines together to their ends; when one fails the others are cancelled, and its error is raised bare.

    A TaskGroup before Python 3.13 that fails may leave its task cancelled, and wraps what it raises.
    """
    tasks: list[asyncio.Future[None]] = []
    try:
        yield lambda work: tasks.append(asyncio.ensure_future(work))
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
