"""A device that is restored from a backup, or cloned: what it writes comes on top of what it has forgotten."""

import copy

import pytest

from twinlock.document.fields import array_remove, array_union, increment
from twinlock.replica.batch import Batch, SetDocument, UpdateDocument
from twinlock.testing.simulator import START_MS, Simulation
from twinlock.testing.simulator_device import SimulatedDevice

NOW = START_MS
COUNT = [SetDocument("c", "x", {"count": increment(1)}, merge=True)]


@pytest.fixture
def world() -> Simulation:
    return Simulation(1)


@pytest.fixture
def device(world) -> SimulatedDevice:
    """The first device, with a right clock."""
    world.devices = world.devices[:1]
    world.devices[0].skew_ms = 0
    return world.devices[0]


def clone_of(world: Simulation, device: SimulatedDevice) -> SimulatedDevice:
    """A second device from a copy of the first one's disk."""
    clone = SimulatedDevice(9, device.keys, world.world, world.chance.randbytes, 0)
    clone.store = copy.deepcopy(device.store)
    clone.crash(world.now_ms)
    clone.learn(world.now_ms)
    return clone


def settle(world: Simulation, *devices: SimulatedDevice) -> None:
    """Connect devices and let everything arrive."""
    for _ in range(300):
        world.now_ms += 10
        if not any([world.serve(device) for device in devices]):
            return
    raise AssertionError("does not come to rest")


def shown(device: SimulatedDevice) -> dict:
    assert device.replica is not None
    return device.replica.get("c", "x", NOW)


def restored(world: Simulation, device: SimulatedDevice, *, before: Batch, forgotten: list[Batch]) -> SimulatedDevice:
    """Write, copy the disk, write more and send it, lose the device; return what is made of the copy, offline."""
    device.write(before, world.now_ms)
    settle(world, device)
    device.back_up()
    for batch in forgotten:
        device.write(batch, world.now_ms)
    settle(world, device)
    device.go_back(world.now_ms)
    return device


def agree(world: Simulation, *devices: SimulatedDevice) -> dict:
    """Let everything arrive, at a new device too; return what all show."""
    devices = (*devices, world._join())
    settle(world, *devices)
    assert all(one.states() == devices[0].states() for one in devices)
    return shown(devices[0])


def test_increments_count_on_top_of_forgotten_ones(world, device):
    old = restored(world, device, before=COUNT, forgotten=[COUNT, COUNT])
    old.write(COUNT, world.now_ms)
    old.write(COUNT, world.now_ms)
    assert shown(old) == {"count": 3}

    assert agree(world, old) == {"count": 5}


def test_increments_count_although_the_clock_of_the_copy_is_behind(world, device):
    old = restored(world, device, before=COUNT, forgotten=[COUNT, COUNT])
    old.write(COUNT, NOW - 60_000)

    assert agree(world, old) == {"count": 4}


def test_increments_follow_a_forgotten_write_of_the_field(world, device):
    """The copy counts from a number that the device has replaced since, and has counted on from there."""
    forgotten = [[SetDocument("c", "x", {"count": 100})], COUNT]
    old = restored(world, device, before=[SetDocument("c", "x", {"count": 5})], forgotten=forgotten)
    old.write(COUNT, world.now_ms)

    assert agree(world, old) == {"count": 102}


def test_what_a_restored_device_sends_is_shown_right_before_it_is_sent(world, device):
    old = restored(world, device, before=COUNT, forgotten=[COUNT, COUNT])
    old.write(COUNT, world.now_ms)
    old.connect(world.server, world.now_ms)
    sent = len(world.server.entries)
    while shown(old) != {"count": 4}:
        assert len(world.server.entries) == sent, "sealed before the own chain was read"
        world.serve(old)
        old.write([SetDocument("c", "other", {})], world.now_ms)

    assert agree(world, old) == {"count": 4}


def test_the_stamps_of_forgotten_writes_are_not_used_again(world, device):
    """The copy's clock stands where the device's stood, so both stamp alike; yet the copy's writes come after."""
    device.write([SetDocument("c", "x", {"text": "", "tags": ["a"]})], NOW)
    settle(world, device)
    at = world.now_ms + 1_000
    device.back_up()
    first = device.write([UpdateDocument("c", "x", {"text": "z", "tags": array_union("b")})], at)
    settle(world, device)
    device.go_back(world.now_ms)
    again = device.write([UpdateDocument("c", "x", {"text": "a", "tags": array_union("c")})], at)
    device.write([UpdateDocument("c", "x", {"tags": array_remove("c")})], at)
    device.write([UpdateDocument("c", "x", {"tags": array_union("d")})], at)
    assert first == again

    assert agree(world, device) == {"text": "a", "tags": ["a", "b", "d"]}


def test_waiting_writes_that_the_device_has_sent_already_count_once(world, device):
    device.write(COUNT, NOW)
    device.write(COUNT, NOW)
    clone = clone_of(world, device)
    device.write(COUNT, NOW)
    settle(world, device)
    clone.write(COUNT, world.now_ms)

    assert agree(world, clone, device) == {"count": 4}


def test_clones_that_count_in_turns_lose_nothing(world, device):
    device.write(COUNT, NOW)
    settle(world, device)
    clone = clone_of(world, device)
    for _ in range(4):
        for one in (device, clone):
            one.write(COUNT, world.now_ms)
            settle(world, device, clone)

    assert agree(world, device, clone) == {"count": 9}


def test_clones_that_count_at_once_lose_nothing(world, device):
    device.write(COUNT, NOW)
    settle(world, device)
    clone = clone_of(world, device)
    for _ in range(4):
        for one in (device, clone, clone, device):
            world.now_ms += 1
            one.write(COUNT, world.now_ms)
        world.serve(clone)
        world.serve(device)

    assert agree(world, device, clone) == {"count": 17}
