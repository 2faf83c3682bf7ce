"""The rules of invites: who gets in by one, who waits for approval, and who does not come back."""

import json

import pytest

from tests.unit.membership_world import (
    ADMIN,
    EDITOR,
    OTHER,
    OWNER,
    READER,
    STRANGER,
    Membership,
    fresh_invite,
    household,
    invite_fields,
    refused,
)
from tests.unit.sealing_world import Person
from twinlock.errors import UpdateNeededError
from twinlock.ids import Counter, DeviceId
from twinlock.protocol import limits
from twinlock.protocol.labels import label
from twinlock.protocol.signed_log import COUNTER_MAX
from twinlock.protocol.space_log import Role
from twinlock.sealing.invites import InviteKeys, join_entry, uninvite_entry

DEVICE = DeviceId(bytes(range(16)))


@pytest.fixture
def space() -> Membership:
    return household()


def test_who_holds_an_invite_joins_with_its_role(space):
    invite = space.invite(Role.EDITOR, by=ADMIN)
    assert space.log.key_holders[invite.id] == invite.kem_pk
    space.join(OTHER, invite)

    record = space.log.members[OTHER.keys.account]
    assert (record.role, record.kem_pk, record.granted) == (
        Role.EDITOR,
        OTHER.keys.kem_pk,
        ((space.log.seq, Role.EDITOR),),
    )
    assert invite.id not in space.log.invites
    assert invite.id not in space.log.key_holders


@pytest.mark.parametrize(("role", "needs_approval"), [(Role.SENDER, False), (Role.SENDER, True), (Role.EDITOR, True)])
def test_nothing_is_wrapped_to_the_invite_of_a_sender_or_one_that_needs_approval(space, role, needs_approval):
    """Who was turned away still knows the link: it must not lead to the keys of the epochs that follow."""
    invite = space.invite(role, needs_approval=needs_approval)

    assert invite.id in space.log.invites
    assert invite.id not in space.log.key_holders


@pytest.mark.parametrize("uses", [1, 3])
def test_an_invite_is_used_as_often_as_it_says(space, uses):
    invite = space.invite(Role.READER, uses)
    for number in range(uses):
        space.join(Person(f"guest {number}"), invite)

    refused(space, join_entry(OTHER.keys, space.log, invite))


@pytest.mark.parametrize(
    "altered",
    [
        {"role": "owner"},
        {"role": "admin"},
        {"uses": 0},
        {"uses": limits.INVITE_USES_MAX + 1},
        {"approve": 2},
        {"expires": -1},
        {"expires": COUNTER_MAX + 1},
        {"id": bytes(16)},
        {"sign": STRANGER.keys.sign_pk},
        {"kem": STRANGER.keys.kem_pk},
        {"id": b""},
    ],
    ids=str,
)
def test_an_invite_that_breaks_a_rule_is_refused(space, altered):
    refused(space, space.raw(OWNER, "invite", **invite_fields(fresh_invite(), **altered)))


@pytest.mark.parametrize("altered", [{"role": "emperor"}, {"later": 1}], ids=str)
def test_an_invite_of_a_newer_version_stops_the_replay(space, altered):
    refused(space, space.raw(OWNER, "invite", **invite_fields(fresh_invite(), **altered)), UpdateNeededError)


def test_an_open_invite_is_not_opened_twice(space):
    invite = space.invite(Role.READER)

    refused(space, space.raw(OWNER, "invite", **invite_fields(invite)))


def test_a_withdrawn_invite_lets_nobody_in(space):
    invite = space.invite(Role.READER, uses=5)
    space.grow(uninvite_entry(ADMIN.keys, space.log, invite.id))

    refused(space, join_entry(OTHER.keys, space.log, invite))
    refused(space, uninvite_entry(OWNER.keys, space.log, invite.id))


def test_invites_are_counted(space, monkeypatch):
    monkeypatch.setattr("twinlock.protocol.space_rules.SPACE_INVITES_MAX", 2)
    space.invite(Role.READER)
    invite = space.invite(Role.READER)

    refused(space, space.raw(OWNER, "invite", **invite_fields(fresh_invite())))
    space.grow(uninvite_entry(OWNER.keys, space.log, invite.id))
    space.invite(Role.READER)


