"""A whole cluster under faults: three NATS servers, two sync nodes and a key service, all of them real processes."""

import asyncio
import contextlib

import pytest

from tests.faults.cluster import NATS_SERVERS, Cluster
from tests.faults.load import Load
from tests.faults.machine import Clock, clear, fill, slow_disk, small_disk
from tests.faults.nats_faults import RECOVERY_S_MAX, NatsFaults
from twinlock.testing.faulty_proxy import flap

START_S_MAX = 60.0
NODE_PAUSE_S = (8.0, 14.0)
"""Longer than clients wait for an answer, and than NATS waits for a connection."""

CUT_S = (1.0, 12.0)
DISK_BYTES = 192 << 20


class Run:
    """A cluster and the load on it."""

    def __init__(self, cluster, load, recorder, chance):
        self.cluster = cluster
        self.load = load
        self.chance = chance
        self.nats = NatsFaults(cluster.nats, load, recorder, chance)
        self._recorder = recorder

    @contextlib.asynccontextmanager
    async def fault(self, kind, target):
        """Something is wrong while the block lasts; afterwards all must be well again."""
        self._recorder.fault(kind, str(target))
        yield
        self._recorder.fault(kind, str(target), is_over=True)
        await self.load.acknowledges(RECOVERY_S_MAX)

    async def lasting(self, shortest_s, longest_s):
        await self.load.rest(self.chance.uniform(shortest_s, longest_s))

    def a_node(self):
        return self.chance.randrange(len(self.cluster.nodes))

    def a_server(self):
        return self.chance.randrange(len(self.cluster.nats.nodes))

    async def kill_node(self):
        place = self.a_node()
        node = self.cluster.nodes[place]
        async with self.fault("SIGKILL of one sync node", place):
            node.kill()
            await self.load.acknowledges(RECOVERY_S_MAX)
            await asyncio.to_thread(node.start)

    async def pause_node(self):
        place = self.a_node()
        node = self.cluster.nodes[place]
        async with self.fault("SIGSTOP of one sync node", place):
            node.pause()
            try:
                await self.lasting(*NODE_PAUSE_S)
            finally:
                node.resume()

    async def cut_off(self, kind, proxies, target, is_silent):
        """Part some machines from others for a while, by resets or by silence."""
        async with self.fault(kind, target):
            for proxy in proxies:
                if is_silent:
                    proxy.stall()
                else:
                    proxy.cut()
            await self.lasting(*CUT_S)
            for proxy in proxies:
                proxy.heal()


@contextlib.asynccontextmanager
async def under_load(folder, recorder, chance, *, spaces=4, **options):
    """A cluster with a load on it; at the end nothing may be wrong."""
    async with Cluster(folder, **options) as cluster:
        load = Load(cluster.ports, recorder, chance)
        await load.prepare(spaces=spaces)
        async with load:
            await load.acknowledges(START_S_MAX)
            yield Run(cluster, load, recorder, chance)
            wrong = await load.finish()
        print(f"{load.acked_count} acknowledged, {load.codes()}")
        assert not wrong, wrong


@pytest.mark.slow
async def test_a_killed_nats_server_and_a_killed_node_lose_and_double_nothing(tmp_path, recorder, chance):
    async with under_load(tmp_path, recorder, chance, spaces=2) as run:
        await run.nats.kill_one()
        await run.kill_node()


@pytest.mark.slow
@pytest.mark.timeout(4000)
async def test_nats_servers_killed_one_at_a_time(tmp_path, recorder, chance, rounds):
    async with under_load(tmp_path, recorder, chance) as run:
        for _ in range(rounds(100)):
            await run.nats.quiet()
            await run.nats.kill_one()


@pytest.mark.slow
@pytest.mark.timeout(2000)
async def test_all_nats_servers_killed_at_once(tmp_path, recorder, chance, rounds):
    async with under_load(tmp_path, recorder, chance) as run:
        for _ in range(rounds(20)):
            await run.nats.quiet()
            await run.nats.cut_power()


@pytest.mark.slow
@pytest.mark.timeout(2000)
async def test_sync_nodes_killed(tmp_path, recorder, chance, rounds):
    async with under_load(tmp_path, recorder, chance) as run:
        for _ in range(rounds(50)):
            await run.nats.quiet()
            await run.kill_node()


