"""One writer, many subscribers: how many deliveries a second, and how late they are at half of that."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from pathlib import Path

from bench.figure import Figure, quantile
from bench.json_child import JsonChild, talking_to
from bench.machine import cpu_seconds
from bench.raw_client import ACK, ENTRIES, RawClient, count_of
from bench.scale import Scale
from bench.server_process import RunningServer, serving
from bench.world import World, make_world
from twinlock.protocol import codec
from twinlock.protocol.frames import Entries

CHANGES_OUTSTANDING = 256
"""How far the writer may be ahead of the deliveries: enough to keep the server busy, not to bury it."""

DELIVERIES_TARGET = 600_000
SUBSCRIBERS_TARGET = 1_000
WRITES_PER_S = DELIVERIES_TARGET // SUBSCRIBERS_TARGET // 2
"""The pace at which the delay is measured: half of the target."""

SUBSCRIBERS_SAMPLED = 20
FRAME_BYTES_MAX = 64
"""What a push's frame may add to its envelope: more than it does."""

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
    """Measure deliveries to 1,000, 10 and 100 subscribers, and their delay at 300 writes/s (half of the target)."""
    counts = (30,) if scale.quick else (1_000, 10, 100)
    figures: list[Figure] = []
    with serving(folder) as server:
        await server.ready()
        world = await make_world(server.port, devices_count=2, spaces_count=2 * len(counts))
        for index, count in enumerate(counts):
            figures.append(await _fastest(world, 2 * index, count, scale))
            figures += await _delays(server, world, 2 * index + 1, count, scale)
    return figures


async def _fastest(world: World, space: int, count: int, scale: Scale) -> Figure:
    """Measure with every subscriber counting what it is delivered."""
    audience = Audience()
    subscribers = [await _subscribe(world, space, audience) for _ in range(count)]
    writer = await world.open()
    writer.sink = audience.on_ack
    changes = scale.count(max(2_400, min(16_000, 1_600_000 // count)), 400)
    rate = await _full_speed(writer, world.source(space).pushes(changes // PUSH_SIZE, PUSH_SIZE), count, audience)
    for client in (*subscribers, writer):
        client.close()
    target = DELIVERIES_TARGET if count == SUBSCRIBERS_TARGET else None
    note = f"{audience.delivered / audience.frames:,.0f} changes joined into a frame"
    name = "deliveries to 1,000, 10 and 100 subscribers"
    return Figure("fanout", name, rate, "/s", "higher", target, growth=count / 10, note=note)


async def _delays(server: RunningServer, world: World, space: int, count: int, scale: Scale) -> list[Figure]:
    """Measure the delay on some subscribers; the others are a crowd in another process, which costs less."""
    messages = world.source(space).pushes(scale.count(900, 60))
    sampled = min(count, SUBSCRIBERS_SAMPLED)
    audience = Audience()
    audience.keep_times = True
    async with _crowd(
        world, space, count - sampled, sum(map(len, messages)) - FRAME_BYTES_MAX * len(messages)
    ) as crowd:
        subscribers = [await _subscribe(world, space, audience) for _ in range(sampled)]
        writer = await world.open()
        writer.sink = audience.on_ack
        server_before_s, load_before_s = cpu_seconds(server.child.pid), time.process_time()
        started = time.perf_counter()
        late_ms = await _paced(writer, messages, WRITES_PER_S, sampled, audience)
        taken_s = time.perf_counter() - started
        server_s, load_s = cpu_seconds(server.child.pid) - server_before_s, time.process_time() - load_before_s
        load_s += await crowd.finish()
    for client in (*subscribers, writer):
        client.close()
    return _delay_figures(count, sampled, late_ms, (server_s / taken_s, load_s / taken_s))


def _delay_figures(count: int, sampled: int, late_ms: list[float], shares: tuple[float, float]) -> list[Figure]:
    busy = f"server {shares[0]:.0%} of its core, load {shares[1]:.0%} of the other"
    note = f"{busy}; {sampled} of {count:,} parse, the rest only read"
    name = f"delay to 1,000, 10 and 100 subscribers at {WRITES_PER_S} writes/s"
    target = 25 if count == SUBSCRIBERS_TARGET else None
    return [
        Figure("fanout", f"{name}, {part}", quantile(late_ms, of), "ms", "lower", goal, growth=count / 10, note=note)
        for part, of, goal in (("p50", 0.5, None), ("p99", 0.99, target))
    ]


class Crowd:
    """The subscribers in the other process; `finish` returns once each has had everything."""

    __slots__ = ("_bytes_each", "_child")

    def __init__(self, child: JsonChild, bytes_each: int) -> None:
        self._child = child
        self._bytes_each = bytes_each

    async def finish(self) -> float:
        """Return the processor time that the crowd used, in seconds.

        Raises:
            RuntimeError: one was sent less than everything.
        """
        self._child.say_no_more()
        result = await self._child.hear()
        if result["bytes_least"] < self._bytes_each:
            raise RuntimeError("a subscriber of the crowd was not sent everything")
        cpu_s: float = result["cpu_s"]
        return cpu_s


@contextlib.asynccontextmanager
async def _crowd(world: World, space: int, count: int, bytes_each: int) -> AsyncIterator[Crowd]:
    async with talking_to("bench.crowd") as child:
        told = {
            "port": world.port,
            "account": world.account.account.hex(),
            "device": world.devices[1].expose().hex(),
            "space": world.space_id(space).hex(),
            "count": count,
            "bytes_each": bytes_each,
        }
        await child.ask(told)
        yield Crowd(child, bytes_each)


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
