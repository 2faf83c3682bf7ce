"""What a node knows of the end of one space's log, and what it is about to append to it. No I/O.

A tail moves over the messages of its space one after the other, without a gap, whether they come as answers, live or by
a read. Everything else hangs on that: chain heads, bytes, followers, watchers and the outcomes of own appends.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence

import msgspec

from twinlock.contracts.chains import NO_HEAD, AppendPlan, plan_append, refuse_known
from twinlock.contracts.log import (
    APPEND_BYTES_MAX,
    APPEND_ENVELOPES_MAX,
    DeviceHead,
    Follower,
    Foreign,
    Note,
    OvertakenError,
)
from twinlock.engines.jetstream_format import (
    FORMAT,
    FORMAT_TIMES,
    UNREADABLE,
    LogMessage,
    MessageKind,
    device_of,
    entries_of,
    head_of,
    seq_at,
)
from twinlock.engines.jetstream_starts import Checkpoint, Start, StoredHead
from twinlock.engines.tails import Tail
from twinlock.errors import AppendConflictError, StoreError, TwinlockError
from twinlock.ids import Counter, DeviceId, EnvelopeId, Seq, SpaceId
from twinlock.protocol.envelope import Envelope, parse
from twinlock.protocol.frames import Entry

FENCED_RETRY_MS = 100
HELD_MESSAGES_MAX = 64
REFUSED_MAX = 1_024
"""Own messages of unknown fate that a tail remembers; far fewer are ever on their way at once."""

_COUNTER = slice(40, 48)


class Snapshot(msgspec.Struct, frozen=True):
    """A space's state at one place of its log, without its start."""

    head: Seq
    bytes_all: int
    heads: dict[DeviceId, DeviceHead]
    received_ms: int


Reached = list[Seq] | AppendPlan | Snapshot | TwinlockError
"""What came of an append or a note: seqs, the plan where something is known, the state at the note, or an error."""

Told = Callable[[Reached], None]
"""Called once with what came of it."""


class Waiting:
    """An append or a note that is to be stored. `raw` is what is adopted, which nobody checks, with its times."""

    __slots__ = ("bytes", "envelopes", "is_verified", "kind", "later_ms", "raw", "received_ms", "takes_known", "tell")

    def __init__(self, kind: MessageKind, received_ms: int, tell: Told) -> None:
        self.kind = kind
        self.received_ms = received_ms
        self.tell = tell
        self.envelopes: Sequence[Envelope] = ()
        self.raw: list[bytes] | None = None
        self.later_ms: tuple[int, ...] = ()
        self.bytes = 0
        self.takes_known = False
        """Whether the plan is wanted, and nothing appended, if some envelopes are known."""

        self.is_verified = False
        """Whether a refusal counts: the tail was compared with the leader since this came."""

    @property
    def count(self) -> int:
        """How many envelopes it has."""
        return len(self.envelopes) if self.raw is None else len(self.raw)


class Flight:
    """One message on its way to the log."""

    __slots__ = ("began_s", "end", "guard", "heads", "is_unknown", "message", "origin", "parts")

    def __init__(
        self,
        origin: bytes,
        guard: int,
        message: LogMessage,
        parts: list[Waiting],
        heads: dict[DeviceId, DeviceHead] | None,
        began_s: float,
    ) -> None:
        self.origin = origin
        self.guard = guard
        self.message = message
        self.parts = parts
        self.heads = heads
        """The chain heads once it is stored; None where they are to be read from the envelopes."""

        self.began_s = began_s
        self.is_unknown = False
        """Whether a try of it had no answer."""

        self.end: Callable[[], None] = _nothing


class Following:
    """One follower; it is told by the tail once it has been told everything before (`is_joined`)."""

    __slots__ = ("after", "cursor", "follower", "has_ended", "is_joined")

    def __init__(self, after: Seq, cursor: int, follower: Follower) -> None:
        self.after = after
        self.cursor = cursor
        """The number of the last message that it needs not be told of."""

        self.follower = follower
        self.is_joined = False
        self.has_ended = False


