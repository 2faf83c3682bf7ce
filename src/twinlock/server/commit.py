"""Group commit: per space at most one append is in flight, and it carries everything that waited.

The appends of all spaces of a loop turn are one call of the log, and their outcomes few calls back: no task each.

`ack` is sent only after the append returned, which means durable. What a failed append leaves open is settled by
reading the log's own state again; nobody is told anything that a crash could take back.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from functools import partial

import msgspec
import structlog

from twinlock.contracts import APPEND_ENVELOPES_MAX, Append, Log, Outcome, OvertakenError, SpaceState
from twinlock.errors import (
    AppendConflictError,
    CounterConflictError,
    InternalError,
    OverloadedError,
    StoreError,
    TwinlockError,
)
from twinlock.ids import Counter, DeviceId, Seq, short
from twinlock.protocol.codec import encode
from twinlock.protocol.envelope import Envelope
from twinlock.protocol.frames import Ack, Entry, Reject
from twinlock.server.framing import binary_message
from twinlock.server.hub import Hub
from twinlock.server.metrics import Metrics
from twinlock.server.peer import Peer
from twinlock.server.sequencer import HELD_RETRY_MS, Refusal
from twinlock.server.served_space import ServedSpace, WaitingPush
from twinlock.server.tasks import Tasks

logger = structlog.get_logger(__name__)

GROUP_BYTES_MAX = 4 << 20
"""An append carries about this much at most, so that no one waits behind a mountain."""

WAITING_S_MAX = 5.0
"""While an append takes longer, pushes to its space are asked to come back: what is queued waits as long as it may."""

RETRY_AFTER_MS = 1_000
SETTLE_S = 10.0
"""How long a change of members waits for what its devices pushed before."""


class Committer:
    """Takes pushes that were decided on, and acknowledges and delivers them once they are durable."""

    __slots__ = ("_changed", "_log", "_loop", "_receive_ms", "_tasks", "hub", "in_flight", "metrics", "waiting_bytes")

    def __init__(self, log: Log, hub: Hub, tasks: Tasks, metrics: Metrics, receive_ms: Callable[[], int]) -> None:
        self._log = log
        self.hub = hub
        self._tasks = tasks
        self.metrics = metrics
        self._receive_ms = receive_ms
        self._loop = asyncio.get_running_loop()
        self._changed: list[ServedSpace] = []
        self.in_flight = 0
        """Pushes that are not answered yet."""

        self.waiting_bytes = 0
        """Bytes of those pushes."""

        metrics.waiting_pushes.set_function(lambda: self.in_flight)
        metrics.waiting_bytes.set_function(lambda: self.waiting_bytes)

    def submit(self, space: ServedSpace, push: WaitingPush) -> None:
        """Queue a push; all that is queued in one loop turn goes to the log in one call."""
        is_answered = push.refusal is None or not (space.waiting or space.is_appending)
        if not push.fresh and not push.known and is_answered:
            # What is dropped behind a refusal has no answer whose order matters. It must not count as in flight any
            # longer: its author may push again as soon as the refusal comes, and then with a full window.
            self._settle(space, push)
            return
        self.in_flight += 1
        self.waiting_bytes += push.pushed_bytes
        if not space.waiting and not space.is_appending:
            self._queue(space)
        space.waiting.append(push)

    def _queue(self, space: ServedSpace) -> None:
        if not self._changed:
            self._loop.call_soon(self._start)
        self._changed.append(space)

    def _start(self) -> None:
        changed, self._changed = self._changed, []
        now_ms = self._receive_ms()
        groups: list[_Group] = []
        for space in changed:
            space.is_appending = True
            space.appending_since_s = self._loop.time()
            pushes = _take_group(space)
            envelopes = [envelope for push in pushes for envelope in push.fresh]
            if envelopes:
                groups.append(_Group(space.id, envelopes, max(now_ms, space.received_ms), space, pushes))
            else:
                self._finish(space, pushes)
        if groups:
            self._log.append_many(groups, partial(self._done, groups, time.perf_counter()))

    def _done(self, groups: list[_Group], started: float, outcomes: Sequence[tuple[int, Outcome]]) -> None:
        self.metrics.commit_seconds.observe(time.perf_counter() - started)
        for place, outcome in outcomes:
            group = groups[place]
            space = group.served
            if isinstance(outcome, OvertakenError):
                self._overtaken(space, group.pushes)
                continue
            if not isinstance(outcome, list):
                if not (isinstance(outcome, AppendConflictError) and self._sort_again(group)):
                    self._spawn_recovery(space, group.pushes, outcome)
                continue
            try:
                self._committed(group, outcome)
            except Exception as exc:
                logger.exception("commit failed", error=type(exc).__name__)
                self._abandon(space, exc)

    def _committed(self, group: _Group, seqs: list[Seq]) -> None:
        space, envelopes, pushes = group.served, group.envelopes, group.pushes
        # What others appended below these was told before, so this is the time that the log has stored.
        received_ms = space.received_ms = max(group.received_ms, space.received_ms)
        self.metrics.commit_group.observe(len(envelopes))
        self.metrics.acked.inc(len(envelopes))
        space.sequencer.confirm(envelopes)
        space.log_bytes += sum([len(envelope.data) for envelope in envelopes])
        for peer, pairs in _acks_by_peer(pushes, seqs).items():
            self.hub.acknowledge(space, peer, binary_message(encode(Ack(space.id, pairs))))
        entries = [Entry(seq, received_ms, envelope.data) for seq, envelope in zip(seqs, envelopes, strict=True)]
        self.hub.deliver(space, entries)
        self._finish(space, pushes)

    def take_foreign(self, space: ServedSpace, entries: Sequence[Entry]) -> None:
        """Deliver what another node appended, in order with what was appended here, and each entry once."""
        new = [entry for entry in entries if entry.seq > space.seen]
        if not new:
            return
        self.metrics.foreign_entries.inc(len(new))
        space.sequencer.observe([entry.envelope for entry in new])
        space.received_ms = new[-1].received_ms
        space.log_bytes += sum([len(entry.envelope) for entry in new])
        self.hub.deliver(space, new)

    def is_stuck(self, space: ServedSpace) -> bool:
        """Tell whether an append of a space has been under way for so long that no more is taken behind it."""
        return space.is_appending and self._loop.time() - space.appending_since_s > WAITING_S_MAX

    def withdraw(self, space: ServedSpace) -> None:
        """Have pushes come again that are not yet on their way to the log: another node is changing the space."""
        waiting, space.waiting = space.waiting, []
        for push in reversed(waiting):
            space.sequencer.take_back(push.fresh)
        held = OverloadedError("the space is changing", retry_after_ms=HELD_RETRY_MS)
        self._send_back(
            space,
            waiting,
            lambda envelope: space.sequencer.refuse([envelope.data], envelope.header.device, held).refusal,
        )

    def _sort_again(self, group: _Group) -> bool:
        """Try a group again of which another node has appended some already; tell whether that was so."""
        space = group.served
        pushes = [_sorted_again(space, push) for push in group.pushes]
        if pushes == group.pushes:
            return False
        self.metrics.append_retries.inc()
        space.waiting[:0] = pushes
        self._go_on(space)
        return True

    def _finish(self, space: ServedSpace, pushes: list[WaitingPush]) -> None:
        """Answer pushes in full whose fresh envelopes are acknowledged, and go on with what waits behind them."""
        for place, push in enumerate(pushes):
            if push.known:
                work = self._finish_known(space, pushes[place:])
                self._tasks.spawn(work, "repeats", partial(self._abandon, space))
                return
            self._leave(push)
            self._settle(space, push)
        self._go_on(space)

    async def _finish_known(self, space: ServedSpace, pushes: list[WaitingPush]) -> None:
        for place, push in enumerate(pushes):
            try:
                await self._acknowledge_known(space, push)
            except OvertakenError:
                self._overtaken(space, pushes[place:])
                return
            except TwinlockError as error:
                self._spawn_recovery(space, pushes[place:], error)
                return
            self._leave(push)
            self._settle(space, push)
        self._go_on(space)

    async def settle_chains(self, space: ServedSpace, devices: Collection[DeviceId] | None) -> None:
        """Wait until nothing of some devices (None: of any), whose pushes are held, is on its way to the log.

        Raises:
            OverloadedError: the log takes too long.
            StoreError: the log does not tell its state.
        """
        ends_s = self._loop.time() + SETTLE_S
        while space.sequencer.is_under_way(devices):
            if not space.is_appending and not space.waiting:
                # What an error of our own left open: the log itself knows.
                space.sequencer.restore((await self._log.state(space.id)).heads)
                return
            ended = asyncio.Event()
            space.group_waiters.append(ended.set)
            try:
                await asyncio.wait_for(ended.wait(), ends_s - self._loop.time())
            except TimeoutError:
                raise OverloadedError("the disk takes too long", retry_after_ms=RETRY_AFTER_MS) from None

    def _go_on(self, space: ServedSpace) -> None:
        space.is_appending = False
        space.group_ended()
        if space.waiting:
            self._queue(space)

    async def _acknowledge_known(self, space: ServedSpace, push: WaitingPush) -> None:
        """Acknowledge what was pushed before: the log says whether it really is the same."""
        pairs: list[tuple[Counter, Seq]] = []
        for envelope in push.known:
            counter = envelope.header.counter
            try:
                seqs = await self._log.append(space.id, [envelope], max(self._receive_ms(), space.received_ms))
            except AppendConflictError:
                conflict = Refusal(counter, CounterConflictError(f"counter {counter} is taken"))
                self._reject(space, push.peer, envelope.header.device, conflict)
                break
            pairs.append((counter, seqs[0]))
        self.metrics.repeats.inc(len(pairs))
        if pairs:
            push.peer.send(Ack(space.id, pairs))

    def _leave(self, push: WaitingPush) -> None:
        self.in_flight -= 1
        self.waiting_bytes -= push.pushed_bytes

    def _settle(self, space: ServedSpace, push: WaitingPush) -> None:
        push.peer.settle(push.pushed_bytes)
        if push.refusal is not None and push.peer.author is not None:
            self._reject(space, push.peer, push.peer.author.device, push.refusal)

    def _reject(self, space: ServedSpace, peer: Peer, device: DeviceId, refusal: Refusal) -> None:
        error = refusal.error
        head = space.sequencer.head_of(device)
        self.metrics.rejected(error)
        self.hub.release_ack(space, peer)
        peer.send(
            Reject(space.id, refusal.counter, error.code, error.detail, error.retry_after_ms, head.counter, head.id)
        )

    def _spawn_recovery(self, space: ServedSpace, pushes: list[WaitingPush], error: TwinlockError) -> None:
        # Nothing is known of these, and what waits behind them stands on them.
        rest, space.waiting = space.waiting, []
        work = self._recover(space, pushes + rest, error)
        self._tasks.spawn(work, "recover", partial(self._abandon, space))

    async def _recover(self, space: ServedSpace, pushes: list[WaitingPush], error: TwinlockError) -> None:
        """Settle with the log after a failed append: take over its state, and have every push sent again."""
        logger.warning("append failed", space=short(space.id), code=error.code)
        self.metrics.append_failures.inc()
        state = await self._state_or_none(space)
        # What came meanwhile counts on what has failed.
        came, space.waiting = space.waiting, []
        if state is not None:
            space.sequencer.restore(state.heads)
            space.start = state.start
            if state.head >= space.seen:
                space.log_bytes = state.log_bytes
                space.received_ms = state.received_ms or space.received_ms
            self.hub.restart(space, state.head)
        told = error if isinstance(error, StoreError | OverloadedError) else StoreError("the log moved on; push again")
        if space.sequencer.is_fenced:
            told = OverloadedError("the space is changing", retry_after_ms=HELD_RETRY_MS)
        retry = _with_retry(told)
        self._send_back(space, pushes + came, lambda envelope: Refusal(envelope.header.counter, retry))
        self._go_on(space)

    def _overtaken(self, space: ServedSpace, pushes: list[WaitingPush]) -> None:
        """Have pushes sent again that another node's fence overtook: none is stored, so that no reader lacks any."""
        waiting, space.waiting = space.waiting, []
        space.sequencer.restore(space.sequencer.durable)
        self.metrics.append_overtaken.inc()
        held = OverloadedError("the space is changing", retry_after_ms=HELD_RETRY_MS)
        self._send_back(space, pushes + waiting, lambda envelope: Refusal(envelope.header.counter, held))
        self._go_on(space)

    def _send_back(
        self, space: ServedSpace, pushes: Iterable[WaitingPush], ask_again: Callable[[Envelope], Refusal | None]
    ) -> None:
        """Have what was not stored come again, and tell why the rest was refused that only waited behind it."""
        asked: set[DeviceId] = set()
        for push in pushes:
            self._leave(push)
            author = push.peer.author
            envelopes = (*push.fresh, *push.known)
            if not envelopes and author is not None and author.device not in asked:
                self._settle(space, push)
                continue
            push.peer.settle(push.pushed_bytes)
            # What comes again brings with it what was refused behind it.
            for envelope in envelopes[:1]:
                asked.add(envelope.header.device)
                refusal = ask_again(envelope)
                if refusal is not None:
                    self._reject(space, push.peer, envelope.header.device, refusal)

    async def _state_or_none(self, space: ServedSpace) -> SpaceState | None:
        try:
            return await self._log.state(space.id)
        except TwinlockError:
            # The store does not even answer: keep what was durable, and let the next push try.
            space.sequencer.restore(space.sequencer.durable)
            return None

    def _abandon(self, space: ServedSpace, _: Exception) -> None:
        """An error of our own: nobody may be left waiting, so everyone who pushes or reads here connects anew."""
        space.is_appending = False
        space.group_ended()
        rest, space.waiting = space.waiting, []
        for push in rest:
            self._leave(push)
        for peer in {push.peer for push in rest} | space.live | set(space.lagging):
            peer.refuse(InternalError())


