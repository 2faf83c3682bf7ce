"""Seeded simulations of a whole space: devices, partitions, crashes, restores, compaction; then everything must agree.

The same seed gives the same run, but for what the library of HPKE and signatures draws by itself.
"""

from __future__ import annotations

import random

from twinlock.document.fields import array_union, increment
from twinlock.document.query import Query
from twinlock.ids import Epoch
from twinlock.protocol import proofs
from twinlock.protocol.account_log import replay_account
from twinlock.protocol.space_log import Role
from twinlock.protocol.space_rules import replay_space
from twinlock.replica.batch import Batch, DeleteDocument, SetDocument, UpdateDocument
from twinlock.replica.sender_writes import own_prefix
from twinlock.sealing.identity import AccountKeys, DeviceKeys, account_genesis, device_entry
from twinlock.sealing.space_entries import epoch_entry, member_entry, space_genesis
from twinlock.sealing.space_keys import make_epoch
from twinlock.sealing.suite import ServiceKey
from twinlock.testing.simulator_device import SimulatedDevice, World, follow
from twinlock.testing.simulator_sensor import COLLECTION, SimulatedSensor
from twinlock.testing.simulator_server import Backup, SimulatedServer

START_MS = 1_800_000_000_000
DEVICES_MAX = 5
SETTLE_ROUNDS_MAX = 3_000

STEPS = (
    ("write", 30),
    ("serve", 30),
    ("deliver", 30),
    ("receive", 40),
    ("work", 30),
    ("connect", 8),
    ("disconnect", 3),
    ("crash", 2),
    ("wait", 4),
    ("kill", 1),
    ("lock", 1),
    ("unlock", 3),
    ("join", 1),
    ("rotate", 1),
    ("backup", 1),
    ("restore", 1),
    ("retire", 1),
    ("calm", 2),
)


DEVICE_STEPS = (("back_up", 3), ("go_back", 2))
"""Devices that are restored from backups; a run has them or not, so that the seeds of others stay what they were."""


CLOCK_STEPS = (("set_clock", 4), ("kill", 2))
"""A server whose clock is set, in the runs that have one. It is not restored: its times would go back too."""

JUMPS_MS = (0, 0, 45_000, -45_000, 240_000, -240_000, 3_600_000, -3_600_000)

SENSOR_STEPS = (("sense", 10), ("serve_sensor", 60), ("disconnect_sensor", 2), ("crash_sensor", 2))
"""A sender of another account, in the runs that have one."""


