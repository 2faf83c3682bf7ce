"""`twinlock put` beside a server that answers and whose store takes nothing, as a cluster without a quorum."""

import asyncio

import pytest
from typer.testing import CliRunner

from twinlock.cli import documents
from twinlock.cli.commands import commands
from twinlock.engines.sqlite_log import SqliteLog


@pytest.fixture
async def held(monkeypatch):
    """Hold every append to the server's log, and let them go at the end."""
    appends, append_many = [], SqliteLog.append_many
    monkeypatch.setattr(SqliteLog, "append_many", lambda *call: appends.append(call))
    yield appends
    for call in appends:
        append_many(*call)


async def test_put_waits_a_while_and_says_that_the_server_has_not_stored_it(account_world, monkeypatch, held):
    monkeypatch.setattr(documents, "STORED_SECONDS_MAX", 0.1)
    # The profile names the address of an earlier server.
    await (await account_world.device("a")).close()
    command = ["put", "home/todos/1", '{"text": "milk"}', "--profile", str(account_world.folder / "a")]

    async with asyncio.timeout(30):
        done = await asyncio.to_thread(CliRunner().invoke, commands, command)

    assert done.exit_code == 0, done.output
    assert "safe on this device; the server has not stored it yet" in done.stderr
    assert held
