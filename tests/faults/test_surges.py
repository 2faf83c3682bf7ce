"""Surges: everybody comes back at once, or twenty times as much is written: it drains, and nothing is lost."""

import asyncio
import contextlib
import time

import pytest

from bench.machine import resident_bytes
from tests.faults.cluster import Cluster
from tests.faults.herd import Herd
from tests.faults.load import Load
from twinlock.testing.processes import ServerProcess

SMALL_COUNT, LARGE_COUNT = 200, 10_000
HERD_DEVICES = 20
DRAIN_S_MAX = 240.0
NARROW_GATE = {"hellos_per_s": 300, "hellos_burst": 600}
"""A tenth of what is usual, so that the gate and not this one process of clients sets the pace."""

BYTES_PER_CLIENT_MAX = 64 << 10
BURST_FACTOR = 20
ALLOWED_PER_S = 400
BURST_BYTES_MAX = 512 << 20
"""What a server may take more at the peak of a burst: all that may wait for the disk, and what that costs in Python."""

MEASURE_S = 2.0
SLACK_S = 0.1
"""Latency has recovered when its median is back within this and three times what it was: two cores carry both sides."""


class Peak:
    """The most memory that some processes held together, while this watches."""

    def __init__(self, processes):
        self.before = self.most = 0
        self._processes = processes

    async def __aenter__(self):
        self.before = self.most = self._now()
        self._task = asyncio.create_task(self._watch())
        return self

    async def __aexit__(self, *_):
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    @property
    def growth(self):
        return self.most - self.before

    def _now(self):
        return sum(resident_bytes(process.pid) for process in self._processes if process._child is not None)

    async def _watch(self):
        while True:
            self.most = max(self.most, self._now())
            await asyncio.sleep(0.05)


class Site:
    """Where clients connect: one server, or the nodes of a cluster; `strike` ends one of its processes."""

    def __init__(self, processes):
        self.processes = processes
        self.ports = [process.port for process in processes]

    async def strike(self):
        self.processes[0].kill()
        await asyncio.to_thread(self.processes[0].start)


@contextlib.asynccontextmanager
async def one_server(folder, **settings):
    with contextlib.ExitStack() as stack:
        server = ServerProcess(folder / "server", **settings)
        stack.callback(server.kill)
        await asyncio.to_thread(server.start)
        yield Site([server])


@contextlib.asynccontextmanager
async def two_nodes(folder, **settings):
    async with Cluster(folder, **settings) as cluster:
        yield Site(cluster.nodes)


