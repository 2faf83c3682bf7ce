"""The log's part of a backup: for each space what it held before, and the entries that came since."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator

import msgspec

from twinlock.backup.chunks import Chunks, encode_rows
from twinlock.backup.format import CHUNK_BYTES, Counts, Run, Segment, SpaceRow, heads_of
from twinlock.backup.holdings import Holdings, Place
from twinlock.backup.pages import PageWriter, Peekable
from twinlock.contracts import Log, SpaceState
from twinlock.errors import OverloadedError
from twinlock.ids import Seq, SpaceId
from twinlock.protocol.frames import Entry

SEGMENTS_MAX = 64
"""A space in more segments than this is read anew, whole: its row stays short, its entries lie together."""

ROWS_WAITING_MAX = 20_000
CUT_TRIES_MAX = 5
_OPEN = b""
"""In place of the hash of the chunk that is being filled."""


class _Draft:
    """A row on its way: some of its segments may lie in the chunk that is being filled."""

    __slots__ = ("row", "segments")

    def __init__(self, segments: list[Segment]) -> None:
        self.segments = segments
        self.row: SpaceRow | None = None

    @property
    def is_open(self) -> bool:
        return self.row is None or (bool(self.segments) and self.segments[-1].chunk == _OPEN)

    def close(self, digest: bytes) -> None:
        """Name the chunk that is full now."""
        self.segments = [
            msgspec.structs.replace(segment, chunk=digest) if segment.chunk == _OPEN else segment
            for segment in self.segments
        ]


class LogTable:
    """Writes the table of spaces, and the chunks of entries that its rows name."""

    __slots__ = ("_chunks", "_drafts", "_log", "_open_bytes", "_open_runs", "_pages", "counts")

    def __init__(self, log: Log, chunks: Chunks) -> None:
        self._log = log
        self._chunks = chunks
        self._pages = PageWriter(chunks)
        self._open_runs: list[Run] = []
        self._open_bytes = 0
        self._drafts: deque[_Draft] = deque()
        self.counts = Counts()

    async def write(self, holdings: Holdings, before: AsyncIterator[SpaceRow]) -> bytes:
        """Write all spaces, given the rows of the generation before; return the table's hash.

        Raises:
            OverloadedError: a space is cut again and again while it is read.
        """
        known = Peekable(before)
        await known.move()
        async for place in holdings.all_places():
            while known.next is not None and known.next.space < place.space:
                await known.move()
            row = known.next if known.next is not None and known.next.space == place.space else None
            await self._add(place, row)
        await self._fill_up()
        return await self._pages.end()

    async def _add(self, place: Place, before: SpaceRow | None) -> None:
        if before is not None and not self._is_whole(before):
            before = None
        if before is not None and (before.start, before.head) == (place.start, place.head):
            draft = _Draft(before.segments)
            draft.row = before
            self._drafts.append(draft)
        else:
            await self._read(place.space, before)
        if len(self._drafts) > ROWS_WAITING_MAX:
            await self._fill_up()
        else:
            await self._write_closed()

    def _is_whole(self, row: SpaceRow) -> bool:
        """Tell whether the backup still has all that a row names, in not too many pieces."""
        is_there = all(segment.chunk in self._chunks.present for segment in row.segments)
        return is_there and len(row.segments) < SEGMENTS_MAX

    async def _read(self, space: SpaceId, before: SpaceRow | None) -> None:
        """Read what came since; everything, if the log begins elsewhere now."""
        for _ in range(CUT_TRIES_MAX):
            state = await self._log.state(space)
            usable = before if before is not None and before.start == state.start else None
            draft = _Draft(list(usable.segments) if usable is not None else [])
            self._drafts.append(draft)
            after = usable.head if usable is not None else Seq(state.start - 1)
            async for page in pages_upto(self._log, space, after, state.head):
                await self._take(draft, space, page)
            if (await self._log.state(space)).start == state.start:
                draft.row = _row(space, state, draft.segments)
                return
            # It was cut meanwhile, so that what was read may begin too late or too early.
            self._drafts.remove(draft)
        raise OverloadedError(f"space {space.hex()} is cut faster than it can be read")

    async def _take(self, draft: _Draft, space: SpaceId, page: list[Entry]) -> None:
        draft.segments.append(Segment(_OPEN, len(self._open_runs), page[0].seq, page[-1].seq, len(page)))
        self._open_runs.append(Run(space, page))
        self._open_bytes += sum([len(entry.envelope) for entry in page])
        if self._open_bytes >= CHUNK_BYTES:
            await self._close_chunk()

    async def _close_chunk(self) -> None:
        digest = await self._chunks.put(encode_rows(self._open_runs))
        self._open_runs, self._open_bytes = [], 0
        for draft in self._drafts:
            draft.close(digest)

    async def _fill_up(self) -> None:
        if self._open_runs:
            await self._close_chunk()
        await self._write_closed()

    async def _write_closed(self) -> None:
        """Write the rows that name no open chunk, as far as those before them do not either."""
        while self._drafts and not self._drafts[0].is_open:
            draft = self._drafts.popleft()
            assert draft.row is not None
            row = msgspec.structs.replace(draft.row, segments=draft.segments)
            counts = self.counts
            self.counts = msgspec.structs.replace(
                counts,
                spaces=counts.spaces + 1,
                entries=counts.entries + row.count,
                envelope_bytes=counts.envelope_bytes + row.envelope_bytes,
            )
            await self._pages.add(row.space, row)


def _row(space: SpaceId, state: SpaceState, segments: list[Segment]) -> SpaceRow:
    count = sum(segment.count for segment in segments)
    return SpaceRow(space, state.start, state.head, count, state.log_bytes, heads_of(state.heads), [])


async def pages_upto(log: Log, space: SpaceId, after: Seq, head: Seq) -> AsyncIterator[list[Entry]]:
    """Yield a space's entries after a seq, up to a head, page by page."""
    while after < head:
        page = [entry for entry in await log.read(space, after, CHUNK_BYTES) if entry.seq <= head]
        if not page:
            return
        yield page
        after = page[-1].seq
