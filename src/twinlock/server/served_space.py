"""A space while it is served: its chains and rules, who reads it, and what is on its way. State only."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import msgspec

from twinlock.contracts import SpaceState
from twinlock.ids import DeviceId, Incarnation, Seq, SpaceId
from twinlock.protocol.envelope import Envelope
from twinlock.protocol.frames import Attached, Entry
from twinlock.protocol.space_log import SpaceLogState
from twinlock.server.buckets import Pace
from twinlock.server.peer import Peer
from twinlock.server.sequencer import Refusal, Sequencer

RECENT_BYTES_MAX = 1 << 20
"""Delivered bytes kept while somebody catches up, so that the hand-over to live needs no further read."""


class Birth(msgspec.Struct, frozen=True, array_like=True):
    """The head that a space had when an incarnation of the database began."""

    incarnation: Incarnation
    head: Seq


class WaitingPush(msgspec.Struct, frozen=True):
    """A push that was decided on: what to append, what to look up, and what to refuse after that."""

    peer: Peer
    fresh: list[Envelope]
    known: list[Envelope]
    refusal: Refusal | None
    pushed_bytes: int


class Delivery(msgspec.Struct, frozen=True):
    """One commit as it goes out: its entries, and the one message that carries them to everybody."""

    entries: list[Entry]
    message: bytes


class Lag:
    """A reader that is not live: how far it has got."""

    __slots__ = ("ahead", "cursor", "is_reading")

    def __init__(self, cursor: Seq) -> None:
        self.cursor = cursor
        self.is_reading = False
        self.ahead = False
        """Whether it has read what is not yet delivered to the others, and waits for them."""


class Recent:
    """What was delivered lately, for those who are about to go live; the oldest go first."""

    __slots__ = ("_bytes", "_deliveries", "_floor")

    def __init__(self) -> None:
        self._deliveries: deque[Delivery] = deque()
        self._bytes = 0
        self._floor = Seq(0)

    def __len__(self) -> int:
        return len(self._deliveries)

    def keep(self, delivery: Delivery, before: Seq) -> None:
        """Keep a delivery that follows a seq."""
        if not self._deliveries:
            self._floor = before
        self._deliveries.append(delivery)
        self._bytes += len(delivery.message)
        while self._bytes > RECENT_BYTES_MAX:
            oldest = self._deliveries.popleft()
            self._bytes -= len(oldest.message)
            self._floor = oldest.entries[-1].seq

    def forget(self) -> None:
        """Keep nothing: nobody is catching up."""
        self._deliveries.clear()
        self._bytes = 0

    def after(self, cursor: Seq) -> list[Entry] | None:
        """Return every delivered entry after a cursor, or None if that reaches back too far."""
        if not self._deliveries or cursor < self._floor:
            return None
        return [entry for delivery in self._deliveries for entry in delivery.entries if entry.seq > cursor]


class ServedSpace:
    """All that the server holds of one space in memory.

    `delivered` is the last seq that live readers have been sent; every reader in `live` has got all up to it.
    """

    __slots__ = (
        "acks",
        "appending_since_s",
        "births",
        "cuts_under_way",
        "delivered",
        "fence_waiters",
        "fences_count",
        "group_waiters",
        "id",
        "in_doubt",
        "is_appending",
        "is_looking",
        "lagging",
        "live",
        "log_bytes",
        "log_users",
        "looked_s",
        "pace",
        "received_ms",
        "recent",
        "rests_until_s",
        "seen",
        "senders",
        "sequencer",
        "signal_subject",
        "start",
        "turn",
        "unfollow",
        "waiting",
    )

    def __init__(self, rules: SpaceLogState, state: SpaceState, births: list[Birth], pace: Pace) -> None:
        self.id: SpaceId = rules.space
        self.signal_subject = f"sig.{self.id.hex()}"
        self.sequencer = Sequencer(rules.space, rules, state.heads)
        self.start = state.start
        self.cuts_under_way = 0
        """While this is not 0 the log may know of a later start already."""

        self.log_bytes = state.log_bytes
        self.received_ms = state.received_ms
        """The receive time of the newest entry that is known here: no later one is given an earlier time."""

        self.delivered = state.head
        self.seen = state.head
        """The last seq that is delivered, or will be at the end of this turn of the loop."""

        self.births = births
        self.pace = pace
        self.live: set[Peer] = set()
        self.lagging: dict[Peer, Lag] = {}
        self.senders: set[Peer] = set()
        """Attached devices that may only send: they are told when the log grows, and are delivered nothing."""

        self.log_users = 0
        """How many change the space's signed log, or wait for their turn."""

        self.in_doubt = False
        """Whether entries may have been appended to the signed log that are not known here yet."""

        self.is_looking = False
        """Whether the directory is being looked at for what another node has done to the signed log."""

        self.looked_s = -1e9
        """Loop time at which the signed log was last looked at."""

        self.fences_count = 0
        """How many fences of other nodes have been told."""

        self.fence_waiters: list[Callable[[], None]] = []
        """What is called when a fence is told, or everybody's pushes are taken again."""

        self.unfollow: Callable[[], None] = _follow_nothing
        """Ends what other nodes tell of this space."""

        self.group_waiters: list[Callable[[], None]] = []
        """What is called when the next group of appends has ended."""

        self.waiting: list[WaitingPush] = []
        self.is_appending = False
        self.appending_since_s = 0.0
        """Loop time at which the append began that is under way."""

        self.turn: list[Delivery] = []
        self.acks: dict[Peer, bytes] = {}
        """Acks of live readers, which go out in one piece with this turn's entries."""

        self.recent = Recent()
        self.rests_until_s = 0.0
        """Loop time before which a space of many readers is not delivered again."""

    @property
    def is_idle(self) -> bool:
        """Whether nobody uses it and nothing is on its way."""
        is_read = self.live or self.lagging or self.senders
        is_changing = (
            self.waiting or self.is_appending or self.turn or self.log_users or self.in_doubt or self.is_looking
        )
        return not (is_read or is_changing)

    def group_ended(self) -> None:
        """Wake those who wait for a group of appends."""
        waiters, self.group_waiters = self.group_waiters, []
        for wake in waiters:
            wake()

    def fence_moved(self) -> None:
        """Wake those who wait for other nodes to come to their end with the signed log."""
        waiters, self.fence_waiters = self.fence_waiters, []
        for wake in waiters:
            wake()

    def attached(self, device: DeviceId, resume: Seq) -> Attached:
        """Return what tells a device where delivery begins, and where its chain and the space's log stand."""
        own, rules = self.sequencer.head_of(device), self.sequencer.rules
        return Attached(
            space=self.id,
            incarnation=self.births[-1].incarnation,
            start=self.start,
            head=max(self.delivered, resume),
            resume=resume,
            log_bytes=self.log_bytes,
            own_counter=own.counter,
            own_id=own.id,
            log_seq=rules.seq,
            log_head=rules.head,
        )

    def resume_for(self, incarnation: bytes, cursor: Seq, head: Seq) -> Seq:
        """Return from where a reader goes on: its cursor, or the last place that both incarnations share."""
        resume = min(cursor, head)
        if not incarnation or incarnation == self.births[-1].incarnation:
            return resume
        known = [place for place, birth in enumerate(self.births) if birth.incarnation == incarnation]
        # A life that this database does not know of may have parted from it anywhere: every birth counts.
        later = self.births[known[0] + 1 :] if known else self.births
        return min(resume, *(birth.head for birth in later))


def _follow_nothing() -> None:
    """End what never began."""
