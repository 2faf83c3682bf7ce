"""The appends of one group: fitted to the chains of their devices, then written in few statements."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from twinlock.contracts.chains import NO_HEAD, AppendPlan, plan_append, refuse_known
from twinlock.contracts.log import Append, DeviceHead, Done, Outcome
from twinlock.engines.sqlite_writer import GroupState, Job
from twinlock.engines.tails import Tails
from twinlock.errors import TwinlockError
from twinlock.ids import DeviceId, Seq, SpaceId
from twinlock.protocol.envelope import Envelope, parse
from twinlock.protocol.frames import Entry

HEADS_CACHED_MAX = 65_536
_CHUNKS = (256, 128, 64, 32, 16, 8, 4, 2, 1)


class _Head(msgspec.Struct, frozen=True, gc=False):
    head: DeviceHead
    seq: int
    bytes: int


_NO_ROW = _Head(NO_HEAD, 0, 0)


def _inserts(start: str, columns: int) -> dict[int, str]:
    row = "(" + ",".join("?" * columns) + ")"
    return {count: f"{start} VALUES {','.join([row] * count)}" for count in _CHUNKS}


_INSERT_LOG = _inserts("INSERT INTO log (seq, space, received_ms, envelope)", 4)
_INSERT_HEADS = _inserts("INSERT OR REPLACE INTO heads (space, device, counter, id, seq, bytes)", 6)
_LOG_COLUMNS, _HEADS_COLUMNS = 4, 6


class LogGroup(GroupState):
    """Buffers a group's rows and knows the chain heads that were met lately. Lives in the writer's thread."""

    __slots__ = ("_connection", "_heads", "_rows", "_seq", "_touched")

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self._heads: dict[tuple[SpaceId, DeviceId], _Head] = {}
        self._touched: set[tuple[SpaceId, DeviceId]] = set()
        self._rows: list[Any] = []
        self._seq = self._last_seq()

    def plan(self, space: SpaceId, envelopes: Sequence[Envelope]) -> AppendPlan:
        """Fit envelopes to the chains as they are with everything that this group has appended so far."""
        return plan_append(space, envelopes, lambda device: self._head(space, device).head)

    def append(self, space: SpaceId, envelopes: Sequence[Envelope], received_ms: int) -> list[Seq]:
        """Take envelopes that fit, all of them new; return their seqs."""
        seqs = []
        for envelope in envelopes:
            self._seq += 1
            seqs.append(Seq(self._seq))
            self._rows += (self._seq, space, received_ms, envelope.data)
            header = envelope.header
            key = (space, header.device)
            held_bytes = self._head(space, header.device).bytes
            self._heads[key] = _Head(
                DeviceHead(header.counter, envelope.id), self._seq, held_bytes + len(envelope.data)
            )
            self._touched.add(key)
        return seqs

    def adopt(self, space: SpaceId, entries: Sequence[Entry], heads: Mapping[DeviceId, DeviceHead]) -> None:
        """Take entries from elsewhere that lie above their device's head, then raise heads."""
        for entry in entries:
            envelope = parse(entry.envelope)
            if envelope.header.counter > self._head(space, envelope.header.device).head.counter:
                self.append(space, [envelope], entry.received_ms)
        for device, head in heads.items():
            held = self._head(space, device)
            if head.counter > held.head.counter:
                self._heads[(space, device)] = _Head(head, held.seq, held.bytes)
                self._touched.add((space, device))

    def flush(self) -> None:
        """Write the buffered rows."""
        if not self._touched:
            return
        rows, self._rows = self._rows, []
        _insert(self._connection, _INSERT_LOG, _LOG_COLUMNS, rows)
        heads: list[Any] = []
        for key in self._touched:
            held = self._heads[key]
            heads += (*key, held.head.counter, held.head.id, held.seq, held.bytes)
        self._touched.clear()
        _insert(self._connection, _INSERT_HEADS, _HEADS_COLUMNS, heads)

    def committed(self) -> None:
        """Keep the cache of heads bounded."""
        if len(self._heads) > HEADS_CACHED_MAX:
            self._heads.clear()

    def failed(self) -> None:
        """Forget the group, and every head: some may have been moved by it. Its seqs are not used again."""
        self._rows = []
        self._touched.clear()
        self._heads.clear()

    def _head(self, space: SpaceId, device: DeviceId) -> _Head:
        key = (space, device)
        held = self._heads.get(key)
        if held is None:
            sql = "SELECT counter, id, seq, bytes FROM heads WHERE space = ? AND device = ?"
            row = self._connection.execute(sql, key).fetchone()
            held = self._heads[key] = _NO_ROW if row is None else _Head(DeviceHead(row[0], row[1]), row[2], row[3])
        return held

    def _last_seq(self) -> int:
        # Deleting entries raises the floor, so that a seq is never given twice.
        sql = "SELECT max(coalesce((SELECT max(seq) FROM log), 0), (SELECT value FROM meta WHERE name = 'seq_floor'))"
        (seq,) = self._connection.execute(sql).fetchone()
        return int(seq)


