"""The server on SQLite under faults: killed, paused, and behind a network that fails."""

import asyncio
import random

from tests.faults.load import Load
from twinlock.testing.history import Recorder
from twinlock.testing.processes import ServerProcess


async def test_nothing_is_lost_or_doubled_when_the_server_is_killed(tmp_path):
    await kill_rounds(tmp_path, rounds=2)


async def kill_rounds(folder, rounds):
    chance = random.Random(7)
    with Recorder(folder / "history.jsonl") as recorder, ServerProcess(folder / "server") as server:
        load = Load([server.port], recorder, chance)
        await load.prepare(spaces=2)
        async with load:
            await load.acknowledges(10)
            for _ in range(rounds):
                await load.rest(chance.uniform(0.1, 0.4))
                recorder.fault("kill", "server")
                server.kill()
                await asyncio.to_thread(server.start)
                recorder.fault("kill", "server", is_over=True)
                await load.acknowledges(30)
            wrong = await load.finish()
        print(load.codes(), load.acked_count)
    assert not wrong, wrong
