"""The reference engine: everything in this process's memory. For tests, simulations and reading."""

from __future__ import annotations

import asyncio
import os
from bisect import bisect_left, bisect_right
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from operator import attrgetter

from twinlock.contracts.chains import NO_HEAD, AppendPlan, plan_append, refuse_known
from twinlock.contracts.directory import Change, Directory, Record, check_record
from twinlock.contracts.log import Append, DeviceHead, Done, Follower, Log, Outcome, SpaceState
from twinlock.engines.one_process import ChangeWatchers, OneProcessBroker
from twinlock.errors import AppendConflictError, CutRefusedError, RevisionError
from twinlock.ids import Counter, DeviceId, EnvelopeId, Incarnation, Seq, SpaceId, short
from twinlock.protocol.envelope import Envelope, parse
from twinlock.protocol.frames import Entry
from twinlock.protocol.limits import ENTRIES_PAGE_BYTES_MAX

_seq_of = attrgetter("seq")


class _Space:
    """One space's log; `entries` still holds what is cut but not yet cleaned."""

    __slots__ = ("cleaned", "cuts", "entries", "head", "heads", "known", "start", "watchers")

    def __init__(self) -> None:
        self.entries: list[Entry] = []
        self.heads: dict[DeviceId, DeviceHead] = {}
        self.known: dict[tuple[DeviceId, Counter], tuple[EnvelopeId, Seq]] = {}
        self.start = Seq(1)
        self.head = Seq(0)
        self.cleaned = Seq(0)
        self.cuts: list[tuple[Seq, int]] = []
        self.watchers: set[asyncio.Event] = set()

    @property
    def received_ms(self) -> int:
        return self.entries[-1].received_ms if self.entries else 0

    def place_after(self, seq: int) -> int:
        return bisect_right(self.entries, seq, key=_seq_of)

    def wake(self) -> None:
        for event in self.watchers:
            event.set()


