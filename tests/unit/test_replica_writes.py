"""A replica's writes: durable at once, sealed in order, confirmed, refused, kept while locked."""

import pytest

from twinlock.document.fields import array_remove, array_union, increment
from twinlock.document.query import Query
from twinlock.errors import (
    DocumentTooLargeError,
    InvalidDataError,
    LeaseExpiredError,
    NotFoundError,
    OpenError,
)
from twinlock.ids import Counter
from twinlock.protocol.frames import Ack, Reject
from twinlock.replica.batch import DeleteDocument, SetDocument, UpdateDocument
from twinlock.replica.events import PushHeld, WritesConfirmed, WritesRefused
from twinlock.replica.locked import LockedOutbox, open_records
from twinlock.replica.outbox import WINDOW
from twinlock.replica.replica import Replica
from twinlock.sealing.suite import StoreKey
from twinlock.testing.memory_store import MemoryStore
from twinlock.testing.simulator import START_MS, Simulation
from twinlock.testing.simulator_device import SimulatedDevice

NOW = START_MS


@pytest.fixture
def world() -> Simulation:
    return Simulation(1)


@pytest.fixture
def device(world) -> SimulatedDevice:
    """The first device, with a right clock."""
    device = world.devices[0]
    device.skew_ms = 0
    return device


def replica_of(device: SimulatedDevice) -> Replica:
    assert device.replica is not None
    return device.replica


def settle(world: Simulation, *devices: SimulatedDevice) -> None:
    """Connect devices and let everything arrive."""
    for _ in range(200):
        world.now_ms += 10
        if not any([world.serve(device) for device in devices or world.devices]):
            return
    raise AssertionError("does not come to rest")


def test_a_write_is_shown_at_once_and_survives_a_crash(device):
    device.write([SetDocument("c", "x", {"a": 1})], NOW)
    assert replica_of(device).get("c", "x", NOW) == {"a": 1}

    device.crash(NOW)

    assert replica_of(device).get("c", "x", NOW) == {"a": 1}
    assert replica_of(device).pending_count == 1


def test_a_batch_is_written_whole_or_not_at_all(device):
    with pytest.raises(NotFoundError):
        device.write([SetDocument("c", "x", {"a": 1}), UpdateDocument("c", "missing", {"a": 1})], NOW)

    assert replica_of(device).get("c", "x", NOW) is None
    assert replica_of(device).pending_count == 0


@pytest.mark.parametrize("batch", [[], [SetDocument("c", "", {})], [SetDocument("c", "x", {"a": object()})]])
def test_what_cannot_be_stored_is_refused(device, batch):
    with pytest.raises(InvalidDataError):
        device.write(batch, NOW)


def test_a_document_over_one_envelope_is_refused(device):
    with pytest.raises(DocumentTooLargeError):
        device.write([SetDocument("c", "x", {"a": "x" * (1 << 20)})], NOW)

    assert replica_of(device).pending_count == 0


def test_offline_writes_are_joined_and_confirmed_in_order(world, device):
    tokens = [device.write([SetDocument("c", f"d{number}", {"n": number})], NOW) for number in range(300)]

    settle(world, device)

    assert device.confirmed == set(tokens)
    assert replica_of(device).pending_count == 0
    assert len(world.server.entries) < 5


def test_online_writes_are_sealed_at_once_until_the_window_is_full(world, device):
    settle(world, device)
    for number in range(WINDOW + 10):
        device.write([SetDocument("c", f"d{number}", {"n": number})], NOW)

    assert device.store.frozen_count() == WINDOW
    assert len(device.store.unsealed_writes(1 << 20)) == 10

    settle(world, device)

    assert replica_of(device).pending_count == 0
    assert replica_of(device).count(Query.over("c"), NOW) == WINDOW + 10


def test_an_acknowledgement_is_told_once(world, device):
    settle(world, device)
    replica = replica_of(device)
    token = replica.write([SetDocument("c", "x", {"a": 1})], NOW)
    replica.outgoing(NOW)
    ack = Ack(world.world.log.space, [(Counter(1), world.server.head)])

    replica.on_ack(ack, NOW)
    replica.on_ack(ack, NOW)

    assert [event for event in replica.take_events() if isinstance(event, WritesConfirmed)] == [
        WritesConfirmed((token,))
    ]


def reject(world, device, counter: int, code: str, retry_after_ms: int = 0) -> None:
    head = world.server._sequencer.head_of(device.keys.device)
    frame = Reject(world.world.log.space, Counter(counter), code, "", retry_after_ms, head.counter, head.id)
    replica_of(device).on_reject(frame, NOW)


def test_a_refused_write_is_listed_and_taken_back_and_the_rest_goes_on(world, device):
    settle(world, device)
    replica = replica_of(device)
    replica.write([SetDocument("c", "x", {"a": 1})], NOW)
    kept = replica.write([UpdateDocument("c", "x", {"b": 2}), SetDocument("c", "y", {})], NOW)
    replica.outgoing(NOW)

    reject(world, device, 1, "space_full")

    assert [event.code for event in replica.take_events() if isinstance(event, WritesRefused)] == ["space_full"]
    assert [write.token for write in replica.refused()] == [1]
    assert replica.get("c", "x", NOW) == {"b": 2}
    settle(world, device)
    assert kept in device.confirmed
    replica.forget_refused([1])
    assert replica.refused() == []


