"""Everything that stands on the stage: the folder, the server, the key service, the cables, the devices."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Protocol

from demo.cable import Cable
from demo.device_process import DeviceProcess
from demo.service_process import ServiceProcess
from twinlock.keyservice.key_files import NODE_KEY_NAME, SERVICE_KEY_NAME, open_signing_key, public_key_text

CATALOGUE = Path(__file__).parents[1] / "examples" / "data" / "earthquakes.json"
ACCOUNT = "ada"
PATIENCE_SECONDS = 20.0


class TwoDevices(Protocol):
    """What a scene of two devices needs: both of them, and A's cable."""

    a: DeviceProcess
    b: DeviceProcess
    cable_a: Cable


class Stage:
    """The processes of the demo and where their files lie. Device A and C hang on cables that can be cut."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        port, port_keys, port_a, port_c, self.dead_port = free_ports(5)
        # Server and key service know one another by their public keys, as an operator would set them up.
        server, keys = folder / "server", folder / "key-service"
        node_pk = public_key_text(open_signing_key(server / "data" / NODE_KEY_NAME))
        self.keys = ServiceProcess(keys, "keyservice", port_keys, {"nodes": [node_pk]})
        settings = {
            "origins": [f"ws://127.0.0.1:{each}" for each in (port, port_a, port_c)],
            "sign_ups_per_min": 0,
            "keyservice_url": f"http://127.0.0.1:{port_keys}",
            "keyservice_pk": public_key_text(open_signing_key(keys / "data" / SERVICE_KEY_NAME)),
        }
        self.server = ServiceProcess(server, "serve", port, settings)
        self.wire = folder / "wire"
        self.wire.mkdir()
        self.cable_a = Cable(port_a, [port], self.wire / "a.bin")
        self.cable_c = Cable(port_c, [port], self.wire / "c.bin")
        self.a, self.b, self.c = (
            DeviceProcess(name, folder / f"device-{name}", folder / f"{name}.log") for name in "ABC"
        )
        self.newcomers: list[DeviceProcess] = []
        # Made for this one run, never printed, gone with the folder.
        self.password = os.urandom(12).hex()
        self.kit = ""

    @property
    def url(self) -> str:
        """The server's own address."""
        return f"ws://127.0.0.1:{self.server.port}"

    @property
    def nowhere(self) -> str:
        """An address at which nobody answers, as for a device without any network."""
        return f"ws://127.0.0.1:{self.dead_port}"

    def newcomer(self, name: str) -> DeviceProcess:
        """Return a device that enters late; it is ended with the others."""
        device = DeviceProcess(name, self.folder / f"device-{name}", self.folder / f"{name}.log")
        self.newcomers.append(device)
        return device

    @property
    def devices(self) -> list[DeviceProcess]:
        """All devices."""
        return [self.a, self.b, self.c, *self.newcomers]

    async def close(self) -> None:
        """End every process, whatever goes wrong with one of them."""
        async with contextlib.AsyncExitStack() as stack:
            stack.callback(self.keys.stop)
            stack.callback(self.server.stop)
            for cable in (self.cable_a, self.cable_c):
                stack.push_async_callback(cable.close)
            for device in self.devices:
                stack.push_async_callback(device.stop)


async def agree(*devices: DeviceProcess) -> tuple[bool, str, int]:
    """Wait until devices hold the same documents; return whether, the digest and how many documents."""
    results: list[dict[str, Any]] = []

    async def same() -> bool:
        results[:] = [await device.tell("digest") for device in devices]
        return len({result["digest"] for result in results}) == 1

    agreed = await until(same)
    return agreed, results[0]["digest"], results[0]["count"]


async def until(condition: Callable[[], Awaitable[bool]], seconds: float = PATIENCE_SECONDS) -> bool:
    """Ask again and again until something is so; False if it does not come to be in time."""
    deadline = time.monotonic() + seconds
    while not await condition():
        if time.monotonic() > deadline:
            return False
        await asyncio.sleep(0.05)
    return True


def free_ports(count: int) -> list[int]:
    """Return some ports of the loopback that nobody listens on just now."""
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]