class MemoryLog(Log):
    """Per space a list; durable for as long as the process lives."""

    __slots__ = ("_closed", "_incarnation", "_seq", "_spaces")

    def __init__(self, incarnation: Incarnation | None = None) -> None:
        self._incarnation = Incarnation(os.urandom(16)) if incarnation is None else incarnation
        self._spaces: dict[SpaceId, _Space] = {}
        self._seq = 0
        self._closed = False

    @property
    def incarnation(self) -> Incarnation:
        """The random id of this life of the database."""
        return self._incarnation

    async def state(self, space: SpaceId) -> SpaceState:
        """Return the space's present state."""
        return self.state_now(space)

    def state_now(self, space: SpaceId) -> SpaceState:
        """Return the space's state at this very moment."""
        return self._state(self._spaces.get(space) or _Space())

    async def append(self, space: SpaceId, envelopes: Sequence[Envelope], received_ms: int) -> list[Seq]:
        """Append, or refuse as a whole, and return one seq for each envelope."""
        return self.append_now(space, envelopes, received_ms)

    def append_now(self, space: SpaceId, envelopes: Sequence[Envelope], received_ms: int) -> list[Seq]:
        """Append as `append` does, within this call."""
        held = self._spaces.setdefault(space, _Space())
        plan = plan_append(space, envelopes, lambda device: held.heads.get(device, NO_HEAD))
        return self._append(held, plan, envelopes, max(received_ms, held.received_ms))

    def append_many(self, appends: Sequence[Append], done: Done) -> None:
        """Append to many spaces, and tell in the loop's next turn what came of each."""
        outcomes = [self._outcome(append) for append in appends]
        asyncio.get_running_loop().call_soon(done, list(enumerate(outcomes)))

    def _outcome(self, append: Append) -> Outcome:
        held = self._spaces.setdefault(append.space, _Space())
        try:
            plan = plan_append(append.space, append.envelopes, lambda device: held.heads.get(device, NO_HEAD))
            refuse_known(plan)
        except AppendConflictError as error:
            return error
        return self._append(held, plan, append.envelopes, max(append.received_ms, held.received_ms))

    def _append(self, held: _Space, plan: AppendPlan, envelopes: Sequence[Envelope], received_ms: int) -> list[Seq]:
        seqs = [Seq(0)] * len(envelopes)
        for place in plan.known:
            seqs[place] = _seq_of_known(held, envelopes[place])
        for place in plan.fresh:
            self._seq += 1
            envelope, seqs[place] = envelopes[place], Seq(self._seq)
            held.entries.append(Entry(seqs[place], received_ms, envelope.data))
            held.known[(envelope.header.device, envelope.header.counter)] = (envelope.id, seqs[place])
            held.head = seqs[place]
        held.heads.update(plan.heads)
        held.wake()
        return seqs

    async def read(self, space: SpaceId, after: Seq, bytes_max: int) -> list[Entry]:
        """Return entries after a seq, from `start` on, in order."""
        return self._read(self._spaces.get(space) or _Space(), after, bytes_max)

    async def watch(self, space: SpaceId, after: Seq) -> AsyncIterator[list[Entry]]:
        """Yield all entries after a seq for ever, in order, each once."""
        held, event = self._spaces.setdefault(space, _Space()), asyncio.Event()
        held.watchers.add(event)
        try:
            while not self._closed:
                # Cleared before the read: what is appended after the read sets it again.
                event.clear()
                page = self._read(held, after, ENTRIES_PAGE_BYTES_MAX)
                if page:
                    after = page[-1].seq
                    yield page
                else:
                    await event.wait()
        finally:
            held.watchers.discard(event)

    def follow(self, space: SpaceId, after: Seq, follower: Follower) -> Callable[[], None]:
        """Tell nothing: there are no other nodes."""
        return _end

    async def fence(self, space: SpaceId) -> SpaceState:
        """Return the state; there is nobody to fence off."""
        return await self.state(space)

    async def cut(self, space: SpaceId, upto: Seq, now_ms: int) -> SpaceState:
        """Deliver from `upto + 1` on; `start` only rises."""
        held = self._spaces.get(space) or _Space()
        if upto > held.head:
            raise CutRefusedError(f"up to {upto}, and the head is {held.head}")
        if upto >= held.start:
            held.start = Seq(upto + 1)
            held.cuts.append((upto, now_ms))
        return self._state(held)

    async def uncut(self, space: SpaceId, upto: Seq) -> SpaceState:
        """Move `start` back to `upto + 1`, as far as the entries are still there."""
        held = self._spaces.get(space) or _Space()
        held.start = Seq(min(held.start, max(upto, held.cleaned) + 1))
        undone = [cut for cut in held.cuts if cut[0] >= held.start]
        held.cuts = [cut for cut in held.cuts if cut[0] < held.start]
        if undone and held.start > held.cleaned + 1:
            # What stays cut was cut by the lowest of them.
            held.cuts.append((Seq(held.start - 1), undone[0][1]))
        return self._state(held)

    async def clean(self, cut_before_ms: int) -> int:
        """Delete entries that were cut before a time; return how many."""
        deleted = 0
        for held in self._spaces.values():
            ripe = [upto for upto, cut_ms in held.cuts if cut_ms < cut_before_ms]
            if ripe:
                deleted += _delete_upto(held, max(ripe))
            await asyncio.sleep(0)
        return deleted

    async def purge(self, space: SpaceId) -> None:
        """Delete every entry of a space; the heads of its devices survive."""
        held = self._spaces.get(space)
        if held is not None:
            held.start = Seq(held.head + 1)
            _delete_upto(held, held.head)

    async def spaces(self, after: SpaceId, count_max: int) -> list[SpaceId]:
        """Return a page of the spaces that have a head, sorted."""
        return sorted(space for space, held in self._spaces.items() if space > after and held.heads)[:count_max]

    async def adopt(self, space: SpaceId, entries: Sequence[Entry], heads: Mapping[DeviceId, DeviceHead]) -> None:
        """Take over entries from elsewhere under seqs of this log's own, then raise the heads."""
        held = self._spaces.setdefault(space, _Space())
        for entry in entries:
            envelope = parse(entry.envelope)
            header = envelope.header
            if header.counter > held.heads.get(header.device, NO_HEAD).counter:
                plan = AppendPlan([], [0], {header.device: DeviceHead(header.counter, envelope.id)})
                self._append(held, plan, [envelope], entry.received_ms)
        for device, head in heads.items():
            if head.counter > held.heads.get(device, NO_HEAD).counter:
                held.heads[device] = head

    async def close(self) -> None:
        """End every watch."""
        self._closed = True
        for held in self._spaces.values():
            held.wake()

    def _state(self, held: _Space) -> SpaceState:
        live = held.entries[bisect_left(held.entries, held.start, key=_seq_of) :]
        live_bytes = sum(len(entry.envelope) for entry in live)
        return SpaceState(held.start, held.head, live_bytes, dict(held.heads), held.received_ms)

    def _read(self, held: _Space, after: int, bytes_max: int) -> list[Entry]:
        first = held.place_after(max(after, held.start - 1))
        total, end = 0, first
        while end < len(held.entries) and (end == first or total + len(held.entries[end].envelope) <= bytes_max):
            total += len(held.entries[end].envelope)
            end += 1
        return held.entries[first:end]


