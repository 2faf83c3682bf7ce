"""How a space's signed log grows: one change at a time, with everything that must hold around it.

The order is the promise. Pushes of those whose chains are cut off are held, and what is on its way is waited for; the
chains are compared with the cutoffs; rows and index are stored; the key service takes the entries; and in one turn of
the loop the new rules hold, pushes are taken again, and everybody hears of it. Stopped before the key service has the
entries, nothing has happened; after that they hold, and whoever loads the space next finds them.

While the key service has not said whether it took entries, the space is in doubt: pushes stay held until it has.

On an engine of several nodes the chains are compared at a fence, behind which no other node appends before it knows
what became of the change: see `fences`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager

import structlog

from twinlock.contracts import SpaceState
from twinlock.errors import (
    CutoffConflictError,
    InvalidCallError,
    KeyServiceError,
    LogConflictError,
    StoreError,
    TwinlockError,
    UnknownDeviceError,
)
from twinlock.ids import AccountId, DeviceId, LogId, SpaceId, short
from twinlock.protocol.calls import KeyringRow, LogHead, SignedEntry
from twinlock.protocol.space_log import Cutoff, SpaceLogState
from twinlock.server.authorize import Authority
from twinlock.server.commit import Committer
from twinlock.server.fences import Fence, Fences
from twinlock.server.keyrings import Keyrings
from twinlock.server.new_rules import Telling, gone_between, install, newcomers_between, tell
from twinlock.server.registry import SpaceRegistry
from twinlock.server.replaying import replay_in_pieces
from twinlock.server.sequencer import NO_HEAD, Everybody
from twinlock.server.served_space import ServedSpace
from twinlock.server.signed_logs import SignedLogs
from twinlock.server.standing import COMING, FORMER, PRESENT
from twinlock.server.stores import Stores
from twinlock.server.tasks import Tasks
from twinlock.server.together import together

logger = structlog.get_logger(__name__)

DOUBT_RETRY_S_MIN = 1.0
DOUBT_RETRY_S_MAX = 30.0
_SHREDDING = "shredding/"


PurgeMore = Callable[[SpaceId], Awaitable[None]]
TellOthers = Callable[[SpaceId, int, list[Telling]], None]
"""Tells the devices of other nodes, those that do not serve the space, what its log of a length brought them."""


class SpaceChanges:
    """Appends to the signed logs of spaces, and carries through what follows."""

    __slots__ = (
        "_authority",
        "_directory",
        "_is_shared",
        "_keyrings",
        "_locks",
        "_log",
        "_logs",
        "_registry",
        "_tasks",
        "_tell_others",
        "committer",
        "fences",
        "hub",
        "purge_more",
    )

    def __init__(
        self,
        stores: Stores,
        logs: SignedLogs,
        authority: Authority,
        registry: SpaceRegistry,
        committer: Committer,
        tasks: Tasks,
        tell_others: TellOthers,
    ) -> None:
        self._log = stores.log
        self._directory = stores.directory
        self._is_shared = stores.is_shared
        self._keyrings = Keyrings(stores.directory, is_shared=stores.is_shared)
        self._tell_others = tell_others
        self.fences = Fences(stores, logs, committer, tasks, self._settle_alone)
        self._logs = logs
        self._authority = authority
        self._registry = registry
        self.committer = committer
        self.hub = committer.hub
        self._tasks = tasks
        self._locks: dict[SpaceId, asyncio.Lock] = {}
        self.purge_more: PurgeMore = _purge_nothing
        """Deletes what a shredded space has elsewhere; may take long, and may be called again."""

    @asynccontextmanager
    async def of(self, space: SpaceId) -> AsyncIterator[ServedSpace]:
        """Give out a space whose log nobody else changes meanwhile, and of which nothing is in doubt.

        Raises:
            UnknownSpaceError: there is none.
            KeyServiceError: it has not yet said what became of an earlier change.
            OverloadedError: another node takes long to change it.
        """
        served = await self._registry.load(space)
        with self._in_use(served):
            await self._registry.catch_up(served)
            await self.fences.clear(served)
            async with self._turn(served):
                if served.in_doubt:
                    await self._settle(served)
                yield served

    @contextmanager
    def _in_use(self, space: ServedSpace) -> Iterator[None]:
        """Keep a space loaded: were it loaded anew meanwhile, those who use it then would not know of this change."""
        space.log_users += 1
        try:
            yield
        finally:
            space.log_users -= 1
            if not space.log_users:
                self._locks.pop(space.id, None)

    @asynccontextmanager
    async def _turn(self, space: ServedSpace) -> AsyncIterator[None]:
        """Wait for one's turn with a space, which stays loaded as long as anybody does."""
        with self._in_use(space):
            async with self._locks.setdefault(space.id, asyncio.Lock()):
                yield

    async def fresh(self, space: ServedSpace, expect_seq: int, entries: Sequence[SignedEntry]) -> list[SignedEntry]:
        """Return those of some entries after the first `expect_seq` that the log does not have yet.

        Raises:
            LogConflictError: the log has others there, or ends before.
        """
        seq = space.sequencer.rules.seq
        if expect_seq == seq:
            return list(entries)
        if not 0 <= expect_seq < seq:
            raise LogConflictError(f"the log has {seq} entries, not {expect_seq}")
        held = (await self._logs.read(LogId(space.id)))[expect_seq:seq]
        if held[: len(entries)] != list(entries[: len(held)]):
            raise LogConflictError(f"the log has {seq} entries, and others than these after {expect_seq}")
        return list(entries[len(held) :])

    async def append(
        self,
        space: ServedSpace,
        entries: Sequence[SignedEntry],
        after: SpaceLogState,
        rows: Sequence[KeyringRow] = (),
        *,
        is_lost: bool = False,
    ) -> LogHead:
        """Append entries that lead to a state; the caller has the space from `of` and has checked who may do this.

        `is_lost` says that a restored server gets entries back: the chains may have gone back since they were signed.

        Raises:
            CutoffConflictError: a cutoff does not name the heads of the chains.
            InvalidCallError: a cutoff names a device of another account.
            LogConflictError, LogInvalidError, LeaseRefusedError: as the key service decides; nothing has changed.
            KeyServiceError, StoreError: nothing has changed, or will not be known before the key service answers.
        """
        before, fence = space.sequencer.rules, None
        turn = await self._logs.take_turn(LogId(space.id))
        cutoffs = [] if is_lost else cutoffs_between(before, after)
        space.sequencer.hold(Everybody() if after.is_shredded else frozenset(account for account, _ in cutoffs))
        try:
            devices = await self._still(space, cutoffs)
            if after.is_shredded:
                await self.committer.settle_chains(space, None)
            fence = await self.fences.begin(space)
            _check_cutoffs(cutoffs, devices, fence.state)
            await self._prepare(before, after, rows)
            head = await self._commit(space, entries, after, turn)
        finally:
            if not space.in_doubt:
                await self._end(space, fence)
                space.sequencer.release()
        await self._clean(space, before, after)
        return head

    async def _end(self, space: ServedSpace, fence: Fence | None) -> None:
        """Let the other nodes go on; where that fails they find out by themselves, and so does this one."""
        try:
            if fence is not None:
                await self.fences.end(space, fence.revision)
        except TwinlockError as error:
            logger.warning("the other nodes were not told", space=short(space.id), code=error.code)
            self.doubt(space)

    def doubt(self, space: ServedSpace) -> None:
        """Note that the key service may have entries that are not known here; it is asked until it answers."""
        if not space.in_doubt:
            space.in_doubt = True
            self._tasks.spawn(self._settle_later(space), "settle log")

    def tell_everywhere(self, rules: SpaceLogState, tellings: list[Telling]) -> None:
        """Tell devices of accounts on all nodes."""
        tell(self.hub, tellings)
        self._tell_others(rules.space, rules.seq, tellings)

    def fell_behind(self, space: ServedSpace) -> None:
        """Note that the key service has more of a space's log than is known here."""
        if self._is_shared:
            self.fences.heard(space)
        else:
            self.doubt(space)

    def may_be_behind(self, space: ServedSpace) -> bool:
        """Look whether the log has grown at another node, and tell whether that is not known yet."""
        return space.sequencer.is_fenced or self.fences.glance(space) is not None

    async def look_at_start(self, space: ServedSpace) -> None:
        """Learn where the space's log begins now: it was cut, or what was cut is deleted.

        Raises:
            StoreError: the log does not tell.
        """
        space.cuts_under_way += 1
        try:
            state = await self._log.state(space.id)
            space.start, space.log_bytes = state.start, state.log_bytes
        finally:
            space.cuts_under_way -= 1

    async def finish_shredding(self) -> None:
        """Delete what an interrupted shredding has left; called at the start and from time to time."""
        for key in await self._directory.list(_SHREDDING):
            space = SpaceId(bytes.fromhex(key.removeprefix(_SHREDDING)))
            try:
                async with self.of(space) as served:
                    if served.sequencer.rules.is_shredded:
                        await self._purge(served)
                    else:
                        await self._directory.delete(key)
            except TwinlockError as error:
                logger.warning("a shredded space is not yet deleted", space=short(space), code=error.code)

    async def devices_of(self, account: AccountId) -> frozenset[DeviceId]:
        """Return every device that an account has ever certified; none for an account that is not known here."""
        try:
            state = await self._authority.account(account)
        except UnknownDeviceError:
            return frozenset()
        return frozenset((*state.devices, *state.retired))

    async def index(self, space: SpaceId, accounts: Collection[AccountId], value: bytes) -> None:
        """Note a space among those of some accounts: as COMING before the entry that brings them in is appended."""
        await together(self._directory.put(_index_key(account, space), value) for account in accounts)

    # Before the entries are appended

    async def _still(
        self, space: ServedSpace, cutoffs: Sequence[tuple[AccountId, Cutoff]]
    ) -> dict[AccountId, frozenset[DeviceId]]:
        """Wait until nothing of those who are cut off is on its way here, and return their devices."""
        found = {}
        for account, cutoff in cutoffs:
            devices = found[account] = await self.devices_of(account)
            if not cutoff.counters.keys() <= devices:
                raise InvalidCallError("a cutoff names a device of another account")
            await self.committer.settle_chains(space, devices)
        return found

    async def _prepare(self, before: SpaceLogState, after: SpaceLogState, rows: Sequence[KeyringRow]) -> None:
        """Store what must be there once the entries are; without them it is never looked at."""
        if after.is_shredded:
            await self._directory.put(_SHREDDING + after.space.hex(), b"")
        await together(
            (
                self._keyrings.store(after.space, rows, after),
                self.index(after.space, newcomers_between(before, after), COMING),
            )
        )

    async def _commit(
        self, space: ServedSpace, entries: Sequence[SignedEntry], after: SpaceLogState, turn: int
    ) -> LogHead:
        before = space.sequencer.rules
        try:
            head = await self._logs.append_in_turn(LogId(space.id), before.seq, entries, turn)
        except LogConflictError:
            # Another node has changed the log, or is about to. Nothing was stored.
            if self._is_shared:
                self.fences.heard(space)
            else:
                self.doubt(space)
            raise
        except (KeyServiceError, StoreError):
            self.doubt(space)
            raise
        except TwinlockError:
            await self._take_back(before, after)
            raise
        except Exception:
            self.doubt(space)
            raise
        self._install(space, after)
        return head

    async def _take_back(self, before: SpaceLogState, after: SpaceLogState) -> None:
        newcomers = newcomers_between(before, after) - before.applicants.keys()
        back = newcomers & before.former.keys()
        await self.index(after.space, back, FORMER)
        await together(self._directory.delete(_index_key(account, after.space)) for account in newcomers - back)

    # Once they are

    def _install(self, space: ServedSpace, after: SpaceLogState) -> None:
        """Let new rules hold, and tell everybody; all in this turn of the loop."""
        space.in_doubt = False
        space.sequencer.release()
        self._tell_others(space.id, after.seq, install(self.hub, space, after))

    async def _clean(self, space: ServedSpace, before: SpaceLogState, after: SpaceLogState) -> None:
        """Delete what the log's new state has made useless; what stays when this fails does no harm."""
        try:
            if after.is_shredded:
                await self._purge_log(space)
                # Whoever shreds does not wait for the deletion of large files.
                self._tasks.spawn(self.finish_shredding(), "finish shredding")
            elif after.epoch > before.epoch:
                await self._keyrings.forget_past(space.id, after)
            else:
                lost = before.key_holders.keys() - after.key_holders.keys()
                await self._keyrings.forget(space.id, after.epoch, lost, after)
            await self.index(space.id, gone_between(before, after), FORMER)
            await self.index(space.id, newcomers_between(before, after), PRESENT)
        except TwinlockError as error:
            logger.warning("cleaning after a change failed", space=short(space.id), code=error.code)

    async def _purge(self, space: ServedSpace) -> None:
        """Delete everything of a shredded space but its signed log: devices that come later learn from it."""
        await self._purge_log(space)
        await self.purge_more(space.id)
        await self._directory.delete(_SHREDDING + space.id.hex())

    async def _purge_log(self, space: ServedSpace) -> None:
        """Delete every envelope and every row."""
        await self._log.purge(space.id)
        await self.look_at_start(space)
        await self._keyrings.forget_all(space.id)

    # In doubt

    async def _settle(self, space: ServedSpace) -> None:
        """Learn from the key service what became of changes that this node or another has left, and end them."""
        before = space.sequencer.rules
        # Seen before the turn is taken: whoever left it can append no more after that, whoever comes later can.
        revision = await self.fences.left_by(space)
        after = await replay_in_pieces(await self._logs.read_certain(LogId(space.id)))
        if after.seq < before.seq:
            raise KeyServiceError("it has fewer entries than are known here")
        if after.seq > before.seq:
            self._install(space, after)
        await self.fences.end(space, revision)
        space.in_doubt = False
        space.sequencer.release()
        if after.seq > before.seq:
            await self._clean(space, before, after)

    async def _settle_alone(self, space: ServedSpace) -> None:
        async with self._turn(space):
            await self._settle(space)

    async def _settle_later(self, space: ServedSpace) -> None:
        delay_s = DOUBT_RETRY_S_MIN
        while space.in_doubt:
            await asyncio.sleep(delay_s)
            delay_s = min(2 * delay_s, DOUBT_RETRY_S_MAX)
            async with self._turn(space):
                if not space.in_doubt:
                    return
                try:
                    await self._settle(space)
                except TwinlockError as error:
                    logger.warning("a space's log stays in doubt", space=short(space.id), code=error.code)


async def _purge_nothing(space: SpaceId) -> None:
    """Stand where nothing else is kept of spaces."""


def cutoffs_between(before: SpaceLogState, after: SpaceLogState) -> list[tuple[AccountId, Cutoff]]:
    """Return the cutoffs that came between two states of a log, with their accounts."""
    found = []
    for records, known in ((after.members, before.members), (after.former, before.former)):
        for account, record in records.items():
            if record is not known.get(account):
                found += [(account, cutoff) for cutoff in record.cutoffs if cutoff.seq > before.seq]
    return found


def _check_cutoffs(
    cutoffs: Sequence[tuple[AccountId, Cutoff]], devices: Mapping[AccountId, frozenset[DeviceId]], state: SpaceState
) -> None:
    for account, cutoff in cutoffs:
        for device in devices[account] if cutoff.is_whole else cutoff.counters:
            counter, held = cutoff.counters.get(device, 0), state.heads.get(device, NO_HEAD).counter
            if counter != held:
                raise CutoffConflictError(f"{counter} for device {short(device)}, which stands at {held}")


def _index_key(account: AccountId, space: SpaceId) -> str:
    return f"member/{account.hex()}/{space.hex()}"