class SpaceTail:
    """The end of one space's log as this node knows it."""

    __slots__ = (
        "began_s",
        "bytes_all",
        "checkpoint_count",
        "count_all",
        "fill_timer",
        "flight",
        "followings",
        "head",
        "heads",
        "held",
        "is_loaded",
        "is_verifying",
        "known",
        "last",
        "loading",
        "received_ms",
        "refused",
        "space",
        "start",
        "stop_live",
        "subject",
        "waiting",
        "wanted",
        "watchers",
    )

    def __init__(self, space: SpaceId, subject: str, began_s: float) -> None:
        self.space = space
        self.subject = subject
        self.began_s = began_s
        self.is_loaded = False
        self.loading: asyncio.Future[None] | None = None
        self.last = 0
        """The number of the last message of this space; 0 before the first."""

        self.head = Seq(0)
        self.received_ms = 0
        """The receive time of the last entry; 0 before the first."""

        self.bytes_all = 0
        self.count_all = 0
        self.checkpoint_count = 0
        """`count_all` when the heads were last written to the directory."""

        self.heads: dict[DeviceId, DeviceHead] = {}
        self.known: dict[DeviceId, Seq] = {}
        """Where each device's last envelope is."""

        self.start: Start | None = None
        """Where delivery begins; None when that must be read again."""

        self.followings: list[Following] = []
        self.watchers: set[Tail] = set()
        self.stop_live: Callable[[], None] | None = None
        self.held: dict[int, tuple[int, LogMessage]] = {}
        """Live messages that came too early, by the number of the message before them."""

        self.wanted = 0
        """The highest number that is known to exist."""

        self.fill_timer: asyncio.TimerHandle | None = None
        self.waiting: deque[Waiting] = deque()
        self.flight: Flight | None = None
        self.is_verifying = False
        self.refused: set[bytes] = set()
        """Origins of own messages that were answered with an error, and might be stored all the same."""

    @property
    def is_idle(self) -> bool:
        """Whether nobody needs it."""
        return not (self.followings or self.watchers or self.waiting or self.flight or self.loading)

    @property
    def is_free(self) -> bool:
        """Whether a message may be sent: nothing is in flight, and every follower knows what came before."""
        return (
            self.is_loaded
            and self.flight is None
            and not self.is_verifying
            and all([following.is_joined for following in self.followings])
        )

    def snapshot(self) -> Snapshot:
        """Return the state at the tail's place."""
        return Snapshot(self.head, self.bytes_all, dict(self.heads), self.received_ms)

    def checkpoint(self) -> Checkpoint:
        """Return the chain heads as they are stored."""
        heads = [
            StoredHead(device, head.counter, head.id, self.known.get(device, Seq(0)))
            for device, head in self.heads.items()
        ]
        return Checkpoint(self.last, self.head, self.bytes_all, self.count_all, heads, received_ms=self.received_ms)

    def take_up(self, checkpoint: Checkpoint) -> None:
        """Begin at chain heads that were stored."""
        self.last, self.head = checkpoint.number, checkpoint.head
        self.received_ms = checkpoint.received_ms
        self.bytes_all, self.count_all = checkpoint.bytes_all, checkpoint.count_all
        self.checkpoint_count = checkpoint.count_all
        for held in checkpoint.heads:
            self.raise_head(held.device, held.counter, held.id, held.seq)

    # What is to be appended.

    def next_flight(self, make_origin: Callable[[], bytes], now_s: float) -> Flight | None:
        """Take what waits, as much as fits one message, and fit it to the chains; None if nothing is left to store.

        What does not fit is answered at once, unless it was not verified: then the tail must catch up first, and
        `is_verifying` says so.
        """
        parts: list[Waiting] = []
        try:
            heads = self._take_parts(parts)
            return self._make_flight(parts, heads, make_origin(), now_s) if parts else None
        except Exception:
            # Nobody may be left waiting who is in no list any more.
            self.waiting.extendleft(reversed(parts))
            raise

    def _take_parts(self, parts: list[Waiting]) -> dict[DeviceId, DeviceHead]:
        """Take what shall share a message; return the chain heads behind it."""
        heads: dict[DeviceId, DeviceHead] = {}
        bytes_taken = count = 0
        while self.waiting:
            waiting = self.waiting[0]
            if parts and not _fits_beside(parts[0], waiting, count, bytes_taken):
                break
            if waiting.kind is MessageKind.ENTRIES and waiting.raw is None and not self._plan(waiting, heads):
                if self.is_verifying or (self.waiting and self.waiting[0] is waiting):
                    break
                continue
            parts.append(self.waiting.popleft())
            bytes_taken += waiting.bytes
            count += waiting.count
        return heads

    def _make_flight(
        self, parts: list[Waiting], heads: dict[DeviceId, DeviceHead], origin: bytes, now_s: float
    ) -> Flight:
        first = parts[0]
        envelopes = first.raw if first.raw is not None else [each.data for part in parts for each in part.envelopes]
        message = LogMessage(
            FORMAT_TIMES if first.later_ms else FORMAT,
            int(first.kind),
            # Of what another node has stored since this came, the time may be later. What is adopted keeps its own.
            first.received_ms if first.raw is not None else max(first.received_ms, self.received_ms),
            self.bytes_all,
            envelopes,
            self.count_all,
            origin,
            first.later_ms,
        )
        known_heads = None if first.raw is not None else heads
        flight = self.flight = Flight(origin, self.last, message, parts, known_heads, now_s)
        return flight

    def _plan(self, waiting: Waiting, heads: dict[DeviceId, DeviceHead]) -> bool:
        """Fit the first append that waits to the chains and move `heads`.

        Otherwise it is answered and waits no longer; or it stays where it is, because it stands on others of the same
        message, which may yet fail, or because the tail must be verified first.
        """
        try:
            plan = plan_append(
                self.space, waiting.envelopes, lambda device: heads.get(device) or self.heads.get(device, NO_HEAD)
            )
            if not plan.known:
                heads.update(plan.heads)
                return True
            if heads:
                return False
            self.waiting.popleft()
            waiting.tell(plan if waiting.takes_known else _known_error(plan))
        except AppendConflictError as error:
            if heads:
                return False
            if waiting.is_verified:
                self.waiting.popleft()
                waiting.tell(error)
            else:
                # Another node may have appended what is missing here.
                self.is_verifying = True
        return False

    def put_back(self) -> None:
        """Have the flight's appends wait again, before all others: their place was taken."""
        assert self.flight is not None
        self.waiting.extendleft(reversed(self.flight.parts))
        self.flight.end()
        self.flight = None

    def refuse_flight(self, error: TwinlockError) -> None:
        """Answer the flight with an error; if it is stored all the same, followers will be told."""
        assert self.flight is not None
        flight, self.flight = self.flight, None
        flight.end()
        if flight.is_unknown:
            if len(self.refused) >= REFUSED_MAX:
                self.refused.pop()
            self.refused.add(flight.origin)
        for part in flight.parts:
            part.tell(error)

    def refuse_all(self, error: TwinlockError) -> None:
        """Answer everything that waits or is in flight with an error."""
        if self.flight is not None:
            self.refuse_flight(error)
        waiting, self.waiting = self.waiting, deque()
        for each in waiting:
            each.tell(error)

    def refuse_overtaken(self, *, is_in_order: bool) -> None:
        """Have every append that waits or is in flight asked for again, for a fence came first; notes stay.

        In order, the fence has the very place that what is in flight was to have, which so is never stored.
        """
        error = OvertakenError("a change of the space's members came first", retry_after_ms=FENCED_RETRY_MS)
        if self.flight is not None and self.flight.parts[0].kind is MessageKind.ENTRIES:
            if not is_in_order:
                self.flight.is_unknown = True
            self.refuse_flight(error if is_in_order else StoreError(error.detail, retry_after_ms=FENCED_RETRY_MS))
        appends = [waiting for waiting in self.waiting if waiting.kind is MessageKind.ENTRIES]
        self.waiting = deque(waiting for waiting in self.waiting if waiting.kind is not MessageKind.ENTRIES)
        for waiting in appends:
            waiting.tell(error)

    # Moving on.

    def move(self, number: int, message: LogMessage, by_flight: bool) -> list[Entry]:
        """Move over the next message; return the entries in it, which may be needed for followers and watchers."""
        own = self.flight if by_flight else None
        self.last = number
        self.wanted = max(self.wanted, number)
        if message is UNREADABLE:
            return []
        self.bytes_all = message.bytes_after
        self.count_all = message.count_before + len(message.envelopes)
        if message.kind == MessageKind.CUT:
            self.start = None
        if not message.envelopes:
            return []
        self.head = head_of(number, message)
        self.received_ms = message.received_ms + (message.later_ms[-1] if message.later_ms else 0)
        if own is not None and own.heads is not None:
            self.heads.update(own.heads)
            self._place_own(number, own)
            return entries_of(number, message) if self.watchers else []
        self._place(number, message)
        return entries_of(number, message)

    def _place_own(self, number: int, flight: Flight) -> None:
        place = 0
        for part in flight.parts:
            for envelope in part.envelopes:
                self.known[envelope.header.device] = seq_at(number, place)
                place += 1

    def _place(self, number: int, message: LogMessage) -> None:
        lasts: dict[DeviceId, int] = {}
        for place, data in enumerate(message.envelopes):
            lasts[device_of(data)] = place
        for device, place in lasts.items():
            envelope = parse(message.envelopes[place])
            self.heads[device] = DeviceHead(envelope.header.counter, envelope.id)
            self.known[device] = seq_at(number, place)

    def answer_flight(self, number: int) -> None:
        """Tell every append of the flight where it is."""
        assert self.flight is not None
        flight, self.flight = self.flight, None
        flight.end()
        first = 0
        for part in flight.parts:
            if part.kind is MessageKind.ENTRIES:
                part.tell([seq_at(number, place) for place in range(first, first + part.count)])
                first += part.count
            else:
                part.tell(self.snapshot())

    def raise_head(self, device: DeviceId, counter: Counter, identifier: EnvelopeId, seq: Seq) -> None:
        """Take over a device's head, if it lies above the one that is known."""
        if counter > self.heads.get(device, NO_HEAD).counter:
            self.heads[device] = DeviceHead(counter, identifier)
            self.known[device] = seq

    def hold(self, before: int, number: int, message: LogMessage) -> None:
        """Keep a live message that came too early; past the bound it is read later."""
        self.wanted = max(self.wanted, number)
        if len(self.held) < HELD_MESSAGES_MAX:
            self.held[before] = (number, message)


