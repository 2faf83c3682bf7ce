"""What becomes of files that nobody needs: attached ones that no document names, blobs that no file names.

And of those that a restored server has lost: who has all their chunks sends them again.

The rule is careful. Nothing is deleted by a device that is behind, that met something it does not understand or could
not open, or whose own writes wait; nothing that was put by itself; nothing that this very device has not found unused
all through the time allowed, however long ago it was put.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
import logging
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Final

import msgspec

from twinlock.client.file_manifests import Manifest, read_manifest
from twinlock.client.file_service import FileService
from twinlock.client.file_uploads import Commit
from twinlock.client.sender_space import may_write_changes
from twinlock.client.space_runtime import SpaceRuntime
from twinlock.document.file_ref import FILES_COLLECTION
from twinlock.document.query import Query
from twinlock.errors import NotFoundError
from twinlock.ids import BlobId, SpaceId
from twinlock.protocol.blob_calls import BlobInfo
from twinlock.replica.batch import DeleteDocument
from twinlock.replica.file_use import FileUse
from twinlock.sealing.suite import Entropy

logger = logging.getLogger(__name__)

DAY_MS: Final = 24 * 3_600_000
FIRST_DELAY_MS: Final = 10 * 60_000
"""A device looks for the first time after so long at most, then about once a day."""

ORPHAN_MS: Final = 7 * DAY_MS
"""An upload that was begun so long ago and has no manifest is not coming to its end."""

_NOTES = "unused-files"


class FileUpkeep:
    """Cleans the spaces of an open database, each about once a day.

    Args:
        unused_days: how long an attached file may be unnamed; 0 keeps them all.
    """

    __slots__ = ("_commit", "_due_ms", "_entropy", "_incarnation", "_service", "_unused_ms")

    def __init__(self, service: FileService, commit: Commit, unused_days: float, entropy: Entropy) -> None:
        self._service = service
        self._commit = commit
        self._unused_ms = int(unused_days * DAY_MS)
        self._entropy = entropy
        self._due_ms: dict[SpaceId, int] = {}
        self._incarnation = service.courier.incarnation

    def tend(self, now_ms: int) -> None:
        """Look at the clock."""
        if self._service.courier.incarnation != self._incarnation:
            # The server is a restored one, or it is the first that this run has met: it is looked at anew soon.
            self._incarnation = self._service.courier.incarnation
            self._due_ms.clear()
        for space, runtime in self._service.courier.runtimes.items():
            due_ms = self._due_ms.setdefault(space, now_ms + self._share_of(FIRST_DELAY_MS))
            if now_ms >= due_ms and is_whole(runtime):
                self._due_ms[space] = now_ms + DAY_MS // 2 + self._share_of(DAY_MS)
                self._service.courier.want(f"files {space.hex()}", partial(self.clean, runtime))

    def _share_of(self, ms: int) -> int:
        return int.from_bytes(self._entropy(4), "big") * ms >> 32

    async def clean(self, runtime: SpaceRuntime) -> None:
        """Delete what the rule allows."""
        if is_whole(runtime):
            await self._clean_unused(runtime)
        if is_whole(runtime):
            blobs = [info async for info in self._service.transfer.list(runtime.space)]
            await self._clean_orphans(runtime, blobs)
            await self._heal(runtime, blobs)

    async def _clean_unused(self, runtime: SpaceRuntime) -> None:
        now_ms = self._service.now_ms()
        attached = frozenset(
            id
            for id, value in self._manifests(runtime).items()
            if (manifest := read_manifest(id, value)) is not None and manifest.attached
        )
        use = FileUse(attached)
        while not use.is_done:
            store = runtime.store
            if store is None or not is_whole(runtime):
                return
            use.step(store)
            await asyncio.sleep(0)
        since = self._noted(runtime)
        unused = {id: min(since.get(id, now_ms), now_ms) for id in use.unused}
        over = [id for id, first_ms in unused.items() if self._unused_ms and now_ms - first_ms >= self._unused_ms]
        self._note(runtime, {id: first_ms for id, first_ms in unused.items() if id not in over})
        if over and is_whole(runtime):
            logger.info("unused files are deleted", extra={"space": runtime.space.hex(), "count": len(over)})
            await self._commit(runtime, [DeleteDocument(FILES_COLLECTION, id) for id in over])
            for id in over:
                await self._delete(runtime, BlobId(bytes.fromhex(id)))

    async def _clean_orphans(self, runtime: SpaceRuntime, blobs: Sequence[BlobInfo]) -> None:
        """Delete blobs without a manifest: uploads that were given up, and what a deletion left behind."""
        oldest_ms = self._service.now_ms() - ORPHAN_MS
        for blob in [info.blob for info in blobs if not info.deleted_ms and info.begun_ms < oldest_ms]:
            # Everything is looked at again: manifests may have come while the list did.
            is_staged = runtime.staging.note(blob) is not None
            if is_whole(runtime) and not is_staged and blob.hex() not in self._manifests(runtime):
                await self._delete(runtime, blob)

    async def _heal(self, runtime: SpaceRuntime, blobs: Sequence[BlobInfo]) -> None:
        """Send again what a server that was restored to an older state has lost, if all of it is kept here."""
        there = {info.blob for info in blobs}
        for id, value in self._manifests(runtime).items() if is_whole(runtime) else ():
            manifest = read_manifest(id, value)
            if manifest is None or manifest.blob in there or runtime.staging.note(manifest.blob) is not None:
                continue
            keys = runtime.keyring.keys(manifest.number)
            if keys is not None and await asyncio.to_thread(self._was_taken_back, runtime, manifest):
                logger.warning("the server lost a file, it is sent again", extra={"space": runtime.space.hex()})
                runtime.staging.add(manifest, keys)
                self._service.uploads.wake()

    def _was_taken_back(self, runtime: SpaceRuntime, manifest: Manifest) -> bool:
        runtime.staging.make_folder()
        path, sealed_bytes = runtime.staging.path(manifest.blob), manifest.layout.sealed_bytes
        if not self._service.cache.take(runtime.space, manifest.blob, sealed_bytes, path):
            return False
        with path.open("rb") as file:
            # What the cache has is not trusted: under this id only the true bytes may be sent.
            if hmac.compare_digest(hashlib.file_digest(file, "sha256").digest(), manifest.sha256):
                return True
        path.unlink()
        self._service.cache.forget(runtime.space, manifest.blob)
        return False

    async def _delete(self, runtime: SpaceRuntime, blob: BlobId) -> None:
        with contextlib.suppress(NotFoundError):
            await self._service.transfer.delete(runtime.space, blob)

    def _manifests(self, runtime: SpaceRuntime) -> dict[str, dict[str, object]]:
        assert runtime.replica is not None
        query = Query.over(FILES_COLLECTION, reserved=True)
        return dict(runtime.replica.query(query, self._service.now_ms()))

    @staticmethod
    def _noted(runtime: SpaceRuntime) -> Mapping[str, int]:
        """Return since when this device has found files unused."""
        noted = None if runtime.store is None else runtime.store.get_meta(_NOTES)
        return {} if noted is None else msgspec.msgpack.decode(noted, type=dict[str, int])

    @staticmethod
    def _note(runtime: SpaceRuntime, unused: Mapping[str, int]) -> None:
        if runtime.store is not None:
            with runtime.store.transaction(durable=False):
                runtime.store.put_meta(_NOTES, msgspec.msgpack.encode(unused))


def is_whole(runtime: SpaceRuntime) -> bool:
    """Tell whether a device knows all that a space holds, and may delete from it."""
    replica = runtime.replica
    return (
        replica is not None
        and runtime.end is None
        and runtime.attached
        and replica.knows_all
        and not replica.quarantined()
        and not runtime.pending_count
        and may_write_changes(runtime.keyring)
    )
