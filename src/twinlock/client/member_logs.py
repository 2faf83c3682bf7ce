"""The account logs of those who are or were in a space, by which their devices are known: fetched when they are needed.

A large space has a thousand of them, and every device of it would fetch them all whenever one member comes. So a device
fetches those that it lacks, those that new entries of the space's log speak of, and, when an envelope comes from a
device that it does not know, the others, until it knows the device.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Sequence

import msgspec

from twinlock.client.space_runtime import SpaceRuntime
from twinlock.client.unknowns import unknown_devices
from twinlock.errors import NotFoundError, RateLimitedError, RoleError, UnknownSpaceError
from twinlock.ids import ID_BYTES, AccountId
from twinlock.protocol.account_log import AccountState
from twinlock.protocol.calls import SignedEntry
from twinlock.protocol.signed_log import Body

logger = logging.getLogger(__name__)

ACCOUNTS_AT_ONCE = 16
RETRY_MS = 1_000


class AccountRead(msgspec.Struct, frozen=True):
    """An account's whole log as it was just read and verified, and whether anything of it is new here."""

    state: AccountState
    entries: list[SignedEntry]
    is_new: bool


ReadAccount = Callable[[AccountId], Awaitable[AccountRead]]
KeepAccounts = Callable[[Sequence[AccountRead]], Awaitable[None]]


class MemberLogs:
    """Reads account logs into the keyrings of spaces; a group is kept in one step: each waits for the disk."""

    __slots__ = ("_keep", "_read")

    def __init__(self, read: ReadAccount, keep: KeepAccounts) -> None:
        self._read = read
        self._keep = keep

    async def fill(self, runtime: SpaceRuntime) -> bool:
        """Fetch what is needed now; return whether anything is new."""
        keyring, seq = runtime.keyring, runtime.keyring.log.seq
        everyone = [*keyring.log.members, *keyring.log.former]
        wanted = _named_in(runtime.entries[runtime.accounts_seq : seq])
        first = [account for account in everyone if account in wanted or account not in keyring.accounts]
        is_new = await self._fetch(runtime, first)
        runtime.accounts_seq = seq
        # Whose devices these are, nobody can tell before their logs are read.
        rest = [account for account in everyone if account not in first] if _devices_unknown(runtime) else []
        while rest and _devices_unknown(runtime):
            is_new = await self._fetch(runtime, rest[:ACCOUNTS_AT_ONCE]) or is_new
            rest = rest[ACCOUNTS_AT_ONCE:]
        return is_new

    async def _fetch(self, runtime: SpaceRuntime, accounts: Sequence[AccountId]) -> bool:
        is_new = False
        for start in range(0, len(accounts), ACCOUNTS_AT_ONCE):
            group = accounts[start : start + ACCOUNTS_AT_ONCE]
            reads = [self._patiently(account) for account in group]
            results = await asyncio.gather(*reads, return_exceptions=True)
            await self._keep([found for found in results if isinstance(found, AccountRead)])
            for account, found in zip(group, results, strict=True):
                is_new = _install(runtime, account, found) or is_new
        return is_new

    async def _patiently(self, account: AccountId) -> AccountRead:
        while True:
            try:
                return await self._read(account)
            except RateLimitedError as exc:
                await asyncio.sleep(max(exc.retry_after_ms, RETRY_MS) / 1000)


def _install(runtime: SpaceRuntime, account: AccountId, found: AccountRead | BaseException) -> bool:
    keyring = runtime.keyring
    if isinstance(found, BaseException):
        is_denied = isinstance(found, NotFoundError | UnknownSpaceError | RoleError)
        if not is_denied or account in keyring.log.members:
            raise found
        # What a former member wrote stays in quarantine then; nothing else depends on it.
        logger.warning("the log of a former member is not to be had", extra={"account": account.hex()})
        return False
    state, known = found.state, keyring.accounts.get(account)
    if known is not None and state.seq == known.seq and state.head == known.head:
        return False
    keyring.install_account(state)
    return True


def _named_in(entries: Iterable[SignedEntry]) -> set[AccountId]:
    """Return whom entries of a space's log are by and about: their logs may have grown for the same reason."""
    named: set[AccountId] = set()
    for entry in entries:
        fields = Body(entry.body).fields
        named.update(AccountId(fields.octets(name, ID_BYTES)) for name in ("by", "account") if fields.has(name))
    return named


def _devices_unknown(runtime: SpaceRuntime) -> bool:
    """Tell whether an envelope waits for somebody's log to tell whose device sent it."""
    accounts = runtime.keyring.accounts.values()
    return any(all(each.certified(device) is None for each in accounts) for device in unknown_devices(runtime))
