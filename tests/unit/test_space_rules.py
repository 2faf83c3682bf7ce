"""The rules of a space's log: each type of entry by those who may sign it, and by everybody who may not."""

import msgspec
import pytest

from tests.unit.membership_world import (
    ADMIN,
    BY_ADMITTERS,
    BY_ROLE,
    EDITOR,
    OTHER,
    OWNER,
    READER,
    SENDER,
    STRANGER,
    Membership,
    epoch_fields,
    fresh_invite,
    household,
    invite_fields,
    refused,
)
from tests.unit.sealing_world import Person
from twinlock.errors import SignatureError, UpdateNeededError
from twinlock.ids import Counter, DeviceId
from twinlock.protocol.hpke import is_recipient
from twinlock.protocol.signed_log import COUNTER_MAX, encode_body
from twinlock.protocol.space_log import LEASE_HOURS_MAX, NEEDS_KEYSTORE, Cutoff, Role
from twinlock.sealing.identity import sign_entry
from twinlock.sealing.invites import join_entry
from twinlock.sealing.space_entries import (
    config_lease_entry,
    config_offline_entry,
    cutoff_entry,
    leave_entry,
    lower_entry,
    remove_entry,
    shred_entry,
)

DEVICE = DeviceId(bytes(range(16)))


@pytest.fixture
def space() -> Membership:
    return household()


# Who may sign


@pytest.mark.parametrize("kind", BY_ADMITTERS)
@pytest.mark.parametrize("role", Role)
def test_members_epochs_and_settings_are_the_affair_of_owners_and_admins(space, kind, role):
    by = BY_ROLE[role] if (kind, role) != ("remove", Role.SENDER) else READER
    entry = BY_ADMITTERS[kind](space, by)

    if role.may_admit:
        space.grow(entry)
    else:
        refused(space, entry)


@pytest.mark.parametrize("kind", [*BY_ADMITTERS, "uninvite", "leave", "cutoff", "rekem", "shred"])
def test_nobody_outside_signs_anything_but_a_join(space, kind):
    for by in (STRANGER, _removed(space), _applicant(space)):
        entry = BY_ADMITTERS[kind](space, by) if kind in BY_ADMITTERS else space.raw(by, kind)

        refused(space, entry)


def _removed(space: Membership) -> Person:
    person = Person("removed")
    space.admit(person, Role.ADMIN)
    space.remove(person)
    return person


def _applicant(space: Membership) -> Person:
    person = Person("applicant")
    space.join(person, space.invite(Role.EDITOR, needs_approval=True))
    return person


def test_an_entry_in_another_s_name_does_not_verify(space):
    body = encode_body("shred", {"by": OWNER.keys.account})

    for forger in (ADMIN, STRANGER):
        refused(space, sign_entry(forger.keys, space.log.space, space.log.position, body), SignatureError)


def test_an_entry_of_another_space_does_not_verify(space):
    other = Membership(OWNER, seed="another space of the same owner")
    for _ in range(space.log.seq - other.log.seq):
        other.grow(config_lease_entry(OWNER.keys, other.log, 1))

    refused(space, shred_entry(OWNER.keys, other.log), SignatureError)


def test_a_second_genesis_is_refused(space):
    refused(space, space.entries[0])
    fields = {"nonce": bytes(16), "partition": 0, "sign": OWNER.keys.sign_pk, "kem": OWNER.keys.kem_pk}
    refused(space, space.raw(OWNER, "genesis", **fields))


# Members and ranks


@pytest.mark.parametrize("role", [Role.OWNER, Role.ADMIN])
@pytest.mark.parametrize("before", [None, *Role])
def test_only_an_owner_makes_owners_and_admins(space, role, before):
    person = BY_ROLE[before] if before else OTHER

    if person is not ADMIN or role is Role.OWNER:
        refused(space, space.member(person, role, by=ADMIN))
    if before is Role.OWNER and role is Role.ADMIN:
        return  # The last owner stays; see below.
    space.grow(space.member(person, role))

    assert space.role(person) is role


@pytest.mark.parametrize("changed", [Role.OWNER, Role.ADMIN])
@pytest.mark.parametrize("to", [Role.EDITOR, Role.SENDER])
def test_an_admin_lowers_no_owner_or_admin(space, changed, to):
    space.admit(OTHER, Role.OWNER)
    second = Person("second admin")
    space.admit(second, Role.ADMIN)
    person = OTHER if changed is Role.OWNER else second

    refused(space, lower_entry(ADMIN.keys, space.log, person.keys.account, to, {}))
    space.lower(person, to)
    assert space.role(person) is to


