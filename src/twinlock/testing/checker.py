"""Whether what happened to the clients of a run may have happened: nothing acknowledged lost, one order, each once.

Pure: events in, violations out. The server is believed in nothing but what it told the clients. See spec/protocol.md,
section 5, for what it promises.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter as Tally
from collections.abc import Iterable, Sequence
from enum import Enum

import msgspec

from twinlock.testing.history import Acked, Delivered, Event, Fault, Finished, Joined, Pushed, Rejected, Seen

SHOWN_MAX = 5
"""So many violations of one kind are told of a space; the rest is counted."""


class Breach(Enum):
    """What was broken."""

    LOST = "an acknowledged change is lost"
    MOVED = "an acknowledged change lies at another place"
    FORKED = "two changes were delivered at one place"
    DOUBLED = "a change was delivered at two places"
    SKIPPED = "a reader was not given what others were given"
    BACKWARDS = "a reader was given what lies at or below its cursor"
    JUMPED = "delivery went on from another place than the cursor"
    OVERTAKEN = "a change lies below one that was acknowledged before it was pushed"
    COUNTER = "the counters of a device do not follow one another"
    INVENTED = "what nobody pushed was delivered"
    UNASKED = "what nobody pushed was acknowledged"
    FORGOTTEN = "the server names a head below what it acknowledged"
    APART = "a reader at the end does not have what others have"
    UNREAD = "nobody read the space from its beginning to its end"
    RESTORED = "the incarnation changed, though nothing was restored"


class Violation(msgspec.Struct, frozen=True):
    """One broken promise, and how it can be seen."""

    breach: Breach
    space: str
    told: str

    def __str__(self) -> str:
        return f"{self.breach.value}: {self.told} (space {self.space})"


def check(events: Iterable[Event]) -> list[Violation]:
    """Return every promise that a run broke; nothing, if all is well.

    The events must be in order, a push noted before it is sent and an ack after it came. At the end of the run every
    client that is to have everything is `Finished`, and in each space one of them at least has read from the beginning.
    """
    clock = _Clock()
    spaces: dict[str, _Space] = {}
    for event in events:
        clock.note(event)
        if not isinstance(event, Joined | Pushed | Acked | Rejected | Delivered | Finished):
            continue
        if event.space not in spaces:
            spaces[event.space] = _Space(event.space, clock)
        spaces[event.space].take(event)
    return [violation for space in spaces.values() for violation in _shortened(space.judge())]


def explain(violations: Sequence[Violation]) -> str:
    """Return violations as lines of text, for the message of a failed test."""
    return "\n".join(str(violation) for violation in violations)


def _shortened(violations: list[Violation]) -> list[Violation]:
    shown: list[Violation] = []
    counts: Tally[Breach] = Tally()
    for violation in violations:
        counts[violation.breach] += 1
        if counts[violation.breach] <= SHOWN_MAX:
            shown.append(violation)
    for breach, count in counts.items():
        if count > SHOWN_MAX:
            shown.append(Violation(breach, violations[0].space, f"and {count - SHOWN_MAX} more"))
    return shown


class _Clock:
    """Says when something happened: after the run began, and after which fault."""

    __slots__ = ("_begin_s", "_fault", "_now_s")

    def __init__(self) -> None:
        self._begin_s: float | None = None
        self._now_s = 0.0
        self._fault: Fault | None = None

    def note(self, event: Event) -> None:
        if self._begin_s is None:
            self._begin_s = event.at_s
        self._now_s = event.at_s - self._begin_s
        if isinstance(event, Fault):
            self._fault = event

    def when(self) -> str:
        if self._fault is None or self._begin_s is None:
            return f"at {self._now_s:.3f} s"
        since_s = self._now_s + self._begin_s - self._fault.at_s
        verb = "the end of " if self._fault.is_over else ""
        return f"at {self._now_s:.3f} s, {since_s:.3f} s after {verb}{self._fault.kind} of {self._fault.target}"


class _Run:
    """What one client was given from one attachment on."""

    __slots__ = ("entries", "resume")

    def __init__(self, resume: int) -> None:
        self.resume = resume
        self.entries: list[Seen] = []


class _Reader:
    """One client in one space."""

    __slots__ = ("cursor", "is_finished", "name", "runs")

    def __init__(self, name: str) -> None:
        self.name = name
        self.runs: list[_Run] = []
        self.cursor = 0
        self.is_finished = False

    @property
    def began_at_start(self) -> bool:
        return bool(self.runs) and self.runs[0].resume == 0


class _Acknowledged(msgspec.Struct, frozen=True, gc=False):
    id: str
    seq: int
    client: str
    when: str


_Change = tuple[str, int, str]
"""Device, counter and id."""


class _Space:
    """One space: takes its events in, then judges."""

    __slots__ = (
        "_acked",
        "_clock",
        "_floor",
        "_floors",
        "_found",
        "_heads",
        "_incarnation",
        "_name",
        "_newest",
        "_places",
        "_readers",
        "_seqs",
    )

    def __init__(self, name: str, clock: _Clock) -> None:
        self._name = name
        self._clock = clock
        self._found: list[Violation] = []
        self._incarnation = ""
        self._floor = 0
        self._floors: dict[_Change, int] = {}
        self._newest: dict[tuple[str, int], str] = {}
        self._acked: dict[tuple[str, int], _Acknowledged] = {}
        self._heads: dict[str, int] = {}
        self._places: dict[int, tuple[_Change, str]] = {}
        self._seqs: dict[_Change, int] = {}
        self._readers: dict[str, _Reader] = {}

    def take(self, event: Joined | Pushed | Acked | Rejected | Delivered | Finished) -> None:
        match event:
            case Pushed():
                for counter, identifier in event.envelopes:
                    self._floors.setdefault((event.device, counter, identifier), self._floor)
                    self._newest[event.device, counter] = identifier
            case Acked():
                self._take_acked(event)
            case Rejected():
                if event.own_counter:
                    self._check_head(event.client, event.device, event.own_counter)
            case Joined():
                self._take_joined(event)
            case Delivered():
                self._take_delivered(event)
            case Finished():
                self._reader(event.client).is_finished = True

    def judge(self) -> list[Violation]:
        order = sorted(self._places)
        self._judge_counters(order)
        self._judge_pushed()
        for reader in self._readers.values():
            self._judge_skipped(reader, order)
        self._judge_acked()
        self._judge_ends(order)
        return self._found

    # What can be seen as it happens

    def _take_acked(self, event: Acked) -> None:
        for counter, seq in event.acked:
            identifier = self._newest.get((event.device, counter))
            if identifier is None:
                self._find(Breach.UNASKED, f"{event.client}: counter {counter} {self._clock.when()}")
                continue
            known = self._acked.get((event.device, counter))
            if known is not None and (known.id, known.seq) != (identifier, seq):
                what = f"counter {counter} of {event.client}, seq {known.seq} {known.when}"
                self._find(Breach.MOVED, f"{what}; then acknowledged with seq {seq} {self._clock.when()}")
            elif known is None:
                acknowledged = _Acknowledged(identifier, seq, event.client, self._clock.when())
                self._acked[event.device, counter] = acknowledged
            self._heads[event.device] = max(self._heads.get(event.device, 0), counter)
            self._floor = max(self._floor, seq)

    def _check_head(self, client: str, device: str, own_counter: int) -> None:
        told = self._heads.get(device, 0)
        if own_counter < told:
            what = f"{client}: {own_counter}, and {told} was acknowledged, {self._clock.when()}"
            self._find(Breach.FORGOTTEN, what)

    def _take_joined(self, event: Joined) -> None:
        when = self._clock.when()
        if self._incarnation and event.incarnation != self._incarnation:
            self._find(Breach.RESTORED, f"{event.client}: {event.incarnation} {when}")
        self._incarnation = event.incarnation
        reader = self._reader(event.client)
        if event.resume != event.cursor or (reader.runs and event.resume > reader.cursor):
            what = f"{event.client}: from {event.resume}, asked for {event.cursor}, had {reader.cursor}, {when}"
            self._find(Breach.JUMPED, what)
        elif event.head < event.resume:
            what = f"{event.client}: the space's head is {event.head}, its cursor {event.resume}, {when}"
            self._find(Breach.FORGOTTEN, what)
        self._check_head(event.client, event.device, event.own_counter)
        reader.runs.append(_Run(event.resume))
        reader.cursor = event.resume

    def _take_delivered(self, event: Delivered) -> None:
        reader = self._reader(event.client)
        if not reader.runs:
            reader.runs.append(_Run(0))
        run = reader.runs[-1]
        for seen in event.entries:
            seq, device, counter, identifier = seen
            if seq <= reader.cursor:
                what = f"{event.client}: seq {seq} after {reader.cursor} {self._clock.when()}"
                self._find(Breach.BACKWARDS, what)
            reader.cursor = max(reader.cursor, seq)
            run.entries.append(seen)
            self._place(event.client, seq, (device, counter, identifier))

    def _place(self, client: str, seq: int, change: _Change) -> None:
        there = self._places.setdefault(seq, (change, client))
        if there[0] != change:
            what = f"seq {seq}: {_name(there[0])} for {there[1]}, {_name(change)} for {client} {self._clock.when()}"
            self._find(Breach.FORKED, what)
        known = self._seqs.setdefault(change, seq)
        if known != seq:
            what = f"{_name(change)}: seq {known}, and seq {seq} for {client} {self._clock.when()}"
            self._find(Breach.DOUBLED, what)

    # What can be seen at the end

    def _judge_counters(self, order: list[int]) -> None:
        last: dict[str, int] = {}
        for seq in order:
            device, counter, _ = self._places[seq][0]
            before = last.get(device, 0)
            if counter != before + 1:
                self._find(Breach.COUNTER, f"device {device}: {counter} after {before}, at seq {seq}")
            last[device] = counter

    def _judge_pushed(self) -> None:
        for seq, (change, client) in self._places.items():
            floor = self._floors.get(change)
            if floor is None:
                self._find(Breach.INVENTED, f"seq {seq}: {_name(change)} for {client}")
            elif seq <= floor:
                self._find(Breach.OVERTAKEN, f"seq {seq}: {_name(change)}, when seq {floor} was acknowledged already")

    def _judge_skipped(self, reader: _Reader, order: list[int]) -> None:
        """Each run is what lies after its `resume`, with nothing left out."""
        for run in reader.runs:
            expected = bisect_right(order, run.resume)
            for seq, *_ in run.entries:
                while expected < len(order) and order[expected] < seq:
                    self._find(Breach.SKIPPED, f"{reader.name}: seq {self._tell(order[expected])}")
                    expected += 1
                expected = max(expected, bisect_right(order, seq))

    def _judge_acked(self) -> None:
        whole = [
            {seq for run in reader.runs for seq, *_ in run.entries}
            for reader in self._readers.values()
            if reader.is_finished and reader.began_at_start
        ]
        for (device, counter), told in self._acked.items():
            change = (device, counter, told.id)
            seq = self._seqs.get(change)
            if seq is None or not all(seq in read for read in whole):
                what = f"{_name(change)}, acknowledged to {told.client} as seq {told.seq} {told.when}"
                self._find(Breach.LOST, what)
            elif seq != told.seq:
                what = f"{_name(change)}: acknowledged to {told.client} as seq {told.seq}, delivered as {seq}"
                self._find(Breach.MOVED, what)

    def _judge_ends(self, order: list[int]) -> None:
        finished = [reader for reader in self._readers.values() if reader.is_finished]
        if not any(reader.began_at_start for reader in finished):
            self._find(Breach.UNREAD, f"{len(self._readers)} clients, {len(finished)} of them at the end")
        end = order[-1] if order else 0
        for reader in finished:
            if reader.cursor < end:
                self._find(Breach.APART, f"{reader.name} ends at {reader.cursor}, and there is seq {self._tell(end)}")

    def _tell(self, seq: int) -> str:
        change, client = self._places[seq]
        return f"{seq}, {_name(change)}, which {client} was given"

    def _reader(self, name: str) -> _Reader:
        return self._readers.setdefault(name, _Reader(name))

    def _find(self, breach: Breach, told: str) -> None:
        self._found.append(Violation(breach, self._name, told))


def _name(change: _Change) -> str:
    device, counter, identifier = change
    return f"change {counter} of device {device} (id {identifier})"
