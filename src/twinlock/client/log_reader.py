"""Reading signed logs and Keyring rows from the server, verified before anything of them is kept."""

from __future__ import annotations

from collections.abc import Sequence

from twinlock.client.connection import Connection
from twinlock.client.device_context import DeviceContext
from twinlock.client.space_runtime import SpaceRuntime
from twinlock.errors import LogConflictError, LogForkError, LogInvalidError, RoleError, SignatureError
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

    __slots__ = ("_connection", "_context")

    def __init__(self, context: DeviceContext, connection: Connection) -> None:
        self._context = context
        self._connection = connection

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
        entries = await self._fresh("space", space, [])
        if replay_space(entries).space != space:
            raise LogInvalidError("the log is another space's")
        self._context.state.put_space_log(space, entries)
        runtime = SpaceRuntime(self._context, entries)
        await self.fill(runtime)
        return runtime

    async def read(self, runtime: SpaceRuntime) -> bool:
        """Bring a space's log, its members' logs and its member key up to date; return whether anything is new."""
        before = runtime.keyring.log.seq
        entries = await self._fresh("space", runtime.space, runtime.entries)
        if entries:
            try:
                runtime.grow_log(entries)
            except SignatureError as exc:
                raise LogForkError(f"what follows entry {before} of a space's log does not fit to it") from exc
        return await self.fill(runtime) or bool(entries)

    async def put_keyring_row(self, runtime: SpaceRuntime) -> None:
        """Give this account's own row back to a server that lost it."""
        row = self._context.state.keyring_row(runtime.space)
        if row is not None:
            await self._connection.call("space.keyring_put", PutKeyring(runtime.space, row), Nothing)

    async def fill(self, runtime: SpaceRuntime) -> bool:
        """Fetch the members' logs and, if it is missing, the member key; return whether anything is new."""
        known = dict(runtime.keyring.accounts)
        for account in runtime.keyring.log.members:
            runtime.keyring.install_account(await self._account(account))
        is_new = dict(runtime.keyring.accounts) != known
        if not runtime.keyring.has_member_key and runtime.keyring.log.epoch:
            row = await self._connection.call("space.keyring", ReadKeyring(runtime.space), KeyringRow)
            runtime.keyring.install_row(row)
            self._context.state.put_keyring_row(runtime.space, row)
            is_new = True
        if is_new:
            runtime.keep_keys()
        return is_new

    async def _account(self, account: AccountId) -> AccountState:
        known = self._context.state.account_log(account)
        entries = await self._fresh("account", account, known)
        try:
            state = replay_account([*known, *entries])
        except SignatureError as exc:
            raise LogForkError(f"what follows entry {len(known)} of an account's log does not fit to it") from exc
        if state.account != account:
            raise LogInvalidError("the log is another account's")
        if entries:
            self._context.state.put_account_log(account, [*known, *entries])
        return state

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
                await self._supply(kind, AppendLog(log, page.seq, list(known[page.seq :])))
                return []
            if entries[: len(overlap)] != overlap:
                raise LogForkError(f"entry {len(known)} of a log is another one")
            if not page.entries or len(known) - len(overlap) + len(entries) >= page.seq:
                return entries[len(overlap) :]

    async def _supply(self, kind: str, missing: AppendLog) -> None:
        try:
            await self._connection.call(f"{kind}.append", missing, LogHead)
        except (LogConflictError, LogInvalidError, RoleError, SignatureError) as exc:
            raise LogForkError(
                f"the server has {missing.expect_seq} entries of a log, and not those known here"
            ) from exc
