"""The rules of a space's log: who may sign which entry, and what it changes. See spec/sealing.md, section 4.

Verification only. Key service, server and every client replay the same rules, so that nobody can add a member that the
owner did not, or bring a removed one back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import msgspec

from twinlock.errors import LogInvalidError, SignatureError, UpdateNeededError
from twinlock.ids import ID_BYTES, AccountId, Epoch, LogId
from twinlock.protocol import hpke
from twinlock.protocol.account_log import GENESIS_NONCE_BYTES, account_id_of
from twinlock.protocol.calls import SignedEntry
from twinlock.protocol.limits import INVITE_USES_MAX, SPACE_INVITES_MAX, SPACE_MEMBERS_MAX
from twinlock.protocol.proofs import join_message, verify
from twinlock.protocol.signed_log import (
    COUNTER_MAX,
    HEAD_BYTES,
    KEY_BYTES,
    NO_LOG,
    PREFIX_BYTES,
    Body,
    Fields,
    LogPosition,
    check_entry,
)
from twinlock.protocol.space_log import (
    LEASE_HOURS_MAX,
    NEEDS_KEYSTORE,
    Applicant,
    Cutoff,
    EpochRecord,
    Invite,
    Member,
    Role,
    SealedTitle,
    SpaceLogState,
    invite_id_of,
    space_id_of,
)

PARTITION_MAX = (1 << 16) - 1
EPOCH_MAX = (1 << 32) - 1
SIGNATURE_BYTES = 64
LINK_BYTES = 60
"""A nonce, 32 bytes of the earlier member key, and a tag."""

TITLE_SEALED_BYTES_MAX = 1024
EXPIRES_MS_MAX = COUNTER_MAX


def replay_space(entries: Iterable[SignedEntry], after: SpaceLogState | None = None) -> SpaceLogState:
    """Verify entries in order, from the genesis or after a state, and return the state they lead to.

    The caller compares `space` of the result with the id that it asked for.

    Raises:
        SignatureError: an entry is not signed by the member it names, or is not in its place.
        LogInvalidError: an entry breaks a rule, or there is no entry at all.
        UpdateNeededError: an entry is of a type that this version does not know.
    """
    state = after
    # Grown here for all entries: no rule looks at it, and to copy it for each would cost a long log its square.
    prefixes = dict(after.head_prefixes) if after is not None else {}
    for entry in entries:
        state = _genesis(entry) if state is None else _follow(entry, state)
        prefixes[state.head[:PREFIX_BYTES]] = state.seq
    if state is None:
        raise LogInvalidError("a space's log without a genesis")
    return msgspec.structs.replace(state, head_prefixes=prefixes)


def _genesis(entry: SignedEntry) -> SpaceLogState:
    body = Body(entry.body)
    if body.type != "genesis":
        raise LogInvalidError("a space's log does not begin with a genesis")
    fields = body.fields
    owner = AccountId(fields.octets("by", ID_BYTES))
    fields.octets("nonce", GENESIS_NONCE_BYTES)
    partition = fields.integer("partition", PARTITION_MAX)
    sign_pk, kem_pk = _account_keys(fields, owner)
    body.finish()
    position = check_entry(NO_LOG, LogPosition(), entry.body, entry.sig, sign_pk)
    return SpaceLogState(
        space=space_id_of(partition, position.head),
        partition=partition,
        members={owner: Member(sign_pk, kem_pk, Role.OWNER, ((position.seq, Role.OWNER),))},
        head_prefixes={},
        seq=position.seq,
        head=position.head,
    )


def _follow(entry: SignedEntry, state: SpaceLogState) -> SpaceLogState:
    body = Body(entry.body)
    # An unknown type may have another form of signature, so it is told apart before anything else.
    if body.type == "genesis":
        raise LogInvalidError("a second genesis")
    rule = _RULES.get(body.type)
    if rule is None:
        raise UpdateNeededError(f"a space entry of type {body.type}")
    if state.is_shredded:
        raise LogInvalidError("an entry after the space was shredded")
    by = AccountId(body.fields.octets("by", ID_BYTES))
    author = state.members.get(by)
    sign_pk = author.sign_pk if author is not None else _joining_key(body, by)
    position = check_entry(LogId(state.space), state.position, entry.body, entry.sig, sign_pk)
    if body.type in _BY_ADMITTERS and (author is None or not author.role.may_admit):
        raise LogInvalidError(f"an entry of type {body.type} by a member who may not sign it")
    moved = msgspec.structs.replace(state, seq=position.seq, head=position.head)
    changed = rule(body.fields, moved, by)
    body.finish()
    return changed


def _joining_key(body: Body, by: AccountId) -> bytes:
    """Return the key of an account that is not a member: only a `join` brings one along."""
    if body.type != "join":
        raise LogInvalidError("an entry by an account that is not a member")
    return _certified_key(body.fields.copy(), by)


# Epochs and settings


def _epoch(fields: Fields, state: SpaceLogState, by: AccountId) -> SpaceLogState:
    number = Epoch(fields.integer("n", EPOCH_MAX))
    if number != state.epoch + 1:
        raise LogInvalidError(f"epoch {number} after epoch {state.epoch}")
    record = EpochRecord(
        b_commit=fields.octets("b_commit", HEAD_BYTES),
        dk_commit=fields.octets("dk_commit", HEAD_BYTES),
        drop_pk=_recipient(fields, "drop_pk"),
        # The first epoch has no earlier member key to lead back to.
        link=fields.octets("link", 0 if number == 1 else LINK_BYTES),
        by=by,
    )
    epochs = {**state.epochs, number: record}
    return msgspec.structs.replace(state, epoch=number, epochs=epochs, wants_rotation=False)


def _config(fields: Fields, state: SpaceLogState, by: AccountId) -> SpaceLogState:
    title, lease_hours, offline_needs = state.title, state.lease_hours, state.offline_needs
    if fields.has("title"):
        sealed = fields.octets("title", 1, TITLE_SEALED_BYTES_MAX)
        title = SealedTitle(sealed, Epoch(fields.integer("epoch", EPOCH_MAX)))
        if title.epoch not in state.epochs:
            raise LogInvalidError("a title sealed under an epoch that does not exist")
    if fields.has("lease_hours"):
        lease_hours = fields.integer("lease_hours", LEASE_HOURS_MAX)
    if fields.has("offline_needs"):
        offline_needs = fields.text("offline_needs")
        if offline_needs not in ("", NEEDS_KEYSTORE):
            raise UpdateNeededError(f"a demand on stores named {offline_needs}")
    return msgspec.structs.replace(state, title=title, lease_hours=lease_hours, offline_needs=offline_needs)


def _shred(fields: Fields, state: SpaceLogState, by: AccountId) -> SpaceLogState:
    if state.members[by].role is not Role.OWNER:
        raise LogInvalidError("only an owner shreds a space")
    return msgspec.structs.replace(state, is_shredded=True)


# Members


def _member(fields: Fields, state: SpaceLogState, by: AccountId) -> SpaceLogState:
    account = AccountId(fields.octets("account", ID_BYTES))
    sign_pk, kem_pk = _account_keys(fields, account)
    role = _role(fields)
    present = state.members.get(account)
    _check_ranks(state, by, role, present.role if present else role)
    known = present or state.applicants.get(account)
    if known is not None and kem_pk != known.kem_pk:
        raise LogInvalidError("a member's key is changed by another account")
    is_lower = present is not None and role.rank < present.role.rank
    cutoff = Cutoff(state.seq, fields.counters("cutoff"), is_whole=True) if is_lower else None
    _check_owner_stays(state, account, role)
    member = _granted(state, account, sign_pk, kem_pk, role, cutoff)
    if is_lower:
        state = _without_way_back(state, account)
        member = msgspec.structs.replace(member, barred_seq=state.seq)
    elif account in state.applicants:
        member = msgspec.structs.replace(member, invite=state.applicants[account].invite)
    changed = _with_invites_of_admitters(_with_member(state, account, member))
    # Who may no longer read still holds what opens the present epoch.
    loses_reading = present is not None and present.role.may_lease and not role.may_lease
    return msgspec.structs.replace(changed, wants_rotation=state.wants_rotation or loses_reading)


def _leave(fields: Fields, state: SpaceLogState, by: AccountId) -> SpaceLogState:
    reads = state.members[by].role.may_lease
    changed = _without_member(state, by, Cutoff(state.seq, fields.counters("cutoff"), is_whole=True))
    return msgspec.structs.replace(changed, wants_rotation=state.wants_rotation or reads)


def _remove(fields: Fields, state: SpaceLogState, by: AccountId) -> SpaceLogState:
    account = AccountId(fields.octets("account", ID_BYTES))
    if account == by:
        # It would hold the next member key, which it makes.
        raise LogInvalidError("an account removes itself; it may leave")
    cutoff = Cutoff(state.seq, fields.counters("cutoff"), is_whole=True)
    changed = _without(state, account, by, cutoff)
    # Removal without rotation cannot be expressed.
    epoch = fields.part("epoch")
    changed = _epoch(epoch, changed, by)
    epoch.finish("epoch")
    return changed


def _cutoff(fields: Fields, state: SpaceLogState, by: AccountId) -> SpaceLogState:
    account = AccountId(fields.octets("account", ID_BYTES))
    member = state.record_of(account)
    if member is None or (account != by and not state.members[by].role.may_admit):
        raise LogInvalidError("a cutoff of a stranger, or by one")
    cutoff = Cutoff(state.seq, fields.counters("counters"), is_whole=False)
    cut = msgspec.structs.replace(member, cutoffs=(*_still_needed(member.cutoffs, cutoff), cutoff))
    if account != by:
        _check_ranks(state, by, member.role)
        cut = msgspec.structs.replace(cut, barred_seq=state.seq)
    if account in state.members:
        return msgspec.structs.replace(state, members={**state.members, account: cut})
    return msgspec.structs.replace(state, former={**state.former, account: cut})


def _still_needed(earlier: Iterable[Cutoff], cutoff: Cutoff) -> list[Cutoff]:
    """Return what earlier cutoffs forbid beside a new one: every envelope of a member is held against all of them.

    A device that the new one cuts off at the same counter or below is forbidden more by it than by those.
    """
    kept = []
    for each in earlier:
        counters = {
            device: counter
            for device, counter in each.counters.items()
            if each.is_whole or counter < cutoff.counters.get(device, counter + 1)
        }
        if counters or each.is_whole:
            kept.append(
                each if len(counters) == len(each.counters) else msgspec.structs.replace(each, counters=counters)
            )
    return kept


def _rekem(fields: Fields, state: SpaceLogState, by: AccountId) -> SpaceLogState:
    member = msgspec.structs.replace(state.members[by], kem_pk=_recipient(fields, "kem"))
    # The old key may be in a thief's hands, and with it the member key of the present epoch.
    wants_rotation = state.wants_rotation or member.role.may_lease
    return msgspec.structs.replace(state, members={**state.members, by: member}, wants_rotation=wants_rotation)


# Invites


def _invite(fields: Fields, state: SpaceLogState, by: AccountId) -> SpaceLogState:
    name = fields.octets("id", ID_BYTES)
    invite = Invite(
        sign_pk=fields.octets("sign", KEY_BYTES),
        kem_pk=_recipient(fields, "kem"),
        role=_role(fields),
        expires_ms=fields.integer("expires", EXPIRES_MS_MAX),
        uses_left=fields.integer("uses", INVITE_USES_MAX),
        needs_approval=bool(fields.integer("approve", 1)),
        seq=state.seq,
        by=by,
    )
    if name != invite_id_of(invite.sign_pk, invite.kem_pk) or name in state.invites:
        raise LogInvalidError("an invite's id is not that of its keys, or is taken")
    if invite.role.may_admit or not invite.uses_left:
        raise LogInvalidError("an invite that makes owners or admins, or that nobody may use")
    if len(state.invites) >= SPACE_INVITES_MAX:
        raise LogInvalidError(f"more than {SPACE_INVITES_MAX} open invites")
    return msgspec.structs.replace(state, invites={**state.invites, name: invite})


def _uninvite(fields: Fields, state: SpaceLogState, by: AccountId) -> SpaceLogState:
    name = fields.octets("id", ID_BYTES)
    if name not in state.invites:
        raise LogInvalidError("an invite is withdrawn that is not open")
    return _used(state, name, uses_left=0)


def _join(fields: Fields, state: SpaceLogState, by: AccountId) -> SpaceLogState:
    name = fields.octets("invite", ID_BYTES)
    sign_pk, kem_pk = _account_keys(fields, by)
    isig = fields.octets("isig", SIGNATURE_BYTES)
    invite = state.invites.get(name)
    if invite is None:
        raise LogInvalidError("an invite that is not open")
    try:
        verify(invite.sign_pk, isig, join_message(state.space, name, by, sign_pk, kem_pk))
    except SignatureError as exc:
        raise LogInvalidError("the invite's key has not signed for this account") from exc
    if by in state.members or by in state.applicants:
        raise LogInvalidError("an account joins twice")
    former = state.former.get(by)
    if former is not None and former.barred_seq > invite.seq:
        raise LogInvalidError("an account wins back by an older invite what others took from it")
    used = _used(state, name, invite.uses_left - 1)
    if invite.needs_approval:
        if len(state.applicants) >= SPACE_MEMBERS_MAX:
            raise LogInvalidError(f"more than {SPACE_MEMBERS_MAX} applicants")
        applicant = Applicant(sign_pk, kem_pk, invite.role, name)
        return msgspec.structs.replace(used, applicants={**used.applicants, by: applicant})
    member = _granted(used, by, sign_pk, kem_pk, invite.role, None)
    return _with_member(used, by, msgspec.structs.replace(member, invite=name))


_Rule = Callable[[Fields, SpaceLogState, AccountId], SpaceLogState]
_RULES: dict[str, _Rule] = {
    "epoch": _epoch,
    "member": _member,
    "config": _config,
    "invite": _invite,
    "uninvite": _uninvite,
    "join": _join,
    "leave": _leave,
    "remove": _remove,
    "cutoff": _cutoff,
    "rekem": _rekem,
    "shred": _shred,
}
_BY_ADMITTERS = frozenset({"epoch", "member", "config", "invite", "uninvite", "remove", "shred"})
"""Types that only an owner or admin signs; the others have rules of their own."""


def _with_member(state: SpaceLogState, account: AccountId, member: Member) -> SpaceLogState:
    if len(state.members) >= SPACE_MEMBERS_MAX and account not in state.members:
        raise LogInvalidError(f"more than {SPACE_MEMBERS_MAX} members")
    former = {name: each for name, each in state.former.items() if name != account}
    applicants = {name: each for name, each in state.applicants.items() if name != account}
    members = {**state.members, account: member}
    return msgspec.structs.replace(state, members=members, former=former, applicants=applicants)


def _without(state: SpaceLogState, account: AccountId, by: AccountId, cutoff: Cutoff) -> SpaceLogState:
    """Remove a member, or turn an applicant away."""
    applicant = state.applicants.get(account)
    if applicant is not None:
        # What it wrote as a member of earlier days stays readable.
        before = state.former.get(account)
        gone = Member(applicant.sign_pk, applicant.kem_pk, applicant.role, before.granted if before else ())
        applicants = {name: each for name, each in state.applicants.items() if name != account}
        state = msgspec.structs.replace(state, applicants=applicants)
        return _with_former(state, account, gone, (*(before.cutoffs if before else ()), cutoff), is_removed=True)
    member = state.members.get(account)
    if member is None:
        raise LogInvalidError("an account is removed that is not a member")
    _check_ranks(state, by, member.role)
    return _without_member(_without_way_back(state, account), account, cutoff, is_removed=True)


def _without_member(
    state: SpaceLogState, account: AccountId, cutoff: Cutoff, *, is_removed: bool = False
) -> SpaceLogState:
    _check_owner_stays(state, account, None)
    member = state.members[account]
    members = {name: each for name, each in state.members.items() if name != account}
    state = _with_invites_of_admitters(msgspec.structs.replace(state, members=members))
    return _with_former(state, account, member, (*member.cutoffs, cutoff), is_removed=is_removed)


def _with_former(
    state: SpaceLogState, account: AccountId, member: Member, cutoffs: tuple[Cutoff, ...], *, is_removed: bool
) -> SpaceLogState:
    gone = msgspec.structs.replace(
        member,
        granted=(*member.granted, (state.seq, None)),
        cutoffs=cutoffs,
        removed_seq=state.seq if is_removed else 0,
        barred_seq=state.seq if is_removed else member.barred_seq,
    )
    return msgspec.structs.replace(state, former={**state.former, account: gone})


def _without_way_back(state: SpaceLogState, account: AccountId) -> SpaceLogState:
    """Withdraw the invite by which an account came: who knows its secret could come again as another account.

    One that needs approval stays: nobody gets in by it unseen.
    """
    invite = state.invites.get(state.members[account].invite)
    if invite is None or invite.needs_approval:
        return state
    return _used(state, state.members[account].invite, uses_left=0)


def _with_invites_of_admitters(state: SpaceLogState) -> SpaceLogState:
    """Withdraw the invites of those who may no longer invite: they know the secrets."""
    members = state.members
    invites = {
        name: each for name, each in state.invites.items() if each.by in members and members[each.by].role.may_admit
    }
    return msgspec.structs.replace(state, invites=invites)


def _granted(
    state: SpaceLogState, account: AccountId, sign_pk: bytes, kem_pk: bytes, role: Role, cutoff: Cutoff | None
) -> Member:
    """Return an account's record with a role from this entry on; what it was before stays known."""
    before = state.record_of(account)
    granted = (*(before.granted if before else ()), (state.seq, role))
    cutoffs = (*(before.cutoffs if before else ()), *((cutoff,) if cutoff else ()))
    barred_seq, invite = (before.barred_seq, before.invite) if before else (0, b"")
    return Member(sign_pk, kem_pk, role, granted, cutoffs, barred_seq=barred_seq, invite=invite)


