"""The world of a family: a server and a key service as processes of their own, and everybody's devices."""

import asyncio
import json
import os
import shutil
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from typer.testing import CliRunner

import twinlock
from tests.client_kit import ShiftedClock, until
from tests.e2e.formulas import label, prefixed, sha256
from tests.e2e.raider import Device, Kit, Raid
from tests.security.wire import Wire, challenged
from twinlock.cli.commands import commands
from twinlock.keyservice.key_files import NODE_KEY_NAME, open_signing_key, public_key_text
from twinlock.protocol.frames import Hello, Welcome
from twinlock.testing.keyservice_process import KeyServiceChild
from twinlock.testing.processes import DeviceProcess, ServerProcess
from twinlock.testing.workload import open_database

PROGRAM = Path(__file__).with_name("device_program.py")
NOWHERE = "ws://127.0.0.1:1"
"""Where no server is: for devices that are opened offline, though the server is there."""

HOUR_MS = 3_600_000
LEASE_HOURS = 24
MOTHER, PARTNER, CHILD, SENSOR = "mia", "paul", "kim", "thermometer"
PASSWORD = "correct horse battery"


class Year:
    """Everything that there is; closed at the end of the year. Folders of devices have the devices' names."""

    def __init__(self, folder: Path, stack: AsyncExitStack) -> None:
        self.folder = folder
        self._stack = stack
        self._copies_count = 0
        node_key = open_signing_key(folder / "server" / "data" / NODE_KEY_NAME)
        # Whoever destroys a root key does not want to wait a month for it here.
        chosen: dict[str, Any] = {"backup_days": 0.0, "tend_interval_s": 0.2}
        self.keys = KeyServiceChild(folder / "keys", [public_key_text(node_key)], **chosen)
        apart = {"keyservice_url": self.keys.url, "keyservice_pk": self.keys.public_key}
        self.server = ServerProcess(folder / "server", **apart)
        self.clocks: dict[str, ShiftedClock] = {}
        self.devices: dict[str, twinlock.Client] = {}
        self.programs: dict[str, DeviceProcess] = {}
        self.kit = self.sensor_kit = Kit("", "")
        self.shared: set[str] = set()
        """The secrets in the family's space."""

        self.family = self.diary = ""
        """The ids of the two spaces."""

    async def begin(self) -> None:
        """Start the processes."""
        for process in (self.keys, self.server):
            self._stack.callback(process.kill)
            await asyncio.to_thread(process.start)
        self._stack.push_async_callback(self.close_all)

    # Devices

    def options(self, device: str) -> twinlock.Options:
        """What a device is built with: a name, and a clock that the story may set."""
        clock = self.clocks.setdefault(device, ShiftedClock())
        return twinlock.Options(wall_ms=clock, device_name=device)

    def profile(self, device: str) -> Path:
        """The folder of a device."""
        return self.folder / device

    def keep(self, device: str, db: twinlock.Client) -> twinlock.Client:
        """Remember an open device."""
        self.devices[device] = db
        return db

    def __getitem__(self, device: str) -> twinlock.Client:
        return self.devices[device]

    async def sign_up(self, device: str, name: str) -> twinlock.Client:
        """Make an account with its first device."""
        profile, options = self.profile(device), self.options(device)
        return self.keep(device, await twinlock.sign_up(self.server.url, name, PASSWORD, profile, options=options))

    async def open(self, device: str, url: str | None = None) -> twinlock.Client:
        """Open a device again, by default where its server is."""
        options = self.options(device)
        return self.keep(device, await twinlock.connect(url, self.profile(device), options=options))

    async def open_later(self, device: str, hours: int) -> twinlock.Client:
        """Open a device away from its server, so many hours after it was last used."""
        self.clocks[device].shift_ms += hours * HOUR_MS
        return await self.open(device, NOWHERE)

    async def close(self, *devices: str) -> None:
        """Close devices."""
        for device in devices:
            await self.devices.pop(device).close()

    async def close_all(self) -> None:
        """Close what is still open."""
        await self.close(*self.devices)

    async def program(self, device: str) -> DeviceProcess:
        """Start a device as a process of its own."""
        running = DeviceProcess([str(PROGRAM)], self.folder / f"{device}.log")
        self.programs[device] = await self._stack.enter_async_context(running)
        return running

    async def open_sensor(self, url: str | None = None, *, is_new: bool = False) -> twinlock.Client:
        """Open the sensor, a service account, from its key file."""
        key_file, options = self.folder / "sensor.json", self.options("sensor")
        if is_new:
            await twinlock.create_service_account(self.server.url, SENSOR, key_file)
            self.sensor_kit = Kit(json.loads(key_file.read_bytes())["kit"], SENSOR)
        return self.keep(
            "sensor", await twinlock.connect(url, self.profile("sensor"), key_file=key_file, options=options)
        )

    async def start_paul(self) -> DeviceProcess:
        """Start the partner's phone again."""
        paul = await self.program("paul")
        await paul.tell("open", profile=str(self.profile("paul")))
        await paul.tell("use", space=self.family)
        return paul

    async def is_told_of_the_end(self, paul: DeviceProcess, reason: str) -> None:
        """Wait until the partner's phone knows that its part in the space has ended, and why."""
        ended: list[str] = []
        while not ended:
            ended = await paul.tell("ended")
        assert ended == [reason]

    # The operator

    async def destroy_old_root_keys(self) -> None:
        """Rotate the root key of the key service, and wait until the version before it is destroyed."""
        await asyncio.to_thread(self.keys.stop)
        command = ["keyservice", "rotate-root", "--config", str(self.keys.config)]
        rotated = await asyncio.to_thread(CliRunner().invoke, commands, command)
        assert rotated.exit_code == 0, rotated.output
        await asyncio.to_thread(self.keys.start)
        await until(lambda: list(json.loads((self.keys.data / "root.key").read_bytes())["keys"]) == ["2"])

    # Raids

    def copy(self, name: str) -> Path:
        """Take everything that lies in a folder: that of a device, of the `server`, or of the key service (`keys`)."""
        self._copies_count += 1
        source = self.folder / name / "data" if name in ("server", "keys") else self.folder / name
        target = self.folder / "loot" / f"{self._copies_count}-{name}"
        shutil.copytree(source, target, ignore=shutil.ignore_patterns("*-shm", "lock", "*.lock"))
        return target

    def raid(self, *loot: object) -> Raid:
        """Raid folders as they are now (by their names) or as they were (by their copies), with papers if given."""
        return Raid(*(self.copy(piece) if isinstance(piece, str) else piece for piece in loot))

    async def reads_by_itself(self, device: str, secrets: set[str]) -> None:
        """See that a device's folder alone gives these secrets; what it just received is written a moment later."""
        for _ in range(100):
            if self.raid(device).secrets == secrets:
                return
            await asyncio.sleep(0.02)
        assert self.raid(device).secrets == secrets


