"""One writer, many subscribers: how many deliveries a second, and how late they are at half of that."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

from bench.figure import Figure, quantile
from bench.raw_client import ACK, ENTRIES, RawClient, count_of
from bench.scale import Scale
from bench.server_process import serving
from bench.world import World, make_world
from twinlock.protocol import codec
from twinlock.protocol.frames import Entries

CHANGES_OUTSTANDING = 256
"""How far the writer may be ahead of the deliveries: enough to keep the server busy, not to bury it."""

DELIVERIES_TARGET = 600_000
PUSH_SIZE = 8
PUSHES_IN_FLIGHT = 48
SECONDS_MAX = 60
_COUNTER = slice(40, 48)


class Audience:
    """All subscribers of one space: counts deliveries and, if asked, notes when each arrived."""

    __slots__ = ("acked", "arrivals", "delivered", "frames", "keep_times", "moved")

    def __init__(self) -> None:
        self.acked = 0
        self.delivered = 0
        self.frames = 0
        self.keep_times = False
        self.arrivals: dict[bytes, list[float]] = {}
        self.moved = asyncio.Event()

    def on_ack(self, frame: memoryview) -> None:
        """Count what the writer has acknowledged."""
        if frame[1] == ACK:
            self.acked += count_of(frame)
            self.moved.set()

    async def wait_for_room(self, sent: int) -> None:
        """Wait until the writer has so few pushes in flight that the server takes another."""
        while sent - self.acked >= PUSHES_IN_FLIGHT:
            self.moved.clear()
            await self.moved.wait()

    def on_frame(self, frame: memoryview) -> None:
        """Count what a frame delivers."""
        if frame[1] != ENTRIES:
            return
        self.delivered += count_of(frame)
        self.frames += 1
        self.moved.set()
        if self.keep_times:
            self.arrivals.setdefault(bytes(frame), []).append(time.perf_counter())


async def fan_out(folder: Path, scale: Scale) -> list[Figure]:
    """Measure deliveries to 1,000 subscribers and their delay at half of that rate, then to 10 and 100."""
    counts = (10,) if scale.quick else (1_000, 10, 100)
    figures: list[Figure] = []
    with serving(folder) as server:
        await server.ready()
        world = await make_world(server.port, devices_count=2, spaces_count=len(counts))
        for space, count in enumerate(counts):
            figures += await _one_audience(world, space, count, scale)
    return figures


async def _one_audience(world: World, space: int, count: int, scale: Scale) -> list[Figure]:
    audience = Audience()
    subscribers = [await _subscribe(world, space, audience) for _ in range(count)]
    writer = await world.open()
    writer.sink = audience.on_ack
    source = world.source(space)
    changes = scale.count(max(2_400, min(16_000, 1_600_000 // count)), 400)
    rate = await _full_speed(writer, source.pushes(changes // PUSH_SIZE, PUSH_SIZE), count, audience)
    is_full = count == 1_000
    name = "deliveries to 1,000, 10 and 100 subscribers"
    target = DELIVERIES_TARGET if is_full else None
    note = f"{audience.delivered / audience.frames:,.0f} changes joined into a frame"
    figures = [Figure("fanout", name, rate, "/s", "higher", target, growth=count / 10, note=note)]
    if is_full or scale.quick:
        pace = min(rate, DELIVERIES_TARGET) / 2
        late_ms = await _paced(writer, source.pushes(scale.count(900, 40)), pace / count, count, audience)
        name = f"delay to {count:,} subscribers at {pace:,.0f} deliveries/s, p99"
        target = 25 if is_full else None
        figures.append(Figure("fanout", name, quantile(late_ms, 0.99), "ms", "lower", target, growth=count / 10))
    for client in (*subscribers, writer):
        client.close()
    return figures


async def _subscribe(world: World, space: int, audience: Audience) -> RawClient:
    client = await world.open(1)
    client.sink = audience.on_frame
    await client.attach(world.space_id(space))
    return client


async def _full_speed(writer: RawClient, pushes: list[bytes], subscribers: int, audience: Audience) -> float:
    acked_before = audience.acked
    before, started = audience.delivered, time.perf_counter()
    sent = 0
    expected = len(pushes) * PUSH_SIZE * subscribers
    async with asyncio.timeout(SECONDS_MAX):
        while (done := audience.delivered - before) < expected:
            slowest = min(done // subscribers, audience.acked - acked_before)
            while sent < len(pushes) and sent * PUSH_SIZE - slowest < CHANGES_OUTSTANDING:
                writer.send(pushes[sent])
                sent += 1
            audience.moved.clear()
            await audience.moved.wait()
    return expected / (time.perf_counter() - started)


async def _paced(
    writer: RawClient, messages: list[bytes], rate: float, subscribers: int, audience: Audience
) -> list[float]:
    audience.keep_times = True
    counters = [_counter_of(message) for message in messages]
    acked_before = audience.acked
    before, started = audience.delivered, time.perf_counter()
    for index, message in enumerate(messages):
        ahead = started + index / rate - time.perf_counter()
        if ahead > 0:
            await asyncio.sleep(ahead)
        await audience.wait_for_room(acked_before + index)
        writer.send(message)
    # The delay counts from when a change was due, so that a driver that lags does not hide it.
    due = {counter: started + index / rate for index, counter in enumerate(counters)}
    expected = len(messages) * subscribers
    async with asyncio.timeout(SECONDS_MAX):
        while audience.delivered - before < expected:
            audience.moved.clear()
            await audience.moved.wait()
    return _delays_ms(audience, due)


def _counter_of(push: bytes) -> int:
    frame = codec.decode_client(push)
    envelope: bytes = frame.envelopes[0]  # type: ignore[union-attr]  # it was made as a push
    return int.from_bytes(envelope[_COUNTER], "big")


def _delays_ms(audience: Audience, due: dict[int, float]) -> list[float]:
    late_ms: list[float] = []
    for frame, arrivals in audience.arrivals.items():
        decoded = codec.decode_server(frame)
        assert isinstance(decoded, Entries)
        for entry in decoded.entries:
            change_due = due[int.from_bytes(entry.envelope[_COUNTER], "big")]
            late_ms += [(arrived - change_due) * 1000 for arrived in arrivals]
    return late_ms
