"""What other nodes do, and what follows from it here."""

from __future__ import annotations

import asyncio

import structlog

from twinlock.contracts import Foreign, Note
from twinlock.errors import (
    DeviceRevokedError,
    OverloadedError,
    RemovedError,
    ShreddedError,
    TwinlockError,
    UnknownDeviceError,
)
from twinlock.ids import AccountId, DeviceId, SpaceId, short
from twinlock.protocol.account_log import AccountState
from twinlock.protocol.frames import LOG_GROWN, Notice, Signals
from twinlock.protocol.limits import SIGNAL_BYTES_MAX
from twinlock.server.authorize import Authority
from twinlock.server.drain import sign_out
from twinlock.server.heartbeat import Heartbeat
from twinlock.server.neighbours import AccountGrown, Neighbours, SignedOut, SpaceGrown
from twinlock.server.new_rules import tell
from twinlock.server.peer import Peer
from twinlock.server.registry import SpaceRegistry
from twinlock.server.served_space import ServedSpace
from twinlock.server.space_changes import SpaceChanges
from twinlock.server.standing import FORMER
from twinlock.server.stores import Stores
from twinlock.server.tasks import Tasks

logger = structlog.get_logger(__name__)

RETRY_AFTER_MS = 1_000
LOOK_UP_PAUSE_S = 0.002
"""Between two accounts that are looked up after a gap: at most 500 a second."""