@pytest.mark.slow
@pytest.mark.timeout(2000)
async def test_nats_servers_and_sync_nodes_paused(tmp_path, recorder, chance, rounds):
    async with under_load(tmp_path, recorder, chance) as run:
        for _ in range(rounds(10)):
            await run.nats.quiet()
            await run.nats.pause_one()
            await run.pause_node()
            await run.nats.pause_two()


@pytest.mark.slow
@pytest.mark.timeout(2000)
async def test_a_network_that_parts_and_flaps(tmp_path, recorder, chance, rounds):
    async with under_load(tmp_path, recorder, chance, proxied=True) as run:
        network = run.cluster.network
        for _ in range(rounds(10)):
            await run.nats.quiet()
            server, node, is_silent = run.a_server(), run.a_node(), chance.random() < 0.5
            kind = "one NATS server parted from the others"
            await run.cut_off(kind, network.around_server(server), server, is_silent)
            kind = "one NATS server parted from everybody"
            await run.cut_off(kind, network.to_server(server), server, is_silent)
            await run.cut_off("one sync node parted from NATS", network.around_node(node), node, is_silent)
            async with run.fault("the whole network flaps", "all"):
                await flap(network.everything, chance, 6)


@pytest.mark.slow
@pytest.mark.timeout(2000)
async def test_disks_that_are_slow(tmp_path, recorder, chance, rounds):
    async with under_load(tmp_path, recorder, chance) as run:
        for _ in range(rounds(5)):
            await run.nats.quiet()
            server = run.a_server()
            async with run.fault("disk of one NATS server at 10 writes a second", server):
                with slow_disk(tmp_path, [run.cluster.nats.nodes[server].pid], 10):
                    await run.lasting(6, 12)
            pids = [each.pid for each in run.cluster.nats.nodes]
            async with run.fault("disks of all NATS servers at 30 writes a second", "all"):
                with slow_disk(tmp_path, pids, 30):
                    await run.lasting(6, 12)


@pytest.mark.slow
@pytest.mark.timeout(2000)
async def test_a_disk_that_is_full(tmp_path, recorder, chance, rounds):
    with contextlib.ExitStack() as stack:
        folders = [tmp_path / "nats" / f"twinlock-{place}" for place in range(NATS_SERVERS)]
        disks = [stack.enter_context(small_disk(folder, DISK_BYTES)) for folder in folders]
        async with under_load(tmp_path, recorder, chance) as run:
            for _ in range(rounds(5)):
                await run.nats.quiet()
                await one_disk_full(run, disks)
                await all_disks_full(run, disks)


async def one_disk_full(run, disks):
    """One server's disk is full for a while; it is started again once there is room, as an operator would."""
    place = run.a_server()
    async with run.fault("full disk of one NATS server", place):
        fill(disks[place])
        await run.lasting(4, 8)
        await run.load.acknowledges(RECOVERY_S_MAX)
        clear(disks[place])
        run.cluster.nats.kill(place)
        await asyncio.to_thread(run.cluster.nats.start, place)


async def all_disks_full(run, disks):
    """All disks are full at once, so that nothing can be acknowledged, until there is room."""
    async with run.fault("full disks of all NATS servers", "all"):
        for disk in disks:
            fill(disk)
        await run.lasting(6, 10)
        run.cluster.nats.kill_all()
        for disk in disks:
            clear(disk)
        await asyncio.to_thread(run.cluster.nats.start_all)


@pytest.mark.slow
@pytest.mark.timeout(2000)
async def test_clocks_of_sync_nodes_that_jump(tmp_path, recorder, chance, rounds, monkeypatch):
    clock = Clock(tmp_path)
    for name, value in clock.environment().items():
        monkeypatch.setenv(name, value)
    async with under_load(tmp_path, recorder, chance) as run:
        for _ in range(rounds(10)):
            await run.nats.quiet()
            seconds = chance.choice([-86_400, -3_600, -60, -1, 1, 60, 3_600, 86_400]) * chance.uniform(0.5, 2)
            async with run.fault("clocks of all sync nodes jump", f"{seconds:.0f} s"):
                clock.jump_to(seconds)
                await run.lasting(0.5, 2)
                if chance.random() < 0.3:
                    node = run.cluster.nodes[run.a_node()]
                    node.kill()
                    await asyncio.to_thread(node.start)
