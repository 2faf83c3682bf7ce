"""What spaces, records, streams and subscriptions cost a NATS server, measured on three real ones."""

from __future__ import annotations

import asyncio
import os
import secrets
import time
from collections.abc import Callable
from pathlib import Path
from statistics import mean
from typing import Any

import nats
from nats.js import JetStreamContext
from nats.js.api import StreamConfig

from bench.machine import cpu_seconds, resident_bytes
from twinlock.testing.nats_process import NatsCluster, NatsProcess

REPLICAS = 3
SPACES = 200_000
RECORDS = 200_000
STREAMS = 128
SUBSCRIPTIONS = 100_000
IDLE_SECONDS = 15.0
SETTLE_SECONDS = 5.0
IN_FLIGHT = 1_000
MESSAGE_BYTES = 300
RECORD_BYTES = 160


async def measure_nats(folder: Path) -> dict[str, Any]:
    """Fill three servers with each thing in turn, see by how much they grow, and return the share of `Measured`."""
    figures: dict[str, Any] = {}
    for measure in (_idle_streams, _subjects, _interest):
        with NatsCluster(folder / measure.__name__, REPLICAS) as cluster:
            figures |= await measure(cluster)
    return figures


async def _idle_streams(cluster: NatsCluster) -> dict[str, Any]:
    connection = await nats.connect(cluster.urls)
    stream = connection.jetstream(timeout=30)
    await stream.add_stream(_stream("FIRST", "first.*"))
    before, cpu_before_s = await _memory(cluster), await _idle_cpu(cluster)
    for number in range(STREAMS):
        await stream.add_stream(_stream(f"IDLE{number}", f"idle.{number}.*"))
    grown = [after - at_first for after, at_first in zip(await _memory(cluster), before, strict=True)]
    cpu = await _idle_cpu(cluster) - cpu_before_s
    _, page = cluster.nodes[0].get("/varz")
    await connection.close()
    return {
        "nats_server": page["version"],
        "idle_stream_memory_bytes": mean(grown) / STREAMS,
        "idle_stream_cpu": max(cpu, 0.0) / STREAMS,
    }


async def _subjects(cluster: NatsCluster) -> dict[str, Any]:
    connection = await nats.connect(cluster.urls, pending_size=64 << 20)
    stream = connection.jetstream(timeout=30, publish_async_max_pending=2 * IN_FLIGHT)
    await stream.add_stream(_stream("TW_0000", "tw.0000.*"))
    await stream.add_stream(_stream("RECORDS", "records.>"))
    before, disk_before = await _memory(cluster), _disk(cluster)
    await _fill(stream, SPACES, MESSAGE_BYTES, lambda: f"tw.0000.{secrets.token_hex(16)}")
    spaces, disk_spaces = await _memory(cluster), _disk(cluster)
    await _fill(
        stream, RECORDS, RECORD_BYTES, lambda: f"records.spaces.{secrets.token_hex(16)}.{secrets.token_hex(16)}"
    )
    records, disk_records = await _memory(cluster), _disk(cluster)
    await connection.close()
    taken_s = await _restart(cluster, 0)
    return {
        "space_memory_bytes": (mean(spaces) - mean(before)) / SPACES,
        "space_disk_bytes": (disk_spaces - disk_before) / SPACES - MESSAGE_BYTES,
        "record_memory_bytes": (mean(records) - mean(spaces)) / RECORDS,
        "record_disk_bytes": (disk_records - disk_spaces) / RECORDS,
        "restart_s_per_million": taken_s / (SPACES + RECORDS) * 1e6,
    }


async def _interest(cluster: NatsCluster) -> dict[str, Any]:
    own = await nats.connect(cluster.nodes[0].url)
    await own.flush()
    before = await _memory(cluster)
    for number in range(SUBSCRIPTIONS):
        await own.subscribe(f"live.0000.{secrets.token_hex(16)}", cb=_nothing)
        if number % IN_FLIGHT == 0:
            await own.flush(30)
    await own.flush(30)
    grown = [after - at_first for after, at_first in zip(await _memory(cluster), before, strict=True)]
    await own.close()
    return {
        "interest_memory_bytes": grown[0] / SUBSCRIPTIONS,
        "interest_elsewhere_memory_bytes": mean(grown[1:]) / SUBSCRIPTIONS,
    }


async def _nothing(_: object) -> None:
    return


async def _fill(stream: JetStreamContext, count: int, size: int, subject: Callable[[], str]) -> None:
    body = os.urandom(size)
    for start in range(0, count, IN_FLIGHT):
        some = min(IN_FLIGHT, count - start)
        await asyncio.gather(*[await stream.publish_async(subject(), body) for _ in range(some)])


def _stream(name: str, subjects: str) -> StreamConfig:
    return StreamConfig(
        name=name, subjects=[subjects], num_replicas=REPLICAS, allow_direct=True, max_msgs_per_subject=-1
    )


async def _memory(cluster: NatsCluster) -> list[int]:
    await asyncio.sleep(SETTLE_SECONDS)
    return [resident_bytes(node.pid) for node in cluster.nodes]


async def _idle_cpu(cluster: NatsCluster) -> float:
    """Return the share of a core that a server uses on average while nothing happens."""
    before = sum(cpu_seconds(node.pid) for node in cluster.nodes)
    await asyncio.sleep(IDLE_SECONDS)
    used = sum(cpu_seconds(node.pid) for node in cluster.nodes) - before
    return used / IDLE_SECONDS / len(cluster.nodes)


def _disk(cluster: NatsCluster) -> float:
    return mean(_disk_of(node) for node in cluster.nodes)


def _disk_of(node: NatsProcess) -> int:
    """Return the bytes of a server's streams, without what the Raft log keeps for a while."""
    return sum(
        path.stat().st_size
        for path in node.store.rglob("*.blk")
        if "_meta_" not in str(path) and "$SYS" not in path.parts
    )


async def _restart(cluster: NatsCluster, place: int) -> float:
    """Kill a server that is full, start it, and return after how many seconds it serves again."""
    cluster.kill(place)
    started = time.perf_counter()
    await asyncio.to_thread(cluster.start, place)
    return time.perf_counter() - started
