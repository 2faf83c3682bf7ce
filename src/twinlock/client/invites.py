"""Invites: links that admit whoever holds them, and the applicants among those. See spec/sealing.md, section 4."""

from __future__ import annotations

import msgspec

from twinlock.client.connection import Connection
from twinlock.client.device_context import DeviceContext
from twinlock.client.epochs import without_expired, wrapped_row
from twinlock.client.log_writer import Draft, LogWriter, check_admits
from twinlock.client.members import Members
from twinlock.client.space_runtime import SpaceRuntime
from twinlock.errors import InvalidCallError, InviteError, NotFoundError, RoleError
from twinlock.protocol.limits import INVITE_USES_MAX
from twinlock.protocol.space_log import Role, SpaceLogState
from twinlock.sealing.identity import AccountKeys
from twinlock.sealing.invites import (
    InviteKeys,
    InviteTerms,
    invite_entry,
    make_invite,
    parse_link,
    uninvite_entry,
)
from twinlock.sealing.space_entries import member_entry

HOUR_MS = 3_600_000


class InviteInfo(msgspec.Struct, frozen=True):
    """An open invite. Its link is shown once, when it is made: nobody keeps the secret."""

    id: str
    role: Role
    expires_ms: int
    uses_left: int
    needs_approval: bool


class ApplicantInfo(msgspec.Struct, frozen=True):
    """Somebody who joined by an invite that needs approval; `name` is only what the server tells."""

    id: str
    name: str | None
    role: Role


class Invites:
    """Makes, lists and withdraws invites, and confirms applicants."""

    __slots__ = ("_connection", "_context", "_members", "_writer")

    def __init__(self, context: DeviceContext, connection: Connection, writer: LogWriter, members: Members) -> None:
        self._context = context
        self._connection = connection
        self._writer = writer
        self._members = members

    async def make(self, runtime: SpaceRuntime, terms: InviteTerms, app_url: str | None) -> str:
        """Make an invite and return its link; what has expired is withdrawn in the same step.

        Raises:
            RoleError: the account may not invite, or the role cannot be given by an invite.
        """
        check_terms(terms)
        link = make_invite(runtime.space, self._context.entropy)
        keys = InviteKeys.of(link.space, link.secret)

        async def prepare(signer: AccountKeys, log: SpaceLogState) -> Draft | None:
            check_admits(log, signer.account)
            entries, after = without_expired(signer, log, self._context.clock.now_ms())
            entries.append(invite_entry(signer, after, keys, terms))
            # Who is looked at first has the key wrapped when it is let in, and no link's holder before.
            takes_key = terms.role.may_lease and not terms.needs_approval
            return Draft(entries, [wrapped_row(runtime, log, keys.id, keys.kem_pk)] if takes_key else [])

        await self._writer.write(runtime, prepare)
        return f"{app_url or self._context.app_url or http_origin(self._connection.origin)}#{link}"

    def all(self, runtime: SpaceRuntime) -> list[InviteInfo]:
        """Return the invites that are open now, as far as the log was read; those that have expired are left out."""
        now_ms = self._context.clock.now_ms()
        return [
            InviteInfo(name.hex(), invite.role, invite.expires_ms, invite.uses_left, invite.needs_approval)
            for name, invite in runtime.keyring.log.invites.items()
            if now_ms < invite.expires_ms
        ]

    async def withdraw(self, runtime: SpaceRuntime, wanted: str) -> None:
        """Withdraw an invite by its link or id; one that is not open any more is fine.

        Raises:
            InviteError: it is neither, or the link of another space.
        """
        name = _invite_of(runtime, wanted)

        async def prepare(signer: AccountKeys, log: SpaceLogState) -> Draft | None:
            check_admits(log, signer.account)
            return Draft([uninvite_entry(signer, log, name)]) if name in log.invites else None

        await self._writer.write(runtime, prepare)

    async def applicants(self, runtime: SpaceRuntime) -> list[ApplicantInfo]:
        """Return who waits for approval."""
        await self._writer.freshen(runtime)
        names = await self._members.names(runtime)
        applicants = runtime.keyring.log.applicants.items()
        return [ApplicantInfo(account.hex(), names.get(account), each.role) for account, each in applicants]

    async def approve(self, runtime: SpaceRuntime, wanted: str) -> None:
        """Confirm an applicant; doing it again is fine.

        Raises:
            NotFoundError: nobody of that id or name has applied.
        """
        account = await self._members.find(runtime, wanted)

        async def prepare(signer: AccountKeys, log: SpaceLogState) -> Draft | None:
            check_admits(log, signer.account)
            applicant = log.applicants.get(account)
            if applicant is None and account in log.members:
                return None
            if applicant is None:
                raise NotFoundError("this account has not applied")
            entry = member_entry(signer, log, applicant.sign_pk, applicant.kem_pk, account, applicant.role)
            reads = applicant.role.may_lease
            return Draft([entry], [wrapped_row(runtime, log, account, applicant.kem_pk)] if reads else [])

        await self._writer.write(runtime, prepare)


def check_terms(terms: InviteTerms) -> None:
    """Check what an invite is to give.

    Raises:
        RoleError: owners and admins are made of members.
        InvalidCallError: nobody could use it, or too many.
    """
    if terms.role.may_admit:
        raise RoleError("an invite gives editor, reader or sender; make members owners or admins with `set_role`")
    if not 1 <= terms.uses <= INVITE_USES_MAX:
        raise InvalidCallError(f"an invite has 1 to {INVITE_USES_MAX} uses")


def http_origin(origin: str) -> str:
    """Return the web address of a server that is dialled at `ws` or `wss`."""
    return f"http{origin.removeprefix('ws')}/"


def _invite_of(runtime: SpaceRuntime, wanted: str) -> bytes:
    try:
        return bytes.fromhex(wanted)
    except ValueError:
        link = parse_link(wanted)
    if link.space != runtime.space:
        raise InviteError("the link is of another space")
    return link.invite