@pytest.mark.parametrize("changed", [Role.OWNER, Role.ADMIN])
def test_an_admin_removes_no_owner_or_admin(space, changed):
    space.admit(OTHER, changed)
    entry = remove_entry(ADMIN.keys, space.log, OTHER.keys.account, {}, space.next_epoch())

    refused(space, entry)
    space.remove(OTHER)
    assert space.role(OTHER) is None


def test_a_lower_role_needs_a_cutoff_and_a_higher_or_equal_one_has_none(space):
    fields = {"account": EDITOR.keys.account, "sign": EDITOR.keys.sign_pk, "kem": EDITOR.keys.kem_pk}

    refused(space, space.raw(OWNER, "member", **fields, role="reader"))
    for role in ("editor", "admin"):
        refused(space, space.raw(OWNER, "member", **fields, role=role, cutoff={}), UpdateNeededError)
    refused(space, space.raw(OWNER, "member", **fields, role="reader", cutoff=7))
    refused(space, space.raw(OWNER, "member", **fields, role="reader", cutoff={DEVICE: -1}))
    refused(space, space.raw(OWNER, "member", **fields, role="reader", cutoff={DEVICE: COUNTER_MAX + 1}))
    refused(space, space.raw(OWNER, "member", **fields, role="reader", cutoff={bytes(15): 1}))
    space.lower(EDITOR, Role.READER, {DEVICE: Counter(COUNTER_MAX)})

    assert space.record(EDITOR).cutoffs == (Cutoff(space.log.seq, {DEVICE: Counter(COUNTER_MAX)}, is_whole=True),)


def test_a_cutoff_s_device_has_one_spelling(space):
    letters = "AAAAAAAAAAAAAAAAAAAAA"
    for name in (letters + "A==", letters + "B", letters + "+", letters):
        body = encode_body("leave", {"by": EDITOR.keys.account, "cutoff": {name: 1}})

        refused(space, sign_entry(EDITOR.keys, space.log.space, space.log.position, body))


def test_a_member_s_keys_are_changed_by_itself_alone(space):
    fields = {"account": EDITOR.keys.account, "sign": EDITOR.keys.sign_pk, "role": "editor"}

    refused(space, space.raw(OWNER, "member", **fields, kem=STRANGER.keys.kem_pk))
    refused(space, space.raw(OWNER, "member", **{**fields, "sign": STRANGER.keys.sign_pk}, kem=EDITOR.keys.kem_pk))
    space.grow(space.raw(EDITOR, "rekem", kem=STRANGER.keys.kem_pk))

    assert space.record(EDITOR).kem_pk == STRANGER.keys.kem_pk
    assert space.log.key_holders[EDITOR.keys.account] == STRANGER.keys.kem_pk
    refused(space, space.member(EDITOR, Role.EDITOR))


@pytest.mark.parametrize("role", Role)
def test_a_member_with_a_new_wrap_key_asks_for_a_rotation_where_it_reads(space, role):
    space.grow(space.raw(BY_ROLE[role], "rekem", kem=STRANGER.keys.kem_pk))

    assert space.log.wants_rotation is role.may_lease
    space.rotate()
    assert not space.log.wants_rotation


def small_order_keys() -> list[bytes]:
    prime, known = (
        (1 << 255) - 19,
        [
            0,
            1,
            325606250916557431795983626356110631294008115727848805560023387167927233504,
            39382357235489614581723060781553021112529911719440698176882885853963445705823,
            (1 << 255) - 20,
        ],
    )
    points = known + [point + prime for point in known[:2]]
    return [(point | top << 255).to_bytes(32, "little") for point in points for top in (0, 1)]


def test_a_key_to_which_nothing_can_be_wrapped_is_not_taken(space):
    """One member with such a key would stop every rotation, and with it every removal."""
    invite = space.invite(Role.READER)
    keys = OTHER.keys
    for bad in small_order_keys():
        member = {"account": keys.account, "sign": keys.sign_pk, "kem": bad, "role": "reader"}
        refused(space, space.raw(SENDER, "rekem", kem=bad))
        refused(space, space.raw(OWNER, "member", **member))
        refused(space, space.raw(OTHER, "join", invite=invite.id, sign=keys.sign_pk, kem=bad, isig=bytes(64)))
        refused(space, space.raw(OWNER, "epoch", **{**epoch_fields(2), "drop_pk": bad}))
        refused(space, space.raw(OWNER, "invite", **invite_fields(fresh_invite(), kem=bad)))
        assert not is_recipient(bad)


