"""The cluster's log itself, without any server before it, while NATS servers die under it."""

import pytest

from tests.faults.log_load import LogLoad
from tests.faults.nats_faults import NatsFaults
from twinlock.testing.nats_process import NatsCluster


async def survive(folder, recorder, chance, rounds, fault):
    """Append and watch through some rounds of a fault; what was promised must have been kept."""
    with NatsCluster(folder / "nats") as nats:
        load = LogLoad(nats.url, recorder, chance)
        await load.prepare()
        async with load:
            faults = NatsFaults(nats, load, recorder, chance)
            await load.acknowledges(30)
            for _ in range(rounds):
                await faults.quiet()
                await fault(faults)
            wrong = await load.finish()
    print(f"{load.acked_count} acknowledged, {load.codes()}")
    assert not wrong, wrong


@pytest.mark.slow
@pytest.mark.timeout(1200)
async def test_the_log_keeps_its_promises_when_nats_servers_are_killed(tmp_path, recorder, chance, rounds):
    await survive(tmp_path, recorder, chance, rounds(10), NatsFaults.kill_one)


@pytest.mark.slow
@pytest.mark.timeout(1200)
async def test_the_log_keeps_its_promises_when_all_nats_servers_are_killed(tmp_path, recorder, chance, rounds):
    await survive(tmp_path, recorder, chance, rounds(5), NatsFaults.cut_power)


@pytest.mark.slow
@pytest.mark.timeout(1200)
async def test_the_log_keeps_its_promises_when_nats_servers_are_paused(tmp_path, recorder, chance, rounds):
    await survive(tmp_path, recorder, chance, rounds(5), NatsFaults.pause_one)


@pytest.mark.slow
@pytest.mark.timeout(1200)
async def test_the_log_keeps_its_promises_without_a_majority(tmp_path, recorder, chance, rounds):
    await survive(tmp_path, recorder, chance, rounds(3), NatsFaults.pause_two)
