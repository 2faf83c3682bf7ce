"""The members of a space: who they are, that they are who they say, and what they may do. See spec/sealing.md, 4."""

from __future__ import annotations

import asyncio
import contextlib
import hmac

import msgspec

from twinlock.client.connection import Connection
from twinlock.client.courier import Courier
from twinlock.client.device_context import DeviceContext
from twinlock.client.epochs import Epochs, wrapped_row
from twinlock.client.log_writer import Draft, LogWriter, check_admits
from twinlock.client.space_runtime import SpaceRuntime
from twinlock.errors import LastOwnerError, NotFoundError, OfflineError, RemovedError, RoleError, SafetyCodeError
from twinlock.ids import AccountId
from twinlock.protocol.membership_calls import Names, NamesResult
from twinlock.protocol.space_log import Role, SpaceLogState
from twinlock.sealing.digits import DIGITS_COUNT, safety_digits
from twinlock.sealing.identity import AccountKeys
from twinlock.sealing.space_entries import leave_entry, lower_entry, member_entry

SENT_MS_MAX = 10_000
"""How long leaving a space waits for the writes that are on their way."""


class MemberInfo(msgspec.Struct, frozen=True):
    """A member of a space.

    `name` is only what the server tells, None if it is not known now; `verified` says that the safety code was
    compared on this device.
    """

    id: str
    name: str | None
    role: Role
    this: bool
    verified: bool
    devices: int


