"""Killed at any moment, the SQLite engine has every append that it acknowledged, once and in order."""

import random
import subprocess
import sys
from pathlib import Path

import pytest

from twinlock.engines.sqlite import SqliteEngine
from twinlock.ids import Seq
from twinlock.protocol.envelope import parse
from twinlock.testing.contracts.envelopes import new_space
from twinlock.testing.contracts.log import read_all

APPENDER = Path(__file__).with_name("crash_appender.py")


def run_and_kill(path, space, acknowledged_min: int) -> list[tuple[bytes, int, int]]:
    """Let a process append, kill it after some acknowledgements, and return all that it gave."""
    command = [sys.executable, str(APPENDER), str(path), space.hex()]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        lines = [process.stdout.readline() for _ in range(acknowledged_min)]
        process.kill()
        lines += process.stdout.readlines()
    whole = [line.split() for line in lines if line.endswith("\n")]
    return [(bytes.fromhex(device), int(counter), int(seq)) for device, counter, seq in whole]


async def check(path, space, acknowledged) -> None:
    """Compare the log with what was acknowledged over all rounds."""
    engine = SqliteEngine.open(path)
    try:
        entries = await read_all(engine.log, space)
        state = await engine.log.state(space)
    finally:
        await engine.close()
    stored = {}
    chains: dict[bytes, list] = {}
    for entry in entries:
        envelope = parse(entry.envelope)
        stored[(envelope.header.device, envelope.header.counter)] = entry.seq
        chains.setdefault(envelope.header.device, []).append(envelope)
    assert len(stored) == len(entries)
    assert [(device, counter, stored[(device, counter)]) for device, counter, _ in acknowledged] == acknowledged
    for device, chain in chains.items():
        assert [envelope.header.counter for envelope in chain] == list(range(1, len(chain) + 1))
        assert [envelope.header.prev for envelope in chain[1:]] == [envelope.id for envelope in chain[:-1]]
        assert (state.heads[device].counter, state.heads[device].id) == (len(chain), chain[-1].id)
    assert state.head == entries[-1].seq
    assert state.log_bytes == sum(len(entry.envelope) for entry in entries)


async def crash(tmp_path, rounds: int) -> None:
    path, space, chance = tmp_path / "data" / "twinlock.db", new_space(), random.Random(7)
    acknowledged: list[tuple[bytes, int, int]] = []
    for _ in range(rounds):
        acknowledged += run_and_kill(path, space, chance.randrange(1, 3000))
        await check(path, space, acknowledged)
    assert Seq(len(acknowledged)) > rounds


async def test_no_acknowledged_append_is_lost_or_doubled_over_some_kills(tmp_path):
    await crash(tmp_path, rounds=4)


@pytest.mark.slow
@pytest.mark.timeout(900)
async def test_no_acknowledged_append_is_lost_or_doubled_over_a_hundred_kills(tmp_path):
    await crash(tmp_path, rounds=100)