class _Group(Append, frozen=True):
    """One space's share of a call of the log, and the pushes that it answers."""

    served: ServedSpace
    pushes: list[WaitingPush]


def _take_group(space: ServedSpace) -> list[WaitingPush]:
    """Take what waits, in order, as much as one append carries; always at least one push."""
    total_bytes = envelopes_count = count = 0
    for push in space.waiting:
        total_bytes += push.pushed_bytes
        envelopes_count += len(push.fresh)
        if count and (total_bytes > GROUP_BYTES_MAX or envelopes_count > APPEND_ENVELOPES_MAX):
            break
        count += 1
    group, space.waiting = space.waiting[:count], space.waiting[count:]
    return group


def _acks_by_peer(group: list[WaitingPush], seqs: list[Seq]) -> dict[Peer, list[tuple[Counter, Seq]]]:
    acked: dict[Peer, list[tuple[Counter, Seq]]] = {}
    place = 0
    for push in group:
        if push.fresh:
            pairs = acked.setdefault(push.peer, [])
            for envelope in push.fresh:
                pairs.append((envelope.header.counter, seqs[place]))
                place += 1
    return acked


def _sorted_again(space: ServedSpace, push: WaitingPush) -> WaitingPush:
    """Return a push with those of its envelopes among the known ones that are in the log by now."""
    known: list[Envelope] = []
    fresh: list[Envelope] = []
    for envelope in push.fresh:
        is_known = envelope.header.counter <= space.sequencer.head_of(envelope.header.device).counter
        (known if is_known else fresh).append(envelope)
    return msgspec.structs.replace(push, fresh=fresh, known=[*push.known, *known]) if known else push


def _with_retry(error: StoreError | OverloadedError) -> TwinlockError:
    return type(error)(error.detail, retry_after_ms=error.retry_after_ms or RETRY_AFTER_MS)
