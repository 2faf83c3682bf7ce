"""The calls of those who come and go: invites, joining, and where chains stand. See spec/sealing.md, section 4."""

from __future__ import annotations

from collections.abc import Callable

from twinlock.errors import (
    ApprovalPendingError,
    InvalidCallError,
    InviteError,
    RoleError,
    SignatureError,
    UnknownSpaceError,
)
from twinlock.ids import ID_BYTES, AccountId, LogId, SpaceId
from twinlock.protocol.calls import LogHead, SignedEntry
from twinlock.protocol.membership_calls import (
    Join,
    OpenInvite,
    OpenInviteResult,
    ReadHeads,
    ReadHeadsResult,
)
from twinlock.protocol.proofs import invite_open_message, verify
from twinlock.protocol.signed_log import Body
from twinlock.protocol.space_log import Invite, SpaceLogState
from twinlock.server.accounts import check_entries, page_of
from twinlock.server.authorize import device_of
from twinlock.server.keyrings import Keyrings, check_rows
from twinlock.server.methods import Method
from twinlock.server.peer import Peer
from twinlock.server.registry import SpaceRegistry
from twinlock.server.replaying import replay_in_pieces
from twinlock.server.served_space import ServedSpace
from twinlock.server.signed_logs import SignedLogs
from twinlock.server.space_changes import SpaceChanges
from twinlock.server.standing import check_member, readable_seq
from twinlock.server.tries import Tries


class Memberships:
    """Answers the calls about invites, joining and heads."""

    __slots__ = ("_changes", "_keyrings", "_logs", "_now_ms", "_registry", "_server_id", "_tries")

    def __init__(
        self,
        logs: SignedLogs,
        keyrings: Keyrings,
        registry: SpaceRegistry,
        changes: SpaceChanges,
        server_id: bytes,
        tries: Tries,
        now_ms: Callable[[], int],
    ) -> None:
        self._logs = logs
        self._keyrings = keyrings
        self._registry = registry
        self._changes = changes
        self._server_id = server_id
        self._now_ms = now_ms
        # Nobody guesses 32 bytes: this bounds the work that strangers can ask for. A long log takes several pages.
        self._tries = tries

    def methods(self) -> dict[str, Method]:
        """Return what is answered here, by name."""
        return {
            "invite.open": Method(OpenInvite, self._open),
            "space.heads": Method(ReadHeads, self._heads),
            "space.join": Method(Join, self._join),
        }

    async def _open(self, peer: Peer, request: OpenInvite) -> OpenInviteResult:
        author = device_of(peer)
        self._tries.count(author.account.hex())
        self._tries.count(peer.address)
        space = await self._space_of_invite(request.space)
        rules = space.sequencer.rules
        invite = self._open_invite(rules, request.invite, author.account)
        message = invite_open_message(self._server_id, space.id, request.invite, author.account)
        try:
            verify(invite.sign_pk, request.proof, message)
        except SignatureError as exc:
            raise InviteError("the link's secret is another one") from exc
        page = page_of((await self._logs.read(LogId(space.id)))[: rules.seq], request.after_seq)
        row = await self._keyrings.read(space.id, request.invite, rules.epoch, rules) if invite.takes_key else None
        return OpenInviteResult(page.entries, page.seq, row)

    async def _join(self, peer: Peer, request: Join) -> LogHead:
        author = device_of(peer)
        check_entries([request.entry])
        await self._space_of_invite(request.space)
        async with self._changes.of(request.space) as space:
            entries = await self._changes.fresh(space, request.expect_seq, [request.entry])
            rules = space.sequencer.rules
            if not entries:
                if not readable_seq(rules, author.account):
                    raise InviteError
                return LogHead(rules.seq, rules.head)
            name = _invite_of(request.entry, author.account)
            invite = self._open_invite(rules, name, author.account)
            rows = [request.row] if request.row is not None else []
            if bool(rows) != invite.takes_key:
                raise InvalidCallError("whoever reads at once leaves one keyring row, others leave none")
            check_rows(rows, rules, {author.account})
            after = await replay_in_pieces(entries, rules)
            return await self._changes.append(space, entries, after, rows)

    async def _heads(self, peer: Peer, request: ReadHeads) -> ReadHeadsResult:
        author = device_of(peer)
        space = await self._registry.current(request.space)
        rules = space.sequencer.rules
        check_member(rules, author.account)
        if request.account != author.account and not rules.members[author.account].role.may_admit:
            raise RoleError("the heads of another account are for owners and admins")
        if not readable_seq(rules, request.account):
            raise InvalidCallError("this account was never in the space")
        heads = {device: space.sequencer.head_of(device) for device in await self._changes.devices_of(request.account)}
        return ReadHeadsResult({device: head.counter for device, head in heads.items() if head.counter})

    async def _space_of_invite(self, space: SpaceId) -> ServedSpace:
        try:
            return await self._registry.current(space)
        except UnknownSpaceError as exc:
            raise InviteError from exc

    def _open_invite(self, rules: SpaceLogState, name: bytes, account: AccountId) -> Invite:
        """Return an invite by which an account may come in now.

        Raises:
            InviteError: there is none, it has expired, or others took from the account what it would give back.
            ApprovalPendingError, InvalidCallError: the account is in the space already.
        """
        invite = rules.invites.get(name)
        if invite is None or rules.is_shredded or invite.expires_ms <= self._now_ms():
            raise InviteError
        former = rules.former.get(account)
        if former is not None and former.barred_seq > invite.seq:
            raise InviteError("the account was removed after this invite was made")
        if account in rules.applicants:
            raise ApprovalPendingError
        if account in rules.members:
            raise InvalidCallError("the account is in the space already")
        return invite


def _invite_of(entry: SignedEntry, account: AccountId) -> bytes:
    """Return the invite by which an account joins.

    Raises:
        InvalidCallError: the entry is not a `join`.
        RoleError: it is that of another account.
    """
    body = Body(entry.body)
    if body.type != "join":
        raise InvalidCallError("not the entry of a join")
    if body.fields.octets("by", ID_BYTES) != account:
        raise RoleError("another account's join")
    return body.fields.octets("invite", ID_BYTES)