def foreign_of(number: int, message: LogMessage, entries: list[Entry] | None = None) -> Foreign:
    """Return what followers are told of a message."""
    if message.kind == MessageKind.FENCE:
        return Foreign([], Note.FENCE)
    if message.kind == MessageKind.CUT:
        return Foreign([], Note.CUT)
    return Foreign(entries_of(number, message) if entries is None else entries)


def counter_of(envelope: bytes) -> int:
    """Return an envelope's counter, without parsing all of it."""
    return int.from_bytes(envelope[_COUNTER], "big")


def _known_error(plan: AppendPlan) -> AppendConflictError:
    try:
        refuse_known(plan)
    except AppendConflictError as error:
        return error
    raise AssertionError("something is known")


def _fits_beside(first: Waiting, waiting: Waiting, count: int, bytes_taken: int) -> bool:
    """Tell whether an append may share the message of others: entries of one moment, within what a message holds."""
    are_entries = first.kind is waiting.kind is MessageKind.ENTRIES and first.raw is None and waiting.raw is None
    return (
        are_entries
        and first.received_ms == waiting.received_ms
        and count + waiting.count <= APPEND_ENVELOPES_MAX
        and bytes_taken + waiting.bytes <= APPEND_BYTES_MAX
    )


def _nothing() -> None:
    """End what has not begun."""