class AppendsJob(Job[list[Outcome]]):
    """Appends to many spaces, each by itself; what came of them goes to one callback."""

    __slots__ = ("_appends", "_done", "_group", "_tails")

    def __init__(self, group: LogGroup, tails: Tails, appends: Sequence[Append], done: Done) -> None:
        super().__init__(sum([len(envelope.data) for append in appends for envelope in append.envelopes]))
        self._group = group
        self._tails = tails
        self._appends = appends
        self._done = done

    def run(self) -> list[Outcome]:
        """Fit what can be fitted, and buffer it."""
        return [self._append(append) for append in self._appends]

    def tell(self) -> None:
        """Hand the entries to those who watch their spaces."""
        if not self._tails:
            return
        for append, outcome in zip(self._appends, self.outcome or (), strict=True):
            if isinstance(outcome, list):
                self._tails.tell(append.space, append.received_ms, outcome, append.envelopes)

    def end(self) -> None:
        """Tell what came of each."""
        self._done(list(enumerate(self.outcome or [])) if self.error is None else self.refused_all(self.error))

    def refused_all(self, error: TwinlockError) -> list[tuple[int, Outcome]]:
        """Return one error as what came of each."""
        return [(place, error) for place in range(len(self._appends))]

    def _append(self, append: Append) -> Outcome:
        try:
            refuse_known(self._group.plan(append.space, append.envelopes))
        except TwinlockError as error:
            return error
        return self._group.append(append.space, append.envelopes, append.received_ms)


class AdoptJob(Job[None]):
    """Takes over entries and heads from elsewhere."""

    __slots__ = ("_entries", "_given", "_group", "_space")

    def __init__(
        self, group: LogGroup, space: SpaceId, entries: Sequence[Entry], heads: Mapping[DeviceId, DeviceHead]
    ) -> None:
        super().__init__(sum([len(entry.envelope) for entry in entries]))
        self._group = group
        self._space = space
        self._entries = entries
        self._given = heads

    def run(self) -> None:
        """Buffer what is not there yet."""
        self._group.adopt(self._space, self._entries, self._given)


class AppendJob(Job[list[Seq] | AppendPlan]):
    """Appends all of its envelopes; or none, and returns the plan, if some are known and must be looked up first."""

    __slots__ = ("_envelopes", "_group", "_received_ms", "_space", "_tails")

    def __init__(
        self, group: LogGroup, tails: Tails, space: SpaceId, envelopes: Sequence[Envelope], received_ms: int
    ) -> None:
        super().__init__(sum([len(envelope.data) for envelope in envelopes]))
        self._group = group
        self._tails = tails
        self._space = space
        self._envelopes = envelopes
        self._received_ms = received_ms

    def run(self) -> list[Seq] | AppendPlan:
        """Fit the envelopes to their chains and buffer them."""
        plan = self._group.plan(self._space, self._envelopes)
        if plan.known:
            return plan
        return self._group.append(self._space, self._envelopes, self._received_ms)

    def tell(self) -> None:
        """Hand the entries to those who watch the space."""
        if isinstance(self.outcome, list):
            self._tails.tell(self._space, self._received_ms, self.outcome, self._envelopes)


def _insert(connection: sqlite3.Connection, statements: dict[int, str], columns: int, values: list[Any]) -> None:
    """Insert rows in as few statements as powers of two allow, so that the statements stay prepared."""
    first = 0
    for count in _CHUNKS:
        while len(values) - first >= count * columns:
            connection.execute(statements[count], values[first : first + count * columns])
            first += count * columns