class OtherNodes:
    """Listens to the other nodes for all parts of this one."""

    __slots__ = (
        "_authority",
        "_changes",
        "_directory",
        "_heartbeat",
        "_is_looking_up",
        "_neighbours",
        "_registry",
        "_starts",
        "_tasks",
    )

    def __init__(
        self,
        stores: Stores,
        neighbours: Neighbours,
        authority: Authority,
        registry: SpaceRegistry,
        changes: SpaceChanges,
        tasks: Tasks,
        heartbeat: Heartbeat,
    ) -> None:
        self._directory = stores.directory
        self._neighbours = neighbours
        self._authority = authority
        self._registry = registry
        self._changes = changes
        self._tasks = tasks
        self._heartbeat = heartbeat
        self._starts: dict[SpaceId, bool] = {}
        """The spaces of whose start the log is being asked, and whether it has moved again since."""

        self._is_looking_up = False

    def listen(self) -> None:
        """Begin to listen, and to tell the others what happens here."""
        self._registry.catch_up = self._changes.fences.catch_up
        self._registry.take_foreign = self._take_foreign
        self._registry.take_signal = self._take_signal
        self._authority.tell_others = self._tell_account
        self._neighbours.on(AccountGrown, self._account_grown)
        self._neighbours.on(SignedOut, lambda news: sign_out(self._heartbeat, news.account))
        self._neighbours.on(SpaceGrown, self._space_grown)
        self._neighbours.gap_callbacks.append(self._missed)

    # A space's own log, which loses nothing

    def _take_foreign(self, space: ServedSpace, foreign: Foreign) -> None:
        if foreign.entries:
            self._changes.committer.take_foreign(space, foreign.entries)
        if foreign.note is Note.FENCE:
            self._changes.fences.heard(space)
        elif foreign.note is Note.CUT:
            self._look_at_start(space)

    def _look_at_start(self, space: ServedSpace) -> None:
        is_asking = space.id in self._starts
        self._starts[space.id] = is_asking
        if not is_asking:
            self._tasks.spawn(self._ask_start(space), "look at a cut")

    async def _ask_start(self, space: ServedSpace) -> None:
        try:
            while True:
                self._starts[space.id] = False
                try:
                    await self._changes.look_at_start(space)
                except TwinlockError as error:
                    # Readers that catch up are given what is left; the next cut, or the next load, tells the start.
                    logger.warning("the start is not known", space=short(space.id), code=error.code)
                if not self._starts[space.id]:
                    return
        finally:
            self._starts.pop(space.id, None)

    # News, which may be lost

    def _take_signal(self, space: ServedSpace, sealed: bytes) -> None:
        if len(sealed) > SIGNAL_BYTES_MAX:
            self._neighbours.refuse("signal")
            return
        self._changes.hub.relay(space, None, Signals(space.id, [sealed]))

    def _tell_account(self, account: AccountId, revoked: frozenset[DeviceId]) -> None:
        self._neighbours.tell(AccountGrown(account, sorted(revoked)))

    def _account_grown(self, news: AccountGrown) -> None:
        self._authority.heard(news.account)
        # Only devices that are here need a look at the log, and only what it says counts: anybody can say news.
        named = frozenset(news.revoked).intersection([peer.session.device for peer in self._heartbeat.connections])
        if named:
            self._tasks.spawn(self._cut_off(news.account, named), "cut off revoked devices")

    async def _cut_off(self, account: AccountId, devices: frozenset[DeviceId]) -> None:
        try:
            await self._authority.cut_off(account, devices)
        except UnknownDeviceError:
            self._neighbours.refuse("account")
        except TwinlockError as error:
            # They may well be revoked: they have to say hello again, which does not succeed before the log can be read.
            logger.warning("an account cannot be looked up", code=error.code)
            for peer in [each for each in self._heartbeat.connections if each.session.device in devices]:
                peer.refuse(OverloadedError("the account cannot be looked up", retry_after_ms=RETRY_AFTER_MS))

    def _space_grown(self, news: SpaceGrown) -> None:
        notices = [notice for telling in news.tellings for notice in telling.notices]
        allowed = _told_of(news.space)
        if any([notice not in allowed for notice in notices]):
            self._neighbours.refuse("notice")
            return
        served = self._registry.at_hand(news.space)
        # A node that serves the space tells by itself as soon as it has the new rules: no device may ask before that.
        if served is None or served.sequencer.rules.seq >= news.seq:
            tell(self._changes.hub, news.tellings)

    # News that were lost

    def _missed(self) -> None:
        known = self._authority.forget_all()
        if not self._is_looking_up:
            self._is_looking_up = True
            self._tasks.spawn(self._look_up(known), "look up what was missed")

    async def _look_up(self, known: dict[AccountId, AccountState]) -> None:
        """Look up every account that is connected: whether it revoked a device, has grown, or is in other spaces."""
        try:
            peers: dict[AccountId, list[Peer]] = {}
            for peer in self._heartbeat.connections:
                if peer.author is not None:
                    peers.setdefault(peer.author.account, []).append(peer)
            for account, connected in peers.items():
                try:
                    await self._look_up_account(account, known.get(account), connected)
                except TwinlockError as error:
                    logger.warning("an account cannot be looked up", code=error.code)
                await asyncio.sleep(LOOK_UP_PAUSE_S)
        finally:
            self._is_looking_up = False

    async def _look_up_account(self, account: AccountId, before: AccountState | None, peers: list[Peer]) -> None:
        try:
            state = await self._authority.account(account)
        except UnknownDeviceError:
            return
        for peer in [each for each in peers if each.session.device in state.retired]:
            peer.refuse(DeviceRevokedError())
            peers.remove(peer)
        has_grown = before is None or state.seq > before.seq
        prefix = f"member/{account.hex()}/"
        spaces = await self._directory.list(prefix)
        for peer in peers:
            if has_grown:
                peer.send(Notice(LOG_GROWN, account))
            for key, record in spaces.items():
                space = SpaceId(bytes.fromhex(key.removeprefix(prefix)))
                if space not in peer.session.spaces and record.value != FORMER:
                    peer.send(Notice(LOG_GROWN, space))


def _told_of(space: SpaceId) -> list[Notice]:
    """Return what a node may have told to devices of another; they believe the signed log alone."""
    return [Notice(code, space) for code in (LOG_GROWN, RemovedError.code, ShreddedError.code)]