def test_members_and_applicants_are_counted(space, monkeypatch):
    monkeypatch.setattr("twinlock.protocol.space_rules.SPACE_MEMBERS_MAX", len(space.log.members))
    refused(space, space.member(OTHER, Role.READER))
    space.grow(space.member(READER, Role.EDITOR))
    invite = space.invite(Role.READER, 10, needs_approval=True)
    for number in range(len(space.log.members)):
        space.join(Person(f"applicant {number}"), invite)

    refused(space, join_entry(OTHER.keys, space.log, invite))


def join_fields(space: Membership, invite: InviteKeys, **altered) -> dict:
    keys = OTHER.keys
    body = json.loads(join_entry(keys, space.log, invite).body)
    isig = invite.sign.sign(label("join", space.log.space + invite.id + keys.account + keys.sign_pk + keys.kem_pk))
    fields = {"invite": invite.id, "sign": keys.sign_pk, "kem": keys.kem_pk, "isig": isig}
    assert set(body) == {"by", "type", *fields}
    return {**fields, **altered}


def test_a_join_is_what_the_page_says(space):
    invite = space.invite(Role.READER)
    space.grow(space.raw(OTHER, "join", **join_fields(space, invite)))

    assert space.role(OTHER) is Role.READER


@pytest.mark.parametrize(
    ("signer", "context"),
    [
        ("invite", lambda space, invite, keys: bytes(16) + invite + keys),
        ("invite", lambda space, invite, keys: space + bytes(16) + keys),
        ("invite", lambda space, invite, keys: space + invite + STRANGER.keys.account + keys[16:]),
        ("invite", lambda space, invite, keys: space + invite + keys[:48] + STRANGER.keys.kem_pk),
        ("joiner", lambda space, invite, keys: space + invite + keys),
        ("owner", lambda space, invite, keys: space + invite + keys),
    ],
)
def test_the_invite_s_key_must_have_signed_for_this_account_and_space(space, signer, context):
    invite = space.invite(Role.READER)
    sign = {"invite": invite.sign, "joiner": OTHER.keys.sign, "owner": OWNER.keys.sign}[signer]
    keys = OTHER.keys.account + OTHER.keys.sign_pk + OTHER.keys.kem_pk
    isig = sign.sign(label("join", context(space.log.space, invite.id, keys)))

    refused(space, space.raw(OTHER, "join", **join_fields(space, invite, isig=isig)))


def test_another_s_join_is_of_no_use(space):
    """Who sees a join sees the invite's signature, but it names the account."""
    invite = space.invite(Role.READER, uses=2)
    space.join(Person("guest"), invite)
    seen = json.loads(space.entries[-1].body)["isig"]

    refused(space, space.raw(OTHER, "join", **join_fields(space, invite, isig=seen)))


def test_an_account_joins_with_its_own_keys(space):
    invite = space.invite(Role.READER)
    stolen = {"sign": OWNER.keys.sign_pk, "kem": OWNER.keys.kem_pk}

    refused(space, space.raw(OTHER, "join", **join_fields(space, invite, **stolen)))


def test_a_member_or_applicant_does_not_join_again(space):
    space.join(OTHER, space.invite(Role.EDITOR, needs_approval=True))
    invite = space.invite(Role.EDITOR, uses=5)

    for person in (OWNER, READER, OTHER):
        refused(space, join_entry(person.keys, space.log, invite))


# Approval


@pytest.mark.parametrize("role", [Role.EDITOR, Role.READER, Role.SENDER])
def test_an_applicant_has_no_role_until_somebody_confirms(space, role):
    space.join(OTHER, space.invite(role, needs_approval=True))
    account = OTHER.keys.account
    assert (space.role(OTHER), space.log.applicants[account].role) == (None, role)
    assert account not in space.log.key_holders
    assert space.log.record_of(account) is None

    space.grow(space.member(OTHER, role, by=ADMIN))

    assert (space.role(OTHER), space.log.applicants) == (role, {})


def test_an_applicant_is_confirmed_with_the_keys_that_it_brought(space):
    space.join(OTHER, space.invite(Role.READER, needs_approval=True))
    fields = {"account": OTHER.keys.account, "sign": OTHER.keys.sign_pk, "role": "reader"}

    refused(space, space.raw(OWNER, "member", **fields, kem=STRANGER.keys.kem_pk))