def test_a_push_that_is_held_back_is_sent_again_as_the_same_bytes(world, device):
    settle(world, device)
    replica = replica_of(device)
    replica.write([SetDocument("c", "x", {"a": 1})], NOW)
    first = replica.outgoing(NOW)

    reject(world, device, 1, "quota_exceeded", 5_000)

    assert PushHeld(NOW + 5_000, "quota_exceeded") in replica.take_events()
    assert replica.outgoing(NOW + 4_999) == []
    assert replica.wake_ms() == NOW + 5_000
    assert replica.outgoing(NOW + 5_000) == first


def test_a_device_that_comes_from_a_backup_adopts_the_servers_head(world, device):
    settle(world, device)
    world.devices[1].skew_ms = 0
    device.write([SetDocument("c", "x", {"a": 1})], NOW)
    settle(world, device)
    device.store = MemoryStore()
    device.crash(NOW)

    device.write([SetDocument("c", "y", {"b": 2})], NOW + 10)
    settle(world)

    for each in world.devices:
        assert replica_of(each).get("c", "x", NOW) == {"a": 1}
        assert replica_of(each).get("c", "y", NOW) == {"b": 2}


def test_stamps_of_a_clock_a_day_ahead_are_clamped_and_refused_by_nobody(world, device):
    device.skew_ms = 86_400_000
    device.learn(NOW)
    device.write([SetDocument("c", "x", {"a": 1, "n": 0})], NOW)
    device.write([UpdateDocument("c", "x", {"n": increment(2)})], NOW)
    device.write([UpdateDocument("c", "x", {"n": increment(3)})], NOW)

    settle(world)

    for each in world.devices:
        assert replica_of(each).get("c", "x", NOW) == {"a": 1, "n": 5}
        assert replica_of(each).quarantined() == []
    assert world.devices[0].states() == world.devices[1].states()


def test_concurrent_writes_leave_a_conflict(world, device):
    other = world.devices[1]
    other.skew_ms = 0
    device.write([SetDocument("c", "x", {"a": 1})], NOW)
    settle(world)
    for each in (device, other):
        each.disconnect()
    device.write([UpdateDocument("c", "x", {"a": "mine"})], NOW + 5_000)
    other.write([UpdateDocument("c", "x", {"a": "theirs"})], NOW + 6_000)

    settle(world)

    assert replica_of(device).get("c", "x", NOW) == {"a": "theirs"}
    assert [conflict.value for conflict in replica_of(device).conflicts("c", "x", NOW)] == ["mine"]


def test_locked_writes_are_sealed_and_come_back_in_order(world, device):
    store_key = StoreKey(b"k" * 32)
    device.write([SetDocument("c", "x", {"n": 1, "tags": ["a"]})], NOW)
    outbox = LockedOutbox(world.world.log, device.keys.device, store_key, 0)
    records = [
        outbox.seal([UpdateDocument("c", "x", {"n": increment(4), "tags": array_union("b")})], NOW + 1),
        outbox.seal([SetDocument("c", "y", {"when": 1}, merge=True), DeleteDocument("c", "z")], NOW + 2),
    ]
    assert b"when" not in b"".join(records)

    replica_of(device).absorb(open_records(records, device.keyring, store_key), NOW + 3)

    # A crash before the side file was removed: the same records come again, and one more.
    records.append(outbox.seal([UpdateDocument("c", "x", {"n": increment(0)})], NOW + 4))
    assert len(replica_of(device).absorb(open_records(records, device.keyring, store_key), NOW + 5)) == 1
    assert replica_of(device).get("c", "x", NOW) == {"n": 5, "tags": ["a", "b"]}
    assert replica_of(device).get("c", "y", NOW) == {"when": 1}
    with pytest.raises(OpenError):
        open_records(records[::-1], device.keyring, store_key)
    with pytest.raises(OpenError):
        open_records([records[0][:-1] + b"\0"], device.keyring, store_key)


def test_a_write_that_must_read_waits_for_the_lease(world, device):
    outbox = LockedOutbox(world.world.log, device.keys.device, StoreKey(b"k" * 32), 0)

    with pytest.raises(LeaseExpiredError):
        outbox.seal([UpdateDocument("c", "x", {"tags": array_remove("b")})], NOW)


def test_nothing_is_read_after_the_lease(device):
    replica = replica_of(device)
    device.write([SetDocument("c", "x", {"a": 1})], NOW)
    late = NOW + 11 * 3_600_000

    for read in (lambda: replica.get("c", "x", late), lambda: replica.write([DeleteDocument("c", "x")], late)):
        with pytest.raises(LeaseExpiredError):
            read()
