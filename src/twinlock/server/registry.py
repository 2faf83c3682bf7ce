"""The spaces that are served: loaded once, each by one task, kept while they are used."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from twinlock.contracts import Directory, Log
from twinlock.errors import InternalError, LogInvalidError, RevisionError, TwinlockError, UnknownSpaceError
from twinlock.ids import LogId, Seq, SpaceId
from twinlock.protocol.space_log import SpaceLogState
from twinlock.server.buckets import Pace
from twinlock.server.metrics import Metrics
from twinlock.server.replaying import replay_in_pieces
from twinlock.server.served_space import Birth, ServedSpace
from twinlock.server.settings import Settings
from twinlock.server.signed_logs import SignedLogs
from twinlock.server.tasks import Tasks

Action = Callable[[ServedSpace], None]
Refusing = Callable[[TwinlockError], None]
_decode_births = msgspec.msgpack.Decoder(list[Birth]).decode


class SpaceRegistry:
    """Gives out spaces; what asks for one while it is loaded waits its turn, in order."""

    __slots__ = ("_directory", "_log", "_logs", "_metrics", "_now_ms", "_settings", "_spaces", "_tasks", "_waiting")

    def __init__(
        self,
        log: Log,
        directory: Directory,
        logs: SignedLogs,
        tasks: Tasks,
        metrics: Metrics,
        settings: Settings,
        now_ms: Callable[[], int],
    ) -> None:
        self._log = log
        self._directory = directory
        self._logs = logs
        self._tasks = tasks
        self._metrics = metrics
        self._settings = settings
        self._now_ms = now_ms
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
        if served is None:
            rules = await self._read_rules(space)
            state = await self._log.state(space)
            births = await self._note_birth(space, state.head)
            # Another task may have loaded it meanwhile; the first one stays, since it may be in use.
            served = self._spaces.get(space) or self._keep(
                ServedSpace(
                    rules,
                    state,
                    births,
                    Pace(self._settings.space_changes_per_s, self._settings.space_bytes_per_s, self._now_ms()),
                )
            )
        return served

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
            del self._spaces[space]
