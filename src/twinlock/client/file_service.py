"""What all spaces of an open database share for their files: transfer, cache, uploads, and who is told."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from twinlock.client.blob_transfer import BlobTransfer
from twinlock.client.connection import Connection
from twinlock.client.courier import Courier
from twinlock.client.device_context import DeviceContext
from twinlock.client.file_cache import FileCache
from twinlock.client.file_manifests import FileInfo, FileState, Manifest, info_of, read_manifest
from twinlock.client.file_reading import FileReading
from twinlock.client.file_uploads import Commit, Uploads
from twinlock.client.profile import SPACES_FOLDER_NAME
from twinlock.client.space_runtime import SpaceRuntime
from twinlock.client.status import call_safely
from twinlock.document.file_ref import FILES_COLLECTION
from twinlock.errors import LeaseExpiredError, NotFoundError
from twinlock.ids import BlobId, Epoch, SpaceId
from twinlock.sealing.space_keys import EpochKeys

logger = logging.getLogger(__name__)

LEASE_WAIT_MS = 10_000
LEASE_LOOK_S = 0.02

FileListener = Callable[[FileInfo], object]


class FileService:
    """Made with the client; `commit` writes a batch to a space."""

    __slots__ = ("_context", "_listeners", "cache", "courier", "reading", "transfer", "uploads")

    def __init__(self, context: DeviceContext, connection: Connection, courier: Courier, commit: Commit) -> None:
        self._context = context
        self.courier = courier
        self._listeners: dict[SpaceId, list[FileListener]] = {}
        settings = context.files
        self.transfer = BlobTransfer(connection, context.clock, settings.dial_streams)
        self.cache = FileCache(context.profile.folder / SPACES_FOLDER_NAME, settings.cache_bytes)
        self.reading = FileReading(self.transfer, self.cache, context.entropy)
        self.uploads = Uploads(
            courier.runtimes, self.transfer, self.cache, commit, self._tell, context.clock.now_ms, context.entropy
        )

    @property
    def held_count(self) -> int:
        """How many files the server refuses for now."""
        return sum(len(runtime.staging.held) for runtime in self.courier.runtimes.values())

    def tend(self, now_ms: int) -> None:
        """Look at the clock."""
        self.uploads.tend()

    def close(self) -> None:
        """Let go of the connections."""
        self.transfer.close()

    def now_ms(self) -> int:
        """Return the corrected time."""
        return self._context.clock.now_ms()

    # What there is

    def staged(self, runtime: SpaceRuntime, blob: BlobId) -> FileInfo | None:
        """Return a file that waits on this device."""
        manifest = runtime.staging.manifest(blob, runtime.keyring.keys)
        if manifest is None:
            return None
        state, sent_bytes = self.uploads.state(runtime, blob)
        return info_of(manifest, state, sent_bytes, runtime.staging.held.get(blob))

    def manifest(self, runtime: SpaceRuntime, id: str) -> tuple[Manifest, bool]:
        """Return what a file is, and whether it waits on this device.

        Raises:
            NotFoundError: there is no such file, or it is not complete yet.
            LeaseExpiredError: the space is locked.
        """
        blob = BlobId(bytes.fromhex(id))
        staged = runtime.staging.manifest(blob, runtime.keyring.keys)
        if staged is not None:
            return staged, True
        value = runtime.read(FILES_COLLECTION, id, self.now_ms())
        manifest = None if value is None else read_manifest(id, value)
        if manifest is None:
            raise NotFoundError(f"file {id}: it was deleted, or is not complete yet")
        return manifest, False

    async def keys(self, runtime: SpaceRuntime, epoch: Epoch) -> EpochKeys:
        """Return the keys of an epoch, leased now if it is one of long ago.

        Raises:
            LeaseExpiredError: they are not to be had.
        """
        if runtime.keyring.keys(epoch) is None:
            runtime.keyring.want(epoch)
        end_ms = self.now_ms() + LEASE_WAIT_MS
        while (keys := runtime.keyring.keys(epoch)) is None:
            if self.now_ms() >= end_ms or not self.transfer.is_connected or runtime.end is not None:
                raise LeaseExpiredError(f"epoch {epoch}")
            self.courier.tend()
            await asyncio.sleep(LEASE_LOOK_S)
        return keys

    # Who is told

    def listen(self, space: SpaceId, listener: FileListener) -> Callable[[], None]:
        """Tell a listener how the files of this device come along; return what ends it."""
        listeners = self._listeners.setdefault(space, [])
        listeners.append(listener)

        def unsubscribe() -> None:
            if listener in listeners:
                listeners.remove(listener)

        return unsubscribe

    def _tell(self, runtime: SpaceRuntime, blob: BlobId) -> None:
        listeners = self._listeners.get(runtime.space)
        if not listeners or runtime.is_locked or runtime.end is not None:
            return
        info = self.staged(runtime, blob)
        if info is None:
            value = runtime.read(FILES_COLLECTION, blob.hex(), self.now_ms())
            manifest = None if value is None else read_manifest(blob.hex(), value)
            if manifest is None:
                return
            info = info_of(manifest, FileState.UPLOADED)
        for listener in list(listeners):
            call_safely(listener, info)
