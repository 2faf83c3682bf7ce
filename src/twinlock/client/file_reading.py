"""Reading of files: each chunk from where it is nearest (staged, kept, on the server), opened before it is given on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Final, NamedTuple

from twinlock.client.blob_transfer import BlobTransfer
from twinlock.client.file_cache import FileCache
from twinlock.client.file_manifests import Manifest
from twinlock.client.http import HttpResponse
from twinlock.errors import FileDamagedError, OpenError, TwinlockError
from twinlock.ids import BlobId, SpaceId
from twinlock.protocol.limits import BLOB_PART_CHUNKS
from twinlock.sealing.blobs import SEALED_CHUNK_BYTES
from twinlock.sealing.suite import Entropy

TRIES_MAX: Final = 6
RETRY_MS_FIRST: Final = 250
"""A chunk is asked for so often, with waits that double, before its reader is told."""

OpenChunk = Callable[[int, bytes], bytes]
"""Opens a chunk, by its number; raises OpenError."""


class FileSource(NamedTuple):
    """Where a file is: its space, its manifest, and the sealed chunks if they wait on this device."""

    space: SpaceId
    manifest: Manifest
    staged: Path | None

    @property
    def blob(self) -> BlobId:
        """The file's blob."""
        return self.manifest.blob


class FileReading:
    """Reads chunks in order, from wherever they are."""

    __slots__ = ("_cache", "_entropy", "_transfer")

    def __init__(self, transfer: BlobTransfer, cache: FileCache, entropy: Entropy) -> None:
        self._transfer = transfer
        self._cache = cache
        self._entropy = entropy

    async def chunks(self, source: FileSource, wanted: range, open_chunk: OpenChunk) -> AsyncIterator[bytes]:
        """Yield the content of some chunks in order, each exactly once; what fails for now is tried again.

        Raises:
            FileDamagedError: a chunk is not the one that was sealed.
            OfflineError, NotFoundError, RoleError: it cannot be had.
        """
        index, failures = wanted.start, 0
        while index < wanted.stop:
            try:
                async for content in self._some(source, range(index, wanted.stop), open_chunk):
                    index, failures = index + 1, 0
                    yield content
            except TwinlockError as exc:
                failures += 1
                is_offline = index == wanted.start and not self._transfer.is_connected
                if exc.retry == "no" or failures == TRIES_MAX or is_offline:
                    raise
                delay_ms_max = RETRY_MS_FIRST << failures
                jitter_ms = int.from_bytes(self._entropy(4), "big") * delay_ms_max >> 32
                await asyncio.sleep((exc.retry_after_ms + jitter_ms) / 1000)

    async def _some(self, source: FileSource, wanted: range, open_chunk: OpenChunk) -> AsyncIterator[bytes]:
        """Yield the first of some chunks, at least one: those of one part."""
        part = wanted.start // BLOB_PART_CHUNKS
        here = range(wanted.start, min(wanted.stop, (part + 1) * BLOB_PART_CHUNKS))
        for index in here:
            content = await asyncio.to_thread(self._local, source, index, open_chunk)
            if content is None:
                async for content in self._remote(source, part, range(index, here.stop), open_chunk):
                    yield content
                return
            yield content

    def _local(self, source: FileSource, index: int, open_chunk: OpenChunk) -> bytes | None:
        """Return the content of a chunk that lies on this device."""
        first, size = index * SEALED_CHUNK_BYTES, source.manifest.layout.sealed_chunk_bytes(index)
        if source.staged is not None:
            try:
                with source.staged.open("rb") as file:
                    file.seek(first)
                    return _opened(open_chunk, index, file.read(size))
            except FileNotFoundError:
                # It was sent meanwhile.
                pass
        sealed = self._cache.read(source.space, source.blob, first, size)
        if sealed is None:
            return None
        try:
            return open_chunk(index, sealed)
        except OpenError:
            # The server has it, whatever became of this copy.
            self._cache.forget(source.space, source.blob)
            return None

    async def _remote(
        self, source: FileSource, part: int, wanted: range, open_chunk: OpenChunk
    ) -> AsyncIterator[bytes]:
        layout, part_first = source.manifest.layout, part * BLOB_PART_CHUNKS
        sizes = [layout.sealed_chunk_bytes(index) for index in wanted]
        first = (wanted.start - part_first) * SEALED_CHUNK_BYTES
        is_whole = not first and wanted.stop == min(part_first + BLOB_PART_CHUNKS, layout.chunks_count)
        kept = bytearray()
        async with self._transfer.get(source.space, source.blob, part, first, sum(sizes)) as response:
            for index, size in zip(wanted, sizes, strict=True):
                sealed = await _read_exactly(response, size)
                content = await asyncio.to_thread(_opened, open_chunk, index, sealed)
                if is_whole:
                    kept += sealed
                    if index == wanted[-1]:
                        await asyncio.to_thread(self._cache.put, source.space, source.blob, part, kept)
                yield content


def _opened(open_chunk: OpenChunk, index: int, sealed: bytes) -> bytes:
    try:
        return open_chunk(index, sealed)
    except OpenError as exc:
        raise FileDamagedError(f"chunk {index}") from exc


async def _read_exactly(response: HttpResponse, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        piece = await response.read(size - len(data))
        if not piece:
            break
        data += piece
    return bytes(data)
