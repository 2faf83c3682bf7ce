"""Many connections: how fast they are let in with authentication, and how much memory an idle one holds."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

from bench.figure import Figure
from bench.machine import resident_bytes
from bench.raw_client import RawClient
from bench.scale import Scale
from bench.server_process import serving
from bench.world import World, make_world

AT_ONCE = 64
WARM_UP = 200


async def connections(folder: Path, scale: Scale) -> list[Figure]:
    """Open connections, each with its handshake and signatures, and hold them while nothing happens."""
    counts = (50,) if scale.quick else (50, 500, 5_000)
    figures = []
    with serving(folder) as server:
        await server.ready()
        world = await make_world(server.port)
        # What the server sets up once for its first connections is not what one more costs.
        _close(await _open(world, scale.count(WARM_UP, 10)))
        for count in counts:
            before = resident_bytes(server.child.pid)
            started = time.perf_counter()
            clients = await _open(world, count)
            rate = count / (time.perf_counter() - started)
            await asyncio.sleep(0.5)
            each_kib = (resident_bytes(server.child.pid) - before) / count / 1024
            held = sum(not client.socket.closed.done() for client in clients if client.socket is not None)
            figures += _figures(count, counts, rate, each_kib, held)
            _close(clients)
            await asyncio.sleep(0.5)
    return figures


def _figures(count: int, counts: tuple[int, ...], rate: float, each_kib: float, held: int) -> list[Figure]:
    is_full = count == 5_000
    growth = count / counts[0]
    name = "connections let in, each with both signatures (50, 500, 5,000)"
    figures = [Figure("connections", name, rate, "/s", "higher", 3_000 if is_full else None, growth=growth)]
    if is_full or len(counts) == 1:
        memory = "server memory of an idle connection"
        figures.append(Figure("connections", memory, each_kib, "KiB", "lower", 15))
        target = 5_000 if is_full else None
        figures.append(Figure("connections", "idle connections held", held, "", "higher", target))
    return figures


async def _open(world: World, count: int) -> list[RawClient]:
    clients: list[RawClient] = []

    async def open_some(number: int) -> None:
        for _ in range(number):
            clients.append(await world.open())

    shares = [count // AT_ONCE + (share < count % AT_ONCE) for share in range(AT_ONCE)]
    async with asyncio.TaskGroup() as group:
        for share in shares:
            group.create_task(open_some(share))
    return clients


def _close(clients: list[RawClient]) -> None:
    for client in clients:
        client.close()
