"""The space log: members, roles, epochs and settings. Verification only. See spec/sealing.md, section 4.

Key service, server and every client replay the same rules, so that nobody can add a member that the owner did not.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from enum import StrEnum

import msgspec

from twinlock.errors import LogInvalidError, UpdateNeededError
from twinlock.ids import ID_BYTES, AccountId, Epoch, LogId, SpaceId
from twinlock.protocol.account_log import GENESIS_NONCE_BYTES, account_id_of
from twinlock.protocol.calls import SignedEntry
from twinlock.protocol.envelope import Kind
from twinlock.protocol.labels import label, u16
from twinlock.protocol.signed_log import HEAD_BYTES, KEY_BYTES, NO_LOG, PREFIX_BYTES, Body, LogPosition, check_entry

PARTITION_MAX = (1 << 16) - 1
EPOCH_MAX = (1 << 32) - 1
LINK_BYTES = 60
"""A nonce, 32 bytes of the earlier member key, and a tag."""

TITLE_SEALED_BYTES_MAX = 1024
LEASE_HOURS_DEFAULT = 24
LEASE_HOURS_MAX = 24 * 366


class Role(StrEnum):
    """What a member may do in a space."""

    OWNER = "owner"
    ADMIN = "admin"
    EDITOR = "editor"
    READER = "reader"
    SENDER = "sender"

    def may_write(self, kind: Kind) -> bool:
        """Tell whether envelopes of a kind count when this role sends them."""
        return kind in _WRITES[self]

    @property
    def may_lease(self) -> bool:
        """Whether the key service releases service keys to this role."""
        return self is not Role.SENDER

    @property
    def may_admit(self) -> bool:
        """Whether this role changes members, epochs and settings."""
        return self in (Role.OWNER, Role.ADMIN)

    @property
    def rank(self) -> int:
        """The role's place from the weakest, 0, upwards."""
        return _RANKS.index(self)


_RANKS = (Role.SENDER, Role.READER, Role.EDITOR, Role.ADMIN, Role.OWNER)
_STORED = frozenset({Kind.CHANGE, Kind.SNAPSHOT, Kind.SIGNAL})
_WRITES: Mapping[Role, frozenset[Kind]] = {
    Role.OWNER: _STORED,
    Role.ADMIN: _STORED,
    Role.EDITOR: _STORED,
    # Presence is not writing: a signal is never stored.
    Role.READER: frozenset({Kind.SIGNAL}),
    Role.SENDER: frozenset({Kind.DROP}),
}


class Member(msgspec.Struct, frozen=True):
    """A member's account keys and role; `granted` tells from which entry of the log on each role held."""

    sign_pk: bytes
    kem_pk: bytes
    role: Role
    granted: tuple[tuple[int, Role], ...]

    def role_at(self, seq: int) -> Role | None:
        """Return the role that held after `seq` entries of the log."""
        held = [role for since, role in self.granted if since <= seq]
        return held[-1] if held else None


class EpochRecord(msgspec.Struct, frozen=True):
    """The public commitments of one epoch, and who opened it."""

    b_commit: bytes
    dk_commit: bytes
    drop_pk: bytes
    link: bytes
    by: AccountId


class SealedTitle(msgspec.Struct, frozen=True):
    """A space's name, sealed under the data key of an epoch."""

    sealed: bytes
    epoch: Epoch


class SpaceLogState(msgspec.Struct, frozen=True):
    """What a space's log says after `seq` entries. `head_prefixes` tells at which entry each short head stood."""

    space: SpaceId
    partition: int
    members: Mapping[AccountId, Member]
    epochs: Mapping[Epoch, EpochRecord]
    epoch: Epoch
    title: SealedTitle | None
    lease_hours: int
    head_prefixes: Mapping[bytes, int]
    seq: int
    head: bytes

    @property
    def position(self) -> LogPosition:
        """How far the log has been read."""
        return LogPosition(self.seq, self.head)

    @property
    def head_prefix(self) -> bytes:
        """What an envelope that is sealed now names as the log's head."""
        return self.head[:PREFIX_BYTES]

    def role_of(self, account: AccountId) -> Role | None:
        """Return an account's present role; None for a stranger."""
        member = self.members.get(account)
        return member.role if member else None


def space_id_of(partition: int, genesis_head: bytes) -> SpaceId:
    """Return the id that a genesis entry's hash certifies: to know the id is to pin the owner."""
    return SpaceId(u16(partition) + hashlib.sha256(label("space") + genesis_head).digest()[: ID_BYTES - 2])


def replay_space(entries: Iterable[SignedEntry], after: SpaceLogState | None = None) -> SpaceLogState:
    """Verify entries in order, from the genesis or after a state, and return the state they lead to.

    The caller compares `space` of the result with the id that it asked for.

    Raises:
        SignatureError: an entry is not signed by the member it names, or is not in its place.
        LogInvalidError: an entry breaks a rule, or there is no entry at all.
        UpdateNeededError: an entry is of a type that this version does not know.
    """
    state = after
    for entry in entries:
        state = _genesis(entry) if state is None else _follow(entry, state)
    if state is None:
        raise LogInvalidError("a space's log without a genesis")
    return state


