"""A backup's way back into an empty engine, with every hash and every chain checked on the way.

What is restored gets another incarnation and seqs of the new engine's own, so every space gets a birth with head 0:
devices read it from its beginning, skip what they know, and push again what the backup lacks.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

import msgspec

from twinlock.backup.blob_table import read_blob
from twinlock.backup.carried import BIRTHS, IDENTITY_KEY, birth_key, is_carried, with_birth
from twinlock.backup.checking import ChainCheck
from twinlock.backup.chunks import HELD_CHUNKS, Chunks
from twinlock.backup.format import BlobRow, Manifest, RecordRow, Run, Segment, SpaceRow, heads_in
from twinlock.backup.holdings import SPACES_AT_ONCE, Holdings, all_of
from twinlock.backup.pages import page_digests, read_page
from twinlock.contracts import MOVING_KEY, BlobStore, Moving, Whereabouts, encode_moving
from twinlock.errors import BackupDamagedError, StoreError
from twinlock.ids import SpaceId
from twinlock.protocol.frames import Entry

AT_ONCE = 64
"""Records that are written at the same time: an engine makes few commits of them."""

PROBLEMS_MAX = 1_000
"""How many problems are named; a backup with more is as broken."""

Row = TypeVar("Row", bound=msgspec.Struct)


class Restored(msgspec.Struct, frozen=True):
    """What came back, and what did not: `problems` is empty unless a damaged backup was to be restored all the same."""

    spaces_count: int
    entries_count: int
    records_count: int
    blobs_count: int
    problems: list[str]


async def restore(
    manifest: Manifest,
    store: BlobStore,
    into: Holdings,
    now_ms: Callable[[], int],
    *,
    place: str = "a backup",
    even_damaged: bool = False,
) -> Restored:
    """Fill an empty engine with a generation of a backup.

    Until all of it is there the engine bears a mark and is not served; then the mark is taken off.

    Args:
        manifest: the generation.
        store: where the backup is.
        into: the engine and its blobs.
        now_ms: the clock.
        place: what the mark calls the backup.
        even_damaged: bring back what can be, and name the rest. A chain is then brought back up to its first gap, so
            that its device pushes what is missing again.

    Raises:
        StoreError: the engine is not empty, or fails.
        BackupDamagedError: something is missing or altered.
    """
    await check_empty(into)
    mark = Moving(Whereabouts.ARRIVING, place, now_ms())
    await into.directory.put(MOVING_KEY, encode_moving(mark))
    # A server may have been started on it while it was empty: the backup's own comes with its records.
    await into.directory.delete(IDENTITY_KEY)
    restoring = Restoring(store, into, even_damaged)
    await restoring.run(manifest)
    await into.directory.delete(MOVING_KEY)
    return restoring.restored()


async def check_empty(into: Holdings) -> None:
    """Refuse an engine that holds something: a restore never mixes two servers.

    Raises:
        StoreError: it does.
    """
    if await into.log.spaces(SpaceId(b""), 1):
        raise StoreError("the engine to restore into has spaces already: name an empty one")
    async for key, _ in into.directory.scan():
        if (is_carried(key) and key != IDENTITY_KEY) or key == MOVING_KEY:
            raise StoreError("the engine to restore into has records already: name an empty one")


class Restoring:
    """One restore under way."""

    __slots__ = ("_chunks", "_counts", "_even_damaged", "_into", "_reading", "_runs", "_store", "problems")

    def __init__(self, store: BlobStore, into: Holdings, even_damaged: bool) -> None:
        self._store = store
        self._chunks = Chunks(store)
        self._into = into
        self._even_damaged = even_damaged
        # The chunks that were read last: many small spaces in a row lie in one.
        self._runs: dict[bytes, list[Run]] = {}
        self._reading = asyncio.Lock()
        self._counts = {"spaces": 0, "entries": 0, "records": 0, "blobs": 0}
        self.problems: list[str] = []

    def restored(self) -> Restored:
        """Return what came back."""
        counts = self._counts
        return Restored(counts["spaces"], counts["entries"], counts["records"], counts["blobs"], self.problems)

    async def run(self, manifest: Manifest) -> None:
        """Restore a generation: records first, since nobody can be served without, then the log, then the blobs."""
        counts = manifest.counts
        await self._each(manifest.records, RecordRow, self._restore_records)
        self._compare("records", counts.records)
        await self._each(manifest.spaces, SpaceRow, self._restore_spaces)
        self._compare("spaces", counts.spaces)
        await self._each(manifest.blobs, BlobRow, self._restore_blobs)
        self._compare("blobs", counts.blobs)

    async def _each(self, table: str, form: type[Row], take: Callable[[list[Row]], Coroutine[Any, Any, None]]) -> None:
        """Take the rows of a table page by page; a page that is damaged costs its rows and no others."""
        try:
            digests = await page_digests(self._chunks, bytes.fromhex(table))
        except BackupDamagedError as error:
            self._note(error)
            return
        for digest in digests:
            try:
                rows = await read_page(self._chunks, digest, form)
            except BackupDamagedError as error:
                self._note(error)
            else:
                await take(rows)

    async def _restore_records(self, rows: list[RecordRow]) -> None:
        for first in range(0, len(rows), AT_ONCE):
            await all_of(map(self._restore_record, rows[first : first + AT_ONCE]))

    async def _restore_record(self, row: RecordRow) -> None:
        value = with_birth(row.value, self._into.log.incarnation) if row.key.startswith(BIRTHS) else row.value
        await self._into.directory.put(row.key, value)
        self._counts["records"] += 1

    async def _restore_spaces(self, rows: list[SpaceRow]) -> None:
        for first in range(0, len(rows), SPACES_AT_ONCE):
            await all_of(map(self._bring_back, rows[first : first + SPACES_AT_ONCE]))

    async def _bring_back(self, row: SpaceRow) -> None:
        try:
            await self._restore_space(row)
        except BackupDamagedError as error:
            self._note(error)
        await self._note_birth(row.space)
        self._counts["spaces"] += 1

    async def _restore_space(self, row: SpaceRow) -> None:
        check, heads = ChainCheck(row.space), heads_in(row.heads)
        try:
            for segment in row.segments:
                entries = await self._entries(row.space, segment)
                check.take(entries)
                await self._into.log.adopt(row.space, entries, {})
                self._counts["entries"] += len(entries)
            check.end(heads, row.count)
        except BackupDamagedError:
            # A head above what is missing would keep its device from pushing that again.
            heads = {device: head for device, head in heads.items() if device not in check.heads}
            raise
        finally:
            await self._into.log.adopt(row.space, [], heads)

    async def _entries(self, space: SpaceId, segment: Segment) -> list[Entry]:
        runs = await self._runs_in(segment.chunk)
        run = runs[segment.place] if segment.place < len(runs) else None
        if run is None or run.space != space or len(run.entries) != segment.count:
            raise BackupDamagedError(f"chunk {segment.chunk.hex()} does not hold what a row of the backup says")
        return run.entries

    async def _runs_in(self, chunk: bytes) -> list[Run]:
        async with self._reading:
            runs = self._runs.get(chunk)
            if runs is None:
                runs = await self._chunks.read(chunk, list[Run])
                while len(self._runs) >= HELD_CHUNKS:
                    del self._runs[next(iter(self._runs))]
                self._runs[chunk] = runs
            return runs

    async def _note_birth(self, space: SpaceId) -> None:
        key = birth_key(space)
        record = await self._into.directory.get(key)
        if record is None:
            await self._into.directory.put(key, with_birth(b"", self._into.log.incarnation))

    async def _restore_blobs(self, rows: list[BlobRow]) -> None:
        for row in rows:
            try:
                data = await read_blob(self._store, row)
            except BackupDamagedError as error:
                self._note(error)
            else:
                await self._into.blobs.put(row.name, data)
                self._counts["blobs"] += 1

    def _compare(self, what: str, expected: int) -> None:
        found = self._counts[what]
        if found != expected:
            self._note(BackupDamagedError(f"the backup was made with {expected} {what} and has {found}"))

    def _note(self, error: BackupDamagedError) -> None:
        if not self._even_damaged:
            raise error
        if len(self.problems) < PROBLEMS_MAX:
            self.problems.append(error.detail)
