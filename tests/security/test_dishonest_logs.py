"""A server that shortens, hides, forges or rewrites a signed log: what devices notice, mend and keep."""

import base64
import json
import os
import shutil
import sqlite3

import msgspec
import pytest

import twinlock
from tests.client_kit import PASSWORD, until
from tests.security.dishonest import (
    caught_up,
    database,
    key_service,
    reasons,
    seen,
    shown,
    write,
    write_locally,
)
from twinlock.errors import LogForkError
from twinlock.protocol.calls import AppendLog, LogHead
from twinlock.protocol.space_rules import replay_space
from twinlock.sealing import config_lease_entry
from twinlock.testing.workload import open_database


async def roll_back(world, folder) -> None:
    """Put an older state of everything that server and key service store in place of the newer."""
    await world.stop()
    shutil.rmtree(world.folder / "server")
    shutil.copytree(folder, world.folder / "server")
    await world.restart()


async def devices(db) -> list[tuple[str, bool]]:
    """The account's devices as this device knows them, and which are revoked."""
    return [(device.id, device.revoked) for device in await db.devices()]


async def test_a_server_that_forgot_a_signed_entry_is_given_it_by_a_device(world, tmp_path):
    """Server and key service together go back behind an entry that a device has read."""
    old = tmp_path / "yesterday"
    shutil.copytree(world.folder / "server", old)
    await world.restart()
    async with await twinlock.recover(world.url, "ann", world.kit, profile=world.folder / "d"):
        a = await world.device("a")
        await caught_up(a)
        known = await devices(a)
        await a.close()
    await roll_back(world, old)

    a = await world.device("a")
    await caught_up(a)
    d = await world.device("d")
    await until(lambda: d.status == "connected")
    await caught_up(d)

    assert len(known) == 4
    assert await devices(a) == known
    assert a.last_error is None
    assert await seen(a) == await seen(d) == {"a1", "a2", "a3", "c1"}


async def test_another_history_of_a_signed_log_is_a_fork(world, tmp_path):
    """The server goes back and lets the log go on differently: it shows two devices two different accounts."""
    old = tmp_path / "yesterday"
    shutil.copytree(world.folder / "server", old)
    await world.restart()
    async with await twinlock.recover(world.url, "ann", world.kit, profile=world.folder / "d"):
        a = await world.device("a")
        await caught_up(a)
        known = await devices(a)
        await a.close()
    await roll_back(world, old)
    async with await twinlock.recover(world.url, "ann", world.kit, profile=world.folder / "e"):
        pass

    a = await world.device("a")
    await until(lambda: isinstance(a.last_error, LogForkError))

    # The device keeps its own log and all its data, and still writes.
    with pytest.raises(LogForkError):
        await a.devices()
    await write_locally(a, "still here")
    assert await seen(a) == {"a1", "a2", "a3", "c1", "still here"}
    await world.stop()
    await until(lambda: not a.is_connected)
    assert await devices(a) == known


async def space_log(world, db) -> tuple[bytes, list[str]]:
    """The id of the space and the keys of its log's records in the server's directory."""
    space = bytes.fromhex(db.space("home").id)
    await db.close()
    await world.stop()
    with open_database(database(world)) as connection:
        found = connection.execute(
            "SELECT key FROM records WHERE key LIKE ? ORDER BY key", (f"log/{space.hex()}/%",)
        ).fetchall()
    return space, [key for (key,) in found]


async def test_a_shortened_space_log_is_mended_by_a_device(world):
    """Both of the server's copies of a space's signed log lose their last entry."""
    await world.restart()
    a = await world.device("a")
    await caught_up(a)
    space, keys = await space_log(world, a)
    with open_database(database(world)) as connection:
        connection.execute("DELETE FROM records WHERE key = ?", (keys[-1],))
    with open_database(key_service(world)) as connection:
        connection.execute("DELETE FROM entries WHERE log = ? AND seq = ?", (space, len(keys)))
    await world.restart()

    a = await world.device("a")
    await caught_up(a)

    assert a.last_error is None
    assert await seen(a) == {"a1", "a2", "a3", "c1"}
    with open_database(key_service(world)) as connection:
        (count,) = connection.execute("SELECT count(*) FROM entries WHERE log = ?", (space,)).fetchone()
    assert count == len(keys)