def _used(state: SpaceLogState, name: bytes, uses_left: int) -> SpaceLogState:
    invites = dict(state.invites)
    invite = invites.pop(name)
    if uses_left:
        invites[name] = msgspec.structs.replace(invite, uses_left=uses_left)
    return msgspec.structs.replace(state, invites=invites)


def _check_ranks(state: SpaceLogState, by: AccountId, *roles: Role) -> None:
    if state.members[by].role is not Role.OWNER and any(role.may_admit for role in roles):
        raise LogInvalidError("only an owner makes or changes owners and admins")


def _check_owner_stays(state: SpaceLogState, account: AccountId, role: Role | None) -> None:
    # The owners are counted only where one goes: a long log has many members.
    goes = state.role_of(account) is Role.OWNER and role is not Role.OWNER
    if goes and state.owners == {account}:
        raise LogInvalidError("the last owner of a space")


def _account_keys(fields: Fields, account: AccountId) -> tuple[bytes, bytes]:
    return _certified_key(fields, account), _recipient(fields, "kem")


def _certified_key(fields: Fields, account: AccountId) -> bytes:
    sign_pk = fields.octets("sign", KEY_BYTES)
    if account != account_id_of(sign_pk):
        raise LogInvalidError("an account's id is not that of its key")
    return sign_pk


def _recipient(fields: Fields, name: str) -> bytes:
    """Take a key to which others wrap or seal. One of small order would stop every rotation, as nothing wraps to it."""
    key = fields.octets(name, KEY_BYTES)
    if not hpke.is_recipient(key):
        raise LogInvalidError(f"{name} is a key to which nothing can be wrapped")
    return key


def _role(fields: Fields) -> Role:
    text = fields.text("role")
    try:
        return Role(text)
    except ValueError as exc:
        raise UpdateNeededError(f"a role named {text}") from exc