def _end() -> None:
    """End what never began."""


def _seq_of_known(held: _Space, envelope: Envelope) -> Seq:
    header = envelope.header
    stored = held.known.get((header.device, header.counter))
    if stored is None:
        return Seq(0)
    if stored[0] != envelope.id:
        raise AppendConflictError(f"counter {header.counter} of device {short(header.device)} is taken")
    return stored[1]


def _delete_upto(held: _Space, upto: Seq) -> int:
    place = held.place_after(upto)
    del held.entries[:place]
    held.known = {key: stored for key, stored in held.known.items() if stored[1] > upto}
    held.cuts = [cut for cut in held.cuts if cut[0] > upto]
    held.cleaned = max(held.cleaned, upto)
    return place


class MemoryDirectory(Directory):
    """A dict with revisions."""

    __slots__ = ("_records", "_revision", "_watchers")

    def __init__(self) -> None:
        self._records: dict[str, Record] = {}
        self._revision = 0
        self._watchers = ChangeWatchers()

    async def get(self, key: str) -> Record | None:
        """Return the newest record of a key."""
        return self._records.get(key)

    async def put(self, key: str, value: bytes, expect_revision: int | None = None) -> int:
        """Store and return the new revision."""
        check_record(key, value)
        self._check_revision(key, expect_revision)
        self._revision += 1
        record = self._records[key] = Record(value, self._revision)
        self._watchers.tell(Change(key, record))
        return record.revision

    async def delete(self, key: str, expect_revision: int | None = None) -> None:
        """Delete a key."""
        self._check_revision(key, expect_revision)
        if self._records.pop(key, None) is not None:
            self._watchers.tell(Change(key, None))

    async def list(self, prefix: str) -> dict[str, Record]:
        """Return every key that begins with a prefix, sorted by key."""
        return {key: self._records[key] for key in sorted(self._records) if key.startswith(prefix)}

    async def scan(self) -> AsyncIterator[tuple[str, Record]]:
        """Yield every record there is."""
        for key in list(self._records):
            record = self._records.get(key)
            if record is not None:
                yield key, record

    def watch(self, prefix: str) -> AsyncIterator[Change]:
        """Yield every later change of keys that begin with a prefix."""
        return self._watchers.watch(prefix)

    def _check_revision(self, key: str, expected: int | None) -> None:
        present = self._records[key].revision if key in self._records else 0
        if expected is not None and expected != present:
            raise RevisionError(f"{key} is at revision {present}, not {expected}")


class MemoryBroker(OneProcessBroker):
    """The broker of a server that is alone."""

    __slots__ = ()
