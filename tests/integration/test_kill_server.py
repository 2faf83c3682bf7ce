"""A server that is killed again and again while devices write: what it acknowledged is there, once, in the end."""

import asyncio
import random
import time
from contextlib import AsyncExitStack

import pytest

import twinlock
from twinlock.testing.processes import ServerProcess
from twinlock.testing.workload import Ledger, Writer, check_log, read_documents

PASSWORD = "correct horse battery"
SPACES = ["home", "work"]
DEVICES = 3
LOAD_SECONDS = (0.05, 0.4)
PATIENCE_SECONDS = 60.0


@pytest.fixture(autouse=True)
def no_keyring(monkeypatch):
    """A test must not put keys into the keyring of whoever runs it."""
    monkeypatch.setenv("PYTHON_KEYRING_BACKEND", "keyring.backends.fail.Keyring")


async def test_nothing_acknowledged_is_lost_or_doubled_over_some_kills(tmp_path):
    await kill_under_load(tmp_path, rounds=4, seed=1)


@pytest.mark.slow
@pytest.mark.timeout(1800)
async def test_nothing_acknowledged_is_lost_or_doubled_over_two_hundred_kills(tmp_path):
    await kill_under_load(tmp_path, rounds=200, seed=2)


async def kill_under_load(folder, rounds: int, seed: int) -> None:
    chance, ledger = random.Random(seed), Ledger()
    with ServerProcess(folder / "server") as server:
        async with AsyncExitStack() as stack:
            first = await stack.enter_async_context(
                await twinlock.sign_up(server.url, "ada", PASSWORD, profile=folder / "device-0")
            )
            await first.create_space("work")
            kit = str(first.recovery_kit())
            devices = [first]
            for number in range(1, DEVICES):
                recovered = await twinlock.recover(server.url, "ada", kit, profile=folder / f"device-{number}")
                devices.append(await stack.enter_async_context(recovered))
            for device in devices:
                await device.synced()
            await write_while_killing(server, devices, ledger, rounds, chance)
            async with asyncio.timeout(PATIENCE_SECONDS):
                for device in devices:
                    await device.synced()
            seen = [await read_documents(device, SPACES) for device in devices]
            assert all(one == seen[0] for one in seen), "the devices do not agree"
        async with await twinlock.recover(server.url, "ada", kit, profile=folder / "reader") as reader:
            async with asyncio.timeout(PATIENCE_SECONDS):
                await reader.synced()
            fresh = await read_documents(reader, SPACES)
        server.stop()
    assert fresh == seen[0]
    assert ledger.check_documents(fresh) == []
    # The clients lived on through all of it, so everything they were given is there, not only what was acknowledged.
    assert ledger.acknowledged == set(ledger.returned)
    assert sum(len(documents) - 1 for documents in fresh.values()) == len(ledger.returned)
    assert len(ledger.returned) > rounds
    assert check_log(server.data / "twinlock.db") == []


async def write_while_killing(server, devices, ledger: Ledger, rounds: int, chance: random.Random) -> None:
    stop = asyncio.Event()
    async with asyncio.TaskGroup() as writers:
        for number, device in enumerate(devices):
            for space in SPACES:
                writer = Writer(device, space, f"{space}-{number}", ledger, random.Random(chance.random()))
                writers.create_task(writer.run(stop))
        for number in range(rounds):
            await asyncio.sleep(chance.uniform(*LOAD_SECONDS))
            server.kill()
            await asyncio.to_thread(server.start)
            await reconnected(devices, hurry=number > 0)
        stop.set()


async def reconnected(devices, hurry: bool) -> None:
    """Wait until every device is back.

    They come back by themselves, as in the first round. After many kills they would wait up to half a minute on
    purpose, so later they are told not to.
    """
    give_up = time.monotonic() + PATIENCE_SECONDS
    while any(device.status != "connected" for device in devices):
        assert time.monotonic() < give_up, [str(device.status) for device in devices]
        for device in devices:
            if hurry and device.status != "connected":
                device._connection.reconnect_now()
        await asyncio.sleep(0.02)
