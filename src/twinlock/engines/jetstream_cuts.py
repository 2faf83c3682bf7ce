"""Cutting, undoing, cleaning and purging on a cluster: the record says what is visible, a purge frees the room.

The record comes first, then a note in the log for the other nodes. Entries are deleted only after their devices' heads
were written at or above them, and the last message of a space is never deleted: the next append's guard stands on it.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Callable

import msgspec

from twinlock.engines.jetstream_api import Api
from twinlock.engines.jetstream_format import PLACES, MessageKind, Names, partition_of
from twinlock.engines.jetstream_live import Live
from twinlock.engines.jetstream_starts import Cut, Start
from twinlock.engines.jetstream_tail import Reached, SpaceTail, Waiting
from twinlock.errors import CutRefusedError, RevisionError, StoreError, TwinlockError
from twinlock.ids import Seq, SpaceId, short

logger = logging.getLogger(__name__)

FAILURES_MAX = 3
"""Spaces of one partition that may fail in one cleaning."""

Noting = Callable[[SpaceId, Waiting], None]


class Cuts:
    """Changes of where spaces' logs begin.

    Args:
        live: the tails.
        put: how a note gets into the log.
    """

    __slots__ = ("_api", "_live", "_names", "_put")

    def __init__(self, api: Api, names: Names, live: Live, put: Noting) -> None:
        self._api = api
        self._names = names
        self._live = live
        self._put = put

    async def cut(self, space: SpaceId, upto: Seq, now_ms: int) -> SpaceTail:
        """Deliver from `upto + 1` on; return the tail with the new start.

        Raises:
            CutRefusedError: `upto` lies above the head.
        """
        tail = await self._live.current(space)
        if upto > tail.head:
            raise CutRefusedError(f"up to {upto}, and the head is {tail.head}")

        async def change(start: Start) -> Start | None:
            if upto < start.start:
                return None
            size, count = await self._before(tail, upto)
            made = Cut(upto, now_ms, count)
            return msgspec.structs.replace(start, start=Seq(upto + 1), bytes_before=size, cuts=[*start.cuts, made])

        return await self._change(tail, change)

    async def uncut(self, space: SpaceId, upto: Seq) -> SpaceTail:
        """Move the start back to `upto + 1`, as far as nothing is deleted; return the tail with the new start."""
        tail = await self._live.current(space)

        async def change(start: Start) -> Start | None:
            first = Seq(max(upto, start.cleaned) + 1)
            if first >= start.start:
                return None
            size, count = await self._before(tail, Seq(first - 1))
            undone = [cut for cut in start.cuts if cut.upto >= first]
            cuts = [cut for cut in start.cuts if cut.upto < first]
            if undone and first > start.cleaned + 1:
                # What stays cut was cut by the lowest of them.
                cuts.append(Cut(Seq(first - 1), undone[0].cut_ms, count))
            return msgspec.structs.replace(start, start=first, bytes_before=size, cuts=cuts)

        return await self._change(tail, change)

    async def clean(self, cut_before_ms: int) -> int:
        """Delete what was cut before a time, one space after the other; return how many entries.

        A space that cannot be cleaned now is left for the next time, and so is the rest of a partition of which
        several cannot: each costs a wait for a leader that may not be there.
        """
        deleted = 0
        failures = Counter[int]()
        for space in await self._live.starts.marked():
            partition = partition_of(space)
            if failures[partition] == FAILURES_MAX:
                continue
            try:
                deleted += await self._clean(space, cut_before_ms)
            except StoreError as error:
                failures[partition] += 1
                logger.warning("a cut could not be cleaned", extra={"space": short(space), "detail": error.detail})
        return deleted

    async def purge(self, space: SpaceId) -> None:
        """Put the start behind the head, out of reach of any undoing, and delete everything before it."""
        tail = await self._live.current(space)
        if tail.head == 0:
            return
        await self._live.checkpoint(tail)
        head, size, count = tail.head, tail.bytes_all, tail.count_all
        # Were this node to end before all is deleted, the next `clean` would go on.
        await self._live.starts.mark(space)

        async def change(start: Start) -> Start | None:
            return Start(Seq(head + 1), head, size, count, [])

        await self._change(tail, change)
        await self._delete_upto(tail, head)
        await self._live.starts.unmark(space)

    async def _clean(self, space: SpaceId, cut_before_ms: int) -> int:
        before = await self._live.starts.read(space)
        ripe = max((cut for cut in before.cuts if cut.cut_ms < cut_before_ms), key=lambda cut: cut.upto, default=None)
        if ripe is None and before.cuts:
            return 0
        tail = await self._live.current(space)
        if ripe is not None:
            await self._live.checkpoint(tail)
            done = ripe

            async def change(start: Start) -> Start | None:
                if done not in start.cuts:
                    return None
                left = [cut for cut in start.cuts if cut.upto > done.upto]
                return msgspec.structs.replace(start, cleaned=done.upto, count_cleaned=done.count, cuts=left)

            await self._change(tail, change)
        after = await self._live.starts.read(space)
        await self._delete_upto(tail, after.cleaned)
        await self._live.starts.unmark(space)
        return max(after.count_cleaned - before.count_cleaned, 0)

    async def _change(self, tail: SpaceTail, change: Callable[[Start], Awaitable[Start | None]]) -> SpaceTail:
        """Change a start by compare-and-set, then tell the other nodes."""
        starts, space = self._live.starts, tail.space
        while True:
            before, revision = await starts.read_with_revision(space)
            after = await change(before)
            if after is None:
                tail.start = before
                return tail
            try:
                await starts.write(space, after, revision)
            except RevisionError:
                continue
            if not after.cuts and before.cuts:
                await starts.unmark(space)
            await self.note(space)
            tail = await self._live.current(space)
            tail.start = await starts.read(space)
            return tail

    async def note(self, space: SpaceId) -> None:
        """Leave a note of a changed start in the log."""
        noted: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def tell(outcome: Reached) -> None:
            if isinstance(outcome, TwinlockError):
                logger.warning("a cut was not noted", extra={"space": short(space), "code": outcome.code})
            if not noted.done():
                noted.set_result(None)

        self._put(space, Waiting(MessageKind.CUT, 0, tell))
        await noted

    async def _before(self, tail: SpaceTail, upto: Seq) -> tuple[int, int]:
        if upto <= 0:
            return 0, 0
        found = await self._live.reads.before(tail.space, upto, tail.last)
        return (tail.bytes_all, tail.count_all) if found is None else found

    async def _delete_upto(self, tail: SpaceTail, upto: Seq) -> None:
        """Delete the messages of which nothing lies above a seq, but never the last one."""
        keep = min((upto + 1) // PLACES, tail.last)
        if keep > 1:
            request = {"filter": self._names.log_subject(tail.space), "seq": keep}
            await self._api.call(f"STREAM.PURGE.{self._names.log_stream(partition_of(tail.space))}", request)
