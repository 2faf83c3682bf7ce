"""Reading signed logs and Keyring rows from the server, verified before anything of them is kept."""

from __future__ import annotations

from twinlock.client.connection import Connection
from twinlock.client.device_context import DeviceContext
from twinlock.client.space_runtime import SpaceRuntime
from twinlock.errors import LogForkError, LogInvalidError
from twinlock.ids import AccountId, SpaceId
from twinlock.protocol.account_log import AccountState, replay_account
from twinlock.protocol.calls import (
    KeyringRow,
    Nothing,
    PutKeyring,
    ReadKeyring,
    ReadLog,
    ReadLogResult,
    SignedEntry,
    Spaces,
    SpacesResult,
)
from twinlock.protocol.space_log import replay_space


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
        entries = await self._entries("space.log", space, 0)
        if replay_space(entries).space != space:
            raise LogInvalidError("the log is another space's")
        self._context.state.put_space_log(space, entries)
        runtime = SpaceRuntime(self._context, entries)
        await self.fill(runtime)
        return runtime

    async def read(self, runtime: SpaceRuntime) -> bool:
        """Bring a space's log, its members' logs and its member key up to date; return whether anything is new."""
        before = runtime.keyring.log.seq
        entries = await self._entries("space.log", runtime.space, before)
        if entries:
            runtime.grow_log(entries)
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
        entries = await self._entries("account.log", account, len(known))
        state = replay_account([*known, *entries])
        if state.account != account:
            raise LogInvalidError("the log is another account's")
        if entries:
            self._context.state.put_account_log(account, [*known, *entries])
        return state

    async def _entries(self, method: str, log: bytes, after_seq: int) -> list[SignedEntry]:
        """Return all entries of a log after those that are known, page by page.

        Raises:
            LogForkError: the server has fewer than this device knows.
        """
        found: list[SignedEntry] = []
        while True:
            page = await self._connection.call(method, ReadLog(log, after_seq + len(found)), ReadLogResult)
            found += page.entries
            if page.seq < after_seq:
                raise LogForkError(f"{after_seq} entries are known, the server has {page.seq}")
            if not page.entries or after_seq + len(found) >= page.seq:
                return found
