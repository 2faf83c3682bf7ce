"""Devices of the SDK and a server whose clock jumps: what was acknowledged is what every device reads."""

import asyncio
from contextlib import AsyncExitStack

import pytest

import twinlock
from tests.faults.machine import Clock
from twinlock.testing.processes import ServerProcess
from twinlock.testing.workload import Ledger, Writer, read_documents

PASSWORD = "correct horse battery"
JUMPS_S = {"seconds": 45, "minutes": 240, "an hour": 3_600, "two days": 172_800}


@pytest.mark.slow
@pytest.mark.parametrize("way", [1, -1], ids=["forward", "back"])
@pytest.mark.parametrize("far", JUMPS_S)
async def test_what_is_written_around_a_jump_is_read_by_every_device(tmp_path, chance, far, way, monkeypatch):
    clock, ledger = Clock(tmp_path), Ledger()
    server = ServerProcess(tmp_path / "server")
    for name, value in clock.environment().items():
        monkeypatch.setenv(name, value)
    with server:
        async with AsyncExitStack() as stack:
            first = await stack.enter_async_context(
                await twinlock.sign_up(server.url, "ada", PASSWORD, profile=tmp_path / "one")
            )
            kit = str(first.recovery_kit())
            second = await stack.enter_async_context(
                await twinlock.recover(server.url, "ada", kit, profile=tmp_path / "two")
            )
            await write_some(first, ledger, "before", chance)
            clock.jump_to(way * JUMPS_S[far])
            await write_some(first, ledger, "at-once", chance)
            server.kill()
            await asyncio.to_thread(server.start)
            first._connection.reconnect_now()
            await write_some(first, ledger, "after", chance)
            clock.jump_to(0)
            await write_some(first, ledger, "back", chance)
            server.kill()
            await asyncio.to_thread(server.start)
            first._connection.reconnect_now()
            await write_some(first, ledger, "in the end", chance)
            for device in (first, second):
                async with asyncio.timeout(30):
                    await device.synced()
            seen = [await read_documents(device, ["home"]) for device in (first, second)]
        async with await twinlock.recover(server.url, "ada", kit, profile=tmp_path / "three") as reader:
            async with asyncio.timeout(30):
                await reader.synced()
            seen.append(await read_documents(reader, ["home"]))
    for one in seen:
        assert ledger.check_documents(one) == []
    assert seen[0] == seen[1] == seen[2]


async def write_some(device, ledger, name, chance):
    stop = asyncio.Event()
    async with asyncio.TaskGroup() as group:
        group.create_task(Writer(device, "home", name, ledger, chance).run(stop))
        await asyncio.sleep(0.2)
        stop.set()
