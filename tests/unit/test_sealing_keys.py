"""The keys of a space: commitments, wraps, links, titles, and writes made while locked."""

import pickle

import msgspec
import pytest

from tests.unit.sealing_world import Person, SeededEntropy, World, flipped
from twinlock.errors import DocumentTooLargeError, KeyMismatchError, LimitExceededError, OpenError
from twinlock.ids import NO_ENVELOPE, Counter, Epoch, SpaceId
from twinlock.protocol import hpke
from twinlock.protocol.envelope import Kind
from twinlock.protocol.proofs import b_commit
from twinlock.protocol.space_rules import replay_space
from twinlock.sealing import (
    PAYLOAD_BYTES_MAX,
    MemberKey,
    Sealer,
    ServiceKey,
    StoreKey,
    check_service_key,
    config_title_entry,
    locked_write_epoch,
    open_epoch,
    open_link,
    open_locked_write,
    open_payload,
    open_title,
    seal_locked_write,
    sealed_bytes,
    title_index,
    unwrap_member_key,
    wrap_member_key,
)
from twinlock.sealing.space_keys import EpochKeys

ENTROPY = SeededEntropy("keys")
WORLD = World()
KEYS = WORLD.keys
RECORD = WORLD.log.epochs[Epoch(1)]
SPACE = WORLD.log.space
STORE_KEY = StoreKey.make(ENTROPY)


def test_both_keys_together_open_an_epoch():
    keys = open_epoch(SPACE, Epoch(1), KEYS.member_key, KEYS.service_key, RECORD)

    assert keys.data_key == KEYS.data_key


@pytest.mark.parametrize(
    ("member_key", "service_key", "names"),
    [
        (MemberKey(bytes(32)), KEYS.service_key, "member key"),
        (KEYS.member_key, ServiceKey(bytes(32)), "service key"),
        # Each key alone is a key; in the other's place it is the wrong one.
        (MemberKey(KEYS.service_key.expose()), ServiceKey(KEYS.member_key.expose()), "service key"),
    ],
)
def test_a_wrong_key_is_loud(member_key, service_key, names):
    with pytest.raises(KeyMismatchError, match=names):
        open_epoch(SPACE, Epoch(1), member_key, service_key, RECORD)


@pytest.mark.parametrize(("space", "epoch"), [(SpaceId(bytes(16)), Epoch(1)), (SPACE, Epoch(2))])
def test_the_keys_of_an_epoch_belong_to_one_space_and_number(space, epoch):
    with pytest.raises(KeyMismatchError):
        open_epoch(space, epoch, KEYS.member_key, KEYS.service_key, RECORD)


def test_a_drop_key_that_is_not_the_epoch_s_own_is_loud():
    record = msgspec.structs.replace(RECORD, drop_pk=bytes(32))

    with pytest.raises(KeyMismatchError, match="drop key"):
        open_epoch(SPACE, Epoch(1), KEYS.member_key, KEYS.service_key, record)


def test_a_leased_key_is_checked_against_its_commitment():
    commitment = b_commit(SPACE, Epoch(2), bytes(32))

    check_service_key(SPACE, Epoch(2), ServiceKey(bytes(32)), commitment)
    with pytest.raises(KeyMismatchError):
        check_service_key(SPACE, Epoch(2), ServiceKey(bytes([1]) * 32), commitment)


def test_every_derived_key_is_of_its_own():
    device = WORLD.owner.device.device
    derived = {
        KEYS.data_key.expose(),
        KEYS.dk_commit,
        KEYS.b_commit,
        KEYS.drop_pk,
        KEYS.drop_private.private_bytes_raw(),
        KEYS.device_key(device),
        KEYS.device_key(Person("other").device.device),
        KEYS.signal_key(device, 1),
        KEYS.signal_key(device, 2),
        KEYS.local_key(STORE_KEY, device),
        KEYS.local_key(StoreKey.make(ENTROPY), device),
        KEYS.member_key.expose(),
        KEYS.service_key.expose(),
    }

    assert len(derived) == 13


def test_the_keys_of_an_epoch_hide_their_bytes():
    assert "hidden" in repr(KEYS)
    assert "hidden" in f"{KEYS}"
    with pytest.raises(TypeError):
        pickle.dumps(KEYS)


def test_a_member_key_is_wrapped_to_one_account():
    account = WORLD.owner.keys
    wrapped = wrap_member_key(KEYS, account.account, account.kem_pk)

    assert len(wrapped) == 80
    assert unwrap_member_key(wrapped, account.kem, SPACE, Epoch(1), account.account) == KEYS.member_key
    with pytest.raises(OpenError):
        unwrap_member_key(wrapped, Person("other").keys.kem, SPACE, Epoch(1), account.account)
    with pytest.raises(OpenError):
        unwrap_member_key(wrapped, account.kem, SPACE, Epoch(2), account.account)
    with pytest.raises(OpenError):
        unwrap_member_key(wrapped, account.kem, SPACE, Epoch(1), Person("other").keys.account)


