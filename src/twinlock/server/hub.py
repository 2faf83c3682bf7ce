"""Delivery: one message a commit, the same bytes to every live reader, and catch-up from the log for the others.

The rule that makes it gapless: a reader is in `live` exactly if it has been sent everything up to `delivered`, and
both change only inside one callback of the loop. See docs/internals/server.md.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Container, Iterable

from twinlock.contracts import Log
from twinlock.errors import InternalError, TwinlockError
from twinlock.ids import AccountId, Seq, SpaceId
from twinlock.protocol.codec import encode
from twinlock.protocol.frames import Entries, Entry, Notice, Signals
from twinlock.protocol.limits import ENTRIES_PAGE_BYTES_MAX
from twinlock.server.framing import binary_message
from twinlock.server.metrics import Metrics
from twinlock.server.peer import Peer
from twinlock.server.served_space import Delivery, Lag, ServedSpace
from twinlock.server.tasks import Tasks

REST_READERS_MIN = 64
"""Delivery to fewer readers costs less than the timer that would hold it back."""


REST_SHARE = 0.5
"""How long such a space rests, as a share of what its delivery took: the best p99 at 300 commits a second."""


class Hub:
    """Brings committed entries to readers.

    Bounds: a live reader's unsent bytes by READER_BUFFER_BYTES_MAX (then it lags), a lagging one's by that and one
    page, and the pages being read at once by `reads_max`. A space of many readers rests after each delivery for
    half as long as that took: what comes meanwhile is joined, and one busy space never takes the whole loop.
    """

    __slots__ = ("_changed", "_everyone", "_log", "_loop", "_metrics", "_reads", "_tasks")

    def __init__(
        self,
        log: Log,
        tasks: Tasks,
        metrics: Metrics,
        reads_max: int,
        everyone: Callable[[], Iterable[Peer]] = tuple,
    ) -> None:
        self._log = log
        self._everyone = everyone
        self._tasks = tasks
        self._metrics = metrics
        self._loop = asyncio.get_running_loop()
        self._reads = asyncio.Semaphore(reads_max)
        self._changed: list[ServedSpace] = []

    def attach(self, space: ServedSpace, peer: Peer, after: Seq) -> None:
        """Deliver everything after a seq to a peer that was told the space's start: what is stored, then live."""
        self.detach(space, peer)
        if after == space.delivered and not peer.paused:
            space.live.add(peer)
        else:
            self._lag(space, peer, max(after, Seq(space.start - 1)))

    def detach(self, space: ServedSpace, peer: Peer) -> None:
        """Deliver no more to a peer."""
        space.live.discard(peer)
        space.senders.discard(peer)
        if space.lagging.pop(peer, None) is not None and not space.lagging:
            space.recent.forget()

    def deliver(self, space: ServedSpace, entries: list[Entry]) -> None:
        """Send a commit to every live reader at the end of this loop turn, together with what else comes till then."""
        space.seen = entries[-1].seq
        if not space.live and not space.lagging and not space.turn:
            space.delivered = entries[-1].seq
            return
        if not space.turn:
            if not self._changed:
                self._loop.call_soon(self._flush)
            self._changed.append(space)
        space.turn.append(Delivery(entries, entries_message(space.id, entries, entries[-1].seq)))

    def acknowledge(self, space: ServedSpace, peer: Peer, ack: bytes) -> None:
        """Send an ack; to a live reader together with the entries that `deliver` is given next, in one piece."""
        if peer in space.live and (peer in space.acks or not space.turn):
            space.acks[peer] = space.acks.get(peer, b"") + ack
        else:
            peer.write(ack)

    def release_ack(self, space: ServedSpace, peer: Peer) -> None:
        """Send an ack that waits for entries now: something else must not come before it."""
        ack = space.acks.pop(peer, None)
        if ack is not None:
            peer.write(ack)

    def relay(self, space: ServedSpace, sender: Peer | None, signals: Signals) -> None:
        """Send signals to all who are attached and keep up, but not back to their sender."""
        message = binary_message(encode(signals))
        for peer in (*space.live, *space.lagging):
            if peer is not sender and not peer.paused:
                peer.write(message)

    def tell_accounts(self, accounts: Container[AccountId], *notices: Notice) -> None:
        """Tell every device of some accounts, attached or not: a space that is new to them has no readers yet."""
        for peer in self._everyone():
            if peer.author is not None and peer.author.account in accounts:
                for notice in notices:
                    peer.send(notice)

    def attach_sender(self, space: ServedSpace, peer: Peer) -> None:
        """Let a peer that may only send hear when the signed log grows."""
        self.detach(space, peer)
        space.senders.add(peer)

    def pause(self, space: ServedSpace, peer: Peer) -> None:
        """Stop delivering to a peer whose buffer is full; it has been sent everything up to `delivered`."""
        if peer in space.live:
            space.live.discard(peer)
            self._lag(space, peer, space.delivered)
            self._metrics.slow_readers.inc()

    def resume(self, space: ServedSpace, peer: Peer) -> None:
        """Go on delivering to a peer whose buffer is empty again."""
        lag = space.lagging.get(peer)
        if lag is not None:
            self._start_reading(space, peer, lag)

    def restart(self, space: ServedSpace, head: Seq) -> None:
        """Let every reader catch up from the log: what was appended is not known for sure."""
        behind = space.delivered
        self._release_acks(space)
        space.turn.clear()
        space.recent.forget()
        live, space.live = space.live, set()
        # What other nodes appended since the log was asked is known for sure.
        space.delivered = space.seen = max(head, space.seen)
        for peer in live:
            self._lag(space, peer, behind)
        for peer, lag in space.lagging.items():
            lag.ahead = False
            self._start_reading(space, peer, lag)

    def _flush(self) -> None:
        changed, self._changed = self._changed, []
        now_s = self._loop.time()
        for space in changed:
            if space.rests_until_s > now_s:
                self._release_acks(space)
                self._loop.call_at(space.rests_until_s, self._flush_space, space)
            else:
                self._flush_space(space)

    def _release_acks(self, space: ServedSpace) -> None:
        for peer in tuple(space.acks):
            self.release_ack(space, peer)

    def _flush_space(self, space: ServedSpace) -> None:
        turn, space.turn = space.turn, []
        if not turn:
            return
        started_s = time.monotonic()
        message = turn[0].message if len(turn) == 1 else b"".join([delivery.message for delivery in turn])
        before, space.delivered = space.delivered, turn[-1].entries[-1].seq
        live, acks = tuple(space.live), space.acks
        space.acks = {}
        for peer, ack in acks.items():
            peer.write(ack + message if peer in space.live else ack)
        for peer in live:
            if peer not in acks:
                peer.write(message)
        count = sum(len(delivery.entries) for delivery in turn)
        self._metrics.delivered(len(live) * count, len(live) * len(message))
        if len(live) >= REST_READERS_MIN:
            space.rests_until_s = self._loop.time() + (time.monotonic() - started_s) * REST_SHARE
        if space.lagging:
            for delivery in turn:
                space.recent.keep(delivery, before)
                before = delivery.entries[-1].seq
            for peer, lag in tuple(space.lagging.items()):
                if lag.ahead and not self._join(space, peer, lag):
                    self._start_reading(space, peer, lag)

    def _lag(self, space: ServedSpace, peer: Peer, cursor: Seq) -> None:
        lag = space.lagging[peer] = Lag(cursor)
        self._start_reading(space, peer, lag)

    def _start_reading(self, space: ServedSpace, peer: Peer, lag: Lag) -> None:
        if lag.is_reading or lag.ahead or peer.paused:
            return
        lag.is_reading = True
        self._tasks.spawn(self._catch_up(space, peer, lag), "catch up", lambda exc: _give_up(peer, exc))

    async def _catch_up(self, space: ServedSpace, peer: Peer, lag: Lag) -> None:
        """Send pages until the reader is live, is gone, or its buffer is full (then `resume` starts this again)."""
        while not peer.paused:
            delivered_before = space.delivered
            async with self._reads:
                page = await self._log.read(space.id, lag.cursor, ENTRIES_PAGE_BYTES_MAX)
            if space.cuts_under_way:
                space.start = (await self._log.state(space.id)).start
            if space.lagging.get(peer) is not lag:
                return
            _tell_start(space, peer, lag, page)
            if page:
                lag.cursor = page[-1].seq
                message = entries_message(space.id, page, max(space.delivered, lag.cursor))
                self._metrics.caught_up(len(page), len(message))
                peer.write(message)
            else:
                # Nothing is left up to where delivery was before the read: that was cut away and deleted.
                lag.cursor = max(lag.cursor, delivered_before)
            if self._join(space, peer, lag):
                break
        lag.is_reading = False

    def _join(self, space: ServedSpace, peer: Peer, lag: Lag) -> bool:
        """Make a reader live if it has, or can be given at once, all that is delivered; tell whether reading ends."""
        lag.ahead = False
        if peer.paused:
            return False
        if lag.cursor > space.delivered:
            lag.ahead = True
            return True
        if lag.cursor < space.delivered:
            missing = space.recent.after(lag.cursor)
            if missing is None:
                return False
            peer.write(entries_message(space.id, missing, space.delivered))
        return self._go_live(space, peer)

    def _go_live(self, space: ServedSpace, peer: Peer) -> bool:
        del space.lagging[peer]
        space.live.add(peer)
        if not space.lagging:
            space.recent.forget()
        if peer.paused:
            self.pause(space, peer)
        return True


def _tell_start(space: ServedSpace, peer: Peer, lag: Lag, page: list[Entry]) -> None:
    """Tell a reader if what it has not read was cut meanwhile: it would take what comes next for all there is."""
    if lag.cursor + 1 < space.start and not (page and page[0].seq < space.start):
        peer.send(space.attached(peer.session.device, lag.cursor))
        lag.cursor = Seq(space.start - 1)


def entries_message(space: SpaceId, entries: list[Entry], head: Seq) -> bytes:
    """Return the WebSocket message that carries entries to any number of readers."""
    return binary_message(encode(Entries(space, entries, head)))


def _give_up(peer: Peer, error: Exception) -> None:
    peer.refuse(error if isinstance(error, TwinlockError) else InternalError())
