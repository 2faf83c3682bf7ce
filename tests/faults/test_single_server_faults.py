"""The server on SQLite under faults: killed, paused, on a bad disk, with a bad clock, behind a bad network."""

import asyncio
import contextlib
import os
import signal

import pytest

from tests.faults.load import Load
from tests.faults.machine import Clock, clear, fill, slow_disk, small_disk
from twinlock.testing.faulty_proxy import FaultyProxy, flap
from twinlock.testing.nats_process import steady_port
from twinlock.testing.processes import ServerProcess

RECOVERY_S_MAX = 30.0
DISK_BYTES = 64 << 20


class Single:
    """One server, reached directly or through proxies, and a load on it."""

    def __init__(self, server, load, recorder, chance, proxies=()):
        self.server = server
        self.load = load
        self.recorder = recorder
        self.chance = chance
        self.proxies = list(proxies)

    @contextlib.asynccontextmanager
    async def fault(self, kind):
        """Something is wrong while the block lasts; afterwards all must be well again."""
        self.recorder.fault(kind, "server")
        yield
        self.recorder.fault(kind, "server", is_over=True)
        await self.load.acknowledges(RECOVERY_S_MAX)

    async def quiet(self):
        await self.load.rest(self.chance.uniform(0.1, 0.4))

    async def kill(self):
        async with self.fault("SIGKILL of the server"):
            self.server.kill()
            await asyncio.to_thread(self.server.start)

    async def pause(self):
        async with self.fault("SIGSTOP of the server"):
            os.kill(self.server.pid, signal.SIGSTOP)
            try:
                await self.load.rest(self.chance.uniform(3.0, 12.0))
            finally:
                os.kill(self.server.pid, signal.SIGCONT)


@contextlib.asynccontextmanager
async def single(folder, recorder, chance, proxies=0, **settings):
    """A server under load; at the end nothing may be wrong."""
    async with contextlib.AsyncExitStack() as stack:
        ports = [steady_port() for _ in range(proxies)]
        server = ServerProcess(folder / "server", [f"ws://127.0.0.1:{port}" for port in ports], **settings)
        stack.callback(server.kill)
        await asyncio.to_thread(server.start)
        ways = [await stack.enter_async_context(FaultyProxy(server.port, port)) for port in ports]
        load = Load(ports or [server.port], recorder, chance)
        await load.prepare(spaces=2)
        async with load:
            await load.acknowledges(RECOVERY_S_MAX)
            yield Single(server, load, recorder, chance, ways)
            wrong = await load.finish()
        print(f"{load.acked_count} acknowledged, {load.codes()}")
        assert not wrong, wrong


@pytest.mark.slow
@pytest.mark.timeout(600)
async def test_a_killed_server_loses_and_doubles_nothing(tmp_path, recorder, chance, rounds):
    async with single(tmp_path, recorder, chance) as one:
        for _ in range(rounds(20)):
            await one.quiet()
            await one.kill()


@pytest.mark.slow
@pytest.mark.timeout(600)
async def test_a_paused_server_loses_and_doubles_nothing(tmp_path, recorder, chance, rounds):
    async with single(tmp_path, recorder, chance) as one:
        for _ in range(rounds(5)):
            await one.quiet()
            await one.pause()


@pytest.mark.slow
@pytest.mark.timeout(600)
async def test_a_full_disk_refuses_for_a_while_and_loses_nothing(tmp_path, recorder, chance, rounds):
    with small_disk(tmp_path / "disk", DISK_BYTES) as disk:
        async with single(tmp_path, recorder, chance, data=str(disk)) as one:
            for _ in range(rounds(5)):
                await one.quiet()
                await fill_up(one, disk)


async def fill_up(one, disk):
    """No byte is left until clients were refused; then there is room again."""
    async with one.fault("full disk of the server"):
        fill(disk)
        await until_refused(one.load, "store_failed")
        clear(disk)


async def until_refused(load, code):
    """Wait until clients were refused with a code, once more than before."""
    before = load.codes().get(code, 0)
    async with asyncio.timeout(RECOVERY_S_MAX):
        while load.codes().get(code, 0) == before:
            await load.rest(0.05)


@pytest.mark.slow
@pytest.mark.timeout(600)
async def test_a_slow_disk_makes_slow_and_loses_nothing(tmp_path, recorder, chance, rounds):
    async with single(tmp_path, recorder, chance) as one:
        for _ in range(rounds(3)):
            await one.quiet()
            async with one.fault("disk of the server at 10 writes a second"):
                with slow_disk(tmp_path, [one.server.pid], 10):
                    await one.load.rest(6)


@pytest.mark.slow
@pytest.mark.timeout(600)
async def test_a_clock_that_jumps_loses_and_doubles_nothing(tmp_path, recorder, chance, rounds, monkeypatch):
    clock = Clock(tmp_path)
    for name, value in clock.environment().items():
        monkeypatch.setenv(name, value)
    async with single(tmp_path, recorder, chance) as one:
        monkeypatch.undo()
        for _ in range(rounds(10)):
            await one.quiet()
            seconds = chance.choice([-86_400, -3_600, -60, -1, 1, 60, 3_600, 86_400]) * chance.uniform(0.5, 2)
            async with one.fault("clock of the server jumps"):
                clock.jump_to(seconds)
                await one.load.rest(chance.uniform(0.2, 1))
                if chance.random() < 0.3:
                    one.server.kill()
                    for name, value in clock.environment().items():
                        monkeypatch.setenv(name, value)
                    await asyncio.to_thread(one.server.start)
                    monkeypatch.undo()


@pytest.mark.slow
@pytest.mark.timeout(600)
async def test_a_failing_network_loses_and_doubles_nothing(tmp_path, recorder, chance, rounds):
    async with single(tmp_path, recorder, chance, proxies=2) as one:
        for _ in range(rounds(5)):
            await one.quiet()
            await cut(one)
            await stall(one)
            await half_open(one)
            await slow_line(one)
            await flapping(one)


async def cut(one):
    async with one.fault("network to the clients cut"):
        for proxy in one.proxies:
            proxy.cut()
        await one.load.rest(one.chance.uniform(0.1, 1))
        heal(one)


async def stall(one):
    async with one.fault("network to the clients stalled"):
        for proxy in one.proxies:
            proxy.stall()
        await one.load.rest(one.chance.uniform(1, 8))
        heal(one)


async def half_open(one):
    async with one.fault("network from the server half open"):
        one.chance.choice(one.proxies).stall_answers()
        await one.load.rest(one.chance.uniform(1, 8))
        heal(one)


async def slow_line(one):
    async with one.fault("network to the clients late and narrow"):
        for proxy in one.proxies:
            proxy.delay_s, proxy.bytes_per_s = 0.2, 50_000
        await one.load.rest(3)
        heal(one)


async def flapping(one):
    async with one.fault("network to the clients flaps"):
        await flap(one.proxies, one.chance, 3)


def heal(one):
    for proxy in one.proxies:
        proxy.heal()
