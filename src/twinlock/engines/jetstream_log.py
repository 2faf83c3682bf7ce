"""The log contract on JetStream: one stream a partition, one subject a space, one message an append."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence

from twinlock.contracts.chains import NO_HEAD, AppendPlan
from twinlock.contracts.directory import Directory
from twinlock.contracts.log import (
    APPEND_BYTES_MAX,
    APPEND_ENVELOPES_MAX,
    Append,
    DeviceHead,
    Done,
    Follower,
    Log,
    SpaceState,
)
from twinlock.engines.jetstream_api import Api
from twinlock.engines.jetstream_appends import Appends, future_told
from twinlock.engines.jetstream_cluster import Cluster
from twinlock.engines.jetstream_cuts import Cuts
from twinlock.engines.jetstream_format import PLACES, MessageKind, Names, device_of, entries_of, partition_of
from twinlock.engines.jetstream_live import Live
from twinlock.engines.jetstream_starts import Start, Starts
from twinlock.engines.jetstream_tail import Snapshot, SpaceTail, Waiting, counter_of
from twinlock.engines.tails import Tail, watched
from twinlock.errors import AppendConflictError, LimitExceededError, StoreError
from twinlock.ids import Counter, DeviceId, Incarnation, Seq, SpaceId, short
from twinlock.protocol.envelope import Envelope, parse
from twinlock.protocol.frames import Entry
from twinlock.protocol.limits import ENTRIES_PAGE_BYTES_MAX

CLOSE_SECONDS_MAX = 5.0
READ_BYTES_MIN = 1 << 16
READ_BYTES_MAX = 4 << 20
_SUBJECTS_PAGE = 100_000


class JetstreamLog(Log):
    """All spaces of a cluster, as one node sees them."""

    __slots__ = ("_api", "_appends", "_closed", "_cluster", "_cuts", "_incarnation", "_listed", "_live", "_names")

    def __init__(
        self, incarnation: Incarnation, api: Api, directory: Directory, cluster: Cluster, names: Names
    ) -> None:
        self._incarnation = incarnation
        self._api = api
        self._cluster = cluster
        self._names = names
        self._appends = Appends(api.connection)
        self._live = Live(api, names, Starts(directory), self._appends.go, self._appends.tell_ready)
        self._appends.live = self._live
        self._cuts = Cuts(api, names, self._live, self._appends.put)
        self._listed: tuple[SpaceId, int, list[SpaceId]] = (SpaceId(b""), -1, [])
        self._closed = False

    @property
    def incarnation(self) -> Incarnation:
        """The random id of this life of the cluster's store."""
        return self._incarnation

    async def state(self, space: SpaceId) -> SpaceState:
        """Return the space's present state, as the leader of its stream knows it."""
        return await self._state(await self._live.current(space))

    async def append(self, space: SpaceId, envelopes: Sequence[Envelope], received_ms: int) -> list[Seq]:
        """Append durably, or refuse as a whole, and return one seq for each envelope."""
        if not envelopes:
            return []
        size = sum([len(envelope.data) for envelope in envelopes])
        if size > APPEND_BYTES_MAX or len(envelopes) > APPEND_ENVELOPES_MAX:
            raise LimitExceededError(f"an append of {len(envelopes)} envelopes and {size} bytes")
        future, tell = future_told()
        waiting = Waiting(MessageKind.ENTRIES, received_ms, tell)
        waiting.envelopes, waiting.bytes, waiting.takes_known = envelopes, size, True
        self._appends.put(space, waiting)
        outcome = await future
        if isinstance(outcome, list):
            return outcome
        assert isinstance(outcome, AppendPlan), "an append is answered by seqs or a plan"
        seqs = [Seq(0)] * len(envelopes)
        for place, seq in (await self._seqs_of_known(space, envelopes, outcome.known)).items():
            seqs[place] = seq
        rest = await self.append(space, [envelopes[place] for place in outcome.fresh], received_ms)
        for place, seq in zip(outcome.fresh, rest, strict=True):
            seqs[place] = seq
        return seqs

    def append_many(self, appends: Sequence[Append], done: Done) -> None:
        """Append to many spaces, each as soon as it can be."""
        self._appends.put_many(appends, done)

    async def read(self, space: SpaceId, after: Seq, bytes_max: int) -> list[Entry]:
        """Return entries after a seq, from `start` on, in order, as far as the leader has them now."""
        last = await self._live.reads.last(space)
        tail = self._live.tails.get(space)
        if tail is not None and tail.is_loaded:
            # A leader that was just replaced may know less than this node was told: none of that is missing.
            last = max(last, tail.last)
        if tail is not None and tail.is_loaded and tail.stop_live is not None:
            start = await self._live.start_of(tail)
        else:
            start = await self._live.starts.read(space)
        return await self._read(space, max(after, start.start - 1), last, bytes_max)

    async def watch(self, space: SpaceId, after: Seq) -> AsyncIterator[list[Entry]]:
        """Yield all entries after a seq for ever, in order, each once, as they become durable."""
        tail, queue = self._live.tail_of(space), Tail()
        queue.closed = self._closed
        tail.watchers.add(queue)
        self._live.listen(tail)
        try:
            async for page in watched(queue, after, lambda seq: self.read(space, seq, ENTRIES_PAGE_BYTES_MAX)):
                yield page
        finally:
            self._live.unwatch(space, queue)

    def follow(self, space: SpaceId, after: Seq, follower: Follower) -> Callable[[], None]:
        """Tell of what other nodes do, in order with this node's own outcomes."""
        return self._live.follow(space, after, follower)

    async def fence(self, space: SpaceId) -> SpaceState:
        """Leave a fence, and return the state at its place."""
        future, tell = future_told()
        self._appends.put(space, Waiting(MessageKind.FENCE, 0, tell))
        snapshot = await future
        assert isinstance(snapshot, Snapshot), "a note is answered by a state"
        return _state_of(snapshot, await self._live.starts.read(space))

    async def cut(self, space: SpaceId, upto: Seq, now_ms: int) -> SpaceState:
        """Deliver from `upto + 1` on; `start` only rises."""
        return await self._state(await self._cuts.cut(space, upto, now_ms))

    async def uncut(self, space: SpaceId, upto: Seq) -> SpaceState:
        """Move `start` back to `upto + 1`, as far as the entries are not yet deleted."""
        return await self._state(await self._cuts.uncut(space, upto))

    async def clean(self, cut_before_ms: int) -> int:
        """Delete entries that were cut before a time; return how many."""
        return await self._cuts.clean(cut_before_ms)

    async def purge(self, space: SpaceId) -> None:
        """Delete every entry of a space; the heads of its devices survive."""
        await self._cuts.purge(space)

    async def spaces(self, after: SpaceId, count_max: int) -> list[SpaceId]:
        """Return the spaces above an id that anything was ever appended to, sorted."""
        first = partition_of(after) if after else 0
        found: list[SpaceId] = []
        for partition in self._cluster.settings.partitions:
            if partition < first:
                continue
            found += [space for space in await self._spaces_of(partition, after) if space > after]
            if len(found) >= count_max:
                break
        page = found[:count_max]
        if page:
            # Whoever asks on from here need not have the whole partition listed again.
            last = partition_of(page[-1])
            self._listed = (page[-1], last, [space for space in found if partition_of(space) == last])
        return page

    async def adopt(self, space: SpaceId, entries: Sequence[Entry], heads: Mapping[DeviceId, DeviceHead]) -> None:
        """Take over entries with their receive times, then raise the heads; what is here already is passed over."""
        tail = await self._live.current(space)
        reached = {device: head.counter for device, head in tail.heads.items()}
        for group in _groups(_fresh(entries, reached)):
            await self._store(space, group)
        await self._raise_heads(space, heads)

    async def close(self) -> None:
        """Wait a moment for what is on its way, then end every watch."""
        self._closed = True
        await self._appends.drain(CLOSE_SECONDS_MAX)
        await self._live.close()

    async def _state(self, tail: SpaceTail) -> SpaceState:
        start = await self._live.start_of(tail)
        return _state_of(tail.snapshot(), start)

    async def _read(self, space: SpaceId, after: int, last: int, bytes_max: int) -> list[Entry]:
        """Return entries after a seq, up to a message that is known to exist."""
        number, found = max((after + 1) // PLACES, 1), list[Entry]()
        room = min(max(bytes_max, READ_BYTES_MIN), READ_BYTES_MAX)
        while not found and number <= last:
            messages = await self._live.reads.page_upto(space, number, last, room)
            for at, message in messages:
                found += [entry for entry in entries_of(at, message) if entry.seq > after]
            number = messages[-1][0] + 1
        total = 0
        for place, entry in enumerate(found):
            total += len(entry.envelope)
            if place and total > bytes_max:
                return found[:place]
        return found

    async def _seqs_of_known(
        self, space: SpaceId, envelopes: Sequence[Envelope], known: Sequence[int]
    ) -> dict[int, Seq]:
        tail, _ = await self._live.loaded(space)
        cleaned = (await self._live.start_of(tail)).cleaned
        wanted: dict[DeviceId, list[int]] = {}
        for place in known:
            wanted.setdefault(envelopes[place].header.device, []).append(place)
        seqs: dict[int, Seq] = {}
        for device, places in wanted.items():
            head, seq = tail.heads[device], tail.known.get(device, Seq(0))
            older = [place for place in places if envelopes[place].header.counter < head.counter]
            # The head's id was compared when the append was planned.
            seqs |= {place: seq if seq > cleaned else Seq(0) for place in places if place not in older}
            counters = [envelopes[place].header.counter for place in older]
            stored = await self._live.reads.find(space, device, counters, seq) if older else {}
            for place in older:
                counter = envelopes[place].header.counter
                found = stored.get(counter)
                if found is None:
                    seqs[place] = Seq(0)
                elif found.data != envelopes[place].data and parse(found.data).id != envelopes[place].id:
                    raise AppendConflictError(f"counter {counter} of device {short(device)} is taken")
                else:
                    seqs[place] = found.seq if found.seq > cleaned else Seq(0)
        return seqs

    async def _spaces_of(self, partition: int, after: SpaceId) -> list[SpaceId]:
        """Return the spaces of a partition, sorted, as the leader of its stream knows them."""
        at, listed, spaces = self._listed
        if listed == partition and at == after and spaces and spaces[-1] > after:
            return spaces
        subjects = self._names.log_subjects(partition)
        found: set[SpaceId] = set()
        offset = 0
        while True:
            request = {"subjects_filter": subjects, "offset": offset}
            info = await self._api.call(f"STREAM.INFO.{self._names.log_stream(partition)}", request)
            names = info["state"].get("subjects") or {}
            found |= {SpaceId(bytes.fromhex(name.rpartition(".")[2])) for name in names}
            if len(names) < _SUBJECTS_PAGE:
                return sorted(found)
            offset += _SUBJECTS_PAGE

    async def _store(self, space: SpaceId, group: list[Entry]) -> None:
        future, tell = future_told()
        waiting = Waiting(MessageKind.ENTRIES, group[0].received_ms, tell)
        waiting.raw = [entry.envelope for entry in group]
        later_ms = tuple([entry.received_ms - waiting.received_ms for entry in group])
        waiting.later_ms = later_ms if any(later_ms) else ()
        waiting.bytes = sum([len(data) for data in waiting.raw])
        self._appends.put(space, waiting)
        await future

    async def _raise_heads(self, space: SpaceId, heads: Mapping[DeviceId, DeviceHead]) -> None:
        tail = await self._live.current(space)
        if all([head.counter <= tail.heads.get(device, NO_HEAD).counter for device, head in heads.items()]):
            return
        # Heads are stored beside a message of the log; and whoever else has loaded the space loads it again.
        await self._cuts.note(space)
        tail = await self._live.current(space)
        for device, head in heads.items():
            tail.raise_head(device, head.counter, head.id, Seq(0))
        if tail.last == 0:
            raise StoreError("the heads of a space could not be stored")
        await self._live.checkpoint(tail, replace=True)


def _state_of(snapshot: Snapshot, start: Start) -> SpaceState:
    size = max(snapshot.bytes_all - start.bytes_before, 0)
    return SpaceState(start.start, snapshot.head, size, snapshot.heads, snapshot.received_ms)


def _fresh(entries: Iterable[Entry], reached: dict[DeviceId, Counter]) -> Iterator[Entry]:
    """Yield the entries above the counters that their devices have reached, and move those."""
    for entry in entries:
        device, counter = device_of(entry.envelope), Counter(counter_of(entry.envelope))
        if counter > reached.get(device, 0):
            reached[device] = counter
            yield entry


def _groups(entries: Iterable[Entry]) -> Iterator[list[Entry]]:
    """Yield entries in as few groups as messages hold them."""
    group: list[Entry] = []
    size = 0
    for entry in entries:
        size += len(entry.envelope)
        if group and (len(group) == APPEND_ENVELOPES_MAX or size > APPEND_BYTES_MAX):
            yield group
            group, size = [], len(entry.envelope)
        group.append(entry)
    if group:
        yield group
