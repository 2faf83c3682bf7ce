"""The generations of a backup: which there are, what they name, and the end of old ones."""

from __future__ import annotations

import hashlib
import re

from twinlock.backup.chunks import Chunks
from twinlock.backup.format import (
    BLOBS,
    GENERATIONS,
    BlobRow,
    Manifest,
    SpaceRow,
    decode_manifest,
    encode_manifest,
    manifest_name,
)
from twinlock.backup.pages import page_digests, read_page
from twinlock.backup.spool import Spool, new_spool
from twinlock.contracts import BlobStore
from twinlock.errors import BackupDamagedError

_NAME = re.compile(re.escape(GENERATIONS) + r"(\d{8})\.json")


async def list_generations(store: BlobStore) -> list[int]:
    """Return the numbers of the generations that are there, sorted."""
    found = [_NAME.fullmatch(part.name) async for part in store.list(GENERATIONS)]
    return sorted(int(match[1]) for match in found if match is not None)


async def read_generation(store: BlobStore, generation: int | None = None) -> tuple[Manifest, str]:
    """Return a generation's manifest and its hash; the newest one unless a number is given.

    Raises:
        BackupDamagedError: it is missing or altered, or there is no backup.
        UpdateNeededError: a newer version of Twinlock wrote it.
    """
    if generation is None:
        known = await list_generations(store)
        if not known:
            raise BackupDamagedError("there is no generation: this is no backup of a server, or its first did not end")
        generation = known[-1]
    name = manifest_name(generation)
    data = await store.get(name)
    if data is None:
        raise BackupDamagedError(f"{name} is missing")
    manifest = decode_manifest(data, name)
    if manifest.generation != generation:
        raise BackupDamagedError(f"{name} is that of generation {manifest.generation}")
    return manifest, hashlib.sha256(data).hexdigest()


async def write_generation(store: BlobStore, manifest: Manifest) -> None:
    """Write a manifest: the step that makes a generation of what was written before."""
    await store.put(manifest_name(manifest.generation), encode_manifest(manifest))


async def prune(store: BlobStore, chunks: Chunks, keep: int) -> int:
    """Delete all generations but the newest few, and what only they named; return how many there were.

    What an attempt that was cut short left behind goes with them. A generation that is damaged is kept whole as far as
    it can be read; nothing is deleted if the newest one cannot.
    """
    assert keep >= 1
    known = await list_generations(store)
    old, kept = known[:-keep], known[-keep:]
    with new_spool() as named:
        for generation in kept:
            manifest, _ = await read_generation(store, generation)
            await _note_named(chunks, manifest, named)
        for generation in old:
            await store.delete(manifest_name(generation))
        for digest in [digest for digest in chunks.present if named.get(digest.hex()) is None]:
            await chunks.delete(digest)
        async for part in store.list(BLOBS):
            if named.get(part.name) is None:
                await store.delete(part.name)
    return len(old)


async def _note_named(chunks: Chunks, manifest: Manifest, named: Spool) -> None:
    """Note the chunks and blobs that a generation names."""
    for table in (manifest.spaces, manifest.records, manifest.blobs, manifest.identity):
        named.put(table, b"")
    for page in await _fresh_pages(chunks, manifest.records, named):
        named.put(page.hex(), b"")
    for page in await _fresh_pages(chunks, manifest.spaces, named):
        for row in await read_page(chunks, page, SpaceRow):
            for segment in row.segments:
                named.put(segment.chunk.hex(), b"")
        named.put(page.hex(), b"")
    for page in await _fresh_pages(chunks, manifest.blobs, named):
        for blob in await read_page(chunks, page, BlobRow):
            named.put(blob.name, b"")
        named.put(page.hex(), b"")


async def _fresh_pages(chunks: Chunks, table: str, named: Spool) -> list[bytes]:
    """Return the pages of a table that no other generation has, whose rows are noted already."""
    digests = await page_digests(chunks, bytes.fromhex(table))
    return [digest for digest in digests if named.get(digest.hex()) is None]
