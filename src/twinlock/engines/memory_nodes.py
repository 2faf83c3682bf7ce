"""Several nodes on one store in this process's memory: the reference for engines of a cluster, and for simulations.

What a node knows of a space lags behind what the others have done to it, by times that its maker chooses. An append
names, as it were, the last thing that its node knows; if others did something since, the node is told that first and
tries again behind it. A store keeps all that was ever told, so it is for tests.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from functools import partial
from typing import Literal

import msgspec

from twinlock.contracts import OvertakenError
from twinlock.contracts.broker import Broker, Receiver, Subject
from twinlock.contracts.chains import NO_HEAD, plan_append, refuse_known
from twinlock.contracts.log import Append, DeviceHead, Done, Follower, Foreign, Log, Note, Outcome, SpaceState
from twinlock.engines.memory import MemoryDirectory, MemoryLog
from twinlock.errors import StoreError, TwinlockError
from twinlock.ids import DeviceId, Incarnation, Seq, SpaceId
from twinlock.protocol.envelope import Envelope
from twinlock.protocol.frames import Entry
from twinlock.protocol.limits import ENTRIES_PAGE_BYTES_MAX

Pause = Callable[[], float]
"""Says how long the next thing takes, in s."""

Fault = Literal["", "lost", "unanswered"]
Faults = Callable[[], Fault]
"""Says what befalls the next append: nothing, it gets lost, or it is stored and its node is told that it failed."""


class MemoryNode(msgspec.Struct, frozen=True):
    """What one node has of a store. A node that is closed is told nothing more; what it sent still arrives."""

    log: NodeLog
    directory: MemoryDirectory
    broker: NodeBroker

    async def close(self) -> None:
        """End what this node listens to; the store stays."""
        await self.log.close()
        self.broker.close()


class MemoryStore:
    """A log, a directory and a broker for several nodes."""

    __slots__ = ("brokers", "directory", "histories", "log", "logs")

    def __init__(self, incarnation: Incarnation | None = None) -> None:
        self.log = MemoryLog(incarnation)
        self.directory = MemoryDirectory()
        self.histories: dict[SpaceId, list[_Event]] = {}
        self.logs: list[NodeLog] = []
        self.brokers: list[NodeBroker] = []

    def node(self, pause: Pause | None = None, faults: Faults | None = None) -> MemoryNode:
        """Return what one more node has of this store; without `pause` everything is as quick as the loop turns."""
        return MemoryNode(NodeLog(self, pause, faults), self.directory, NodeBroker(self, pause))


class _Request:
    """An append on its way: `made_at` is the place in the history that its node knew when it was asked for it."""

    __slots__ = ("envelopes", "known_at", "made_at", "received_ms", "takes_known", "tell")

    def __init__(
        self,
        envelopes: Sequence[Envelope],
        received_ms: int,
        made_at: int,
        takes_known: bool,
        tell: Callable[[Outcome], None],
    ) -> None:
        self.envelopes = envelopes
        self.received_ms = received_ms
        self.made_at = self.known_at = made_at
        self.takes_known = takes_known
        self.tell = tell


class _Event:
    """One thing that was done to a space; `head` is the space's head after it."""

    __slots__ = ("answer", "entries", "head", "log", "note")

    def __init__(
        self,
        log: NodeLog | None,
        head: Seq,
        entries: list[Entry],
        note: Note | None = None,
        answer: Callable[[], None] | None = None,
    ) -> None:
        self.log = log
        self.head = head
        self.entries = entries
        self.note = note
        self.answer = answer


class _Following:
    __slots__ = ("after", "at", "follower")

    def __init__(self, after: Seq, at: int, follower: Follower) -> None:
        self.after = after
        self.at = at
        self.follower = follower


class _View:
    """What a node knows of one space: everything in its history before `told`."""

    __slots__ = ("followings", "history", "is_sending", "stated_at", "told", "waiting", "wakes")

    def __init__(self, history: list[_Event]) -> None:
        self.history = history
        self.told = len(history)
        self.stated_at = 0
        self.followings: list[_Following] = []
        self.waiting: deque[_Request] = deque()
        self.is_sending = False
        self.wakes: set[asyncio.Event] = set()

    def wake(self) -> None:
        for event in self.wakes:
            event.set()