async def test_a_part_of_the_log_that_the_server_hides_is_given_away_by_an_envelope(world):
    """The server shows one device a shorter log than another: envelopes name the head that their author knew."""
    await world.restart()
    a = await world.device("a")
    await a.unlock(PASSWORD)
    runtime = a._courier.runtimes[bytes.fromhex(a.space("home").id)]
    await caught_up(a)
    entry = config_lease_entry(a._sudo.keys(), runtime.keyring.log, 7)
    await a._connection.call("space.append", AppendLog(runtime.space, runtime.keyring.log.seq, [entry]), LogHead)
    await until(lambda: runtime.keyring.log.lease_hours == 7)
    await write(a, "a4")
    space, keys = await space_log(world, a)
    with open_database(database(world)) as connection:
        connection.execute("DELETE FROM records WHERE key = ?", (keys[-1],))
    with open_database(key_service(world)) as connection:
        connection.execute("DELETE FROM entries WHERE log = ? AND seq = ?", (space, len(keys)))
    await world.restart()

    b = await world.device("b")
    await until(lambda: isinstance(b.last_error, LogForkError))

    assert await seen(b) == {"a1", "a2", "a3", "c1"}
    assert reasons(b) == ["log_head"]
    # Once a device that knows the entry has brought it back, all is well.
    a = await world.device("a")
    await caught_up(a)
    b._connection.reconnect_now()
    await shown(b, "a4")


async def test_a_space_log_with_another_last_entry_is_a_fork(world):
    """The owner's account signed two different entries for one place, or somebody has its key: devices that have
    read the one leave a server that shows the other."""
    await world.restart()
    a = await world.device("a")
    await a.unlock(PASSWORD)
    keys = a._sudo.keys()
    await caught_up(a)
    entries = a._courier.runtimes[bytes.fromhex(a.space("home").id)].entries
    space, names = await space_log(world, a)
    other = config_lease_entry(keys, replay_space(entries[:-1]), 7)
    with open_database(database(world)) as connection:
        value = msgspec.msgpack.encode(other)
        connection.execute("UPDATE records SET value = ? WHERE key = ?", (value, names[-1]))
    with open_database(key_service(world)) as connection:
        connection.execute(
            "UPDATE entries SET body = ?, sig = ? WHERE log = ? AND seq = ?", (other.body, other.sig, space, len(names))
        )
    await world.restart()

    a = await world.device("a")
    await until(lambda: isinstance(a.last_error, LogForkError))

    await write_locally(a, "still here")
    assert await seen(a) == {"a1", "a2", "a3", "c1", "still here"}
    assert a.pending_count == 1, "written to a server that shows another log"


async def test_a_member_that_the_server_adds_to_a_log_is_refused(world):
    """The last entry of the space's log is replaced by one that nobody with the right signed."""
    await world.restart()
    a = await world.device("a")
    await caught_up(a)
    space = bytes.fromhex(a.space("home").id)
    await a.close()
    await world.stop()
    body = json.dumps({"by": text(os.urandom(16)), "lease_hours": 1, "type": "config"}, separators=(",", ":")).encode()
    with sqlite3.connect(key_service(world)) as connection:
        (count,) = connection.execute("SELECT count(*) FROM entries WHERE log = ?", (space,)).fetchone()
        connection.execute("INSERT INTO entries VALUES (?, ?, ?, ?)", (space, count + 1, body, os.urandom(64)))
    connection.close()
    await world.restart()

    a = await world.device("a")
    await write_locally(a, "still here")

    assert await seen(a) >= {"a1", "a2", "a3", "c1", "still here"}


def text(data: bytes) -> str:
    """Base64url without padding, as logs write bytes."""
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()