def test_who_is_turned_away_needs_a_new_invite(space):
    invite = space.invite(Role.READER, uses=9, needs_approval=True)
    space.join(OTHER, invite)
    epoch = space.log.epoch
    space.remove(OTHER, by=ADMIN)

    assert (space.log.epoch, space.log.applicants, space.role(OTHER)) == (epoch + 1, {}, None)
    refused(space, join_entry(OTHER.keys, space.log, invite))
    # Others may still apply by it.
    space.join(STRANGER, invite)
    space.join(OTHER, space.invite(Role.READER))
    assert space.role(OTHER) is Role.READER


def test_who_is_turned_away_stays_the_author_of_what_it_wrote_before(space):
    """Its role of earlier days is that by which its old envelopes are read."""
    before = space.log.seq
    space.leave(EDITOR, {DEVICE: Counter(5)})
    left = space.record(EDITOR)
    space.join(EDITOR, space.invite(Role.EDITOR, needs_approval=True))
    space.remove(EDITOR)
    record = space.record(EDITOR)

    assert record.role_at(before) is Role.EDITOR
    assert record.granted == (*left.granted, (space.log.seq, None))
    assert record.cutoffs[:-1] == left.cutoffs


# Coming back


def test_who_left_comes_back_by_an_invite_that_is_open(space):
    invite = space.invite(Role.READER, uses=2)
    space.join(OTHER, invite)
    space.leave(OTHER)
    space.join(OTHER, invite)

    assert space.role(OTHER) is Role.READER
    assert OTHER.keys.account not in space.log.former
    assert [role for _, role in space.record(OTHER).granted] == [Role.READER, None, Role.READER]


def test_who_was_removed_does_not_come_back_by_an_older_invite(space):
    by_hand, other = Person("by hand"), space.invite(Role.READER, uses=5)
    space.admit(by_hand, Role.READER)
    space.remove(by_hand)

    refused(space, join_entry(by_hand.keys, space.log, other))
    space.join(by_hand, space.invite(Role.READER))
    assert space.record(by_hand).removed_seq == 0
    # Not even after it came back by a new one and left.
    space.leave(by_hand)
    refused(space, join_entry(by_hand.keys, space.log, other))


def test_a_lowered_member_does_not_rise_by_leaving_and_joining_again(space):
    invite = space.invite(Role.EDITOR, uses=5)
    space.lower(EDITOR, Role.READER)
    space.leave(EDITOR)

    refused(space, join_entry(EDITOR.keys, space.log, invite))


def test_the_invite_by_which_a_removed_member_came_is_withdrawn_with_it(space):
    """Who was removed knows its secret, and could come again as another account."""
    invite, other = space.invite(Role.EDITOR, uses=5), space.invite(Role.EDITOR, uses=5)
    space.join(OTHER, invite)
    space.remove(OTHER)

    assert set(space.log.invites) == {other.id}
    assert invite.id not in space.log.key_holders
    refused(space, join_entry(Person("the same in disguise").keys, space.log, invite))


def test_the_invite_by_which_a_lowered_member_came_is_withdrawn(space):
    invite = space.invite(Role.EDITOR, uses=5)
    space.join(OTHER, invite)
    space.lower(OTHER, Role.READER)

    assert invite.id not in space.log.invites


def test_an_invite_that_needs_approval_outlives_those_who_came_by_it(space):
    invite = space.invite(Role.EDITOR, uses=5, needs_approval=True)
    space.join(OTHER, invite)
    space.grow(space.member(OTHER, Role.EDITOR))
    space.remove(OTHER)

    assert space.log.invites[invite.id].uses_left == 4


@pytest.mark.parametrize("how", ["remove", "lower", "leave"])
def test_invites_end_with_the_right_of_who_made_them(space, how):
    """A removed admin knows the secrets of its invites."""
    theirs, other = space.invite(Role.READER, 5, by=ADMIN), space.invite(Role.READER, 5)
    approved = space.invite(Role.READER, 5, needs_approval=True, by=ADMIN)
    {"remove": space.remove, "leave": space.leave, "lower": lambda who: space.lower(who, Role.EDITOR)}[how](ADMIN)

    assert set(space.log.invites) == {other.id}
    for invite in (theirs, approved):
        refused(space, join_entry(OTHER.keys, space.log, invite))


def test_an_owner_made_an_admin_keeps_its_invites(space):
    space.admit(OTHER, Role.OWNER)
    invite = space.invite(Role.READER, by=OTHER)
    space.lower(OTHER, Role.ADMIN)

    assert invite.id in space.log.invites
