"""Account and space logs: who may write what, and that nobody else can."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.sealing_world import Person, SeededEntropy, World, flipped
from twinlock.errors import LogForkError, LogInvalidError, SignatureError, UpdateNeededError
from twinlock.ids import Epoch
from twinlock.protocol.account_log import device_id_of, replay_account
from twinlock.protocol.calls import SignedEntry
from twinlock.protocol.envelope import Kind
from twinlock.protocol.signed_log import NO_LOG, LogPosition, check_continuation, encode_body
from twinlock.protocol.space_log import Role, space_id_of
from twinlock.protocol.space_rules import replay_space
from twinlock.sealing import (
    AccountKeys,
    DeviceKeys,
    ServiceKey,
    account_genesis,
    config_lease_entry,
    config_title_entry,
    device_entry,
    epoch_entry,
    make_epoch,
    member_entry,
    rekem_entry,
    revoke_entry,
    space_genesis,
)
from twinlock.sealing.identity import sign_entry

ENTROPY = SeededEntropy("logs")
KEYS = AccountKeys.make(ENTROPY)
DEVICE = DeviceKeys.make(ENTROPY)


def account_entries() -> list[SignedEntry]:
    genesis = account_genesis(KEYS, ENTROPY)
    state = replay_account([genesis])
    return [genesis, device_entry(KEYS, state, DEVICE.sign_pk, DEVICE.kem_pk)]


def account_entry(state, kind, fields, signer=KEYS) -> SignedEntry:
    return sign_entry(signer, state.account, state.position, encode_body(kind, fields))


def space_entry(signer: Person, state, kind, **fields) -> SignedEntry:
    body = encode_body(kind, {"by": signer.keys.account, **fields})
    return sign_entry(signer.keys, state.space, state.position, body)


def test_a_device_to_which_nothing_can_be_wrapped_is_not_certified():
    state = replay_account(account_entries()[:1])
    keys = {"sign": DEVICE.sign_pk, "kem": bytes(32)}
    entry = account_entry(state, "device", {"device": device_id_of(DEVICE.sign_pk, bytes(32)), **keys})

    with pytest.raises(LogInvalidError):
        replay_account([entry], state)


def test_an_account_s_log_names_its_keys_and_devices():
    state = replay_account(account_entries())

    assert (state.account, state.sign_pk, state.kem_pk) == (KEYS.account, KEYS.sign_pk, KEYS.kem_pk)
    assert state.devices[DEVICE.device].sign_pk == DEVICE.sign_pk
    assert state.seq == 2


def test_a_log_is_replayed_in_parts_like_at_once():
    entries = account_entries()

    assert replay_account(entries[1:], replay_account(entries[:1])) == replay_account(entries)


def test_a_revoked_device_speaks_no_more_but_stays_known():
    state = replay_account(account_entries())

    state = replay_account([revoke_entry(KEYS, state, DEVICE.device)], state)

    assert DEVICE.device not in state.devices
    assert state.revoked == {DEVICE.device}
    assert state.certified(DEVICE.device).sign_pk == DEVICE.sign_pk


def test_a_revoked_device_cannot_come_back():
    state = replay_account(account_entries())
    state = replay_account([revoke_entry(KEYS, state, DEVICE.device)], state)

    with pytest.raises(LogInvalidError):
        replay_account([device_entry(KEYS, state, DEVICE.sign_pk, DEVICE.kem_pk)], state)


def test_an_account_changes_the_key_that_is_wrapped_to():
    state = replay_account(account_entries())

    assert replay_account([rekem_entry(KEYS, state, bytes(32))], state).kem_pk == bytes(32)


@pytest.mark.parametrize("index", [0, 1])
def test_no_byte_of_an_entry_can_be_altered(index):
    entries = account_entries()
    for position in range(len(entries[index].body)):
        altered = list(entries)
        altered[index] = SignedEntry(flipped(entries[index].body, position), entries[index].sig)
        with pytest.raises((SignatureError, LogInvalidError)):
            replay_account(altered)
    for position in range(64):
        altered = list(entries)
        altered[index] = SignedEntry(entries[index].body, flipped(entries[index].sig, position))
        with pytest.raises(SignatureError):
            replay_account(altered)


def test_an_entry_in_another_place_does_not_verify():
    first, second = account_entries()
    state = replay_account([first])
    third = rekem_entry(KEYS, state, bytes(32))

    with pytest.raises(SignatureError):
        replay_account([first, second, third])


def test_nobody_else_adds_a_device_to_an_account():
    state = replay_account(account_entries())
    stranger, device = AccountKeys.make(ENTROPY), DeviceKeys.make(ENTROPY)

    with pytest.raises(SignatureError):
        replay_account([device_entry(stranger, state, device.sign_pk, device.kem_pk)], state)


def test_a_device_whose_id_is_not_that_of_its_keys_is_refused():
    state = replay_account(account_entries()[:1])
    entry = account_entry(state, "device", {"device": bytes(16), "sign": bytes(32), "kem": bytes(32)})

    with pytest.raises(LogInvalidError):
        replay_account([entry], state)


@pytest.mark.parametrize(
    ("kind", "fields", "error"),
    [
        ("shout", {}, UpdateNeededError),
        ("revoke", {"device": bytes(16)}, LogInvalidError),
        ("revoke", {}, LogInvalidError),
        ("rekem", {"kem": bytes(31)}, LogInvalidError),
        ("rekem", {"kem": 7}, LogInvalidError),
        ("rekem", {"kem": "not base64!"}, LogInvalidError),
        ("rekem", {"kem": bytes(32), "later": 1}, UpdateNeededError),
        ("genesis", {"nonce": bytes(16), "sign": KEYS.sign_pk, "kem": bytes(32)}, LogInvalidError),
    ],
)
def test_an_account_entry_that_breaks_a_rule_stops_the_replay(kind, fields, error):
    state = replay_account(account_entries())

    with pytest.raises(error):
        replay_account([account_entry(state, kind, fields)], state)


@given(st.binary(max_size=200))
def test_no_bytes_do_anything_but_stop_the_replay(body):
    state = replay_account(account_entries())
    entries = [sign_entry(KEYS, state.account, state.position, body)]

    with pytest.raises((LogInvalidError, UpdateNeededError)):
        replay_account(entries, state)
    with pytest.raises((LogInvalidError, UpdateNeededError)):
        replay_space(entries)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"\xff",
        b'{"type":"\xff"}',
        b'{"a":' + b"[" * 30_000 + b"]" * 30_000 + b"}",
        b'{"a":1e999}',
        b"{}",
        b'{"type":1}',
        b'{"kem": "%s","type":"rekem"}' % (b"A" * 43),
        b'{"type":"rekem","kem":"%s"}' % (b"A" * 43),
        b'{"kem":"%s","kem":"%s","type":"rekem"}' % (b"A" * 43, b"A" * 43),
        b'{"kem":"%s","type":"rekem"}' % (b"A" * 42 + b"B"),
        b'{"kem":"%s=","type":"rekem"}' % (b"A" * 43),
        b'{"kem":"%s","type":"rekem"}' % (b"+" * 43),
        b'{"kem":"\\u0041%s","type":"rekem"}' % (b"A" * 42),
        b'{"kem":"%s","type":"rekem"}' % (b"A" * 70_000),
    ],
)
def test_a_body_has_one_form_only(body):
    state = replay_account(account_entries())

    with pytest.raises(LogInvalidError):
        replay_account([sign_entry(KEYS, state.account, state.position, body)], state)


def test_an_empty_log_is_no_log():
    with pytest.raises(LogInvalidError):
        replay_account([])
    with pytest.raises(LogInvalidError):
        replay_space([])


def test_a_log_that_does_not_begin_with_a_genesis_is_refused():
    with pytest.raises(LogInvalidError):
        replay_account(account_entries()[1:])
    owner = Person("owner")
    with pytest.raises(LogInvalidError):
        replay_space([sign_entry(owner.keys, NO_LOG, LogPosition(), encode_body("config", {"lease_hours": 1}))])


def test_a_shorter_or_different_log_is_a_fork():
    known = LogPosition(5, bytes([1]) * 32)

    check_continuation(known, known)
    check_continuation(known, LogPosition(6, bytes(32)))
    with pytest.raises(LogForkError):
        check_continuation(known, LogPosition(4, bytes(32)))
    with pytest.raises(LogForkError):
        check_continuation(known, LogPosition(5, bytes(32)))


def test_a_rolled_back_log_that_grows_differently_does_not_verify():
    world = World()
    known, person = world.log, Person("one")
    before = msgspec.structs.replace(known)
    world.admit(person, Role.EDITOR)
    other_branch = config_lease_entry(world.owner.keys, before, 1)

    with pytest.raises(SignatureError):
        replay_space([other_branch], world.log)


def test_a_space_s_id_pins_its_owner_and_its_partition():
    owner = Person("owner")
    state = replay_space([space_genesis(owner.keys, 513, ENTROPY)])

    assert state.space[:2] == bytes([2, 1])
    assert state.space == space_id_of(513, state.head)
    assert state.members[owner.keys.account].role is Role.OWNER
    assert (state.epoch, state.title, state.lease_hours) == (0, None, 24)


def test_an_owner_s_genesis_by_another_account_is_refused():
    owner, other = Person("owner"), Person("other")
    fields = {"by": other.keys.account, "nonce": bytes(16), "partition": 0, "kem": bytes(32)}
    body = encode_body("genesis", {**fields, "sign": owner.keys.sign_pk})

    with pytest.raises(LogInvalidError):
        replay_space([sign_entry(owner.keys, NO_LOG, LogPosition(), body)])


def test_epochs_follow_one_another():
    world = World()
    world.rotate()

    assert world.log.epoch == 2
    assert world.log.epochs[Epoch(2)].by == world.owner.keys.account
    keys = make_epoch(world.log.space, Epoch(3), ServiceKey.make(ENTROPY), ENTROPY)
    entry = epoch_entry(world.owner.keys, world.log, keys, world.keys.member_key, ENTROPY)
    replayed = replay_space([entry], world.log)
    fields = {"n": 3, "b_commit": bytes(32), "dk_commit": bytes(32), "drop_pk": bytes(32), "link": bytes(60)}
    again = space_entry(world.owner, replayed, "epoch", **fields)
    with pytest.raises(LogInvalidError):
        replay_space([again], replayed)


@pytest.mark.parametrize("link", [b"", bytes(59), bytes(61)])
def test_a_later_epoch_must_lead_back_to_the_one_before(link):
    world = World()
    fields = {"n": 2, "b_commit": bytes(32), "dk_commit": bytes(32), "drop_pk": bytes(32), "link": link}

    with pytest.raises(LogInvalidError):
        replay_space([space_entry(world.owner, world.log, "epoch", **fields)], world.log)


def test_a_ghost_member_is_refused():
    world, ghost = World(), Person("ghost")
    keys = ghost.keys
    fields = {"account": keys.account, "sign": keys.sign_pk, "kem": keys.kem_pk, "role": "editor"}
    by_the_ghost = space_entry(ghost, world.log, "member", **fields)
    in_the_owner_s_name = sign_entry(
        keys,
        world.log.space,
        world.log.position,
        encode_body("member", {"by": world.owner.keys.account, **fields}),
    )

    with pytest.raises(LogInvalidError):
        replay_space([by_the_ghost], world.log)
    with pytest.raises(SignatureError):
        replay_space([in_the_owner_s_name], world.log)


def test_a_member_s_keys_must_be_those_of_the_account():
    world, person, other = World(), Person("person"), Person("other")
    entry = member_entry(
        world.owner.keys, world.log, other.keys.sign_pk, other.keys.kem_pk, person.keys.account, Role.EDITOR
    )

    with pytest.raises(LogInvalidError):
        replay_space([entry], world.log)


@pytest.mark.parametrize("role", [Role.EDITOR, Role.READER, Role.SENDER])
def test_only_owners_and_admins_write_the_log(role):
    world, person = World(), Person("person")
    world.admit(person, role)

    with pytest.raises(LogInvalidError):
        replay_space([config_lease_entry(person.keys, world.log, 1)], world.log)


def test_an_admin_admits_editors_but_makes_no_admin():
    world, admin, person = World(), Person("admin"), Person("person")
    world.admit(admin, Role.ADMIN)
    keys = person.keys

    def admit(role, state):
        return replay_space([member_entry(admin.keys, state, keys.sign_pk, keys.kem_pk, keys.account, role)], state)

    assert admit(Role.EDITOR, world.log).role_of(keys.account) is Role.EDITOR
    for role in (Role.ADMIN, Role.OWNER):
        with pytest.raises(LogInvalidError):
            admit(role, world.log)


def test_an_admin_does_not_change_an_owner():
    world, admin = World(), Person("admin")
    world.admit(admin, Role.ADMIN)
    owner = world.owner.keys
    entry = member_entry(admin.keys, world.log, owner.sign_pk, owner.kem_pk, owner.account, Role.OWNER)

    with pytest.raises(LogInvalidError):
        replay_space([entry], world.log)


def test_nobody_but_its_account_changes_a_member_s_key():
    world, person = World(), Person("person")
    world.admit(person, Role.READER)
    keys = person.keys
    entry = member_entry(world.owner.keys, world.log, keys.sign_pk, bytes(32), keys.account, Role.EDITOR)

    with pytest.raises(LogInvalidError):
        replay_space([entry], world.log)


def test_a_role_is_raised_but_not_lowered_without_a_cutoff():
    world, person = World(), Person("person")
    world.admit(person, Role.READER)
    before = world.log.seq
    world.admit(person, Role.EDITOR)
    member = world.log.members[person.keys.account]

    assert (member.role_at(before - 1), member.role_at(before), member.role) == (None, Role.READER, Role.EDITOR)
    with pytest.raises(LogInvalidError):
        world.admit(person, Role.READER)


@pytest.mark.parametrize(
    ("kind", "fields"),
    [("promote", {}), ("member", {"role": "emperor"}), ("config", {"lease_hours": 1, "colour": "red"})],
)
def test_what_a_newer_version_wrote_stops_the_replay(kind, fields):
    world, person = World(), Person("person")
    keys = {"account": person.keys.account, "sign": person.keys.sign_pk, "kem": person.keys.kem_pk}
    entry = space_entry(world.owner, world.log, kind, **(keys if kind == "member" else {}), **fields)

    with pytest.raises(UpdateNeededError):
        replay_space([entry], world.log)


def test_settings_are_kept_apart():
    world = World()
    log = replay_space([config_lease_entry(world.owner.keys, world.log, 0)], world.log)
    log = replay_space([config_title_entry(world.owner.keys, log, world.keys, "home", ENTROPY)], log)

    assert log.lease_hours == 0
    assert log.title.epoch == 1


def test_a_title_of_an_unknown_epoch_is_refused():
    world = World()
    entry = space_entry(world.owner, world.log, "config", title=bytes(40), epoch=2)

    with pytest.raises(LogInvalidError):
        replay_space([entry], world.log)


def test_every_head_of_the_log_is_known_by_its_first_bytes():
    world = World()

    assert world.log.head_prefixes[world.log.head_prefix] == world.log.seq
    assert len(world.log.head_prefixes) == world.log.seq


@pytest.mark.parametrize(
    ("role", "writes", "leases"),
    [
        (Role.OWNER, {Kind.CHANGE, Kind.SNAPSHOT, Kind.SIGNAL}, True),
        (Role.ADMIN, {Kind.CHANGE, Kind.SNAPSHOT, Kind.SIGNAL}, True),
        (Role.EDITOR, {Kind.CHANGE, Kind.SNAPSHOT, Kind.SIGNAL}, True),
        (Role.READER, {Kind.SIGNAL}, True),
        (Role.SENDER, {Kind.DROP}, False),
    ],
)
def test_roles_allow_what_the_table_says(role, writes, leases):
    assert {kind for kind in Kind if role.may_write(kind)} == writes
    assert role.may_lease is leases
