"""Catch-up on the wire: a device that was away asks for everything after its cursor."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

from bench.figure import Figure
from bench.raw_client import count_of
from bench.scale import Scale
from bench.scenarios.writes import Writer, drive
from bench.server_process import serving
from bench.world import World, make_world

PUSH_SIZE = 64
SECONDS_MAX = 60


async def catch_up(folder: Path, scale: Scale) -> list[Figure]:
    """Measure how long 100, 1,000 and 10,000 changes take to reach a device that attaches."""
    counts = (128,) if scale.quick else (128, 1_280, 10_048)
    figures = []
    with serving(folder) as server:
        await server.ready()
        world = await make_world(server.port, devices_count=2, spaces_count=len(counts))
        for space, count in enumerate(counts):
            messages = world.source(space).pushes(count // PUSH_SIZE, PUSH_SIZE)
            await drive([Writer(await world.open(), messages, PUSH_SIZE)])
            taken_s = await _read_all(world, space, count)
            target = 0.1 if count > 10_000 else None
            growth = round(count / counts[0])
            name = "catch-up on the wire (128, 1,280, 10,048 changes)"
            figures.append(Figure("catchup", name, taken_s, "s", "lower", target, growth=growth))
    return figures


async def _read_all(world: World, space: int, count: int) -> float:
    received = 0
    complete = asyncio.Event()

    def read(frame: memoryview) -> None:
        nonlocal received
        received += count_of(frame)
        if received >= count:
            complete.set()

    client = await world.open(1)
    client.sink = read
    started = time.perf_counter()
    await client.attach(world.space_id(space))
    await asyncio.wait_for(complete.wait(), SECONDS_MAX)
    taken_s = time.perf_counter() - started
    client.close()
    return taken_s