class Members:
    """Knows and changes the members of spaces."""

    __slots__ = ("_connection", "_context", "_courier", "_epochs", "_writer")

    def __init__(
        self, context: DeviceContext, connection: Connection, courier: Courier, writer: LogWriter, epochs: Epochs
    ) -> None:
        self._context = context
        self._connection = connection
        self._courier = courier
        self._writer = writer
        self._epochs = epochs

    # Who they are

    async def all(self, runtime: SpaceRuntime) -> list[MemberInfo]:
        """Return the members in the order of their joining."""
        await self._writer.freshen(runtime)
        names, verified = await self.names(runtime), self._context.state.verified_accounts()
        keyring = runtime.keyring
        return [
            MemberInfo(
                id=account.hex(),
                name=names.get(account),
                role=member.role,
                this=account == keyring.account,
                verified=account in verified,
                devices=len(keyring.accounts[account].devices) if account in keyring.accounts else 0,
            )
            for account, member in keyring.log.members.items()
        ]

    async def names(self, runtime: SpaceRuntime) -> dict[AccountId, str]:
        """Return what the server calls the accounts of a space; offline, only this device's own."""
        own = {runtime.keyring.account: self._context.state.home.name}
        try:
            result = await self._connection.call("account.names", Names(runtime.space), NamesResult)
        except OfflineError:
            return own
        return {**result.names, **own}

    async def find(self, runtime: SpaceRuntime, wanted: str) -> AccountId:
        """Return the account of that id in hex, or of that name.

        Raises:
            NotFoundError: no member, applicant or former member is called so.
        """
        await self._writer.freshen(runtime)
        log = runtime.keyring.log
        known = (*log.members, *log.applicants, *log.former)
        for account in known:
            if account.hex() == wanted:
                return account
        names = await self.names(runtime)
        for account in known:
            if names.get(account) == wanted.lower():
                return account
        listed = ", ".join(names.get(account, account.hex()) for account in log.members)
        raise NotFoundError(f"{wanted!r} is no member; members are: {listed}")

    # That they are who they say

    async def safety_code(self, runtime: SpaceRuntime, wanted: str) -> str:
        """Return the 60 digits that this account and another one both see, if nobody stands between them."""
        account = await self.find(runtime, wanted)
        own = runtime.keyring.log.record_of(runtime.keyring.account)
        assert own is not None
        return safety_digits(own.sign_pk, _sign_pk_of(runtime.keyring.log, account))

    async def verify(self, runtime: SpaceRuntime, wanted: str, code: str) -> None:
        """Compare the digits that another one reads out, and keep that they are right.

        Raises:
            SafetyCodeError: they are not.
        """
        account = await self.find(runtime, wanted)
        expected = "".join((await self.safety_code(runtime, account.hex())).split())
        given = "".join(letter for letter in code if not letter.isspace() and letter != "-")
        if not given.isascii() or not given.isdigit() or len(given) != DIGITS_COUNT:
            raise SafetyCodeError(f"a code has {DIGITS_COUNT} digits")
        if not hmac.compare_digest(given, expected):
            raise SafetyCodeError
        self._context.state.put_verified(account)

    # What they may do

    async def set_role(self, runtime: SpaceRuntime, wanted: str, role: Role) -> None:
        """Give a member another role; giving the one that it has is fine.

        Raises:
            RoleError: only an owner makes or changes owners and admins.
            LastOwnerError: it is the last owner.
        """
        account = await self.find(runtime, wanted)

        async def prepare(signer: AccountKeys, log: SpaceLogState) -> Draft | None:
            check_admits(log, signer.account)
            member = log.members.get(account)
            if member is None:
                raise NotFoundError("this account is not a member")
            if member.role is role:
                return None
            _check_ranks(log, signer.account, member.role, role)
            if role.rank < member.role.rank:
                _check_owner_stays(log, account)
                heads = await self._writer.heads(runtime, account)
                return Draft([lower_entry(signer, log, account, role, heads)])
            entry = member_entry(signer, log, member.sign_pk, member.kem_pk, account, role)
            begins_to_read = role.may_lease and not member.role.may_lease
            return Draft([entry], [wrapped_row(runtime, log, account, member.kem_pk)] if begins_to_read else [])

        await self._writer.write(runtime, prepare)

    async def remove(self, runtime: SpaceRuntime, wanted: str) -> None:
        """Remove a member, or turn an applicant away, and open the epoch that it has no key of.

        Raises:
            RoleError: only an owner removes owners and admins; nobody removes itself.
        """
        account = await self.find(runtime, wanted)

        async def prepare(signer: AccountKeys, log: SpaceLogState) -> Draft | None:
            check_admits(log, signer.account)
            if account not in log.members and account not in log.applicants:
                return None
            if account == signer.account:
                raise RoleError("an account does not remove itself: it leaves")
            if account in log.members:
                _check_ranks(log, signer.account, log.members[account].role)
            heads = await self._writer.heads(runtime, account)
            return await self._epochs.removal(runtime, signer, log, self._courier.incarnation, (account, heads))

        await self._writer.write(runtime, prepare)

    async def leave(self, runtime: SpaceRuntime) -> None:
        """Leave a space; its data on this device is deleted. What was written before is sent first, if it can be.

        Raises:
            LastOwnerError: somebody must own it.
        """
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(SENT_MS_MAX / 1000 if self._courier.is_connected else 0):
                await self._courier.sent(runtime)

        async def prepare(signer: AccountKeys, log: SpaceLogState) -> Draft | None:
            _check_owner_stays(log, signer.account)
            return Draft([leave_entry(signer, log, await self._writer.heads(runtime, signer.account))])

        with contextlib.suppress(RemovedError):
            await self._writer.write(runtime, prepare)


def _sign_pk_of(log: SpaceLogState, account: AccountId) -> bytes:
    found = log.applicants.get(account) or log.record_of(account)
    assert found is not None
    return found.sign_pk


def _check_ranks(log: SpaceLogState, account: AccountId, *roles: Role) -> None:
    if log.role_of(account) is not Role.OWNER and any(role.may_admit for role in roles):
        raise RoleError("only an owner makes, changes or removes owners and admins")


def _check_owner_stays(log: SpaceLogState, account: AccountId) -> None:
    if log.owners == {account}:
        raise LastOwnerError
