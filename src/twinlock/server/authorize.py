"""Who may do what: accounts and devices as their signed logs say, replayed and kept at hand."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from twinlock.errors import DeviceRevokedError, LogInvalidError, NotSignedInError, UnknownDeviceError
from twinlock.ids import AccountId, DeviceId, LogId
from twinlock.protocol.account_log import AccountState, replay_account
from twinlock.protocol.calls import SignedEntry
from twinlock.protocol.signed_log import Body
from twinlock.server.peer import Peer
from twinlock.server.sequencer import Author
from twinlock.server.signed_logs import SignedLogs

ACCOUNTS_KEPT_MAX = 100_000


class Authority:
    """The accounts that were lately here.

    Args:
        logs: where their logs are.
        on_grown: is told of an account whose log grew.
        on_revoked: is told of devices that their account revoked, before anything else is done.
    """

    __slots__ = ("_accounts", "_logs", "_on_grown", "_on_revoked", "_readings", "tell_others")

    def __init__(
        self,
        logs: SignedLogs,
        on_grown: Callable[[AccountId], None],
        on_revoked: Callable[[frozenset[DeviceId]], None],
    ) -> None:
        self._logs = logs
        self._accounts: dict[AccountId, AccountState] = {}
        self._on_grown = on_grown
        self._on_revoked = on_revoked
        self._readings: dict[AccountId, object] = {}
        """The reads under way that nothing has overtaken."""

        self.tell_others: Callable[[AccountId, frozenset[DeviceId]], None] = _tell_nobody
        """Tells the other nodes of an account that has grown, and whom it revoked."""

    async def log(self, account: AccountId) -> list[SignedEntry]:
        """Return every entry of an account's log."""
        return await self._logs.read(LogId(account))

    async def append(self, account: AccountId, after_seq: int, entries: Sequence[SignedEntry]) -> AccountState:
        """Append to an account's log and return its new state.

        Raises:
            LogConflictError, LogInvalidError, SignatureError, UpdateNeededError: as the key service decides.
        """
        await self._logs.append(LogId(account), after_seq, entries)
        return await self._grew(account, after_seq, entries)

    def account_at_hand(self, account: AccountId) -> AccountState | None:
        """Return an account's state if it needs no reading."""
        return self._accounts.get(account)

    async def account(self, account: AccountId) -> AccountState:
        """Return an account's state.

        Raises:
            UnknownDeviceError: there is no such account.
        """
        while True:
            known = self._accounts.get(account)
            if known is not None:
                if not await self._logs.has_grown(LogId(account), known.seq):
                    return known
                # Another node's news of it is still on its way.
                self._accounts.pop(account, None)
                self._readings.pop(account, None)
            reading = self._readings.setdefault(account, object())
            try:
                state = await self._read(account)
            except BaseException:
                self._readings.pop(account, None)
                raise
            if self._readings.get(account) is reading:
                del self._readings[account]
                newer = self._accounts.get(account)
                # The log may have grown while it was read here.
                return newer if newer is not None and newer.seq > state.seq else self._keep(state)

    def heard(self, account: AccountId) -> None:
        """Take in that an account has grown at another node."""
        self._accounts.pop(account, None)
        self._readings.pop(account, None)
        self._on_grown(account)

    async def cut_off(self, account: AccountId, devices: frozenset[DeviceId]) -> None:
        """Cut off those of some devices that their account has revoked, as its own log says.

        Raises:
            UnknownDeviceError: there is no such account.
            KeyServiceError, StoreError: its log cannot be read.
        """
        revoked = devices & (await self.account(account)).revoked
        if revoked:
            self._on_revoked(revoked)

    def forget_all(self) -> dict[AccountId, AccountState]:
        """Forget every account, since other nodes may have changed any of them; return what was known."""
        known, self._accounts = self._accounts, {}
        self._readings.clear()
        return known

    async def _read(self, account: AccountId) -> AccountState:
        entries = await self._logs.read(LogId(account))
        # The log of a space is no account's, and whoever names one here learns nothing of it.
        if not entries or Body(entries[0].body).fields.has("partition"):
            raise UnknownDeviceError
        state = replay_account(entries)
        if state.account != account:
            raise LogInvalidError("the log of another account")
        return state

    async def exists(self, account: AccountId) -> bool:
        """Tell whether there is such an account."""
        try:
            await self.account(account)
        except UnknownDeviceError:
            return False
        return True

    async def _grew(self, account: AccountId, after_seq: int, entries: Sequence[SignedEntry]) -> AccountState:
        """Take over entries that were just appended; devices that they revoke are cut off at once."""
        before = self._accounts.pop(account, None)
        # What began to be read before this is out of date.
        self._readings.pop(account, None)
        if before is not None and before.seq == after_seq:
            state = self._keep(replay_account(entries, before))
        else:
            state = await self.account(account)
        revoked = state.revoked - (before.revoked if before else frozenset())
        if revoked:
            self._on_revoked(revoked)
        if before is None or state.seq > before.seq:
            # Where the state before is not known, all that it ever revoked are named: none of them may stay.
            self.tell_others(account, frozenset(revoked))
            self._on_grown(account)
        return state

    def _keep(self, state: AccountState) -> AccountState:
        self._accounts.pop(state.account, None)
        if len(self._accounts) >= ACCOUNTS_KEPT_MAX:
            del self._accounts[next(iter(self._accounts))]
        self._accounts[state.account] = state
        return state


def device_of(peer: Peer) -> Author:
    """Return whose device a session is.

    Raises:
        NotSignedInError: it is nobody's.
    """
    if peer.author is None:
        raise NotSignedInError
    return peer.author


def author_of(state: AccountState, device: DeviceId) -> Author:
    """Return who a device is when it speaks for its account.

    Raises:
        DeviceRevokedError, UnknownDeviceError: it does not, or no longer.
    """
    if device in state.retired:
        raise DeviceRevokedError
    record = state.devices.get(device)
    if record is None:
        raise UnknownDeviceError
    return Author(state.account, device, record.sign_pk)


def _tell_nobody(account: AccountId, revoked: frozenset[DeviceId]) -> None:
    """Tell no other node: there is none."""
