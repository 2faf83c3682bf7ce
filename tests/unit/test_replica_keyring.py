"""A space's keys on a device: leased, renewed, ended, never wrong."""

import pytest

from twinlock.errors import KeyMismatchError, LeaseExpiredError, LeaseRefusedError, LogForkError, OpenError
from twinlock.ids import Epoch, Incarnation
from twinlock.protocol import hpke, proofs
from twinlock.protocol.account_log import replay_account
from twinlock.protocol.frames import Grant, Leases
from twinlock.protocol.leased import Leased
from twinlock.protocol.space_rules import replay_space
from twinlock.replica.keyring import CLOCK_BACK_MS_MAX, LEASE_RENEWAL_MS, Keyring
from twinlock.sealing.identity import revoke_entry
from twinlock.sealing.space_entries import config_lease_entry, space_genesis
from twinlock.sealing.suite import ServiceKey
from twinlock.testing.simulator import START_MS, Simulation

NOW = START_MS
HOUR = 3_600_000
NONCE = b"n" * 32
INCARNATION = Incarnation(b"i" * 16)
FIRST = Epoch(1)


@pytest.fixture
def simulation() -> Simulation:
    return Simulation(1)


@pytest.fixture
def keyring(simulation) -> Keyring:
    """A keyring with the member key and no lease."""
    world = simulation.world
    keyring = Keyring(world.log, world.account_keys, simulation.devices[0].keys)
    keyring.install_member_key(FIRST, world.keys[FIRST][0])
    return keyring


def leases(simulation, keyring, key: bytes | None = None, told_ms: int = NOW + HOUR, sealed_ms: int = NOW + HOUR):
    info = proofs.lease_info(keyring.space, FIRST, keyring.device, sealed_ms, INCARNATION, NONCE)
    raw = simulation.world.keys[FIRST][1].expose() if key is None else key
    log, account = simulation.world.log, simulation.world.account
    content = Leased(raw, log.position, account.position).pack()
    grant = Grant(FIRST, told_ms, hpke.seal(simulation.devices[0].keys.kem_pk, content, info))
    return Leases(keyring.space, NONCE, [grant], log.seq, log.head, 0, b"")


def test_a_lease_opens_until_its_end(simulation, keyring):
    assert keyring.locked(NOW)

    keyring.on_leases(leases(simulation, keyring), NONCE, INCARNATION, NOW)

    assert not keyring.locked(NOW + HOUR - 1)
    assert keyring.newest_keys().epoch == FIRST
    assert keyring.locked(NOW + HOUR)
    with pytest.raises(LeaseExpiredError):
        keyring.newest_keys()


def test_a_clock_set_back_counts_as_expired(simulation, keyring):
    keyring.on_leases(leases(simulation, keyring), NONCE, INCARNATION, NOW)
    assert not keyring.locked(NOW + 1_000)

    assert not keyring.locked(NOW + 1_000 - CLOCK_BACK_MS_MAX)
    assert keyring.locked(NOW + 1_000 - CLOCK_BACK_MS_MAX - 1)


def test_a_changed_end_breaks_the_lease(simulation, keyring):
    with pytest.raises(Exception, match="open_failed"):
        keyring.on_leases(leases(simulation, keyring, told_ms=NOW + 9 * HOUR), NONCE, INCARNATION, NOW)


def test_a_key_service_that_was_kept_from_a_log_is_noticed(simulation, keyring):
    keyring.note_asked()
    assert keyring.on_leases(leases(simulation, keyring), NONCE, INCARNATION, NOW) == (False, False)

    # This device learns of an entry of its own account's log, say a revocation, and asks again.
    answer = leases(simulation, keyring)
    world = simulation.world
    entry = revoke_entry(world.account_keys, world.account, simulation.devices[1].keys.device)
    keyring.install_account(replay_account([entry], world.account))
    before_asking = keyring.on_leases(answer, NONCE, INCARNATION, NOW)
    keyring.note_asked()

    assert before_asking == (False, False), "what comes while the answer is under way is no fault"
    assert keyring.on_leases(answer, NONCE, INCARNATION, NOW) == (False, True)
    assert keyring.newest_keys().epoch == FIRST


def test_what_is_no_lease_is_refused():
    for content in (b"", bytes(32), bytes(111), bytes(113)):
        with pytest.raises(OpenError):
            Leased.unpack(content)


def test_a_wrong_service_key_is_loud(simulation, keyring):
    with pytest.raises(KeyMismatchError):
        keyring.on_leases(leases(simulation, keyring, key=b"w" * 32), NONCE, INCARNATION, NOW)

    assert keyring.locked(NOW)


def test_an_answer_to_another_request_is_refused(simulation, keyring):
    with pytest.raises(LeaseRefusedError):
        keyring.on_leases(leases(simulation, keyring), b"m" * 32, INCARNATION, NOW)


def test_a_lease_on_a_foreign_log_is_a_fork(simulation, keyring):
    told = leases(simulation, keyring)
    forged = Leases(keyring.space, NONCE, told.grants, told.space_log_seq, b"x" * 32, 0, b"")

    with pytest.raises(LogForkError):
        keyring.on_leases(forged, NONCE, INCARNATION, NOW)


def test_another_log_is_a_fork(simulation, keyring):
    other = replay_space([space_genesis(simulation.world.account_keys, 0, simulation.chance.randbytes)])

    with pytest.raises(LogForkError):
        keyring.install_log(other)


def test_leases_are_renewed_every_half_hour(simulation, keyring):
    assert keyring.wanted_epochs(NOW) == [FIRST]

    keyring.on_leases(leases(simulation, keyring), NONCE, INCARNATION, NOW)

    assert keyring.wanted_epochs(NOW + LEASE_RENEWAL_MS - 1) == []
    assert keyring.renew_at(NOW) == NOW + LEASE_RENEWAL_MS
    assert keyring.wanted_epochs(NOW + LEASE_RENEWAL_MS) == [FIRST]


def test_keys_come_back_from_the_vault_but_not_their_time(simulation, keyring):
    keyring.on_leases(leases(simulation, keyring), NONCE, INCARNATION, NOW)
    again = Keyring(keyring.log, simulation.world.account_keys, simulation.devices[0].keys)

    again.restore(keyring.export())

    assert again.newest_keys().epoch == FIRST
    assert again.locked(NOW + HOUR)


def test_leases_of_zero_hours_are_not_kept(simulation, keyring):
    world = simulation.world
    keyring.install_log(replay_space([config_lease_entry(world.account_keys, world.log, 0)], world.log))
    keyring.install_service_key(FIRST, world.keys[FIRST][1], NOW + HOUR, NOW)
    again = Keyring(keyring.log, world.account_keys, simulation.devices[0].keys)

    again.restore(keyring.export())

    assert again.has_member_key
    assert again.locked(NOW)


def test_links_give_the_earlier_member_keys(simulation, keyring):
    simulation._open_epoch()
    world = simulation.world
    again = Keyring(world.log, world.account_keys, simulation.devices[0].keys)
    again.install_member_key(Epoch(2), world.keys[Epoch(2)][0])
    again.install_service_key(FIRST, ServiceKey(world.keys[FIRST][1].expose()), NOW + HOUR, NOW)

    keys = again.keys(FIRST)

    assert keys is not None
    assert keys.dk_commit == world.log.epochs[FIRST].dk_commit
