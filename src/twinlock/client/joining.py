"""Joining a space by an invite link: all is verified before anything is signed. See spec/sealing.md, section 4."""

from __future__ import annotations

import asyncio
import contextlib

from twinlock.client.connection import Connection
from twinlock.client.courier import Courier
from twinlock.client.device_context import DeviceContext
from twinlock.client.log_reader import LogReader
from twinlock.client.log_writer import TRIES_MAX
from twinlock.client.space_runtime import SpaceRuntime
from twinlock.client.sudo import Sudo
from twinlock.errors import (
    ApprovalPendingError,
    InvalidCallError,
    InviteError,
    LogConflictError,
    LogInvalidError,
    OpenError,
    RemovedError,
    ShreddedError,
    TwinlockError,
    UnknownSpaceError,
)
from twinlock.ids import AccountId, SpaceId
from twinlock.protocol.calls import KeyringRow, LogHead, SignedEntry
from twinlock.protocol.membership_calls import Join, OpenInvite, OpenInviteResult
from twinlock.protocol.space_log import SpaceLogState
from twinlock.protocol.space_rules import replay_space
from twinlock.sealing.identity import AccountKeys
from twinlock.sealing.invites import InviteKeys, InviteLink, invite_proof, join_entry, parse_link
from twinlock.sealing.space_keys import unwrap_member_key, wrap_bare

OPENED_MS_MAX = 10_000
"""How long joining waits for the first lease; without one the space is there and locked."""


class Joiner:
    """Joins spaces with the account's signing key."""

    __slots__ = ("_connection", "_context", "_courier", "_logs", "_sudo")

    def __init__(self, context: DeviceContext, connection: Connection, courier: Courier, sudo: Sudo) -> None:
        self._context = context
        self._connection = connection
        self._courier = courier
        self._logs = LogReader(context, connection)
        self._sudo = sudo

    async def join(self, text: str) -> SpaceRuntime:
        """Join the space of a link, and open it; joining where one is a member already is fine.

        Raises:
            SudoNeededError: the password was not given in the last 15 minutes.
            InviteError: the link is none, or has expired, been used up or withdrawn.
            ApprovalPendingError: an owner or admin confirms it first; the space then opens by itself.
        """
        link = parse_link(text)
        known = self._courier.runtimes.get(link.space)
        if known is not None:
            return known
        self._sudo.keys()
        try:
            await self._join(link)
        except (InviteError, InvalidCallError, ApprovalPendingError) as refusal:
            # The answer to an earlier try may have been lost: then the link is used up, by this very account.
            return await self._open(link.space, refusal)
        return await self._open(link.space, None)

    async def _join(self, link: InviteLink) -> None:
        keys = InviteKeys.of(link.space, link.secret)
        for tries_left in reversed(range(TRIES_MAX)):
            joiner = self._sudo.keys()
            log, row = await self._opened(link, keys, joiner)
            self._check_open(log, keys)
            own_row = self._rewrapped(link, keys, joiner, log, row)
            try:
                request = Join(link.space, log.seq, join_entry(joiner, log, keys), own_row)
                await self._connection.call("space.join", request, LogHead)
            except LogConflictError:
                if not tries_left:
                    raise
                continue
            return

    async def _opened(
        self, link: InviteLink, keys: InviteKeys, joiner: AccountKeys
    ) -> tuple[SpaceLogState, KeyringRow | None]:
        """Fetch and verify the space's whole log, whose first entry the space's id in the link certifies."""
        proof = invite_proof(keys, self._context.state.home.server_id, link.space, joiner.account)
        entries: list[SignedEntry] = []
        while True:
            request = OpenInvite(link.space, link.invite, proof, len(entries))
            page = await self._connection.call("invite.open", request, OpenInviteResult)
            entries += page.entries
            if not page.entries or len(entries) >= page.seq:
                break
        log = replay_space(entries)
        if log.space != link.space:
            raise LogInvalidError("the log is another space's")
        return log, page.row

    def _check_open(self, log: SpaceLogState, keys: InviteKeys) -> None:
        invite = log.invites.get(keys.id)
        if log.is_shredded:
            raise InviteError("the space was shredded")
        if invite is None:
            raise InviteError("it was used up or withdrawn")
        if self._context.clock.now_ms() >= invite.expires_ms:
            raise InviteError("it has expired")

    def _rewrapped(
        self, link: InviteLink, keys: InviteKeys, joiner: AccountKeys, log: SpaceLogState, row: KeyringRow | None
    ) -> KeyringRow | None:
        """Open the member key that was wrapped to the invite, and wrap it to this account."""
        if not log.invites[keys.id].takes_key:
            return None
        if row is None or row.epoch != log.epoch:
            raise InviteError("the space's key does not come with it")
        try:
            member_key = unwrap_member_key(row.wrapped, keys.kem, link.space, row.epoch, AccountId(keys.id))
        except OpenError as exc:
            raise InviteError("the space's key was not wrapped for this link") from exc
        wrapped = wrap_bare(member_key, link.space, row.epoch, joiner.account, joiner.kem_pk)
        return KeyringRow(joiner.account, row.epoch, wrapped)

    async def _open(self, space: SpaceId, refusal: TwinlockError | None) -> SpaceRuntime:
        """Open the space as every device of the account does.

        Raises:
            ApprovalPendingError: the account waits for approval.
            InviteError: it has no part in the space, and the link gave it none.
        """
        try:
            runtime = await self._courier.open_space(space)
        except (UnknownSpaceError, RemovedError, ShreddedError):
            if refusal is not None:
                raise refusal from None
            raise
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(OPENED_MS_MAX / 1000):
                await self._courier.opened(runtime)
        return runtime
