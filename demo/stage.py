"""Everything that stands on the stage: the folder, the server, the cables, the devices."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from demo.cable import Cable
from demo.device_process import DeviceProcess
from demo.server_process import ServerProcess

CATALOGUE = Path(__file__).parents[1] / "examples" / "data" / "earthquakes.json"
ACCOUNT = "ada"
PATIENCE_SECONDS = 20.0


class Stage:
    """The processes of the demo and where their files lie. Device A and C hang on cables that can be cut."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        port, port_a, port_c = free_ports(3)
        origins = [f"ws://127.0.0.1:{each}" for each in (port, port_a, port_c)]
        self.server = ServerProcess(folder / "server", port, origins)
        self.wire = folder / "wire"
        self.wire.mkdir()
        self.cable_a = Cable(port_a, port, self.wire / "a.bin")
        self.cable_c = Cable(port_c, port, self.wire / "c.bin")
        self.a, self.b, self.c = (
            DeviceProcess(name, folder / f"device-{name}", folder / f"{name}.log") for name in "ABC"
        )
        # Made for this one run, never printed, gone with the folder.
        self.password = os.urandom(12).hex()
        self.kit = ""

    @property
    def url(self) -> str:
        """The server's own address."""
        return f"ws://127.0.0.1:{self.server.port}"

    async def close(self) -> None:
        """End every process, whatever goes wrong with one of them."""
        async with contextlib.AsyncExitStack() as stack:
            stack.callback(self.server.stop)
            for cable in (self.cable_a, self.cable_c):
                stack.push_async_callback(cable.close)
            for device in (self.a, self.b, self.c):
                stack.push_async_callback(device.stop)

    async def agree(self, *devices: DeviceProcess) -> tuple[bool, str, int]:
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