def _genesis(entry: SignedEntry) -> SpaceLogState:
    body = Body(entry.body)
    if body.type != "genesis":
        raise LogInvalidError("a space's log does not begin with a genesis")
    owner = AccountId(body.octets("by", ID_BYTES))
    body.octets("nonce", GENESIS_NONCE_BYTES)
    partition = body.integer("partition", PARTITION_MAX)
    sign_pk, kem_pk = _account_keys(body, owner)
    body.finish()
    position = check_entry(NO_LOG, LogPosition(), entry.body, entry.sig, sign_pk)
    return SpaceLogState(
        space=space_id_of(partition, position.head),
        partition=partition,
        members={owner: Member(sign_pk, kem_pk, Role.OWNER, ((position.seq, Role.OWNER),))},
        epochs={},
        epoch=Epoch(0),
        title=None,
        lease_hours=LEASE_HOURS_DEFAULT,
        head_prefixes={position.head[:PREFIX_BYTES]: position.seq},
        seq=position.seq,
        head=position.head,
    )


def _follow(entry: SignedEntry, state: SpaceLogState) -> SpaceLogState:
    body = Body(entry.body)
    # An unknown type may have another form of signature, so it is told apart before anything else.
    rule = _RULES.get(body.type)
    if rule is None:
        raise UpdateNeededError(f"a space entry of type {body.type}")
    by = AccountId(body.octets("by", ID_BYTES))
    author = state.members.get(by)
    if author is None:
        raise LogInvalidError("an entry by an account that is not a member")
    position = check_entry(LogId(state.space), state.position, entry.body, entry.sig, author.sign_pk)
    if not author.role.may_admit:
        raise LogInvalidError(f"an entry of type {body.type} by a member with role {author.role}")
    moved = msgspec.structs.replace(
        state,
        seq=position.seq,
        head=position.head,
        head_prefixes={**state.head_prefixes, position.head[:PREFIX_BYTES]: position.seq},
    )
    changed = rule(body, moved, by)
    body.finish()
    return changed


def _epoch(body: Body, state: SpaceLogState, by: AccountId) -> SpaceLogState:
    number = Epoch(body.integer("n", EPOCH_MAX))
    if number != state.epoch + 1:
        raise LogInvalidError(f"epoch {number} after epoch {state.epoch}")
    record = EpochRecord(
        b_commit=body.octets("b_commit", HEAD_BYTES),
        dk_commit=body.octets("dk_commit", HEAD_BYTES),
        drop_pk=body.octets("drop_pk", KEY_BYTES),
        # The first epoch has no earlier member key to lead back to.
        link=body.octets("link", 0 if number == 1 else LINK_BYTES),
        by=by,
    )
    return msgspec.structs.replace(state, epoch=number, epochs={**state.epochs, number: record})


def _member(body: Body, state: SpaceLogState, by: AccountId) -> SpaceLogState:
    account = AccountId(body.octets("account", ID_BYTES))
    sign_pk, kem_pk = _account_keys(body, account)
    role = _role(body)
    present = state.members.get(account)
    touched = {role, present.role if present else role}
    if state.members[by].role is not Role.OWNER and touched & {Role.OWNER, Role.ADMIN}:
        raise LogInvalidError("only an owner makes or changes owners and admins")
    if present is not None and kem_pk != present.kem_pk:
        raise LogInvalidError("a member's key is changed by another account")
    if present is not None and role.rank < present.role.rank:
        raise LogInvalidError("a lower role without a cutoff")
    granted = (*(present.granted if present else ()), (state.seq, role))
    return msgspec.structs.replace(state, members={**state.members, account: Member(sign_pk, kem_pk, role, granted)})


def _config(body: Body, state: SpaceLogState, by: AccountId) -> SpaceLogState:
    title, lease_hours = state.title, state.lease_hours
    if body.has("title"):
        sealed = body.octets("title", 1, TITLE_SEALED_BYTES_MAX)
        title = SealedTitle(sealed, Epoch(body.integer("epoch", EPOCH_MAX)))
        if title.epoch not in state.epochs:
            raise LogInvalidError("a title sealed under an epoch that does not exist")
    if body.has("lease_hours"):
        lease_hours = body.integer("lease_hours", LEASE_HOURS_MAX)
    return msgspec.structs.replace(state, title=title, lease_hours=lease_hours)


_RULES = {"epoch": _epoch, "member": _member, "config": _config}


def _account_keys(body: Body, account: AccountId) -> tuple[bytes, bytes]:
    sign_pk, kem_pk = body.octets("sign", KEY_BYTES), body.octets("kem", KEY_BYTES)
    if account != account_id_of(sign_pk):
        raise LogInvalidError("an account's id is not that of its key")
    return sign_pk, kem_pk


def _role(body: Body) -> Role:
    text = body.text("role")
    try:
        return Role(text)
    except ValueError as exc:
        raise UpdateNeededError(f"a role named {text}") from exc
