"""What an application sees, through the SDK on both sides, sealing and opening included."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import twinlock
from bench.figure import Figure, quantile
from bench.json_child import JsonChild, talking_to
from bench.scale import PAYLOAD_BYTES, Scale
from bench.server_process import RunningServer, serving
from twinlock.errors import TwinlockError

SPACE = "home"
WRITES_PER_S = 200
IN_FLIGHT = 64
CHANGES_MAX = 1_500
SECONDS_MAX = 120


@contextlib.asynccontextmanager
async def first_device(server: RunningServer, folder: Path) -> AsyncIterator[tuple[Any, str, str]]:
    """Sign up and create a space; yield the device, its account's name and the recovery kit."""
    await server.ready()
    name = f"bench-{os.urandom(4).hex()}"
    db = await twinlock.sign_up(server.url, name, os.urandom(12).hex(), profile=folder / "device-a")
    async with db:
        yield db, name, db.recovery_kit()


async def settled(condition: Callable[[], Awaitable[bool]]) -> None:
    """Wait until something is so; what is not there yet counts as not so."""
    async with asyncio.timeout(SECONDS_MAX):
        while True:
            with contextlib.suppress(TwinlockError):
                if await condition():
                    return
            await asyncio.sleep(0.01)


async def seen_on_other_device(folder: Path, scale: Scale) -> list[Figure]:
    """Measure the time from a write on one device to the callback on another, at 20, 200 and 2,000 writes/s."""
    figures = []
    with serving(folder) as server:
        await server.ready()
        async with talking_to("bench.device", "write", server.url, str(folder / "device-a")) as writer:
            account = await writer.hear()
            async with talking_to("bench.device", "read", server.url, str(folder / "device-b"), *account) as reader:
                for rate in (WRITES_PER_S,) if scale.quick else (WRITES_PER_S, 20, 2_000):
                    figures += await _latency(writer, reader, rate, scale.count(min(rate * 5, CHANGES_MAX), 40))
    return figures


async def _latency(writer: JsonChild, reader: JsonChild, rate: int, count: int) -> list[Figure]:
    load = {"rate": rate, "count": count}
    await writer.ask({**load, "warm_up": True})
    await reader.ask(load)
    result = await writer.ask(load)
    taken_ms = await reader.hear()
    name = "seen on the other device (20, 200, 2,000 writes/s)"
    note = f"{result['reached']:,.0f} writes/s reached; two processes on one core, {result['loop']}"
    targets = (1.5, 10) if rate == WRITES_PER_S else (None, None)
    return [
        Figure("latency", f"{name}, {part}", quantile(taken_ms, of), "ms", "lower", target, growth=rate / 20, note=note)
        for part, of, target in zip(("p50", "p99"), (0.5, 0.99), targets, strict=True)
    ]


async def sdk_catch_up(folder: Path, scale: Scale) -> list[Figure]:
    """Measure how long a device that was closed takes to have 10,000 changes that were made meanwhile."""
    count = scale.count(10_000, 200)
    with serving(folder) as server:
        async with first_device(server, folder) as (writer, name, kit):
            docs = writer.space(SPACE).collection("docs")
            await docs.add({"text": "before"})
            await writer.synced()
            async with await twinlock.recover(server.url, name, kit, profile=folder / "device-b") as reader:
                await settled(lambda: _has(reader, 1))
            await _write_separately(docs, count)
            started = time.perf_counter()
            async with await twinlock.connect(profile=folder / "device-b") as reader:
                await settled(lambda: _has(reader, count + 1))
                taken_s = time.perf_counter() - started
    target = None if scale.quick else 0.5
    return [Figure("catchup", f"catch-up of {count:,} changes through the SDK", taken_s, "s", "lower", target)]


async def _has(db: Any, count: int) -> bool:
    there: int = await db.space(SPACE).collection("docs").count()
    return there >= count


async def _write_separately(docs: Any, count: int) -> None:
    """Write so that every edit is an envelope of its own: never more in flight than are sealed at once."""
    text = "x" * PAYLOAD_BYTES
    for start in range(0, count, IN_FLIGHT):
        writes = [await docs.add({"text": text}) for _ in range(min(IN_FLIGHT, count - start))]
        for write in writes:
            await write.durable()