class Simulation:
    """One run: `run(steps)` at random, then `settle`, then `check`."""

    def __init__(
        self, seed: int, *, has_device_backups: bool = False, has_sensor: bool = False, has_clock_jumps: bool = False
    ) -> None:
        self.seed = seed
        self._steps = (*STEPS, *(DEVICE_STEPS if has_device_backups else ()), *(SENSOR_STEPS if has_sensor else ()))
        if has_clock_jumps:
            self._steps = (*(step for step in self._steps if step[0] != "restore"), *CLOCK_STEPS)
        self.chance = random.Random(seed)  # noqa: S311  # a simulation must be repeatable, its keys guard nothing
        self.now_ms = START_MS
        self.writes_count = 0
        self._written: dict[int, set[str]] = {}
        self._names_count = 0
        self._has_retired = False
        self._has_gone_back = False
        self._was_restored = False
        self.required: set[str] = set()
        self.trace: list[str] = []
        entropy = self.chance.randbytes
        account_keys = AccountKeys.make(entropy)
        account = replay_account([account_genesis(account_keys, entropy)])
        log = replay_space([space_genesis(account_keys, 0, entropy)])
        server_keys = DeviceKeys.make(entropy)
        self.world = World(account_keys, account, log, {}, proofs.server_id_of(server_keys.sign_pk))
        self._open_epoch()
        self.sensor = self._admit_sensor() if has_sensor else None
        self.server = SimulatedServer(self.world.log, server_keys, entropy)
        self.devices: list[SimulatedDevice] = []
        self._backup: Backup = self.server.backup()
        for _ in range(self.chance.randint(2, 3)):
            self._join()

    def _open_epoch(self) -> None:
        world, entropy = self.world, self.chance.randbytes
        epoch = Epoch(world.log.epoch + 1)
        earlier = world.keys[world.log.epoch][0] if world.keys else None
        keys = make_epoch(world.log.space, epoch, ServiceKey.make(entropy), entropy)
        entry = epoch_entry(world.account_keys, world.log, keys, earlier, entropy)
        world.log = replay_space([entry], world.log)
        world.keys[epoch] = (keys.member_key, keys.service_key)

    def _admit_sensor(self) -> SimulatedSensor:
        world = self.world
        sensor = SimulatedSensor(world, self.chance.randbytes)
        keys = sensor.account_keys
        entry = member_entry(world.account_keys, world.log, keys.sign_pk, keys.kem_pk, keys.account, Role.SENDER)
        world.log = replay_space([entry], world.log)
        world.others.append(sensor.account)
        sensor.start()
        return sensor

    def _join(self) -> SimulatedDevice:
        world, keys = self.world, DeviceKeys.make(self.chance.randbytes)
        entry = device_entry(world.account_keys, world.account, keys.sign_pk, keys.kem_pk)
        world.account = replay_account([entry], world.account)
        skew_ms = self.chance.choice((0, 0, 400, -90_000, 86_400_000))
        device = SimulatedDevice(self._names_count, keys, world, self.chance.randbytes, skew_ms)
        device.keyring.note_trusted_time(0)
        device.learn(self.now_ms)
        self._names_count += 1
        self.devices.append(device)
        return device

    # Steps

    def run(self, steps_count: int) -> None:
        """Take steps at random."""
        names = [name for name, _ in self._steps]
        weights = [weight for _, weight in self._steps]
        for _ in range(steps_count):
            (step,) = self.chance.choices(names, weights)
            device = self.chance.choice(self.devices)
            self.now_ms += self.chance.choice((0, 1, 5, 40))
            self.trace.append(f"{step} {device.name}")
            if step == "set_clock":
                self.server.set_clock(self.chance.choice(JUMPS_MS))
                continue
            if self.sensor is not None and step in dict(SENSOR_STEPS):
                self._take_sensor(step, self.sensor)
                continue
            (self._take_back if step in dict(DEVICE_STEPS) else self._take)(step, device)

    def _take(self, step: str, device: SimulatedDevice) -> None:
        match step:
            case "write":
                self._write(device)
            case "serve" if device.connection is not None:
                self.server.step(device.connection, self.now_ms)
            case "deliver" if device.connection is not None:
                self.server.deliver(device.connection)
            case "receive":
                device.receive(self.server, self.now_ms)
            case "work":
                device.work(self.server, self.now_ms)
            case "connect" if device.session is None:
                device.connect(self.server, self.now_ms)
            case "disconnect":
                self._disconnect(device)
            case "wait":
                self.now_ms += 3_000
            case "calm":
                self._calm()
            case _:
                self._take_rare(step, device)

    def _take_rare(self, step: str, device: SimulatedDevice) -> None:
        match step:
            case "crash":
                self._disconnect(device)
                device.crash(self.now_ms)
            case "kill":
                self.server.kill()
            case "lock" if self.chance.random() < 0.5:
                self._disconnect(device)
                device.lock()
            case "unlock":
                device.unlock(self.now_ms)
            case "join" if len(self.devices) < DEVICES_MAX:
                self._join()
            case "rotate" if self.world.log.epoch < 4:
                self._open_epoch()
                self.server.install(self.world.log)
            case "backup":
                self._backup = self.server.backup()
            case "restore" if self.chance.random() < 0.5:
                self.server.restore(self._backup)
                self._was_restored = True
            case "retire" if len(self.devices) > 2 and self.chance.random() < 0.5:
                self._retire(device)

    def _take_sensor(self, step: str, sensor: SimulatedSensor) -> None:
        match step:
            case "sense":
                sensor.sense(self.now_ms)
            case "serve_sensor":
                sensor.serve(self.server, self.now_ms)
            case "disconnect_sensor":
                sensor.disconnect()
            case "crash_sensor":
                sensor.crash()

    def _take_back(self, step: str, device: SimulatedDevice) -> None:
        """Copy a device's disk, or put the copy back. Two wrong clocks in one life tell no order of its writes."""
        if not device.has_right_clock or device.replica is None:
            return
        if step == "back_up":
            device.back_up()
            return
        self._disconnect(device)
        device.go_back(self.now_ms)
        self._has_gone_back = True
        if device.name in self._written:
            # What it had sent since is required only if a device has it: who else could say so.
            self._written[device.name] &= device.marks()

    def _calm(self) -> None:
        """Let those that are connected work undisturbed for a while: long enough to pack and to cut."""
        for _ in range(self.chance.randrange(60)):
            self.now_ms += 60
            for device in self.devices:
                if device.session is not None:
                    self.serve(device)

    def _retire(self, device: SimulatedDevice) -> None:
        """Lose a device for good. What only it and a server that is restored later had is lost with it."""
        self._disconnect(device)
        self.devices.remove(device)
        self._has_retired = True
        self._written.pop(device.name, None)

    def _disconnect(self, device: SimulatedDevice) -> None:
        if device.connection is not None:
            self.server.drop(device.connection)
        device.disconnect()

    def _write(self, device: SimulatedDevice) -> None:
        mark = f"m{self.writes_count}"
        batch = [
            *self._random_batch(mark),
            SetDocument("marks", mark, {"by": device.name}),
            SetDocument("totals", "all", {"count": increment(1)}, merge=True),
        ]
        device.write(batch, self.now_ms)
        self.writes_count += 1
        self._written.setdefault(device.name, set()).add(mark)

    def _random_batch(self, mark: str) -> Batch:
        name = f"d{self.chance.randrange(6)}"
        number = self.chance.randrange(100)
        match self.chance.randrange(6):
            case 0:
                return [SetDocument("things", name, {"a": {"b": number}, "n": number, "pad": "x" * number * 4})]
            case 1:
                return [SetDocument("things", name, {"a": {"c": mark}}, merge=True)]
            case 2:
                return [SetDocument("things", name, {"tags": array_union(mark), "n": increment(2)}, merge=True)]
            case 3:
                return [DeleteDocument("things", name)]
            case 4:
                # Twice the same document: the second is made against the first.
                return [
                    SetDocument("things", name, {"n": number}),
                    UpdateDocument("things", name, {"a": {"deep": [mark]}}),
                ]
        return [SetDocument("things", name, {"n": number}, merge=True)]

    # The end

    def settle(self) -> None:
        """Let everything that is on its way arrive."""
        for device in self.devices:
            device.unlock(self.now_ms)
        # What a living device has written or seen must not be lost, whatever became of others and of the server.
        self.required = set().union(*self._written.values(), *(device.marks() for device in self.devices))
        self._join()
        for _ in range(SETTLE_ROUNDS_MAX):
            self.now_ms += 50
            is_sending = self.sensor is not None and self.sensor.serve(self.server, self.now_ms)
            if not any([self.serve(device) for device in self.devices]) and not is_sending and self._is_quiet():
                return
        waiting = [device.name for device in self.devices if not device.is_settled]
        raise AssertionError(f"seed {self.seed}: devices {waiting} do not come to rest")

    def serve(self, device: SimulatedDevice) -> bool:
        """Move one message each way for a device, dialling first if need be; return whether anything happened."""
        moved = False
        if device.session is None:
            device.connect(self.server, self.now_ms)
            moved = True
        device.pump(self.now_ms, self.server)
        if device.connection is not None:
            moved |= self.server.step(device.connection, self.now_ms)
            moved |= self.server.deliver(device.connection)
        moved |= device.receive(self.server, self.now_ms)
        return device.work(self.server, self.now_ms) or moved

    def _is_quiet(self) -> bool:
        """Tell whether nothing is left to do, not even later; otherwise go on to when there is."""
        wakes = [device.replica.wake_ms() for device in self.devices if device.replica is not None]
        moments = [moment for moment in wakes if moment is not None]
        if moments:
            self.now_ms = max(self.now_ms, min(moments))
            return False
        is_sent = self.sensor is None or not self.sensor.sender.pending_count
        return is_sent and all(device.is_settled for device in self.devices)

    def check(self) -> None:
        """Assert that all devices hold the same, byte for byte, and every write exactly once.

        Raises:
            AssertionError: something was lost, doubled or does not agree.
        """
        expected = self.devices[0].states()
        for device in self.devices:
            where = f"seed {self.seed}, device {device.name}"
            replica = device.replica
            assert replica is not None, where
            assert not device.refused, where
            assert device.states() == expected, f"{where}: states differ"
            now_ms = device.now_ms(self.now_ms)
            marks = {identifier for identifier, _ in replica.query(Query.over("marks"), now_ms)}
            if self.sensor is not None:
                self._check_senses(self.sensor, device)
            assert marks >= self.required, f"{where}: lost {sorted(self.required - marks)}"
            total = (replica.get("totals", "all", now_ms) or {"count": 0})["count"]
            # A pack may divide what was written together. If its other part goes with a device and a restored server,
            # the marks and their total no longer agree, though nobody who is left has lost anything. Nor do they if the
            # server went back and its author too: another device may bring back what the author has counted anew.
            is_torn = self._has_retired or (self._has_gone_back and self._was_restored)
            assert is_torn or total == len(marks), f"{where}: counted {total} of {len(marks)} writes"
            follow(replica.live(Query.over("things").order_by("n"), now_ms), replica, [], now_ms)

    def _check_senses(self, sensor: SimulatedSensor, device: SimulatedDevice) -> None:
        where = f"seed {self.seed}, device {device.name}"
        assert device.replica is not None, where
        assert not sensor.refused, f"{where}: the sensor's drops were refused"
        senses = dict(device.replica.query(Query.over(COLLECTION), device.now_ms(self.now_ms)))
        assert senses.keys() == sensor.written, f"{where}: lost {sorted(sensor.written - senses.keys())}"
        if sensor.written:
            newest = senses[own_prefix(sensor.account_keys.account)]["newest"]
            assert newest == sensor.readings_count - 1, f"{where}: an older reading counts as the newest"


def simulate(
    seed: int,
    steps_count: int = 300,
    *,
    has_device_backups: bool = False,
    has_sensor: bool = False,
    has_clock_jumps: bool = False,
) -> Simulation:
    """Run one seed from beginning to end."""
    simulation = Simulation(
        seed, has_device_backups=has_device_backups, has_sensor=has_sensor, has_clock_jumps=has_clock_jumps
    )
    simulation.run(steps_count)
    simulation.settle()
    simulation.check()
    return simulation
