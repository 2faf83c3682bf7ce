"""Files of a space, as an application uses them: `space.files`. See docs/guides/files.md."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO, Final

from twinlock.client.file_manifests import (
    FileInfo,
    FileState,
    Manifest,
    check_file_name,
    check_file_type,
    info_of,
    read_manifest,
)
from twinlock.client.file_reading import FileSource
from twinlock.client.file_service import FileListener, FileService
from twinlock.client.file_sources import FileContent, name_of, pieces_of, size_of
from twinlock.client.file_staging import Draft
from twinlock.client.sender_space import may_write_changes
from twinlock.client.space_handle import SpaceHandle
from twinlock.client.space_runtime import SpaceRuntime
from twinlock.client.writes import Write
from twinlock.document.file_ref import FILES_COLLECTION, FileRef
from twinlock.document.query import Query
from twinlock.errors import (
    FileDamagedError,
    FileTooLargeError,
    InvalidDataError,
    LeaseExpiredError,
    NotFoundError,
    OpenError,
    RoleError,
    StoreError,
)
from twinlock.ids import BlobId
from twinlock.protocol.limits import BLOB_CHUNK_BYTES
from twinlock.replica.batch import DeleteDocument
from twinlock.sealing.blobs import BlobOpener, BlobReader, check_blob_size
from twinlock.sealing.space_keys import EpochKeys

GET_BYTES_MAX: Final = 64 << 20
"""What `get` holds in memory."""

PARTIAL_SUFFIX: Final = ".twinlock-part"
DEFAULT_NAME: Final = "file"

Progress = Callable[[int, int | None], object]
"""Told how many bytes are done, and of how many, if that is known."""

AnyFile = FileRef | FileInfo | Mapping[str, Any] | str
"""A file, as `put` returned it, as `info` tells it, as it stands in a document, or by its id."""


class Files:
    """The files of one space: sealed on this device, sent in the background, read wherever they are."""

    __slots__ = ("_handle", "_service")

    def __init__(self, handle: SpaceHandle, service: FileService) -> None:
        self._handle = handle
        self._service = service

    # Putting

    async def put(
        self,
        source: FileContent,
        *,
        name: str | None = None,
        type: str | None = None,
        attached: bool = False,
        progress: Progress | None = None,
    ) -> FileRef:
        """Seal a file and keep it on this device until the server has it; returns once it is safe here.

        Others see it when it is complete on the server. What is cancelled leaves nothing behind.

        Args:
            source: a path (text is a path), bytes, an open binary file, or an iterator of bytes, async or not.
            name: what it is called, by default as the source is.
            type: its media type, by default what the name tells.
            attached: delete it by itself once no document has named it for a while.
            progress: called with the bytes that were sealed, and with the length if it is known.

        Raises:
            NotFoundError: there is no such file to put.
            LeaseExpiredError: the space is locked: sealing takes both keys.
            RoleError: this account may not put files here.
            FileTooLargeError: it is too long.
            StoreError: the disk has no room.
        """
        file_name = check_file_name(name if name is not None else name_of(source) or DEFAULT_NAME)
        file_type, runtime, keys = check_file_type(type, file_name), self._runtime, self._keys_to_put()
        size = size_of(source)
        check_blob_size(size or 0)
        draft = await asyncio.to_thread(runtime.staging.draft, keys)
        try:
            async for piece in pieces_of(source):
                await asyncio.to_thread(draft.write, piece)
                if progress is not None:
                    progress(draft.size, size)
            manifest = await self._finish(draft, keys, (file_name, file_type, attached))
        except BaseException:
            draft.discard()
            raise
        self._service.uploads.wake()
        return FileRef(manifest.blob_id.hex())

    def _keys_to_put(self) -> EpochKeys:
        runtime = self._runtime
        if not may_write_changes(runtime.keyring):
            raise RoleError("owners, admins and editors put files")
        if runtime.keyring.locked(self._service.now_ms()) or runtime.replica is None:
            raise LeaseExpiredError
        return runtime.keyring.newest_keys()

    async def _finish(self, draft: Draft, keys: EpochKeys, told: tuple[str, str, bool]) -> Manifest:
        size, sha256 = await asyncio.to_thread(draft.finish)
        # Meanwhile the space may have ended, or been locked.
        self._keys_to_put()
        name, type, attached = told
        manifest = Manifest(draft.blob, keys.epoch, size, sha256, name, type, self._service.now_ms(), attached)
        self._runtime.staging.add(manifest, keys)
        return manifest

    async def uploaded(self, file: AnyFile) -> None:
        """Wait until a file is complete on the server, for others to read.

        Raises:
            TwinlockError: the server refuses it for now; it goes on trying.
            NotFoundError: there is no such file.
        """
        id, changed = _id_of(file), asyncio.Event()
        unsubscribe = self.on_change(lambda info: changed.set() if info.id == id else None)
        try:
            while (info := await self.info(id)).state is not FileState.UPLOADED:
                if info.error is not None:
                    raise info.error
                await changed.wait()
                changed.clear()
        finally:
            unsubscribe()

    def on_change(self, listener: FileListener) -> Callable[[], None]:
        """Call back whenever the upload of a file of this device comes along; return what ends it."""
        return self._service.listen(self._handle.id, listener)

    # Looking

    async def info(self, file: AnyFile) -> FileInfo:
        """Return what a file is, and where.

        Raises:
            NotFoundError: there is no such file, or it is not complete yet.
            LeaseExpiredError: the space is locked.
        """
        id, runtime = _id_of(file), self._readable
        manifest, is_staged = self._service.manifest(runtime, id)
        staged = self._service.staged(runtime, manifest.blob) if is_staged else None
        return staged or info_of(manifest, FileState.UPLOADED)

    async def list(self) -> list[FileInfo]:
        """Return the files of the space, those that wait on this device too, the oldest first."""
        runtime = self._readable
        staged = [self._service.staged(runtime, blob) for blob in runtime.staging.blobs]
        found = {info.id: info for info in staged if info is not None}
        for id, value in self._handle.run(Query.over(FILES_COLLECTION, reserved=True)):
            manifest = read_manifest(id, value)
            if manifest is not None and id not in found:
                found[id] = info_of(manifest, FileState.UPLOADED)
        return sorted(found.values(), key=lambda info: (info.added_ms, info.id))

    # Reading

    async def get(self, file: AnyFile) -> bytes:
        """Return a file's content, of at most 64 MiB.

        Raises:
            FileTooLargeError: it is longer: use `save` or `stream`.
            FileDamagedError: the server's bytes are not those that were sealed.
            NotFoundError: there is no such file, or it is not complete yet.
            OfflineError: it is not on this device, and there is no server.
        """
        info = await self.info(file)
        if info.size > GET_BYTES_MAX:
            raise FileTooLargeError(f"{info.size} bytes; get returns at most {GET_BYTES_MAX}: use save or stream")
        return b"".join([piece async for piece in self.stream(info)])

    async def stream(self, file: AnyFile, first: int = 0, size: int | None = None) -> AsyncIterator[bytes]:
        """Yield a file's content, or `size` bytes of it from `first` on, in pieces of at most 1 MiB.

        Only what is needed is fetched. Every piece is checked before it is yielded; that the file as a whole is the
        one that was put is known when its last piece was yielded without an error.

        Raises:
            FileDamagedError, NotFoundError, OfflineError: as `get`.
        """
        if first < 0 or (size is not None and size < 0):
            raise InvalidDataError("a range begins at 0 or later, and has a length of 0 or more")
        source, opener = await self._source(_id_of(file))
        manifest, wanted = source.manifest, size if size is not None else source.manifest.size
        if first == 0 and wanted >= manifest.size:
            async for content in self._whole(source, BlobReader(opener)):
                if content:
                    yield content
            return
        chunks = opener.layout.chunks_of(first, wanted)
        at = chunks.start * BLOB_CHUNK_BYTES
        async for content in self._service.reading.chunks(source, chunks, opener.open):
            piece = content[max(0, first - at) : max(0, first + wanted - at)]
            at += len(content)
            if piece:
                yield piece

    async def save(self, file: AnyFile, path: str | os.PathLike[str], *, progress: Progress | None = None) -> Path:
        """Write a file's content to a path; what stood there is replaced once all of it is here and true.

        What was interrupted goes on where it ended: until then the content lies beside it, under a name that ends
        with `.twinlock-part`.

        Raises:
            FileDamagedError, NotFoundError, OfflineError: as `get`.
            StoreError: the disk refused.
        """
        source, opener = await self._source(_id_of(file))
        target = Path(path)
        if await asyncio.to_thread(target.is_dir):
            raise StoreError(f"{target} is a folder: say which file it is to be")
        partial = target.with_name(f"{target.name}.{source.blob.hex()[:8]}{PARTIAL_SUFFIX}")
        try:
            with await asyncio.to_thread(_open_partial, partial) as out:
                await self._save(source, BlobReader(opener), out, progress)
                await asyncio.to_thread(_flush, out)
            await asyncio.to_thread(partial.replace, target)
        except FileDamagedError:
            partial.unlink(missing_ok=True)
            raise
        except OSError as exc:
            raise StoreError(f"{target}: {exc.strerror}") from exc
        return target

    async def _save(self, source: FileSource, reader: BlobReader, out: BinaryIO, progress: Progress | None) -> None:
        size = source.manifest.size
        await asyncio.to_thread(_resume, reader, out, size)
        async for content in self._whole(source, reader):
            await asyncio.to_thread(out.write, content)
            if progress is not None:
                progress(min(size, reader.next_chunk * BLOB_CHUNK_BYTES), size)

    async def _whole(self, source: FileSource, reader: BlobReader) -> AsyncIterator[bytes]:
        """Yield what a reader still lacks, and compare the SHA-256 of all."""
        wanted = range(reader.next_chunk, source.manifest.layout.chunks_count)
        async for content in self._service.reading.chunks(source, wanted, lambda _, sealed: reader.open(sealed)):
            yield content
        try:
            reader.finish(source.manifest.sha256)
        except OpenError as exc:
            raise FileDamagedError("its SHA-256 is not that of its manifest") from exc

    async def _source(self, id: str) -> tuple[FileSource, BlobOpener]:
        runtime = self._readable
        manifest, is_staged = self._service.manifest(runtime, id)
        keys = await self._service.keys(runtime, manifest.number)
        staged = runtime.staging.path(manifest.blob) if is_staged else None
        return FileSource(runtime.space, manifest, staged), BlobOpener(keys, manifest.blob, manifest.size)

    # Deleting

    async def delete(self, file: AnyFile) -> Write | None:
        """Delete a file, everywhere; one that waits on this device is not sent. Deleting what is not there is fine.

        The server keeps the sealed bytes for its grace.

        Raises:
            RoleError: this account may not delete files here.
        """
        id, runtime = _id_of(file), self._runtime
        if not may_write_changes(runtime.keyring):
            raise RoleError("owners, admins and editors delete files")
        blob = BlobId(bytes.fromhex(id))
        was_staged = runtime.staging.note(blob) is not None
        if was_staged:
            await self._service.uploads.cancel(runtime, blob)
        write = None
        if not was_staged or self._is_named(runtime, id):
            write = await self._handle.write([DeleteDocument(FILES_COLLECTION, id)], id)
        await asyncio.to_thread(self._service.cache.forget, runtime.space, blob)
        self._service.courier.want(f"delete {id}", lambda: self._delete_blob(runtime, blob))
        return write

    def _is_named(self, runtime: SpaceRuntime, id: str) -> bool:
        with contextlib.suppress(LeaseExpiredError):
            return runtime.read(FILES_COLLECTION, id, self._service.now_ms()) is not None
        return True

    async def _delete_blob(self, runtime: SpaceRuntime, blob: BlobId) -> None:
        # A server that has never heard of it has nothing to delete.
        with contextlib.suppress(NotFoundError):
            await self._service.transfer.delete(runtime.space, blob)

    @property
    def _runtime(self) -> SpaceRuntime:
        self._handle.check_open()
        return self._handle.runtime

    @property
    def _readable(self) -> SpaceRuntime:
        self._handle.check_reads()
        return self._handle.runtime


def _id_of(file: AnyFile) -> str:
    return file.id if isinstance(file, FileInfo) else FileRef.of(file).id


def _open_partial(path: Path) -> BinaryIO:
    return os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o600), "r+b")


def _resume(reader: BlobReader, out: BinaryIO, size: int) -> None:
    """Take up what an earlier try wrote, in whole chunks; what it really is, the SHA-256 of all tells in the end."""
    whole = min(os.fstat(out.fileno()).st_size, size) // BLOB_CHUNK_BYTES
    for _ in range(whole):
        reader.resume(out.read(BLOB_CHUNK_BYTES))
    out.truncate(whole * BLOB_CHUNK_BYTES)
    out.seek(whole * BLOB_CHUNK_BYTES)


def _flush(out: BinaryIO) -> None:
    out.flush()
    os.fsync(out.fileno())