class NodeLog(Log):
    """One node's log. Per space one append is under way, and others wait behind it."""

    __slots__ = ("_faults", "_inner", "_is_closed", "_pause", "_store", "_views")

    def __init__(self, store: MemoryStore, pause: Pause | None, faults: Faults | None) -> None:
        self._store = store
        self._inner = store.log
        self._pause = pause
        self._faults = faults
        self._views: dict[SpaceId, _View] = {}
        self._is_closed = False
        store.logs.append(self)

    @property
    def incarnation(self) -> Incarnation:
        """The random id of this life of the store."""
        return self._inner.incarnation

    async def state(self, space: SpaceId) -> SpaceState:
        """Return the space's state at some moment of this call."""
        await self._moment()
        view = self._view(space)
        view.stated_at, state = len(view.history), self._inner.state_now(space)
        await self._moment()
        return state

    async def append(self, space: SpaceId, envelopes: Sequence[Envelope], received_ms: int) -> list[Seq]:
        """Append behind everything that other nodes appended before, or refuse as a whole."""
        done: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()

        def tell(outcome: Outcome) -> None:
            if not done.cancelled():
                done.set_result(outcome)

        self._ask(space, envelopes, received_ms, True, tell)
        outcome = await done
        if isinstance(outcome, TwinlockError):
            raise outcome
        return outcome

    def append_many(self, appends: Sequence[Append], done: Done) -> None:
        """Append to many spaces; each is answered by itself."""
        for place, append in enumerate(appends):
            self._ask(append.space, append.envelopes, append.received_ms, False, partial(_answer_one, done, place))

    async def read(self, space: SpaceId, after: Seq, bytes_max: int) -> list[Entry]:
        """Return entries after a seq, from `start` on, in order."""
        await self._moment()
        return await self._inner.read(space, after, bytes_max)

    async def watch(self, space: SpaceId, after: Seq) -> AsyncIterator[list[Entry]]:
        """Yield all entries after a seq, whichever node appends them."""
        wakes, event = self._view(space).wakes, asyncio.Event()
        wakes.add(event)
        try:
            while not self._is_closed:
                event.clear()
                page = await self._inner.read(space, after, ENTRIES_PAGE_BYTES_MAX)
                if page:
                    after = page[-1].seq
                    yield page
                else:
                    await event.wait()
        finally:
            wakes.discard(event)

    def follow(self, space: SpaceId, after: Seq, follower: Follower) -> Callable[[], None]:
        """Tell of what other nodes do, in order with this node's own outcomes."""
        view = self._view(space)
        at = len(view.history)
        while at and self._is_news(view.history[at - 1], at - 1, after, view):
            at -= 1
        following = _Following(after, at, follower)
        view.followings.append(following)
        if at < len(view.history):
            view.told = min(view.told, at)
            self._tell_later(view)

        def end() -> None:
            if following in view.followings:
                view.followings.remove(following)

        return end

    async def fence(self, space: SpaceId) -> SpaceState:
        """Leave a fence, and return the state at its place once everything before it is told here."""
        await self._moment()
        view, state = self._view(space), self._inner.state_now(space)
        self._note(space, Note.FENCE)
        upto = len(view.history)
        await self._moment()
        self._tell(view, upto)
        return state

    async def cut(self, space: SpaceId, upto: Seq, now_ms: int) -> SpaceState:
        """Deliver from `upto + 1` on."""
        await self._moment()
        return self._cut(space, await self._inner.cut(space, upto, now_ms))

    async def uncut(self, space: SpaceId, upto: Seq) -> SpaceState:
        """Move `start` back to `upto + 1`."""
        await self._moment()
        return self._cut(space, await self._inner.uncut(space, upto))

    async def clean(self, cut_before_ms: int) -> int:
        """Delete entries that were cut before a time; return how many."""
        return await self._inner.clean(cut_before_ms)

    async def purge(self, space: SpaceId) -> None:
        """Delete every entry of a space."""
        await self._moment()
        await self._inner.purge(space)
        self._note(space, Note.CUT)

    async def spaces(self, after: SpaceId, count_max: int) -> list[SpaceId]:
        """Return a page of the spaces that have a head, sorted."""
        return await self._inner.spaces(after, count_max)

    async def adopt(self, space: SpaceId, entries: Sequence[Entry], heads: Mapping[DeviceId, DeviceHead]) -> None:
        """Take over entries from elsewhere."""
        await self._inner.adopt(space, entries, heads)

    async def close(self) -> None:
        """Tell this node nothing more."""
        self._is_closed = True
        for view in self._views.values():
            view.wake()
        if self in self._store.logs:
            self._store.logs.remove(self)

    # Appends on their way

    def _ask(
        self,
        space: SpaceId,
        envelopes: Sequence[Envelope],
        received_ms: int,
        takes_known: bool,
        tell: Callable[[Outcome], None],
    ) -> None:
        view = self._view(space)
        view.waiting.append(_Request(envelopes, received_ms, view.told, takes_known, tell))
        if not view.is_sending:
            self._send(space, view)

    def _send(self, space: SpaceId, view: _View) -> None:
        """Send what waits longest, with the place in the history that is known by now."""
        view.is_sending = bool(view.waiting)
        if not view.waiting:
            return
        request = view.waiting[0]
        request.known_at = view.told
        if any(
            event.note is Note.FENCE and event.log is not self for event in view.history[request.made_at : view.told]
        ):
            fenced = OvertakenError("another node has begun to change the space")
            self._later(lambda: self._answer(space, view, request, fenced))
        else:
            self._later(lambda: self._arrive(space, view, request))

    def _arrive(self, space: SpaceId, view: _View, request: _Request) -> None:
        """Store an append, or turn it away if others did something that its node did not know."""
        fault = self._faults() if self._faults is not None else ""
        if fault == "lost":
            self._later(lambda: self._answer(space, view, request, StoreError("it got lost")))
        elif any(event.log is not self for event in view.history[request.known_at :]):
            upto = len(view.history)
            self._later(lambda: self._try_again(space, view, request, upto))
        else:
            self._store_it(space, view, request, fault == "unanswered")

    def _try_again(self, space: SpaceId, view: _View, request: _Request, upto: int) -> None:
        self._tell(view, upto)
        if not self._is_closed:
            self._send(space, view)

    def _store_it(self, space: SpaceId, view: _View, request: _Request, is_unanswered: bool) -> None:
        try:
            if not request.takes_known:
                heads = self._inner.state_now(space).heads
                refuse_known(plan_append(space, request.envelopes, lambda device: heads.get(device, NO_HEAD)))
            before = self._inner.state_now(space)
            seqs = self._inner.append_now(space, request.envelopes, request.received_ms)
        except TwinlockError as error:
            refusal = error
            self._later(lambda: self._answer(space, view, request, refusal))
            return
        entries = [
            Entry(seq, max(request.received_ms, before.received_ms), envelope.data)
            for seq, envelope in zip(seqs, request.envelopes, strict=True)
            if seq > before.head
        ]
        if not entries:
            upto = len(view.history)
            self._later(lambda: self._tell_and_answer(space, view, request, upto, seqs))
            return
        if is_unanswered:
            # Its own node takes it for an append of somebody else.
            self._happened(space, _Event(None, self._inner.state_now(space).head, entries))
            self._later(lambda: self._answer(space, view, request, StoreError("no answer came")))
            return
        head = self._inner.state_now(space).head
        event = _Event(self, head, entries, None, lambda: self._answer(space, view, request, seqs))
        self._happened(space, event)
        self._tell_later(view)

    def _tell_and_answer(self, space: SpaceId, view: _View, request: _Request, upto: int, seqs: list[Seq]) -> None:
        self._tell(view, upto)
        self._answer(space, view, request, seqs)

    def _answer(self, space: SpaceId, view: _View, request: _Request, outcome: Outcome) -> None:
        if self._is_closed:
            return
        view.waiting.remove(request)
        request.tell(outcome)
        self._send(space, view)

    # What is told

    def _note(self, space: SpaceId, note: Note) -> None:
        self._happened(space, _Event(self, self._inner.state_now(space).head, [], note))

    def _cut(self, space: SpaceId, state: SpaceState) -> SpaceState:
        self._note(space, Note.CUT)
        return state

    def _happened(self, space: SpaceId, event: _Event) -> None:
        """Put an event into the space's history, and let the nodes that know of the space hear of it."""
        self._store.histories.setdefault(space, []).append(event)
        for log in tuple(self._store.logs):
            view = log._views.get(space)
            if view is not None:
                view.wake()
                if event.log is not log:
                    log._tell_later(view)

    def _tell_later(self, view: _View) -> None:
        upto = len(view.history)
        self._later(lambda: self._tell(view, upto))

    def _tell(self, view: _View, upto: int) -> None:
        """Tell all that happened before a place, in order: what others did, and the outcomes of this node's appends."""
        while view.told < upto and not self._is_closed:
            at, event = view.told, view.history[view.told]
            view.told += 1
            if event.log is self:
                answer, event.answer = event.answer, None
                if answer is not None:
                    answer()
                continue
            for following in tuple(view.followings):
                if at >= following.at:
                    following.at = at + 1
                    entries = [entry for entry in event.entries if entry.seq > following.after]
                    if entries or event.note is not None:
                        following.follower(Foreign(entries, event.note))

    def _is_news(self, event: _Event, at: int, after: Seq, view: _View) -> bool:
        """Tell whether somebody who knows a space up to a seq may not know of an event."""
        return event.head > after or (event.head == after and at >= view.stated_at)

    def _view(self, space: SpaceId) -> _View:
        view = self._views.get(space)
        if view is None:
            view = self._views[space] = _View(self._store.histories.setdefault(space, []))
        return view

    def _later(self, step: Callable[[], None]) -> None:
        loop = asyncio.get_running_loop()
        if self._pause is None:
            loop.call_soon(step)
        else:
            loop.call_later(self._pause(), step)

    async def _moment(self) -> None:
        await asyncio.sleep(self._pause() if self._pause is not None else 0)


