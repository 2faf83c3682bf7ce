"""The spaces that are served: loaded once, each by one task, kept while they are used.

What other nodes do to a space is listened to from before its rules are read until it is forgotten, so that nothing
falls between what was read and what is told.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Literal

import msgspec

from twinlock.contracts import Foreign, Note
from twinlock.errors import InternalError, LogInvalidError, RevisionError, TwinlockError, UnknownSpaceError
from twinlock.ids import LogId, Seq, SpaceId
from twinlock.protocol.space_log import SpaceLogState
from twinlock.server.buckets import Pace
from twinlock.server.metrics import Metrics
from twinlock.server.replaying import replay_in_pieces
from twinlock.server.served_space import Birth, ServedSpace
from twinlock.server.settings import Settings
from twinlock.server.shared_rates import SharedRates, TokenBucket
from twinlock.server.signed_logs import SignedLogs
from twinlock.server.stores import Stores
from twinlock.server.tasks import Tasks

Action = Callable[[ServedSpace], None]
Refusing = Callable[[TwinlockError], None]
TakeForeign = Callable[[ServedSpace, Foreign], None]
CatchUp = Callable[[ServedSpace], Awaitable[None]]
TakeSignal = Callable[[ServedSpace, bytes], None]
_decode_births = msgspec.msgpack.Decoder(list[Birth]).decode


class SpaceRegistry:
    """Gives out spaces; what asks for one while it is loaded waits its turn, in order."""

    __slots__ = (
        "_broker",
        "_directory",
        "_is_shared",
        "_log",
        "_logs",
        "_metrics",
        "_rates",
        "_settings",
        "_spaces",
        "_tasks",
        "_waiting",
        "catch_up",
        "take_foreign",
        "take_signal",
    )

    def __init__(
        self,
        stores: Stores,
        logs: SignedLogs,
        tasks: Tasks,
        metrics: Metrics,
        settings: Settings,
        rates: SharedRates,
    ) -> None:
        self._log = stores.log
        self._directory = stores.directory
        self._broker = stores.broker
        self._is_shared = stores.is_shared
        self.take_foreign: TakeForeign = _ignore
        """Is told what other nodes did to a space, in order with the outcomes of appends here."""

        self.catch_up: CatchUp = _catch_up_with_nobody
        """Takes over what other nodes have added to a space's signed log."""

        self.take_signal: TakeSignal = _ignore
        """Is told the signals of other nodes."""

        self._logs = logs
        self._tasks = tasks
        self._metrics = metrics
        self._settings = settings
        self._rates = rates
        rates.on("space changes", lambda space, _: self._pace_of(space, "changes"))
        rates.on("space bytes", lambda space, _: self._pace_of(space, "sizes"))
        self._spaces: dict[SpaceId, ServedSpace] = {}
        self._waiting: dict[SpaceId, list[tuple[Action, Refusing]]] = {}

    def at_hand(self, space: SpaceId) -> ServedSpace | None:
        """Return a space if it is loaded."""
        return self._spaces.get(space)

    def use(self, space: SpaceId, action: Action, refuse: Refusing) -> None:
        """Do something with a space, at once if it is loaded; `refuse` is called if there is no such space."""
        served = self._spaces.get(space)
        if served is not None:
            action(served)
        elif space in self._waiting:
            self._waiting[space].append((action, refuse))
        else:
            self._waiting[space] = [(action, refuse)]
            self._tasks.spawn(self._load_for_waiting(space), "load space")

    async def load(self, space: SpaceId) -> ServedSpace:
        """Return a space, loaded.

        Raises:
            UnknownSpaceError: there is none of that id.
        """
        served = self._spaces.get(space)
        return served or await self._load(space)

    async def current(self, space: SpaceId) -> ServedSpace:
        """Return a space with the rules that its signed log has now, whichever node changed it last.

        Raises:
            UnknownSpaceError: there is none of that id.
            OverloadedError: another node takes long to change it.
        """
        served = await self.load(space)
        await self.catch_up(served)
        return served

    async def _load(self, space: SpaceId) -> ServedSpace:
        feed = _Feed()
        try:
            rules = None
            if not (self._is_shared and await self._logs.exists(LogId(space))):
                # Whoever names a space that does not exist has nothing listened to.
                rules = await self._read_rules(space)
            state = await self._log.state(space)
            feed.end = self._log.follow(space, state.head, feed.hear)
            if rules is None or self._is_shared:
                await self._look_for_change(space, feed)
                rules = await self._read_rules(space)
            births = await self._note_birth(space, state.head)
        except BaseException:
            feed.end()
            raise
        known = self._spaces.get(space)
        if known is not None:
            # Another task has loaded it meanwhile; the first one stays, since it may be in use.
            feed.end()
            return known
        settings = self._settings
        changes, sizes = settings.space_changes_per_s, settings.space_bytes_per_s
        pace = Pace(changes, sizes, self._rates.now_ms(), self._rates, "space", space)
        served = self._keep(ServedSpace(rules, state, births, pace))
        end_signals = self._broker.subscribe(served.signal_subject, partial(self._hear_signal, served))
        served.unfollow = partial(_end_both, feed.end, end_signals)
        feed.begin(partial(self._hear, served))
        return served

    async def _look_for_change(self, space: SpaceId, feed: _Feed) -> None:
        """See whether another node is changing the signed log just now: its fence may have come before the state."""
        if await self._directory.get(changing_key(space)) is not None:
            feed.hear(Foreign([], Note.FENCE))

    def _hear(self, served: ServedSpace, foreign: Foreign) -> None:
        self.take_foreign(served, foreign)

    def _hear_signal(self, served: ServedSpace, sealed: bytes) -> None:
        self.take_signal(served, sealed)

    async def _load_for_waiting(self, space: SpaceId) -> None:
        error: TwinlockError = InternalError()
        served: ServedSpace | None = None
        try:
            served = await self.load(space)
        except TwinlockError as exc:
            error = exc
        finally:
            for action, refuse in self._waiting.pop(space):
                if served is not None:
                    action(served)
                else:
                    refuse(error)

    async def _read_rules(self, space: SpaceId) -> SpaceLogState:
        entries = await self._logs.read(LogId(space))
        if not entries:
            raise UnknownSpaceError
        rules = await replay_in_pieces(entries)
        if rules.space != space:
            raise LogInvalidError("the log of another space")
        return rules

    async def _note_birth(self, space: SpaceId, head: Seq) -> list[Birth]:
        """Return the space's birth heads; the first to load it in a new life of the database notes the head."""
        key = f"birth/{space.hex()}"
        while True:
            record = await self._directory.get(key)
            births = _decode_births(record.value) if record else []
            if births and births[-1].incarnation == self._log.incarnation:
                return births
            births.append(Birth(self._log.incarnation, head))
            try:
                await self._directory.put(key, msgspec.msgpack.encode(births), record.revision if record else 0)
            except RevisionError:
                continue
            return births

    def _pace_of(self, space: bytes, rate: Literal["changes", "sizes"]) -> TokenBucket | None:
        served = self._spaces.get(SpaceId(space))
        if served is None:
            return None
        return served.pace.changes if rate == "changes" else served.pace.sizes

    def _keep(self, served: ServedSpace) -> ServedSpace:
        if len(self._spaces) >= self._settings.spaces_cached_max:
            self._evict()
        self._spaces[served.id] = served
        self._metrics.spaces.set(len(self._spaces))
        return served

    def _evict(self) -> None:
        """Drop idle spaces, the longest loaded first, down to nine tenths; those in use stay however many they are."""
        surplus = len(self._spaces) - self._settings.spaces_cached_max * 9 // 10
        idle = [served.id for served in self._spaces.values() if served.is_idle]
        for space in idle[:surplus]:
            self._spaces.pop(space).unfollow()


class _Feed:
    """Keeps what is told of a space until somebody can take it."""

    __slots__ = ("_early", "_take", "end")

    def __init__(self) -> None:
        self._early: list[Foreign] = []
        self._take: Callable[[Foreign], None] | None = None
        self.end: Callable[[], None] = _nothing

    def hear(self, foreign: Foreign) -> None:
        if self._take is None:
            self._early.append(foreign)
        else:
            self._take(foreign)

    def begin(self, take: Callable[[Foreign], None]) -> None:
        self._take = take
        early, self._early = self._early, []
        for foreign in early:
            take(foreign)


def changing_key(space: SpaceId) -> str:
    """Return where the directory says which node is changing a space's signed log."""
    return f"changing/{space.hex()}"


def _nothing() -> None:
    """End what never began."""


def _end_both(first: Callable[[], None], second: Callable[[], None]) -> None:
    first()
    second()


async def _catch_up_with_nobody(space: ServedSpace) -> None:
    """Take over nothing: there are no other nodes."""


def _ignore(space: ServedSpace, told: object) -> None:
    """Take nothing."""