def median_s(latencies, since_s):
    """The median time to an ack since then."""
    values = sorted(taken for at, taken in latencies if at >= since_s)
    assert values, "nothing was acknowledged"
    return values[len(values) // 2]


async def measure(load, seconds=MEASURE_S):
    """Let the load go on alone for a while; return its median time to an ack."""
    since_s = time.monotonic()
    await load.rest(seconds)
    return median_s([pair for writer in load.writers for pair in writer.ack_latency_s], since_s)


async def recovered(load, before_s, seconds_max, seconds=MEASURE_S):
    """Wait until the latency is what it was, by itself; return how long that took."""
    began_s = time.monotonic()
    while (now_s := await measure(load, seconds)) > 3 * before_s + SLACK_S:
        assert time.monotonic() < began_s + seconds_max, f"{now_s:.3f} s to an ack, {before_s:.3f} s before"
    return time.monotonic() - began_s


async def storm(site, recorder, chance, count, measure_s=MEASURE_S):
    """Attach a herd, end a process under it, and see all of it come back while a load goes on."""
    load = Load(site.ports, recorder, chance)
    await load.prepare(spaces=1, writers=2)
    identities = await load.identities(HERD_DEVICES)
    # In a space of its own: each write of the load would have to be delivered to all of them.
    quiet = await load.quiet_space()
    async with load:
        await load.acknowledges(30)
        before_s = await measure(load, measure_s)
        async with Peak(site.processes) as peak, Herd(site.ports, identities, quiet, count) as herd:
            await herd.all_attached(DRAIN_S_MAX)
            recorder.fault(f"SIGKILL under {count} clients", "server")
            await site.strike()
            taken_s = await herd.all_attached(DRAIN_S_MAX)
            settled_s = await recovered(load, before_s, 30, measure_s)
            print(f"{count} clients back after {taken_s:.1f} s; {dict(herd.told)} {dict(herd.ends)}")
            print(f"latency {before_s * 1000:.1f} ms, recovered after {settled_s:.1f} s; {peak.growth >> 20} MiB more")
        wrong = await load.finish()
    assert not wrong, wrong
    assert all(has_time for (_, has_time) in herd.told), herd.told
    assert peak.growth < max(count, 1000) * BYTES_PER_CLIENT_MAX


async def sustained(load):
    """Return how many changes a second are acknowledged while every writer has some on the way."""
    acked = load.acked_count
    await load.rest(MEASURE_S)
    return (load.acked_count - acked) / MEASURE_S


async def burst(site, recorder, chance, *, writers, allowed_per_s=0):
    """Have twenty times as much written at once as is allowed in a second, or else as was seen to be sustained."""
    load = Load(site.ports, recorder, chance)
    await load.prepare(spaces=2, writers=writers, pace_s=0.0)
    for writer in load.writers:
        writer.window = 8
    async with load:
        await load.acknowledges(30)
        rate = allowed_per_s or await sustained(load)
        load.set_pace(0.2)
        before_s = await measure(load)
        await load.stand_still()
        each = int(rate * BURST_FACTOR / len(load.writers))
        for writer in load.writers:
            writer.batch_max = 64
            writer.prepare(each)
        async with Peak(site.processes) as peak:
            began_s = time.monotonic()
            recorder.fault(f"burst of {BURST_FACTOR} times the load", "server")
            for writer in load.writers:
                writer.offer()
            await load.drained(DRAIN_S_MAX)
            taken_s = time.monotonic() - began_s
        load.go_on()
        settled_s = await recovered(load, before_s, 30)
        offered = each * len(load.writers)
        print(f"{rate:.0f}/s sustained; {offered} at once took {taken_s:.1f} s; {load.codes()}")
        print(f"latency {before_s * 1000:.1f} ms, recovered after {settled_s:.1f} s; {peak.growth >> 20} MiB more")
        wrong = await load.finish()
    assert not wrong, wrong
    assert load.refusals_without_time() == []
    assert not allowed_per_s or load.codes()["quota_exceeded"]
    assert peak.growth < BURST_BYTES_MAX


async def test_some_hundred_clients_come_back_at_once(tmp_path, recorder, chance):
    async with one_server(tmp_path) as site:
        await storm(site, recorder, chance, SMALL_COUNT, 0.3)


@pytest.mark.slow
@pytest.mark.timeout(600)
async def test_ten_thousand_clients_come_back_at_once(tmp_path, recorder, chance):
    async with one_server(tmp_path, **NARROW_GATE) as site:
        await storm(site, recorder, chance, LARGE_COUNT)


@pytest.mark.slow
@pytest.mark.timeout(600)
async def test_ten_thousand_clients_come_back_to_a_cluster_at_once(tmp_path, recorder, chance):
    async with two_nodes(tmp_path, **NARROW_GATE) as site:
        await storm(site, recorder, chance, LARGE_COUNT)


@pytest.mark.slow
@pytest.mark.timeout(600)
async def test_a_burst_of_twenty_times_the_load_drains(tmp_path, recorder, chance):
    async with one_server(tmp_path) as site:
        await burst(site, recorder, chance, writers=8)


@pytest.mark.slow
@pytest.mark.timeout(600)
async def test_a_burst_of_twenty_times_the_load_drains_in_a_cluster(tmp_path, recorder, chance):
    async with two_nodes(tmp_path) as site:
        await burst(site, recorder, chance, writers=8)


@pytest.mark.slow
@pytest.mark.timeout(600)
async def test_a_burst_over_the_rate_that_is_allowed_is_refused_with_a_time_and_drains(tmp_path, recorder, chance):
    async with one_server(tmp_path, account_changes_per_s=ALLOWED_PER_S) as site:
        await burst(site, recorder, chance, writers=4, allowed_per_s=ALLOWED_PER_S)


@pytest.mark.slow
@pytest.mark.timeout(600)
async def test_a_burst_over_the_rate_is_refused_by_a_cluster_as_a_whole(tmp_path, recorder, chance):
    async with two_nodes(tmp_path, account_changes_per_s=ALLOWED_PER_S) as site:
        await burst(site, recorder, chance, writers=4, allowed_per_s=ALLOWED_PER_S)
