"""What a space's log says: members, roles, cutoffs, invites, epochs and settings. See spec/sealing.md, section 4.

The rules by which entries lead from one state to the next are in `twinlock.protocol.space_rules`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from enum import StrEnum

import msgspec

from twinlock.ids import ID_BYTES, AccountId, Counter, DeviceId, Epoch, SpaceId
from twinlock.protocol.envelope import Kind
from twinlock.protocol.labels import label, u16
from twinlock.protocol.signed_log import PREFIX_BYTES, LogPosition

LEASE_HOURS_DEFAULT = 24
LEASE_HOURS_MAX = 24 * 366
NEEDS_KEYSTORE = "keystore"
"""The value of `offline_needs` that forbids to store leases where the StoreKey lies in a plain file."""


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


class Cutoff(msgspec.Struct, frozen=True):
    """Where chains of an account ended at an entry of the log: what lies above needs a later grant.

    A whole cutoff (the role ended) holds for all devices, those not named at 0; otherwise for the named ones alone
    (they were revoked).
    """

    seq: int
    counters: Mapping[DeviceId, Counter]
    is_whole: bool

    def covers(self, device: DeviceId, counter: Counter) -> bool:
        """Tell whether an envelope lies above this cutoff."""
        if device not in self.counters:
            return self.is_whole
        return counter > self.counters[device]


class Member(msgspec.Struct, frozen=True):
    """A member's account keys and role, or those of a former one.

    `granted` tells from which entry of the log on each role held (None: none any more). `removed_seq` is the entry by
    which others ended the membership, 0 if they did not. `barred_seq` is the newest entry by which others took
    something from the account: no invite from before it gives that back. `invite` is what it came by, if by one.
    """

    sign_pk: bytes
    kem_pk: bytes
    role: Role
    granted: tuple[tuple[int, Role | None], ...]
    cutoffs: tuple[Cutoff, ...] = ()
    removed_seq: int = 0
    barred_seq: int = 0
    invite: bytes = b""

    def role_at(self, seq: int) -> Role | None:
        """Return the role that held after `seq` entries of the log."""
        held = [role for since, role in self.granted if since <= seq]
        return held[-1] if held else None

    def is_cut_off(self, device: DeviceId, counter: Counter, kind: Kind, seq: int, *, is_revoked: bool) -> bool:
        """Tell whether an envelope that names the log's head after `seq` entries lies above a cutoff.

        A later entry that grants writing lifts a cutoff, except that of a device which its account has revoked.
        """
        return any(
            (is_revoked and not cutoff.is_whole) or not self._is_granted(kind, cutoff.seq, seq)
            for cutoff in self.cutoffs
            if cutoff.covers(device, counter)
        )

    def _is_granted(self, kind: Kind, since: int, upto: int) -> bool:
        return any(since <= at <= upto and role is not None and role.may_write(kind) for at, role in self.granted)


class Invite(msgspec.Struct, frozen=True):
    """An open invite: whoever holds its secret may join with its role; `seq` is the entry that made it.

    It stands by the right of its author, `by`, and is withdrawn with it.
    """

    sign_pk: bytes
    kem_pk: bytes
    role: Role
    expires_ms: int
    uses_left: int
    needs_approval: bool
    seq: int
    by: AccountId

    @property
    def takes_key(self) -> bool:
        """Whether the member key is wrapped to it: not before somebody has looked at who comes."""
        return self.role.may_lease and not self.needs_approval


class Applicant(msgspec.Struct, frozen=True):
    """An account that joined by an invite which needs approval: no role until a `member` entry."""

    sign_pk: bytes
    kem_pk: bytes
    role: Role
    invite: bytes


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


class SpaceLogState(msgspec.Struct, frozen=True, kw_only=True):
    """What a space's log says after `seq` entries. `head_prefixes` tells at which entry each short head stood.

    `wants_rotation` tells that somebody who can derive the newest keys should no longer: an epoch is to be opened.
    """

    space: SpaceId
    partition: int
    members: Mapping[AccountId, Member]
    former: Mapping[AccountId, Member] = {}
    invites: Mapping[bytes, Invite] = {}
    applicants: Mapping[AccountId, Applicant] = {}
    epochs: Mapping[Epoch, EpochRecord] = {}
    epoch: Epoch = Epoch(0)
    title: SealedTitle | None = None
    lease_hours: int = LEASE_HOURS_DEFAULT
    offline_needs: str = ""
    wants_rotation: bool = False
    is_shredded: bool = False
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

    @property
    def owners(self) -> frozenset[AccountId]:
        """The accounts that own the space; there is always one."""
        return frozenset(account for account, member in self.members.items() if member.role is Role.OWNER)

    @property
    def key_holders(self) -> Mapping[bytes, bytes]:
        """To whom A is wrapped: the `kem` keys of members that read, and of open invites by which one reads at once."""
        members: dict[bytes, bytes] = {name: each.kem_pk for name, each in self.members.items() if each.role.may_lease}
        return members | {name: each.kem_pk for name, each in self.invites.items() if each.takes_key}

    def role_of(self, account: AccountId) -> Role | None:
        """Return an account's present role; None for a stranger and for a former member."""
        member = self.members.get(account)
        return member.role if member else None

    def record_of(self, account: AccountId) -> Member | None:
        """Return the record of an account that is or was a member."""
        return self.members.get(account) or self.former.get(account)


def partition_of(space: SpaceId) -> int:
    """Return the partition that a space's id carries."""
    return int.from_bytes(space[:2], "big")


def space_id_of(partition: int, genesis_head: bytes) -> SpaceId:
    """Return the id that a genesis entry's hash certifies: to know the id is to pin the owner."""
    return SpaceId(u16(partition) + hashlib.sha256(label("space") + genesis_head).digest()[: ID_BYTES - 2])


def invite_id_of(sign_pk: bytes, kem_pk: bytes) -> bytes:
    """Return the 16 bytes that an invite's two keys certify."""
    return hashlib.sha256(label("invite") + sign_pk + kem_pk).digest()[:ID_BYTES]