@pytest.mark.parametrize("who", ["leave", "lower", "remove", "lower itself"])
def test_the_last_owner_stays(space, who):
    entry = {
        "leave": lambda: leave_entry(OWNER.keys, space.log, {}),
        "lower": lambda: lower_entry(ADMIN.keys, space.log, OWNER.keys.account, Role.EDITOR, {}),
        "remove": lambda: remove_entry(ADMIN.keys, space.log, OWNER.keys.account, {}, space.next_epoch()),
        "lower itself": lambda: lower_entry(OWNER.keys, space.log, OWNER.keys.account, Role.ADMIN, {}),
    }[who]

    refused(space, entry())
    space.admit(OTHER, Role.OWNER)
    if who in ("leave", "lower itself"):
        space.grow(entry())
        assert space.log.owners == {OTHER.keys.account}
    else:
        refused(space, entry())


def test_an_account_does_not_remove_itself(space):
    """It would make the next member key, and hold it afterwards."""
    space.admit(OTHER, Role.OWNER)

    for person in (OTHER, ADMIN):
        refused(space, remove_entry(person.keys, space.log, person.keys.account, {}, space.next_epoch()))


@pytest.mark.parametrize(("role", "asks"), [(role, role.may_lease) for role in Role if role is not Role.OWNER])
def test_who_leaves_is_a_former_member_and_who_read_leaves_a_key_behind_that_is_to_be_replaced(space, role, asks):
    person = BY_ROLE[role]
    seq = space.log.seq
    space.leave(person, {DEVICE: Counter(4)})

    record = space.log.former[person.keys.account]
    assert (space.role(person), record.role_at(seq), record.role_at(seq + 1)) == (None, role, None)
    assert record.cutoffs == (Cutoff(seq + 1, {DEVICE: Counter(4)}, is_whole=True),)
    assert record.removed_seq == 0
    assert space.log.wants_rotation is asks
    assert person.keys.account not in space.log.key_holders


@pytest.mark.parametrize(("to", "asks"), [(Role.READER, False), (Role.SENDER, True)])
def test_who_no_longer_reads_leaves_a_key_behind_that_is_to_be_replaced(space, to, asks):
    space.lower(EDITOR, to)

    assert space.log.wants_rotation is asks
    assert (EDITOR.keys.account in space.log.key_holders) is not asks


# Removal and epochs


def test_a_removal_opens_the_next_epoch(space):
    before = space.log
    space.remove(EDITOR, {DEVICE: Counter(9)}, by=ADMIN)

    record = space.log.former[EDITOR.keys.account]
    assert (space.log.epoch, space.log.epochs[space.log.epoch].by) == (before.epoch + 1, ADMIN.keys.account)
    assert (record.removed_seq, record.granted[-1]) == (space.log.seq, (space.log.seq, None))
    assert set(space.log.members) == set(before.members) - {EDITOR.keys.account}
    assert set(before.key_holders) - set(space.log.key_holders) == {EDITOR.keys.account}


def test_removal_without_rotation_cannot_be_said(space):
    fields = {"account": EDITOR.keys.account, "cutoff": {}}
    following = epoch_fields(space.log.epoch + 1)

    refused(space, space.raw(OWNER, "remove", **fields))
    refused(space, space.raw(OWNER, "remove", **fields, epoch={}))
    for number in (0, space.log.epoch, space.log.epoch + 2):
        refused(space, space.raw(OWNER, "remove", **fields, epoch={**following, "n": number}))
    refused(space, space.raw(OWNER, "remove", **fields, epoch={**following, "link": b""}))
    refused(space, space.raw(OWNER, "remove", **fields, epoch={**following, "later": 1}), UpdateNeededError)
    refused(space, space.raw(OWNER, "remove", account=EDITOR.keys.account, epoch=following))
    space.grow(space.raw(OWNER, "remove", **fields, epoch=following))


@pytest.mark.parametrize("who", [STRANGER, EDITOR])
def test_only_a_member_is_removed_and_only_once(space, who):
    if who is EDITOR:
        space.remove(EDITOR)

    refused(space, remove_entry(OWNER.keys, space.log, who.keys.account, {}, space.next_epoch()))


# Cutoffs


