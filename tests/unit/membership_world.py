"""A space whose members come and go: every entry of its log, as honest devices make them."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.unit.sealing_world import Person, SeededEntropy, World
from twinlock.errors import LogInvalidError, TwinlockError
from twinlock.ids import Counter, DeviceId, Epoch
from twinlock.protocol.calls import SignedEntry
from twinlock.protocol.signed_log import FieldValue, encode_body
from twinlock.protocol.space_log import Member, Role
from twinlock.protocol.space_rules import replay_space
from twinlock.sealing import ServiceKey, config_lease_entry, epoch_entry, make_epoch, member_entry, space_genesis
from twinlock.sealing.identity import sign_entry
from twinlock.sealing.invites import InviteKeys, InviteTerms, invite_entry, join_entry, make_invite
from twinlock.sealing.space_entries import (
    NextEpoch,
    cutoff_entry,
    leave_entry,
    lower_entry,
    member_kem_entry,
    remove_entry,
)

_ENTROPY = SeededEntropy("invites")
EXPIRES_MS = 1_800_000_000_000
Counters = dict[DeviceId, Counter]


class Membership(World):
    """A space with all entries of its log at hand."""

    def __init__(self, owner: Person | None = None, seed: str = "membership") -> None:
        self.owner = owner or Person("owner")
        self.entropy = SeededEntropy(seed)
        self.people = [self.owner]
        self.epochs = {}
        genesis = space_genesis(self.owner.keys, 3, self.entropy)
        self.log = replay_space([genesis])
        self.entries = [genesis]
        self.rotate()

    def grow(self, entry: SignedEntry) -> None:
        """Append an entry, if the rules let it."""
        self.log = replay_space([entry], self.log)
        self.entries.append(entry)

    def raw(self, by: Person, kind: str, **fields: FieldValue) -> SignedEntry:
        """Return any entry, rightly signed, that need not keep to the rules."""
        body = encode_body(kind, {"by": by.keys.account, **fields})
        return sign_entry(by.keys, self.log.space, self.log.position, body)

    def next_epoch(self) -> NextEpoch:
        """Draw the keys of the epoch that comes next."""
        number = Epoch(self.log.epoch + 1)
        keys = make_epoch(self.log.space, number, ServiceKey.make(self.entropy), self.entropy)
        earlier = self.keys.member_key if self.epochs else None
        return NextEpoch(keys, earlier, self.entropy)

    def rotate(self, by: Person | None = None) -> None:
        keys, earlier, entropy = self.next_epoch()
        self.grow(epoch_entry((by or self.owner).keys, self.log, keys, earlier, entropy))
        self.epochs[keys.epoch] = keys

    def admit(self, person: Person, role: Role, by: Person | None = None) -> None:
        self.grow(self.member(person, role, by))
        self.meet(person)

    def member(self, person: Person, role: Role, by: Person | None = None) -> SignedEntry:
        keys = person.keys
        return member_entry((by or self.owner).keys, self.log, keys.sign_pk, keys.kem_pk, keys.account, role)

    def meet(self, person: Person) -> None:
        if person not in self.people:
            self.people.append(person)

    def lower(self, person: Person, role: Role, cutoff: Counters | None = None, by: Person | None = None) -> None:
        self.grow(lower_entry((by or self.owner).keys, self.log, person.keys.account, role, cutoff or {}))

    def remove(self, person: Person, cutoff: Counters | None = None, by: Person | None = None) -> None:
        epoch = self.next_epoch()
        self.grow(remove_entry((by or self.owner).keys, self.log, person.keys.account, cutoff or {}, epoch))
        self.epochs[epoch.keys.epoch] = epoch.keys

    def leave(self, person: Person, cutoff: Counters | None = None) -> None:
        self.grow(leave_entry(person.keys, self.log, cutoff or {}))

    def cut(self, person: Person, counters: Counters, by: Person | None = None) -> None:
        self.grow(cutoff_entry((by or person).keys, self.log, person.keys.account, counters))

    def rekem(self, person: Person) -> None:
        """Tell the space a member's present key to be wrapped to."""
        self.grow(member_kem_entry(person.keys, self.log))

    def invite(
        self, role: Role, uses: int = 1, *, needs_approval: bool = False, by: Person | None = None
    ) -> InviteKeys:
        """Open an invite, and return what follows from its secret."""
        link = make_invite(self.log.space, self.entropy)
        keys = InviteKeys.of(link.space, link.secret)
        terms = InviteTerms(role, EXPIRES_MS, uses, needs_approval)
        self.grow(invite_entry((by or self.owner).keys, self.log, keys, terms))
        return keys

    def join(self, person: Person, invite: InviteKeys) -> None:
        self.grow(join_entry(person.keys, self.log, invite))
        self.meet(person)

    def role(self, person: Person) -> Role | None:
        return self.log.role_of(person.keys.account)

    def record(self, person: Person) -> Member:
        record = self.log.record_of(person.keys.account)
        assert record is not None
        return record


OWNER, ADMIN, EDITOR, READER, SENDER = (Person(role) for role in Role)
OTHER, STRANGER = Person("other"), Person("stranger")
BY_ROLE = dict(zip(Role, (OWNER, ADMIN, EDITOR, READER, SENDER), strict=True))


def household() -> Membership:
    """Return a space with a member of every role."""
    space = Membership(OWNER)
    for role, person in BY_ROLE.items():
        if role is not Role.OWNER:
            space.admit(person, role)
    return space


def refused(space: Membership, entry: SignedEntry, error: type[TwinlockError] = LogInvalidError) -> None:
    """Check that the rules do not let an entry in."""
    with pytest.raises(error):
        replay_space([entry], space.log)


def epoch_fields(number: int) -> dict[str, FieldValue]:
    """Return the fields of an epoch entry, whose commitments are to nothing."""
    link = bytes(60 if number > 1 else 0)
    commits = {"b_commit": bytes(32), "dk_commit": bytes(32), "drop_pk": STRANGER.keys.kem_pk}
    return {"n": number, **commits, "link": link}


def fresh_invite() -> InviteKeys:
    """Draw an invite that no log knows."""
    return InviteKeys(_ENTROPY(64))


def invite_fields(keys: InviteKeys, **altered: FieldValue) -> dict[str, FieldValue]:
    """Return the fields of an invite entry, some of them altered."""
    fields: dict[str, FieldValue] = {"id": keys.id, "sign": keys.sign_pk, "kem": keys.kem_pk, "role": "reader"}
    return {**fields, "expires": EXPIRES_MS, "uses": 1, "approve": 0, **altered}


BY_ADMITTERS: dict[str, Callable[[Membership, Person], SignedEntry]] = {
    "epoch": lambda space, by: space.raw(by, "epoch", **epoch_fields(space.log.epoch + 1)),
    "member": lambda space, by: space.member(OTHER, Role.READER, by),
    "config": lambda space, by: config_lease_entry(by.keys, space.log, 1),
    "invite": lambda space, by: invite_entry(by.keys, space.log, fresh_invite(), InviteTerms(Role.READER, EXPIRES_MS)),
    "remove": lambda space, by: remove_entry(by.keys, space.log, SENDER.keys.account, {}, space.next_epoch()),
}
"""An entry of each type that only owners and admins sign."""
