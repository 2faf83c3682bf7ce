"""Reading signed logs and Keyring rows from the server, verified before anything of them is kept."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from twinlock.client.connection import Connection
from twinlock.client.device_context import DeviceContext
from twinlock.client.endings import check_goes_on, error_of_end, reason_of_end
from twinlock.client.member_logs import AccountRead, MemberLogs
from twinlock.client.parcels import ParcelTaker
from twinlock.client.space_runtime import SpaceRuntime
from twinlock.errors import (
    ApprovalPendingError,
    InvalidCallError,
    LogConflictError,
    LogForkError,
    LogInvalidError,
    RoleError,
    SignatureError,
    UnknownSpaceError,
)
from twinlock.ids import AccountId, SpaceId
from twinlock.protocol.account_log import AccountState, replay_account
from twinlock.protocol.calls import (
    AppendLog,
    KeyringRow,
    LogHead,
    Nothing,
    PutKeyring,
    ReadKeyring,
    ReadLog,
    ReadLogResult,
    SignedEntry,
    Spaces,
    SpacesResult,
)
from twinlock.protocol.space_rules import replay_space


class LogReader:
    """What must be fetched so that a space's keyring is complete and up to date."""

    __slots__ = ("_connection", "_context", "_members", "_parcels")

    def __init__(self, context: DeviceContext, connection: Connection) -> None:
        self._context = context
        self._connection = connection
        self._parcels = ParcelTaker(context, connection)
        self._members = MemberLogs(self._read_log, self._keep_logs)

    async def spaces(self) -> list[SpaceId]:
        """Return the spaces of this account."""
        result = await self._connection.call("account.spaces", Spaces(), SpacesResult)
        return result.spaces

    async def read_account(self) -> AccountState:
        """Bring this account's own log up to date."""
        return await self._account(self._context.state.home.account)

    async def new_space(self, space: SpaceId) -> SpaceRuntime:
        """Fetch a space that this device does not know yet.

        Raises:
            LogInvalidError: the server gave another space's log.
        """
        return await self.begin(space, await self._fresh("space", space, []))

    async def begin(self, space: SpaceId, entries: Sequence[SignedEntry]) -> SpaceRuntime:
        """Begin with a space whose whole log has just been read.

        Raises:
            LogInvalidError: it is another space's log.
            RemovedError, ShreddedError, ApprovalPendingError, UnknownSpaceError: it is no space of this account (yet).
            LogForkError: the space ended on this device, and the log does not go on from there.
        """
        log = replay_space(entries)
        if log.space != space:
            raise LogInvalidError("the log is another space's")
        check_goes_on(self._context, log)
        account = self._context.state.home.account
        reason = reason_of_end(log, account)
        if reason is not None:
            raise error_of_end(reason)
        if account not in log.members:
            raise ApprovalPendingError if account in log.applicants else UnknownSpaceError
        self._context.state.put_space_log(space, entries)
        runtime = SpaceRuntime(self._context, entries)
        # A space that is just being made has its keys on the disk already: what is kept next must hold its lease too.
        runtime.restore()
        async with runtime.log_turn:
            await self.fill(runtime)
        return runtime

    async def read(self, runtime: SpaceRuntime) -> bool:
        """Bring a space's log, its member key and its members' logs up to date; return whether anything is new."""
        async with runtime.log_turn:
            is_new = await self.read_in_turn(runtime)
            if not self._has_part(runtime):
                return is_new
            return await self._members.fill(runtime) or is_new

    async def read_in_turn(self, runtime: SpaceRuntime) -> bool:
        """Bring a space's log and its member key up to date, by the holder of the runtime's `log_turn`."""
        if runtime.end is not None:
            return False
        before = runtime.keyring.log.seq
        entries = await self._fresh("space", runtime.space, runtime.entries)
        if entries:
            try:
                runtime.grow_log(entries)
            except SignatureError as exc:
                raise LogForkError(f"what follows entry {before} of a space's log does not fit to it") from exc
        is_filled = self._has_part(runtime) and await self._fill_key(runtime)
        return is_filled or bool(entries)

    @staticmethod
    def _has_part(runtime: SpaceRuntime) -> bool:
        is_over = reason_of_end(runtime.keyring.log, runtime.keyring.account) is not None
        return runtime.end is None and not is_over

    async def put_keyring_row(self, runtime: SpaceRuntime) -> None:
        """Give this account's own row back to a server that lost it."""
        row = self._context.state.keyring_row(runtime.space)
        if row is not None:
            await self._connection.call("space.keyring_put", PutKeyring(runtime.space, row), Nothing)

    async def fill(self, runtime: SpaceRuntime) -> bool:
        """Fetch the member key, if it is missing, and the members' logs; return whether anything is new."""
        is_filled = await self._fill_key(runtime)
        return await self._members.fill(runtime) or is_filled

    async def _fill_key(self, runtime: SpaceRuntime) -> bool:
        """Fetch the newest member key if it is missing; return whether it was."""
        keyring = runtime.keyring
        role = keyring.log.role_of(keyring.account)
        if role is None or not role.may_lease or keyring.has_member_key or not keyring.log.epoch:
            return False
        row = await self._connection.call("space.keyring", ReadKeyring(runtime.space), KeyringRow)
        keyring.install_row(row)
        self._context.state.put_keyring_row(runtime.space, row)
        runtime.keep_keys()
        return True

    async def _account(self, account: AccountId) -> AccountState:
        read = await self._read_log(account)
        await self._keep_logs([read])
        return read.state

    async def _read_log(self, account: AccountId) -> AccountRead:
        known = self._context.state.account_log(account)
        entries = await self._fresh("account", account, known)
        try:
            state = replay_account([*known, *entries])
        except SignatureError as exc:
            raise LogForkError(f"what follows entry {len(known)} of an account's log does not fit to it") from exc
        if state.account != account:
            raise LogInvalidError("the log is another account's")
        return AccountRead(state, [*known, *entries], bool(entries))

    async def _keep_logs(self, reads: Sequence[AccountRead]) -> None:
        self._context.state.put_account_logs({read.state.account: read.entries for read in reads if read.is_new})
        for read in reads:
            # Before anything is opened that may be wrapped to a new key of this account.
            await self._parcels.follow(read.state)

    async def _fresh(self, kind: str, log: bytes, known: Sequence[SignedEntry]) -> list[SignedEntry]:
        """Return all entries of a log after those that are known, page by page.

        A server that was restored to an older state is given what it lacks: who signed an entry need not bring it.

        Raises:
            LogForkError: the server has other entries, or does not take those that it lacks.
        """
        # The newest known entry is read again: a log that goes on differently is as long as the true one, or longer.
        overlap = list(known[-1:])
        entries: list[SignedEntry] = []
        while True:
            after_seq = len(known) - len(overlap) + len(entries)
            page = await self._connection.call(f"{kind}.log", ReadLog(log, after_seq), ReadLogResult)
            entries += page.entries
            if page.seq < len(known):
                await self._supply(kind, AppendLog(log, page.seq, list(known[page.seq :]), is_lost=True))
                return []
            if entries[: len(overlap)] != overlap:
                raise LogForkError(f"entry {len(known)} of a log is another one")
            if not page.entries or len(known) - len(overlap) + len(entries) >= page.seq:
                return entries[len(overlap) :]

    async def _supply(self, kind: str, missing: AppendLog) -> None:
        """Give a server what it lacks: as a restored one that lost it, or else what this account signed by itself.

        Raises:
            LogForkError: the server takes neither, so that it has other entries, or hides those.
        """
        try:
            try:
                await self._connection.call(f"{kind}.append", missing, LogHead)
            except (InvalidCallError, LogConflictError):
                own = msgspec.structs.replace(missing, is_lost=False)
                await self._connection.call(f"{kind}.append", own, LogHead)
        except (InvalidCallError, LogConflictError, LogInvalidError, RoleError, SignatureError) as exc:
            raise LogForkError(
                f"the server has {missing.expect_seq} entries of a log, and not those known here"
            ) from exc
