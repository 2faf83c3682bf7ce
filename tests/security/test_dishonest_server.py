"""A server that alters, forges, withholds or goes back: what devices notice, what they keep, and that they go on."""

import os
import shutil

import pytest

from tests.client_kit import ShiftedClock, until
from tests.security.dishonest import (
    alter,
    caught_up,
    database,
    reasons,
    seen,
    shown,
    stored,
    write,
    write_locally,
)
from twinlock.ids import Counter, Epoch
from twinlock.protocol.envelope import HEADER_BYTES, Kind, parse
from twinlock.sealing import DeviceKeys, EpochKeys, MemberKey, Sealer, ServiceKey
from twinlock.testing.workload import check_log, open_database

PLACES = {
    "version": 0,
    "kind": 1,
    "flags": 3,
    "epoch": 7,
    "space": 9,
    "device": 25,
    "counter": 47,
    "session": 50,
    "log head": 57,
    "prev": 65,
    "nonce": 97,
    "length": 111,
    "first byte of the ciphertext": HEADER_BYTES,
    "middle of the ciphertext": HEADER_BYTES + 70,
    "tag": -65,
    "signature": -64,
    "last byte": -1,
}


@pytest.mark.parametrize("place", PLACES.values(), ids=PLACES)
async def test_an_altered_byte_is_quarantined_alone_and_nothing_is_lost(world, place):
    true = stored(world)
    alter(world, true[1][0], place)
    await world.restart()

    b = await world.device("b")
    await caught_up(b)

    # What the others wrote is there, before and after; the altered envelope is set apart with its reason.
    there = await seen(b)
    assert {"a1", "c1"} <= there
    if place in (-64, -1):
        # The signature is not part of the chain: the author's later signature vouches for the envelope.
        assert there == {"a1", "a2", "a3", "c1"}
    else:
        assert "a2" not in there
        assert reasons(b)
        assert {kept.seq for kept in b.quarantine[next(iter(b.quarantine))]} >= {true[1][0]}
    # This device goes on in both directions, and the author has everything that it ever wrote.
    await write(b, "b1")
    a = await world.device("a")
    await caught_up(a)
    assert await seen(a) == {"a1", "a2", "a3", "b1", "c1"}
    assert not a.refused


async def test_an_altered_entry_opens_once_the_server_is_mended(world):
    true = stored(world)
    alter(world, true[1][0], HEADER_BYTES + 3)
    await world.restart()
    b = await world.device("b")
    await caught_up(b)
    assert "a2" not in await seen(b)
    await b.close()
    await world.stop()

    with open_database(database(world)) as connection:
        connection.execute("UPDATE log SET envelope = ? WHERE seq = ?", (true[1][1], true[1][0]))
    await world.restart()
    b = await world.device("b")
    await caught_up(b)

    assert await seen(b) == {"a1", "a2", "a3", "c1"}
    assert reasons(b) == []


async def test_a_withheld_entry_is_noticed(world):
    true = stored(world)
    with open_database(database(world)) as connection:
        connection.execute("DELETE FROM log WHERE seq = ?", (true[1][0],))
    await world.restart()

    b = await world.device("b")
    await caught_up(b)

    assert await seen(b) >= {"a1", "c1"}
    assert "a3" not in await seen(b), "shown although what came before it was withheld"
    assert reasons(b) == ["gap"]
    assert check_log(database(world)) != []
    a = await world.device("a")
    await caught_up(a)
    assert {"a1", "a2", "a3", "c1"} == await seen(a)


async def test_entries_in_another_order_or_twice_change_nothing_in_the_end(world):
    true = stored(world)
    with open_database(database(world)) as connection:
        swapped = [(true[3][1], true[1][0]), (true[1][1], true[3][0])]
        connection.executemany("UPDATE log SET envelope = ? WHERE seq = ?", swapped)
        for _, data in true:
            (space,) = connection.execute("SELECT space FROM log LIMIT 1").fetchone()
            connection.execute("INSERT INTO log (space, received_ms, envelope) VALUES (?, 0, ?)", (space, data))
    await world.restart()

    b = await world.device("b")
    await caught_up(b)

    assert await seen(b) == {"a1", "a2", "a3", "c1"}
    assert set(reasons(b)) <= {"replay"}