def test_a_member_key_forged_by_the_server_is_loud():
    account = WORLD.owner.keys
    forged = EpochKeys(SPACE, Epoch(1), MemberKey(bytes(32)), KEYS.service_key)
    wrapped = wrap_member_key(forged, account.account, account.kem_pk)

    key = unwrap_member_key(wrapped, account.kem, SPACE, Epoch(1), account.account)

    with pytest.raises(KeyMismatchError):
        open_epoch(SPACE, Epoch(1), key, KEYS.service_key, RECORD)


def test_links_lead_back_to_the_first_epoch():
    world = World()
    world.rotate()
    world.rotate()
    newest = world.keys.member_key

    second = open_link(world.log.space, Epoch(3), newest, world.log.epochs[Epoch(3)].link)
    first = open_link(world.log.space, Epoch(2), second, world.log.epochs[Epoch(2)].link)

    assert first == world.epochs[Epoch(1)].member_key
    with pytest.raises(OpenError):
        open_link(world.log.space, Epoch(2), newest, world.log.epochs[Epoch(2)].link)


def test_a_title_takes_both_keys_and_is_found_while_locked():
    log = replay_space([config_title_entry(WORLD.owner.keys, WORLD.log, KEYS, "Grüße", ENTROPY)], WORLD.log)

    assert open_title(log.title.sealed, KEYS) == "Grüße"
    assert title_index(STORE_KEY, "Grüße") == title_index(STORE_KEY, "Grüße") != title_index(STORE_KEY, "home")
    with pytest.raises(OpenError):
        open_title(log.title.sealed, World(Person("other")).keys)
    with pytest.raises(OpenError):
        open_title(flipped(log.title.sealed, 20), KEYS)


def test_a_title_over_its_limit_is_refused():
    assert config_title_entry(WORLD.owner.keys, WORLD.log, KEYS, "x" * 256, ENTROPY)
    with pytest.raises(LimitExceededError):
        config_title_entry(WORLD.owner.keys, WORLD.log, KEYS, "x" * 257, ENTROPY)


def test_the_longest_payload_is_sealed_and_one_more_byte_is_refused():
    sealer = Sealer(WORLD.owner.device, ENTROPY)

    def seal(size):
        return sealer.seal(Kind.SNAPSHOT, bytes(size), KEYS, Counter(1), NO_ENVELOPE, WORLD.log.head_prefix)

    longest = seal(PAYLOAD_BYTES_MAX)
    assert len(longest.data) == sealed_bytes(PAYLOAD_BYTES_MAX)
    assert len(open_payload(longest, KEYS)) == PAYLOAD_BYTES_MAX
    with pytest.raises(DocumentTooLargeError):
        seal(PAYLOAD_BYTES_MAX + 1)


def test_two_seals_of_one_payload_have_nothing_in_common():
    sealer = Sealer(WORLD.owner.device, ENTROPY)
    first, second = (
        sealer.seal(Kind.CHANGE, b"same", KEYS, Counter(1), NO_ENVELOPE, WORLD.log.head_prefix) for _ in range(2)
    )

    assert first.header.nonce != second.header.nonce
    assert first.ciphertext != second.ciphertext


PLACE = (SPACE, Epoch(1), WORLD.owner.device.device)


def test_a_write_made_while_locked_opens_with_the_next_lease():
    record = seal_locked_write(b"written in the dark", KEYS.drop_pk, PLACE, 7, STORE_KEY)

    assert locked_write_epoch(record) == 1
    assert open_locked_write(record, KEYS, PLACE[2], STORE_KEY) == (7, b"written in the dark")
    assert b"written" not in record


def test_a_write_made_while_locked_cannot_be_altered_or_made_up():
    record = seal_locked_write(b"x", KEYS.drop_pk, PLACE, 7, STORE_KEY)

    for position in range(0, len(record), 7):
        with pytest.raises(OpenError):
            open_locked_write(flipped(record, position), KEYS, PLACE[2], STORE_KEY)
    made_up = seal_locked_write(b"x", KEYS.drop_pk, PLACE, 8, StoreKey.make(ENTROPY))
    with pytest.raises(OpenError):
        open_locked_write(made_up, KEYS, PLACE[2], STORE_KEY)
    with pytest.raises(OpenError):
        open_locked_write(record[:50], KEYS, PLACE[2], STORE_KEY)


def test_a_write_made_while_locked_names_the_keys_that_it_needs():
    world = World()
    world.rotate()
    place = (world.log.space, Epoch(1), world.owner.device.device)
    record = seal_locked_write(b"x", world.epochs[Epoch(1)].drop_pk, place, 1, STORE_KEY)

    with pytest.raises(KeyMismatchError):
        open_locked_write(record, world.epochs[Epoch(2)], place[2], STORE_KEY)


def test_a_wrapped_key_of_another_length_is_no_member_key():
    account = WORLD.owner.keys
    info = b"twinlock/1 wrap-a\0" + SPACE + (1).to_bytes(4, "big") + account.account
    wrapped = hpke.seal(account.kem_pk, bytes(31), info)

    with pytest.raises(OpenError):
        unwrap_member_key(wrapped, account.kem, SPACE, Epoch(1), account.account)
