"""A cluster beside a single node, and beside raw JetStream publishing of the same bytes."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import msgspec

from bench.cluster_process import RunningCluster, Spent, clustered
from bench.figure import Figure, quantile
from bench.json_child import talking_to
from bench.machine import idle_seconds
from bench.raw_client import ENTRIES, RawClient, count_of
from bench.scale import Scale
from bench.scenarios.writes import Writer, drive
from bench.server_process import serving
from bench.world import World, make_world
from twinlock.engines.jetstream_format import Names

NODES = (1, 2, 4)
SINGLE = "single node"
WRITERS = 64
AGAINST_RAW = ((16, 16, 120), (64, 1, 150))
"""What is compared with raw publishing: so many spaces, changes in an append, and appends of each space."""
PUSH_SIZE = 64
READ_PER_S = 100
SECONDS_MAX = 120
NAME, COST = "cluster", "cluster-cost"
ALL_TIME = "processor time of a change, NATS servers included"
NODE_TIME = "processor time of the sync nodes for a change"


class Place(msgspec.Struct, frozen=True):
    """The nodes that a measurement uses, and what it is called."""

    world: World
    ports: list[int]
    system: str
    growth: float

    def at(self, number: int) -> World:
        """Return the world as a device sees it that is given to a node in turn."""
        return self.world.at(self.ports[number % len(self.ports)])


async def cluster(folder: Path, scale: Scale) -> list[Figure]:
    """Measure writes, acks, delivery and catch-up on one node over SQLite, then at 1, 2 and 4 over NATS."""
    counts = NODES[:2] if scale.quick else NODES
    single, shared = folder / "single", folder / "shared"
    single.mkdir()
    shared.mkdir()
    figures: list[Figure] = []
    with serving(single) as server:
        await server.ready()
        world = await make_world(server.port, devices_count=2, spaces_count=_spaces(scale, 1))
        place = Place(world, [server.port], SINGLE, 1)
        figures += await _all(place, scale, 0, None)
    with clustered(shared, counts[-1]) as running:
        await running.ready()
        world = await make_world(running.ports[0], devices_count=2, spaces_count=_spaces(scale, len(counts)))
        for turn, count in enumerate(counts):
            place = Place(world, running.ports[:count], "twinlock", count)
            figures += await _all(place, scale, turn * _spaces(scale, 1), running)
        figures += await _against_raw(running, scale)
    return figures


def _spaces(scale: Scale, turns: int) -> int:
    return turns * (scale.count(WRITERS, 4) + 2)


async def _all(place: Place, scale: Scale, first: int, running: RunningCluster | None) -> list[Figure]:
    """Measure with the spaces from a number on: one for each writer, one for delivery, one for catch-up."""
    writers = scale.count(WRITERS, 4)
    figures = await _writes(place, scale, range(first, first + writers), running)
    figures += await _delivery(place, scale, first + writers)
    figures.append(await _catch_up(place, scale, first + writers + 1))
    return figures


def _figure(place: Place, name: str, value: float, unit: str, note: str = "") -> Figure:
    better = "higher" if unit == "/s" else "lower"
    kind = f"{name}, on one node over SQLite" if place.system == SINGLE else f"{name} (1, 2, 4 sync nodes)"
    return Figure(NAME, kind, value, unit, better, growth=place.growth, note=note)  # type: ignore[arg-type]  # one of two


async def _writes(place: Place, scale: Scale, spaces: range, running: RunningCluster | None) -> list[Figure]:
    """Measure devices that each write to a space of their own, one change in flight."""
    each = scale.count(150, 10)
    writers = [
        Writer(await place.at(number).open(), place.world.source(space).pushes(each))
        for number, space in enumerate(spaces)
    ]
    before, load_before_s, idle_before = running.cpu() if running else None, time.process_time(), idle_seconds()
    taken_s = await drive(writers)
    load_s = time.process_time() - load_before_s
    idle = idle_seconds()[0] - idle_before[0], idle_seconds()[1] - idle_before[1]
    taken_ms = [taken for writer in writers for taken in writer.taken_ms]
    name, changes, note = f"{len(spaces)} writers, a space each", len(spaces) * each, ""
    figures = [
        _figure(place, f"{name}: ack p50", quantile(taken_ms, 0.5), "ms"),
        _figure(place, f"{name}: ack p99", quantile(taken_ms, 0.99), "ms"),
    ]
    if running is not None and before is not None:
        spent = running.cpu().since(before)
        note = _shares(spent, load_s, taken_s, idle)
        figures.append(_figure(place, f"{name}: {NODE_TIME}", spent.nodes / changes * 1e6, "µs"))
    return [_figure(place, f"{name}: durable changes", changes / taken_s, "/s", note), *figures]


def _shares(spent: Spent, load_s: float, taken_s: float, idle: tuple[float, float]) -> str:
    """Say what was the limit: how many cores each part used, and how many had nothing to do, or a disk to wait for."""
    names = ("NATS", "sync nodes", "load", "idle", "idle for the disk")
    parts = zip(names, (spent.nats, spent.nodes, load_s, *idle), strict=True)
    return "cores: " + ", ".join(f"{name} {seconds / taken_s:.2f}" for name, seconds in parts)


async def _delivery(place: Place, scale: Scale, space: int) -> list[Figure]:
    """Measure how late a change is at a device of another node, where there is one."""
    count = scale.count(500, 30)
    arrivals: list[float] = []
    complete = asyncio.Event()

    def read(frame: memoryview) -> None:
        if frame[1] == ENTRIES:
            arrivals.extend([time.perf_counter()] * count_of(frame))
            if len(arrivals) >= count:
                complete.set()

    reader = await place.at(1).open(1)
    reader.sink = read
    await reader.attach(place.world.space_id(space))
    writer = await place.at(0).open()
    due, started = [], time.perf_counter()
    for index, message in enumerate(place.world.source(space).pushes(count)):
        due.append(started + index / READ_PER_S)
        await asyncio.sleep(max(0.0, due[-1] - time.perf_counter()))
        writer.send(message)
    await asyncio.wait_for(complete.wait(), SECONDS_MAX)
    _close(reader, writer)
    late_ms = [(arrived - sent) * 1000 for arrived, sent in zip(arrivals, due, strict=True)]
    name = f"delivery at {READ_PER_S} writes/s"
    note = "to a device of another node" if len(place.ports) > 1 else "to a device of the same node"
    return [
        _figure(place, f"{name}, p50", quantile(late_ms, 0.5), "ms", note),
        _figure(place, f"{name}, p99", quantile(late_ms, 0.99), "ms", note),
    ]


async def _catch_up(place: Place, scale: Scale, space: int) -> Figure:
    """Measure how long a device takes that reads everything, at a node that did not write it."""
    count = scale.count(10_048, 128)
    messages = place.world.source(space).pushes(count // PUSH_SIZE, PUSH_SIZE)
    await drive([Writer(await place.at(0).open(), messages, PUSH_SIZE)])
    received, complete = 0, asyncio.Event()

    def read(frame: memoryview) -> None:
        nonlocal received
        received += count_of(frame)
        if received >= count:
            complete.set()

    reader = await place.at(1).open(1)
    reader.sink = read
    started = time.perf_counter()
    await reader.attach(place.world.space_id(space))
    await asyncio.wait_for(complete.wait(), SECONDS_MAX)
    taken_s = time.perf_counter() - started
    _close(reader)
    return _figure(place, f"catch-up of {count:,} changes", taken_s, "s")


# Against raw publishing


async def _against_raw(running: RunningCluster, scale: Scale) -> list[Figure]:
    """Compare processor time: changes through a sync node, and the same bytes published by a plain client."""
    figures: list[Figure] = []
    for spaces, push, full in AGAINST_RAW:
        load = Load(await make_world(running.ports[0], spaces_count=spaces), spaces, push, scale.count(full, 5))
        ours = await _through_node(running, load)
        figures += _costs(load, ours, await _raw(running, load))
    return figures


class Load(msgspec.Struct, frozen=True):
    """Spaces that are each written to by one device: pushes of some changes, one after the other."""

    world: World
    spaces: int
    push: int
    each: int

    @property
    def changes(self) -> int:
        """How many changes there are in all."""
        return self.spaces * self.each * self.push


class Cost(msgspec.Struct, frozen=True):
    """What a load took: seconds of time, and of processor time; `spent.nodes` is that of whoever publishes."""

    taken_s: float
    spent: Spent


async def _through_node(running: RunningCluster, load: Load) -> Cost:
    devices = [(await load.world.open(), load.world.source(space)) for space in range(load.spaces)]
    # What a space costs when its first change comes is not what the next ones do.
    await drive([Writer(device, source.pushes(1, load.push), load.push) for device, source in devices])
    writers = [Writer(device, source.pushes(load.each, load.push), load.push) for device, source in devices]
    before = running.cpu()
    taken_s = await drive(writers)
    return Cost(taken_s, running.cpu().since(before))


async def _raw(running: RunningCluster, load: Load) -> Cost:
    names, spaces = Names(), [load.world.space_id(space) for space in range(load.spaces)]
    told = {
        "urls": running.nats.urls,
        "prefixes": [names.log_subject(space).rpartition(".")[0] for space in spaces],
        "count": load.each,
        "size": len(load.world.source().pushes(1, load.push)[0]),
    }
    before = running.cpu()
    async with talking_to("bench.peers.jetstream") as child:
        raw = await child.ask(told)
    return Cost(raw["taken_s"], Spent(running.cpu().since(before).nats, raw["cpu_s"]))


def _costs(load: Load, ours: Cost, raw: Cost) -> list[Figure]:
    scenario, name = f"{COST}-{load.push}", f"{load.spaces} spaces, appends of {load.push}"
    each_us = 1e6 / load.changes
    figures: list[Figure] = []
    for cost, system in ((ours, "twinlock"), (raw, "NATS raw")):
        note = (
            f"publisher {cost.spent.nodes * each_us:.0f} µs, NATS servers {cost.spent.nats * each_us:.0f} µs a change"
        )
        all_us = (cost.spent.nodes + cost.spent.nats) * each_us
        figures += [
            Figure(scenario, f"{name}: durable changes", load.changes / cost.taken_s, "/s", "higher", system=system),
            Figure(scenario, f"{name}: {ALL_TIME}", all_us, "µs", "lower", system=system, note=note),
        ]
    total = (ours.spent.nodes + ours.spent.nats) / (raw.spent.nodes + raw.spent.nats)
    apart = ours.spent.nodes / raw.spent.nodes
    figures.append(Figure(scenario, f"{name}: processor time against raw publishing", total, "x", "lower", 2.0))
    figures.append(Figure(scenario, f"{name}: the same, sync node against publisher alone", apart, "x", "lower"))
    return figures


def _close(*clients: RawClient) -> None:
    for client in clients:
        client.close()