class NodeBroker(Broker):
    """One node's end of the broker. While it is cut off, what others tell it is lost."""

    __slots__ = ("_gaps", "_is_cut_off", "_pause", "_receivers", "_store", "_under_way")

    def __init__(self, store: MemoryStore, pause: Pause | None) -> None:
        self._store = store
        self._pause = pause
        self._receivers: dict[Subject, list[_Subscription]] = {}
        self._gaps: list[Callable[[], None]] = []
        self._under_way: deque[tuple[Subject, bytes]] = deque()
        self._is_cut_off = False
        store.brokers.append(self)

    def publish(self, subject: Subject, message: bytes) -> None:
        """Hand a message to every other node that is subscribed now."""
        for other in self._store.brokers:
            if other is not self and not (other._is_cut_off or self._is_cut_off):
                other._bring(subject, message)

    def subscribe(self, subject: Subject, receiver: Receiver) -> Callable[[], None]:
        """Call `receiver` with every later message of a subject by another node."""
        subscription = _Subscription(receiver)
        self._receivers.setdefault(subject, []).append(subscription)

        def end() -> None:
            subscriptions = self._receivers.get(subject, [])
            if subscription in subscriptions:
                subscriptions.remove(subscription)
            if not subscriptions:
                self._receivers.pop(subject, None)

        return end

    def on_gap(self, callback: Callable[[], None]) -> None:
        """Call `callback` once messages may have been missed."""
        self._gaps.append(callback)

    def cut_off(self) -> None:
        """Lose what is told from now on, in both directions."""
        self._is_cut_off = True

    def mend(self) -> None:
        """Hear the others again."""
        if self._is_cut_off:
            self._is_cut_off = False
            for callback in self._gaps:
                asyncio.get_running_loop().call_soon(callback)

    def close(self) -> None:
        """Hear nothing more."""
        self._receivers.clear()
        self._gaps.clear()
        if self in self._store.brokers:
            self._store.brokers.remove(self)

    def _bring(self, subject: Subject, message: bytes) -> None:
        # Timers of the same moment go off in any order, so each takes whatever is the next message by then.
        self._under_way.append((subject, message))
        loop = asyncio.get_running_loop()
        if self._pause is None:
            loop.call_soon(self._arrive)
        else:
            loop.call_later(self._pause(), self._arrive)

    def _arrive(self) -> None:
        subject, message = self._under_way.popleft()
        for subscription in tuple(self._receivers.get(subject, ())):
            # One callback each, so that a receiver that raises does not keep the message from the others.
            asyncio.get_running_loop().call_soon(self._hand, subject, subscription, message)

    def _hand(self, subject: Subject, subscription: _Subscription, message: bytes) -> None:
        if subscription in self._receivers.get(subject, ()):
            subscription.receiver(message)


def _answer_one(done: Done, place: int, outcome: Outcome) -> None:
    done([(place, outcome)])


class _Subscription:
    __slots__ = ("receiver",)

    def __init__(self, receiver: Receiver) -> None:
        self.receiver = receiver
