"""Durable writes: one writer's latency, many writers' rate, and many spaces at once."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

from bench.figure import Figure, quantile
from bench.raw_client import ACK, RawClient, count_of
from bench.scale import Scale
from bench.server_process import serving
from bench.world import World, make_world

SECONDS_MAX = 120


class Writer:
    """A connection that sends its messages one after another, each after the ack of the one before."""

    __slots__ = ("_changes_in_message", "_client", "_messages", "_missing", "_sent_at", "finished", "taken_ms")

    def __init__(self, client: RawClient, messages: list[bytes], changes_in_message: int = 1) -> None:
        self._client = client
        self._messages = iter(messages)
        self._changes_in_message = changes_in_message
        self._missing = 0
        self._sent_at = 0.0
        self.taken_ms: list[float] = []
        self.finished = asyncio.Event()
        client.sink = self._on_frame

    def send_next(self) -> None:
        """Send the next message, or say that there is none."""
        message = next(self._messages, None)
        if message is None:
            self.finished.set()
            return
        self._missing = self._changes_in_message
        self._sent_at = time.perf_counter()
        self._client.send(message)

    def _on_frame(self, frame: memoryview) -> None:
        if frame[1] != ACK:
            return
        self._missing -= count_of(frame)
        if self._missing <= 0:
            self.taken_ms.append((time.perf_counter() - self._sent_at) * 1000)
            self.send_next()


async def drive(writers: list[Writer]) -> float:
    """Let every writer send all it has and return the seconds that took."""
    started = time.perf_counter()
    for writer in writers:
        writer.send_next()
    async with asyncio.timeout(SECONDS_MAX):
        for writer in writers:
            await writer.finished.wait()
    return time.perf_counter() - started


async def one_writer(folder: Path, scale: Scale) -> list[Figure]:
    """Measure how long a single device waits for the ack of one change."""
    with serving(folder) as server:
        await server.ready()
        world = await make_world(server.port)
        messages = world.source().pushes(scale.count(3_000, 100))
        writer = Writer(await world.open(), messages)
        await drive([writer])
        taken_ms = writer.taken_ms[len(writer.taken_ms) // 10 :]
    return [
        Figure("ack", "durable ack, one writer, p50", quantile(taken_ms, 0.5), "ms", "lower", 0.8),
        Figure("ack", "durable ack, one writer, p99", quantile(taken_ms, 0.99), "ms", "lower", 5.0),
    ]


async def many_writers(folder: Path, scale: Scale) -> list[Figure]:
    """Measure the rate of writers of one space, each a device with one change in flight."""
    counts = (4,) if scale.quick else (64, 1, 10, 100)
    with serving(folder) as server:
        await server.ready()
        world = await make_world(server.port, devices_count=max(counts), spaces_count=len(counts))
        figures = []
        for space, count in enumerate(counts):
            each = scale.count(max(100, min(1_500, 40_000 // count)), 20)
            rate, p99_ms = await _rate(world, space, count, each, 1)
            at_target = space == 0
            name = f"{count} writers" if at_target else "writers of one space (1, 10, 100)"
            growth = 1 if at_target else count
            target = 20_000 if at_target and not scale.quick else None
            figures.append(Figure("writers", f"{name}: durable changes", rate, "/s", "higher", target, growth=growth))
            figures.append(Figure("writers", f"{name}: ack p99", p99_ms, "ms", "lower", growth=growth))
    return figures


async def pushes_of_ten(folder: Path, scale: Scale) -> list[Figure]:
    """Measure the rate of 64 writers that push ten changes at a time."""
    count, each = scale.count(64, 4), scale.count(150, 5)
    with serving(folder) as server:
        await server.ready()
        world = await make_world(server.port, devices_count=count)
        rate, _ = await _rate(world, 0, count, each, 10)
    return [Figure("pushes", f"{count} writers, pushes of 10: durable changes", rate, "/s", "higher", 50_000)]


async def _rate(world: World, space: int, count: int, each: int, size: int) -> tuple[float, float]:
    writers = [
        Writer(await world.open(device), world.source(space, device).pushes(each, size), size)
        for device in range(count)
    ]
    taken_s = await drive(writers)
    all_ms = [taken for writer in writers for taken in writer.taken_ms]
    return count * each * size / taken_s, quantile(all_ms, 0.99)


async def many_spaces(folder: Path, scale: Scale) -> list[Figure]:
    """Measure the rate of many spaces at once, each with a writer and two other devices that read along."""
    counts = (4,) if scale.quick else (10, 100, 1_000)
    with serving(folder) as server:
        await server.ready()
        world = await make_world(server.port, devices_count=3, spaces_count=sum(counts))
        figures, first = [], 0
        for count in counts:
            rate = await _spaces_rate(world, range(first, first + count), scale.count(30_000 // count, 20))
            first += count
            target = 15_000 if count == 1_000 else None
            name = "spaces with a writer and two readers (10, 100, 1,000): durable writes"
            figures.append(Figure("spaces", name, rate, "/s", "higher", target, growth=count / counts[0]))
    return figures


async def _spaces_rate(world: World, spaces: range, each: int) -> float:
    delivered = 0
    expected = len(spaces) * each * 2
    all_delivered = asyncio.Event()

    def read(frame: memoryview) -> None:
        nonlocal delivered
        delivered += count_of(frame)
        if delivered >= expected:
            all_delivered.set()

    clients = []
    for space in spaces:
        for device in (1, 2):
            reader = await world.open(device)
            reader.sink = read
            await reader.attach(world.space_id(space))
            clients.append(reader)
    writers = [Writer(await world.open(), world.source(space).pushes(each)) for space in spaces]
    started = time.perf_counter()
    await drive(writers)
    # A write counts once its two readers have it as well.
    await asyncio.wait_for(all_delivered.wait(), SECONDS_MAX)
    rate = len(spaces) * each / (time.perf_counter() - started)
    for client in clients:
        client.close()
    return rate
