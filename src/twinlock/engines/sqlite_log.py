"""The log contract on SQLite: appends go to the writer's group, reads to the readers, watches live on both."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from functools import partial

from twinlock.contracts.log import Append, DeviceHead, Done, Follower, Log, SpaceState
from twinlock.engines import sqlite_cuts
from twinlock.engines.sqlite_group import AdoptJob, AppendJob, AppendsJob, LogGroup
from twinlock.engines.sqlite_pages import find_known, read_page, read_places, read_spaces, read_state
from twinlock.engines.sqlite_readers import Readers
from twinlock.engines.sqlite_writer import Writer
from twinlock.engines.tails import Tails, watched
from twinlock.errors import AppendConflictError, TwinlockError
from twinlock.ids import Counter, DeviceId, Incarnation, Seq, SpaceId, short
from twinlock.protocol.envelope import Envelope
from twinlock.protocol.frames import Entry
from twinlock.protocol.limits import ENTRIES_PAGE_BYTES_MAX


class SqliteLog(Log):
    """All spaces in one table, in the order of their commits."""

    __slots__ = ("_group", "_incarnation", "_readers", "_tails", "_writer")

    def __init__(self, incarnation: Incarnation, writer: Writer, group: LogGroup, readers: Readers) -> None:
        self._incarnation = incarnation
        self._writer = writer
        self._group = group
        self._readers = readers
        self._tails = Tails()

    @property
    def incarnation(self) -> Incarnation:
        """The random id of this life of the database."""
        return self._incarnation

    async def state(self, space: SpaceId) -> SpaceState:
        """Return the space's present state."""
        return await self._readers.run(read_state, space)

    async def append(self, space: SpaceId, envelopes: Sequence[Envelope], received_ms: int) -> list[Seq]:
        """Append durably, or refuse as a whole, and return one seq for each envelope."""
        if not envelopes:
            return []
        outcome = await self._writer.submit(AppendJob(self._group, self._tails, space, envelopes, received_ms))
        if isinstance(outcome, list):
            return outcome
        # Known envelopes are looked up by a reader: the writer must not wait for a search.
        seqs = [Seq(0)] * len(envelopes)
        for place, seq in (await self._seqs_of_known(space, envelopes, outcome.known)).items():
            seqs[place] = seq
        rest = await self.append(space, [envelopes[place] for place in outcome.fresh], received_ms)
        for place, seq in zip(outcome.fresh, rest, strict=True):
            seqs[place] = seq
        return seqs

    def append_many(self, appends: Sequence[Append], done: Done) -> None:
        """Append to many spaces in one job of the writer."""
        job = AppendsJob(self._group, self._tails, appends, done)
        try:
            self._writer.put(job)
        except TwinlockError as error:
            asyncio.get_running_loop().call_soon(done, job.refused_all(error))

    async def read(self, space: SpaceId, after: Seq, bytes_max: int) -> list[Entry]:
        """Return entries after a seq, from `start` on, in order."""
        return await self._readers.run(read_page, space, after, bytes_max)

    async def watch(self, space: SpaceId, after: Seq) -> AsyncIterator[list[Entry]]:
        """Yield all entries after a seq for ever, in order, each once, as they become durable."""
        tail = self._tails.open(space)
        try:
            async for page in watched(tail, after, lambda seq: self.read(space, seq, ENTRIES_PAGE_BYTES_MAX)):
                yield page
        finally:
            self._tails.discard(space, tail)

    def follow(self, space: SpaceId, after: Seq, follower: Follower) -> Callable[[], None]:
        """Tell nothing: there are no other nodes."""
        return _end

    async def fence(self, space: SpaceId) -> SpaceState:
        """Return the state; there is nobody to fence off."""
        return await self.state(space)

    async def cut(self, space: SpaceId, upto: Seq, now_ms: int) -> SpaceState:
        """Deliver from `upto + 1` on; `start` only rises."""
        return await self._writer.call(partial(sqlite_cuts.cut, space=space, upto=upto, now_ms=now_ms))

    async def uncut(self, space: SpaceId, upto: Seq) -> SpaceState:
        """Move `start` back to `upto + 1`, as far as the entries are not yet deleted."""
        return await self._writer.call(partial(sqlite_cuts.uncut, space=space, upto=upto))

    async def clean(self, cut_before_ms: int) -> int:
        """Delete entries that were cut before a time, some in each group; return how many."""
        deleted = 0
        for space, upto in await self._readers.run(sqlite_cuts.ripe_cuts, cut_before_ms):
            deleted += await self._clean(space, upto)
        return deleted

    async def purge(self, space: SpaceId) -> None:
        """Delete every entry of a space, out of sight at once; the heads of its devices survive."""
        upto = await self._writer.call(partial(sqlite_cuts.begin_purge, space=space))
        await self._clean(space, upto)

    async def spaces(self, after: SpaceId, count_max: int) -> list[SpaceId]:
        """Return a page of the spaces that have a head, sorted."""
        return await self._readers.run(read_spaces, after, count_max)

    async def places(self, after: SpaceId, count_max: int) -> list[tuple[SpaceId, Seq, Seq]]:
        """Return a page of the spaces with their start and head: what `spaces` and `state` tell, for many at once."""
        return await self._readers.run(read_places, after, count_max)

    async def adopt(self, space: SpaceId, entries: Sequence[Entry], heads: Mapping[DeviceId, DeviceHead]) -> None:
        """Take over entries from elsewhere under seqs of this log's own, then raise the heads."""
        await self._writer.submit(AdoptJob(self._group, space, entries, heads))

    async def close(self) -> None:
        """End every watch."""
        self._tails.close()

    async def _clean(self, space: SpaceId, upto: int) -> int:
        deleted = 0
        while (count := await self._writer.call(partial(sqlite_cuts.clean_step, space=space, upto=upto))) is not None:
            deleted += count
        return deleted

    async def _seqs_of_known(
        self, space: SpaceId, envelopes: Sequence[Envelope], known: Sequence[int]
    ) -> dict[int, Seq]:
        counters: dict[DeviceId, list[Counter]] = {}
        for place in known:
            counters.setdefault(envelopes[place].header.device, []).append(envelopes[place].header.counter)
        stored = {
            device: await self._readers.run(find_known, space, device, wanted) for device, wanted in counters.items()
        }
        seqs = {}
        for place in known:
            header = envelopes[place].header
            identifier, seq = stored[header.device].get(header.counter, (envelopes[place].id, Seq(0)))
            if identifier != envelopes[place].id:
                raise AppendConflictError(f"counter {header.counter} of device {short(header.device)} is taken")
            seqs[place] = seq
        return seqs


def _end() -> None:
    """End what never began."""
