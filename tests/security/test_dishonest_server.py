"""A server that alters, forges, withholds or goes back: what devices notice, what they keep, and that they go on."""

import asyncio
import base64
import json
import os
import shutil
import sqlite3
from concurrent.futures import ThreadPoolExecutor

import msgspec
import pytest

import twinlock
from tests.client_kit import PASSWORD, ShiftedClock, World, until
from twinlock.errors import LogForkError
from twinlock.ids import Counter, Epoch
from twinlock.protocol.calls import AppendLog, LogHead
from twinlock.protocol.envelope import HEADER_BYTES, Kind, parse
from twinlock.protocol.space_log import replay_space
from twinlock.sealing import DeviceKeys, EpochKeys, MemberKey, Sealer, ServiceKey, config_lease_entry
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


def database(world):
    """The server's own file."""
    return world.folder / "server" / "twinlock.db"


def key_service(world):
    """The key service's own file."""
    return world.folder / "server" / "keyservice" / "keyservice.db"


def stored(world) -> list[tuple[int, bytes]]:
    """The server's log: seq and envelope."""
    with open_database(database(world)) as connection:
        return connection.execute("SELECT seq, envelope FROM log ORDER BY seq").fetchall()


def alter(world, seq: int, place: int) -> None:
    """Flip one bit of a stored envelope."""
    with open_database(database(world)) as connection:
        (data,) = connection.execute("SELECT envelope FROM log WHERE seq = ?", (seq,)).fetchone()
        changed = bytearray(data)
        changed[place] ^= 1
        connection.execute("UPDATE log SET envelope = ? WHERE seq = ?", (bytes(changed), seq))


async def write(db, *ids: str) -> None:
    """Write documents, each in an envelope of its own."""
    for id in ids:
        await (await db.space("home").collection("notes").doc(id).set({"text": id})).durable()


async def seen(db) -> set[str]:
    """The ids of the documents that a device shows."""
    return {doc.id for doc in await db.space("home").collection("notes").get()}


def reasons(db) -> list[str]:
    """Why a device could not merge what it could not merge."""
    return [kept.reason for found in db.quarantine.values() for kept in found]


async def shown(db, id: str, text: str | None = None) -> None:
    """Wait until a device shows a document, with a text if one is given."""
    found = []
    ended = db.space("home").collection("notes").doc(id).on_snapshot(lambda snap: found.append(snap.doc))
    await until(lambda: found[-1] is not None and text in (None, found[-1]["text"]))
    ended()


async def caught_up(db) -> None:
    """Wait until a device has read everything that the server delivers."""
    async with asyncio.timeout(10):
        await db.synced()


@pytest.fixture(scope="module")
def written_template(tmp_path_factory, account_template):
    """Two devices wrote: "a" three times, "c" once in between; made once, in a thread that has a loop of its own."""
    folder = tmp_path_factory.mktemp("written")
    with ThreadPoolExecutor(1) as thread:
        thread.submit(asyncio.run, write_all(World(folder, account_template))).result()
    return folder


async def write_all(world) -> None:
    """Let the devices write, and close everything."""
    await world.start()
    a, b = await world.device("a"), await world.device("b")
    await write(a, "a1")
    await b.synced()
    await b.close()
    await write(a, "a2")
    c = await twinlock.recover(world.url, "ann", world.kit, profile=world.folder / "c")
    world.open.append(c)
    await write(c, "c1")
    await write(a, "a3")
    for db in (a, c):
        await db.synced()
    await world.close()


@pytest.fixture
async def world(tmp_path, written_template):
    """What was written, in the hands of whoever has the server's files; the server does not run yet."""
    world = World(tmp_path, written_template)
    yield world
    await world.close()


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


async def roll_back(world, folder) -> None:
    """Put an older state of everything that server and key service store in place of the newer."""
    await world.stop()
    shutil.rmtree(world.folder / "server")
    shutil.copytree(folder, world.folder / "server")
    await world.restart()


async def test_a_server_that_forgot_a_signed_entry_is_given_it_by_a_device(world, tmp_path):
    """Server and key service together go back behind an entry that a device has read."""
    old = tmp_path / "yesterday"
    shutil.copytree(world.folder / "server", old)
    await world.restart()
    async with await twinlock.recover(world.url, "ann", world.kit, profile=world.folder / "d"):
        a = await world.device("a")
        await caught_up(a)
        known = a.devices()
        await a.close()
    await roll_back(world, old)

    a = await world.device("a")
    await caught_up(a)
    d = await world.device("d")
    await until(lambda: d.status == "connected")
    await caught_up(d)

    assert len(known) == 4
    assert a.devices() == known
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
        known = a.devices()
        await a.close()
    await roll_back(world, old)
    async with await twinlock.recover(world.url, "ann", world.kit, profile=world.folder / "e"):
        pass

    a = await world.device("a")
    await until(lambda: isinstance(a.last_error, LogForkError))

    # The device keeps its own log and all its data, and still writes.
    assert a.devices() == known
    await write_locally(a, "still here")
    assert await seen(a) == {"a1", "a2", "a3", "c1", "still here"}


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


async def write_locally(db, id: str) -> None:
    """Write without waiting for the server."""
    await db.space("home").collection("notes").doc(id).set({"text": id})


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
