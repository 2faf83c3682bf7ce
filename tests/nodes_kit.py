"""Two nodes on one store in memory, with one key service: real servers, real sockets."""

from __future__ import annotations

import asyncio
import random
from typing import Any

from tests.server_kit import Wire, World, hello_to, open_wire
from twinlock.engines.blobs_memory import MemoryBlobs
from twinlock.engines.memory_nodes import MemoryNode, MemoryStore
from twinlock.keyservice.service import LocalKeyService
from twinlock.keyservice.settings import KeyServiceSettings
from twinlock.protocol.frames import Challenge, Welcome
from twinlock.sealing.identity import DeviceKeys
from twinlock.server import Server, Settings
from twinlock.server.secrets_file import make_secrets
from twinlock.server.stores import Stores

PAUSES_S = (0.0, 0.0, 0.001, 0.003)


class Town:
    """A store, a key service, and the nodes that serve from them."""

    def __init__(self, folder, seed: int = 0, **settings: Any) -> None:
        self.store = MemoryStore()
        self.blobs = MemoryBlobs()
        self.keys = LocalKeyService.open(folder / "keyservice", KeyServiceSettings(requests_burst=100_000))
        self.secrets = make_secrets()
        self.settings = Settings(engine="memory:", port=0, **{"unlocker_tries_per_min": 0, **settings})
        self.chance = random.Random(seed)
        self.nodes: dict[Server, MemoryNode] = {}
        self.wires: list[Wire] = []

    async def start(self, **replaced: Any) -> Server:
        """Start one more node; `replaced` stands in for some of its stores."""
        node = self.store.node(lambda: self.chance.choice(PAUSES_S))
        stores = {
            "log": node.log,
            "directory": node.directory,
            "broker": node.broker,
            "blobs": self.blobs,
            "keys": self.keys,
            **replaced,
        }
        server = Server(self.settings, Stores(**stores, secrets=self.secrets, close=node.close, is_shared=True))
        self.nodes[server] = node
        await server.start()
        return server

    async def acquainted(self) -> None:
        """Wait until every node has heard the others."""
        async with asyncio.timeout(10):
            while any(metric(server, "nodes_alive") < len(self.nodes) for server in self.nodes):  # noqa: ASYNC110
                await asyncio.sleep(0.02)

    async def open(self, server: Server, person: World, device: DeviceKeys | None = None) -> Wire:
        """Connect a device to a node."""
        wire = await open_wire(server.port)
        self.wires.append(wire)
        challenge = await wire.next(Challenge)
        await wire.send(hello_to(challenge, server.port, person.account, device or person.device))
        await wire.next(Welcome)
        return wire

    async def close(self) -> None:
        for wire in self.wires:
            await wire.close()
        for server in self.nodes:
            await server.stop()
        await self.keys.close()


def metric(server: Server, name: str) -> float:
    """Return what a node counts."""
    lines = server.metrics.render().decode().splitlines()
    values = [line.split()[1] for line in lines if line.startswith((f"twinlock_{name} ", f"twinlock_{name}_total "))]
    return float(values[0])