async def tell(space: twinlock.Space, *secrets: str, **more: Any) -> None:
    """Write secrets into a space, each into a note of its own, and wait until the server has them."""
    for secret in secrets:
        note = space.collection("notes").doc(secret)
        await (await note.set({"text": f"secret:{secret}", **more})).durable()


async def hears(space: twinlock.Space, *secrets: str) -> None:
    """Wait until a device shows notes."""
    for secret in secrets:
        await shows(space.collection("notes").doc(secret), text=f"secret:{secret}")


async def shows(document: Any, **expected: Any) -> None:
    """Wait until a device shows a document with these values."""
    found: list[dict[str, Any]] = [{}]
    ended = document.on_snapshot(lambda snap: found.append(dict(snap.doc.data) if snap.doc is not None else {}))
    try:
        await until(lambda: expected.items() <= found[-1].items())
    except TimeoutError:
        assert found[-1] == expected
    ended()


@asynccontextmanager
async def signed_in_by(device: Device, url: str) -> AsyncIterator[Wire]:
    """Open a session with what lies in a device's folder, by a client that keeps to no rule."""
    assert device.keys is not None
    assert device.id is not None
    async with challenged(url) as wire:
        challenge, nonce = wire.challenge, os.urandom(32)
        assert challenge is not None
        names = sha256(challenge.server_pk) + prefixed(wire.origin.encode()) + challenge.incarnation
        message = label("hello", names + device.account + device.id + prefixed(challenge.nonce) + prefixed(nonce))
        signature = Ed25519PrivateKey.from_private_bytes(device.keys[0]).sign(message)
        await wire.send(Hello(nonce, wire.origin, device.account, device.id, signature))  # type: ignore[arg-type]  # raw
        await wire.until(Welcome)
        yield wire


def plant(database: Path, envelope: bytes) -> None:
    """Put an envelope into the log of a server that does not run, and have it delivered, whatever the rules are."""
    space, now_ms = envelope[8:24], time.time_ns() // 1_000_000
    with open_database(database) as connection:
        sql = "INSERT INTO log (space, received_ms, envelope) VALUES (?, ?, ?)"
        added = connection.execute(sql, (space, now_ms, envelope))
        # The true chains stay as they are: the server only says that there is more to read.
        connection.execute("UPDATE heads SET seq = ? WHERE space = ?", (added.lastrowid, space))