@pytest.mark.parametrize(
    ("by", "of", "allowed"),
    [
        (READER, READER, True),
        (SENDER, SENDER, True),
        (OWNER, EDITOR, True),
        (ADMIN, EDITOR, True),
        (EDITOR, READER, False),
        (READER, OWNER, False),
        (ADMIN, OWNER, False),
        (ADMIN, OTHER, False),
        (OWNER, OTHER, True),
        (OWNER, OWNER, True),
        (OWNER, STRANGER, False),
    ],
    ids=str,
)
def test_chains_are_cut_off_by_their_own_account_and_by_those_above_it(space, by, of, allowed):
    space.admit(OTHER, Role.ADMIN)
    entry = cutoff_entry(by.keys, space.log, of.keys.account, {DEVICE: Counter(3)})

    if not allowed:
        refused(space, entry)
        return
    space.grow(entry)
    assert space.record(of).cutoffs == (Cutoff(space.log.seq, {DEVICE: Counter(3)}, is_whole=False),)
    assert not space.log.wants_rotation


def test_a_former_member_s_chain_may_be_cut_off_still(space):
    space.leave(EDITOR)
    space.cut(EDITOR, {DEVICE: Counter(1)}, by=ADMIN)

    assert len(space.log.former[EDITOR.keys.account].cutoffs) == 2


def test_cutoffs_said_again_and_again_leave_what_is_still_needed_of_them(space):
    other, third = DeviceId(bytes(16)), DeviceId(bytes([1] * 16))
    space.cut(EDITOR, {DEVICE: Counter(2), other: Counter(4)})
    space.cut(EDITOR, {third: Counter(1)})
    first, second = space.record(EDITOR).cutoffs

    for counter in (3, 3, 3, 2):
        space.cut(EDITOR, {DEVICE: Counter(counter), other: Counter(5)})

    newest = Cutoff(space.log.seq, {DEVICE: Counter(2), other: Counter(5)}, is_whole=False)
    kept = msgspec.structs.replace(first, counters={other: Counter(4)})
    assert space.record(EDITOR).cutoffs == (kept, second, newest)


def test_a_cutoff_of_some_devices_takes_nothing_from_the_end_of_a_role(space):
    space.leave(EDITOR)
    (end,) = space.record(EDITOR).cutoffs

    space.cut(EDITOR, {DEVICE: Counter(0)}, by=ADMIN)
    space.cut(EDITOR, {DEVICE: Counter(0)}, by=ADMIN)

    assert space.record(EDITOR).cutoffs == (end, Cutoff(space.log.seq, {DEVICE: Counter(0)}, is_whole=False))


# Settings and the end


def test_settings_keep_to_their_ranges(space):
    space.grow(config_lease_entry(OWNER.keys, space.log, LEASE_HOURS_MAX))
    space.grow(config_offline_entry(ADMIN.keys, space.log, NEEDS_KEYSTORE))
    assert (space.log.lease_hours, space.log.offline_needs) == (LEASE_HOURS_MAX, NEEDS_KEYSTORE)
    space.grow(config_offline_entry(ADMIN.keys, space.log, ""))
    assert (space.log.lease_hours, space.log.offline_needs) == (LEASE_HOURS_MAX, "")

    for value in (LEASE_HOURS_MAX + 1, -1, "1", b"\0"):
        refused(space, space.raw(OWNER, "config", lease_hours=value))
    refused(space, space.raw(OWNER, "config", offline_needs="a fortress"), UpdateNeededError)
    refused(space, space.raw(OWNER, "config", epoch=1), UpdateNeededError)
    refused(space, space.raw(OWNER, "config", title=bytes(1025), epoch=1))
    refused(space, space.raw(OWNER, "config", title=b"", epoch=1))


@pytest.mark.parametrize("role", [role for role in Role if role is not Role.OWNER])
def test_only_an_owner_shreds(space, role):
    refused(space, shred_entry(BY_ROLE[role].keys, space.log))


def test_nothing_follows_a_shred(space):
    invite = space.invite(Role.READER)
    space.grow(shred_entry(OWNER.keys, space.log))
    assert space.log.is_shredded

    for make in BY_ADMITTERS.values():
        refused(space, make(space, OWNER))
    refused(space, shred_entry(OWNER.keys, space.log))
    refused(space, leave_entry(READER.keys, space.log, {}))
    refused(space, join_entry(OTHER.keys, space.log, invite))
    refused(space, space.raw(OWNER, "later"), UpdateNeededError)
