"""A device's key of an epoch seals so much and no more; at half of it a new epoch is asked for, and nothing is lost."""

import pytest

from twinlock.errors import KeyWornOutError
from twinlock.ids import Epoch
from twinlock.protocol import limits
from twinlock.protocol.envelope import parse
from twinlock.replica.batch import SetDocument
from twinlock.replica.events import RotationWanted
from twinlock.replica.outbox import Outbox
from twinlock.replica.state import OwnChain, load_chain, save_chain
from twinlock.replica.wear import Wear, WearLimits
from twinlock.sealing.cipher import Sealer, sealed_bytes
from twinlock.testing.simulator import Simulation
from twinlock.testing.simulator_device import SimulatedDevice


class SmallKey:
    """The first device of a simulation, connected, whose keys bear little."""

    def __init__(self, **wear: int) -> None:
        self.world = Simulation(1)
        self.device: SimulatedDevice = self.world.devices[0]
        self.device.skew_ms = 0
        self.device.wear = WearLimits(**wear)
        self.device.crash(self.world.now_ms)
        self.settle()

    def settle(self) -> None:
        if self.device.connection is None:
            self.device.connect(self.world.server, self.world.now_ms)
        for _ in range(100):
            self.world.now_ms += 10
            if not self.world.serve(self.device):
                return
        raise AssertionError("does not come to rest")

    def write(self, count: int) -> None:
        for number in range(count):
            self.device.write([SetDocument("c", "x", {"n": number})], self.world.now_ms)
            self.settle()

    def rotate(self) -> None:
        self.world._open_epoch()
        self.world.server.install(self.world.world.log)
        self.device.learn(self.world.now_ms)
        self.settle()

    @property
    def pending_count(self) -> int:
        assert self.device.replica is not None
        return self.device.replica.pending_count

    @property
    def epochs(self) -> list[int]:
        """Under which epochs the server's entries were sealed."""
        return [parse(entry.envelope).header.epoch for entry in self.world.server.entries]

    @property
    def told(self) -> list[RotationWanted]:
        return self.device.rotations_wanted


def test_half_of_the_seals_ask_for_a_new_epoch_and_one_less_does_not():
    small = SmallKey(seals_max=8)

    small.write(3)
    assert small.told == []
    small.write(1)
    assert small.told == [RotationWanted(Epoch(1), is_worn_out=False)]
    small.write(4)

    assert len(small.told) == 1
    assert small.epochs == [1] * 8
    assert small.pending_count == 0


def test_beyond_the_last_seal_writes_are_kept_until_there_is_a_new_epoch():
    small = SmallKey(seals_max=4)
    small.write(4)
    assert small.pending_count == 0

    small.write(2)

    assert small.pending_count == 2
    assert small.epochs == [1] * 4
    assert small.told[-1] == RotationWanted(Epoch(1), is_worn_out=True)
    small.rotate()
    assert small.pending_count == 0
    assert set(small.epochs[4:]) == {2}
    assert small.device.replica.get("c", "x", small.world.now_ms) == {"n": 1}


def test_the_count_goes_on_after_a_restart_and_begins_anew_with_an_epoch():
    small = SmallKey(seals_max=20)
    small.write(12)

    small.device.crash(small.world.now_ms)
    small.settle()
    assert small.told[-1] == RotationWanted(Epoch(1), is_worn_out=False)
    small.write(9)
    waiting = small.pending_count
    assert waiting > 0
    small.device.crash(small.world.now_ms)
    small.settle()
    assert small.pending_count == waiting

    small.rotate()
    assert load_chain(small.device.store).wear.epoch == 2
    assert not small.device.replica.rotation_wanted


def test_bytes_are_counted_like_seals():
    one = sealed_bytes(50)
    small = SmallKey(bytes_max=4 * one)

    small.write(1)
    assert load_chain(small.device.store).wear == Wear(Epoch(1), 1, one)
    assert small.told == []
    small.write(1)
    assert small.told == [RotationWanted(Epoch(1), is_worn_out=False)]
    small.write(2)
    assert small.pending_count == 0
    small.write(1)
    assert small.pending_count == 1
    assert small.told[-1].is_worn_out


def test_what_is_written_offline_is_sealed_as_far_as_the_key_bears_it():
    small = SmallKey(seals_max=1)
    small.device.disconnect()
    big = "x" * 300_000

    for number in range(3):
        small.device.write([SetDocument("c", f"{number}", {"x": big})], small.world.now_ms)
    small.settle()
    assert small.pending_count == 2
    small.rotate()
    assert small.pending_count == 1
    small.rotate()
    assert small.pending_count == 0


def test_a_seal_beyond_the_limit_is_refused_outright():
    small = SmallKey(seals_max=2)
    device = small.device
    with device.store.transaction(durable=True):
        save_chain(device.store, OwnChain(wear=Wear(Epoch(1), 2, 1_000)))
    outbox = Outbox(device.store, device.keyring, Sealer(device.keys, small.world.chance.randbytes), device.wear)

    with pytest.raises(KeyWornOutError):
        outbox.freeze_snapshots([b"packed"])


def test_snapshots_wait_for_the_next_epoch_too():
    small = SmallKey(seals_max=60)
    for number in range(60):
        small.device.write([SetDocument("c", "x", {"n": "y" * 200, "number": number})], small.world.now_ms)
        small.settle()

    for _ in range(50):
        small.world.now_ms += 100
        small.settle()

    assert small.epochs == [1] * len(small.epochs)
    assert load_chain(small.device.store).wear.seals <= 60


@pytest.mark.parametrize(
    ("wear", "is_half", "fits"),
    [
        (Wear(Epoch(1), (1 << 31) - 1, (1 << 39) - 1), False, True),
        (Wear(Epoch(1), 1 << 31, 0), True, True),
        (Wear(Epoch(1), 0, 1 << 39), True, True),
        (Wear(Epoch(1), (1 << 32) - 1, 0), True, True),
        (Wear(Epoch(1), 1 << 32, 0), True, False),
        (Wear(Epoch(1), 0, (1 << 40) - sealed_bytes(10)), True, True),
        (Wear(Epoch(1), 0, (1 << 40) - sealed_bytes(10) + 1), True, False),
    ],
)
def test_the_limits_are_those_of_the_specification(wear, is_half, fits):
    assert (limits.DEVICE_KEY_SEALS_MAX, limits.DEVICE_KEY_BYTES_MAX) == (1 << 32, 1 << 40)
    assert wear.is_half(WearLimits()) is is_half
    assert wear.fits([10], WearLimits()) is fits