async def test_an_envelope_that_the_server_forges_is_not_shown(world):
    """The server puts envelopes of its own into the log: under a device that nobody certified, and under a true one."""
    true = stored(world)
    device = parse(true[0][1]).header.device
    for forged in (forge(true[-1][1], os.urandom), forge(true[-1][1], os.urandom, device=device)):
        with open_database(database(world)) as connection:
            (space,) = connection.execute("SELECT space FROM log LIMIT 1").fetchone()
            connection.execute("INSERT INTO log (space, received_ms, envelope) VALUES (?, 1, ?)", (space, forged))
    await world.restart()

    b = await world.device("b")
    await caught_up(b)

    assert await seen(b) == {"a1", "a2", "a3", "c1"}
    assert sorted(reasons(b)) == ["device", "signature"]
    a = await world.device("a")
    await caught_up(a)
    await write(a, "a4")
    assert await seen(a) == {"a1", "a2", "a3", "a4", "c1"}
    # The forged envelope does not stand in the way of what the true author writes next.
    await shown(b, "a4")
    assert sorted(reasons(b)) == ["device", "signature"]


def forge(last: bytes, entropy, device: bytes | None = None) -> bytes:
    """Make an envelope with all that a server knows: headers, ids, the log's head; its keys are its own."""
    header = parse(last).header
    keys = EpochKeys(header.space, Epoch(header.epoch), MemberKey.make(entropy), ServiceKey.make(entropy))
    own = DeviceKeys.make(entropy)
    if device is None:
        return Sealer(own, entropy).seal(Kind.CHANGE, b"x", keys, Counter(1), bytes(32), header.log_head).data
    envelope = Sealer(own, entropy).seal(
        Kind.CHANGE, b"x", keys, Counter(header.counter + 1), parse(last).id, header.log_head
    )
    return envelope.data[:24] + device + envelope.data[40:]


async def test_a_server_that_was_rolled_back_is_healed_by_its_devices(world, tmp_path):
    """An operator restores yesterday's database: a new incarnation, and nothing that a device has is lost."""
    old = tmp_path / "yesterday"
    shutil.copytree(world.folder / "server", old)
    await world.restart()
    a = await world.device("a")
    await write(a, "a4", "a5")
    await a.close()
    await world.stop()
    for name in ("twinlock.db", "twinlock.db-wal", "twinlock.db-shm"):
        (world.folder / "server" / name).unlink(missing_ok=True)
        if (old / name).exists():
            shutil.copy(old / name, world.folder / "server" / name)
    with open_database(database(world)) as connection:
        connection.execute("UPDATE meta SET value = ? WHERE name = 'incarnation'", (os.urandom(16),))
    await world.restart()

    a = await world.device("a")
    await caught_up(a)
    b = await world.device("b")
    await caught_up(b)

    assert await seen(a) == await seen(b) == {"a1", "a2", "a3", "a4", "a5", "c1"}
    assert not a.refused


async def test_a_server_that_went_back_and_says_nothing_loses_nothing_either(world, tmp_path):
    """The same without a new incarnation: a dishonest or careless restore."""
    old = tmp_path / "yesterday"
    shutil.copytree(world.folder / "server", old)
    await world.restart()
    a = await world.device("a")
    await write(a, "a4", "a5")
    await a.close()
    await world.stop()
    shutil.rmtree(world.folder / "server")
    shutil.copytree(old, world.folder / "server")
    await world.restart()

    a = await world.device("a")
    await caught_up(a)
    await write(a, "a6")
    b = await world.device("b")
    await caught_up(b)

    assert await seen(a) == await seen(b) == {"a1", "a2", "a3", "a4", "a5", "a6", "c1"}


@pytest.mark.parametrize("days", [-1, 1])
async def test_a_clock_a_day_off_is_corrected_and_loses_nothing(world, days):
    """The device's clock is wrong all the time: offline it writes with it, online it is told the time."""
    await world.restart()
    await world.stop()
    clock = ShiftedClock(days * 86_400_000)
    a = await world.device("a", wall_ms=clock)
    # Neither a lease that seems to have ended nor a clock that ran backwards opens anything; writing goes on.
    assert a.status == "locked"
    await write_locally(a, "offline")
    await world.restart()
    a._connection.reconnect_now()
    await until(lambda: a.status == "connected")
    await caught_up(a)
    await write(a, "online")
    b = await world.device("b")
    await caught_up(b)

    assert await seen(a) == await seen(b) == {"a1", "a2", "a3", "c1", "offline", "online"}
    assert reasons(b) == []
    assert not a.refused
    # A later write of a device with a right clock wins over it: the wrong clock has not stamped the future.
    await b.space("home").collection("notes").doc("offline").update({"text": "newer"})
    await caught_up(b)
    await until(lambda: a.pending_count == 0)
    await caught_up(a)
    await shown(a, "offline", "newer")
