"""This account's own signed log: read, and grown by entries of the account. See spec/sealing.md, section 2."""

from __future__ import annotations

from collections.abc import Callable

from twinlock.client.connection import Connection
from twinlock.client.device_context import DeviceContext
from twinlock.client.log_reader import LogReader
from twinlock.client.sudo import Sudo
from twinlock.errors import LogConflictError
from twinlock.protocol.account_log import AccountState, replay_account
from twinlock.protocol.calls import AppendLog, LogHead, SignedEntry
from twinlock.sealing.identity import AccountKeys

APPEND_TRIES_MAX = 5
"""Two devices that change the account at once take turns; more tries mean that something else is wrong."""

MakeEntry = Callable[[AccountState], SignedEntry | None]


def present_keys(sudo: Sudo, state: AccountState) -> AccountKeys:
    """Return the account's keys if they are those that its log names: others must be given to nobody.

    Raises:
        SudoNeededError: the password was not given in the last 15 minutes.
        LogConflictError: the account's key was replaced, and this device's parcel has not come yet.
    """
    keys = sudo.keys()
    if keys.kem_pk != state.kem_pk:
        raise LogConflictError("the account's key was replaced, and this device has not received the new one yet")
    return keys


class AccountLog:
    """Reads and grows the log of the account whose device this is."""

    __slots__ = ("_connection", "_context", "_logs")

    def __init__(self, context: DeviceContext, connection: Connection) -> None:
        self._context = context
        self._connection = connection
        self._logs = LogReader(context, connection)

    def known(self) -> AccountState:
        """Return what this device knows of the log."""
        return replay_account(self.entries())

    def entries(self) -> list[SignedEntry]:
        """Return the entries that this device knows."""
        return self._context.state.account_log(self._context.state.home.account)

    async def read(self) -> AccountState:
        """Bring the log up to date.

        Raises:
            OfflineError: there is no connection.
            LogForkError: the server shows another log than before.
        """
        return await self._logs.read_account()

    async def append(self, make: MakeEntry) -> AccountState:
        """Append the entry that `make` signs on top of the newest state, unless it finds that none is needed.

        Raises:
            LogConflictError: other devices were quicker, again and again.
        """
        for _ in range(APPEND_TRIES_MAX):
            state = await self.read()
            entry = make(state)
            if entry is None:
                return state
            try:
                await self._connection.call("account.append", AppendLog(state.account, state.seq, [entry]), LogHead)
            except LogConflictError:
                continue
            return await self.read()
        raise LogConflictError
