"""A server's clock that is set: what was acknowledged is what every device reads, and later writes count."""

import pytest

from twinlock.document.fields import increment
from twinlock.protocol.clock import pack
from twinlock.replica.batch import SetDocument
from twinlock.replica.outbox import TIME_MS_MAX
from twinlock.replica.state import load_chain
from twinlock.server.receive_clock import ReceiveClock
from twinlock.testing.simulator import Simulation

MINUTE_MS = 60_000
JUMPS_MS = [45_000, 4 * MINUTE_MS, 60 * MINUTE_MS, 2 * 24 * 60 * MINUTE_MS]


class SetClock:
    """A clock that is set, and one that nobody sets."""

    def __init__(self) -> None:
        self.wall_ms = 1_000_000
        self.steady = 7.5

    def pass_(self, milliseconds: int) -> None:
        self.wall_ms += milliseconds
        self.steady += milliseconds / 1000


@pytest.fixture
def clock() -> SetClock:
    return SetClock()


@pytest.fixture
def received_ms(clock) -> ReceiveClock:
    return ReceiveClock(lambda: clock.wall_ms, lambda: clock.steady)


def test_the_receive_clock_follows_a_clock_that_nobody_sets_back(clock, received_ms):
    assert received_ms() == clock.wall_ms
    clock.pass_(250)
    assert received_ms() == clock.wall_ms
    clock.wall_ms += 3_600_000
    assert received_ms() == clock.wall_ms


def test_the_receive_clock_runs_on_when_the_clock_is_set_back(clock, received_ms):
    before_ms = received_ms()
    clock.wall_ms -= 3_600_000
    clock.pass_(10_000)

    assert received_ms() == before_ms + 10_000
    assert received_ms() == before_ms + 10_000


def a_world() -> Simulation:
    world = Simulation(1)
    for device in world.devices:
        device.skew_ms = 0
    return world


def settle(world: Simulation) -> None:
    for _ in range(300):
        world.now_ms += 10
        if not any([world.serve(device) for device in world.devices]):
            return
    raise AssertionError("does not come to rest")


def count(world: Simulation, value: int) -> None:
    """Write to one document by each device in turn, so that each is to win over what it has seen."""
    for place, device in enumerate(world.devices):
        device.write([SetDocument("c", "x", {"n": increment(1), "set": value + place}, merge=True)], world.now_ms)
        settle(world)


def restart_at(world: Simulation, ahead_ms: int) -> None:
    world.server.set_clock(ahead_ms)
    world.server.kill()
    settle(world)


@pytest.mark.parametrize("jump_ms", [way * jump for jump in JUMPS_MS for way in (1, -1)])
@pytest.mark.parametrize("restarts", [True, False], ids=["restarted", "running"])
def test_writes_around_a_jump_of_the_servers_clock_all_count(jump_ms, restarts):
    world = a_world()
    settle(world)
    count(world, 0)
    for round_, ahead_ms in enumerate((jump_ms, 0, -jump_ms, 0), 1):
        world.server.set_clock(ahead_ms)
        count(world, 10 * round_)
        if restarts:
            restart_at(world, ahead_ms)
            count(world, 10 * round_ + 5)

    written = len(world.devices) * (9 if restarts else 5)
    last = (45 if restarts else 40) + len(world.devices) - 1
    for device in world.devices:
        assert device.replica is not None
        assert device.store.quarantined() == []
        assert device.store.get_document("c", "x").confirmed == world.devices[0].store.get_document("c", "x").confirmed
        assert device.replica.get("c", "x", device.now_ms(world.now_ms)) == {"n": written, "set": last}
    times = [entry.received_ms for entry in world.server.entries]
    assert times == sorted(times)


def test_what_was_written_offline_by_a_wrong_clock_stays_above_what_the_server_took_before():
    world = a_world()
    settle(world)
    count(world, 0)
    device = world.devices[0]
    device.disconnect()
    device.skew_ms = 24 * 60 * MINUTE_MS
    device.learn(world.now_ms)
    for value in (7, 8):
        device.write([SetDocument("c", "x", {"n": increment(1), "set": value}, merge=True)], world.now_ms)
    restart_at(world, -10 * MINUTE_MS)

    for one in world.devices:
        assert one.store.quarantined() == []
        shown = one.replica.get("c", "x", one.now_ms(world.now_ms))
        assert shown == {"n": len(world.devices) + 2, "set": 8}
    chain = load_chain(device.store)
    assert chain.floor <= pack(chain.received_ms + 2 * MINUTE_MS)


def test_a_receive_time_that_cannot_be_harms_no_device():
    world = a_world()
    world.server.set_clock(1 << 60)
    world.server.kill()
    world.server._clock_ms = 0
    settle(world)
    world.server._receive_ms = 1 << 60
    count(world, 0)
    count(world, 10)

    for device in world.devices:
        assert load_chain(device.store).received_ms == TIME_MS_MAX
        assert device.replica.get("c", "x", device.now_ms(world.now_ms))["n"] == 2 * len(world.devices)
