"""How a space's signed log grows: one change at a time, with everything that must hold around it.

The order is the promise. Pushes of those whose chains are cut off are held, and what is on its way is waited for; the
chains are compared with the cutoffs; rows and index are stored; the key service takes the entries; and in one turn of
the loop the new rules hold, pushes are taken again, and everybody hears of it. Stopped before the key service has the
entries, nothing has happened; after that they hold, and whoever loads the space next finds them.

While the key service has not said whether it took entries, the space is in doubt: pushes stay held until it has.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Sequence
from contextlib import asynccontextmanager

import structlog

from twinlock.contracts import Directory, Log
from twinlock.errors import (
    CutoffConflictError,
    InvalidCallError,
    KeyServiceError,
    LogConflictError,
    RemovedError,
    ShreddedError,
    StoreError,
    TwinlockError,
    UnknownDeviceError,
)
from twinlock.ids import AccountId, DeviceId, LogId, SpaceId, short
from twinlock.protocol.calls import KeyringRow, LogHead, SignedEntry
from twinlock.protocol.frames import LOG_GROWN, Notice
from twinlock.protocol.space_log import Cutoff, Role, SpaceLogState
from twinlock.server.authorize import Authority
from twinlock.server.commit import Committer
from twinlock.server.keyrings import Keyrings
from twinlock.server.registry import SpaceRegistry
from twinlock.server.replaying import replay_in_pieces
from twinlock.server.served_space import ServedSpace
from twinlock.server.signed_logs import SignedLogs
from twinlock.server.standing import COMING, FORMER, PRESENT
from twinlock.server.tasks import Tasks
from twinlock.server.together import together

logger = structlog.get_logger(__name__)

DOUBT_RETRY_S_MIN = 1.0
DOUBT_RETRY_S_MAX = 30.0
_SHREDDING = "shredding/"


PurgeMore = Callable[[SpaceId], Awaitable[None]]


class Everybody:
    """Holds every account."""

    def __contains__(self, account: object) -> bool:
        return True


class SpaceChanges:
    """Appends to the signed logs of spaces, and carries through what follows."""

    __slots__ = (
        "_authority",
        "_committer",
        "_directory",
        "_keyrings",
        "_locks",
        "_log",
        "_logs",
        "_registry",
        "_tasks",
        "hub",
        "purge_more",
    )

    def __init__(
        self,
        log: Log,
        directory: Directory,
        logs: SignedLogs,
        authority: Authority,
        registry: SpaceRegistry,
        committer: Committer,
        tasks: Tasks,
    ) -> None:
        self._log = log
        self._directory = directory
        self._keyrings = Keyrings(directory)
        self._logs = logs
        self._authority = authority
        self._registry = registry
        self._committer = committer
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
        """
        async with self._turn(await self._registry.load(space)) as served:
            if served.in_doubt:
                await self._settle(served)
            yield served

    @asynccontextmanager
    async def _turn(self, space: ServedSpace) -> AsyncIterator[ServedSpace]:
        """Wait for one's turn with a space, which stays loaded as long as anybody does."""
        space.log_users += 1
        try:
            async with self._locks.setdefault(space.id, asyncio.Lock()):
                yield space
        finally:
            space.log_users -= 1
            if not space.log_users:
                del self._locks[space.id]

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
        before = space.sequencer.rules
        await self._logs.reach(LogId(space.id), before.seq)
        cutoffs = [] if is_lost else cutoffs_between(before, after)
        space.sequencer.hold(Everybody() if after.is_shredded else frozenset(account for account, _ in cutoffs))
        try:
            await self._check_cutoffs(space, cutoffs)
            if after.is_shredded:
                await self._committer.settle_chains(space, None)
            await self._prepare(before, after, rows)
            head = await self._commit(space, entries, after)
        finally:
            if not space.in_doubt:
                space.sequencer.release()
        await self._clean(space, before, after)
        return head

    def doubt(self, space: ServedSpace) -> None:
        """Note that the key service may have entries that are not known here; it is asked until it answers."""
        if not space.in_doubt:
            space.in_doubt = True
            self._tasks.spawn(self._settle_later(space), "settle log")

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

    async def _check_cutoffs(self, space: ServedSpace, cutoffs: Sequence[tuple[AccountId, Cutoff]]) -> None:
        for account, cutoff in cutoffs:
            devices = await self.devices_of(account)
            if not cutoff.counters.keys() <= devices:
                raise InvalidCallError("a cutoff names a device of another account")
            await self._committer.settle_chains(space, devices)
            for device in devices if cutoff.is_whole else cutoff.counters:
                counter, held = cutoff.counters.get(device, 0), space.sequencer.head_of(device).counter
                if counter != held:
                    raise CutoffConflictError(f"{counter} for device {short(device)}, which stands at {held}")

    async def _prepare(self, before: SpaceLogState, after: SpaceLogState, rows: Sequence[KeyringRow]) -> None:
        """Store what must be there once the entries are; without them it is never looked at."""
        if after.is_shredded:
            await self._directory.put(_SHREDDING + after.space.hex(), b"")
        await together(
            (self._keyrings.store(after.space, rows), self.index(after.space, _newcomers(before, after), COMING))
        )

    async def _commit(self, space: ServedSpace, entries: Sequence[SignedEntry], after: SpaceLogState) -> LogHead:
        before = space.sequencer.rules
        try:
            head = await self._logs.append_reached(LogId(space.id), before.seq, entries)
        except (KeyServiceError, StoreError, LogConflictError):
            # A conflict shows that the log has grown past this server.
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
        newcomers = _newcomers(before, after) - before.applicants.keys()
        back = newcomers & before.former.keys()
        await self.index(after.space, back, FORMER)
        await together(self._directory.delete(_index_key(account, after.space)) for account in newcomers - back)

    # Once they are

    def _install(self, space: ServedSpace, after: SpaceLogState) -> None:
        """Let new rules hold, and tell everybody; all in this turn of the loop."""
        before = space.sequencer.rules
        space.sequencer.rules = after
        space.in_doubt = False
        space.sequencer.release()
        gone = _gone(before, after)
        for peer in (*space.live, *space.lagging, *space.senders):
            account = peer.session.account
            if account in gone or account not in after.members:
                self.hub.detach(space, peer)
                peer.session.detached(space.id)
                continue
            if after.members[account].role is Role.SENDER:
                self.hub.attach_sender(space, peer)
            peer.send(Notice(LOG_GROWN, space.id))
        newcomers = _newcomers(before, after)
        if newcomers:
            self.hub.tell_accounts(newcomers, Notice(LOG_GROWN, space.id))
        if gone:
            # First of all they read the entry itself: a server's word alone ends nothing.
            code = ShreddedError.code if after.is_shredded else RemovedError.code
            self.hub.tell_accounts(gone, Notice(LOG_GROWN, space.id), Notice(code, space.id))

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
                await self._keyrings.forget(space.id, after.epoch, lost)
            await self.index(space.id, _gone(before, after), FORMER)
            await self.index(space.id, _newcomers(before, after), PRESENT)
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
        state = await self._log.state(space.id)
        space.start, space.log_bytes = state.start, state.log_bytes
        await self._keyrings.forget_all(space.id)

    # In doubt

    async def _settle(self, space: ServedSpace) -> None:
        before = space.sequencer.rules
        after = await replay_in_pieces(await self._logs.read_certain(LogId(space.id)))
        if after.seq < before.seq:
            raise KeyServiceError("it has fewer entries than are known here")
        if after.seq > before.seq:
            self._install(space, after)
            await self._clean(space, before, after)
        else:
            space.in_doubt = False
            space.sequencer.release()

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


def _present(rules: SpaceLogState) -> frozenset[AccountId]:
    return frozenset((*rules.members, *rules.applicants))


def _newcomers(before: SpaceLogState, after: SpaceLogState) -> frozenset[AccountId]:
    """Return those who came in, and applicants, also those that were let in now."""
    return frozenset(
        (after.members.keys() - before.members.keys()) | (after.applicants.keys() - before.applicants.keys())
    )


def _gone(before: SpaceLogState, after: SpaceLogState) -> frozenset[AccountId]:
    """Return those for whom the space has come to its end."""
    if before.is_shredded:
        return frozenset()
    return _present(before) | _present(after) if after.is_shredded else _present(before) - _present(after)


def _index_key(account: AccountId, space: SpaceId) -> str:
    return f"member/{account.hex()}/{space.hex()}"
