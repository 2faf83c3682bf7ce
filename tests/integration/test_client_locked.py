"""Leases: what a device can do without one, and what lies on its disk."""

import logging
import shutil

import pytest

import twinlock
from tests.client_kit import PASSWORD, ShiftedClock, until, values
from twinlock.errors import LeaseExpiredError, StoreDamagedError

HOUR_MS = 3_600_000


@pytest.fixture
def world(account_world):
    return account_world


async def locked_device(world, clock):
    """Return a device that wrote one document, lost its server, and whose lease then ended."""
    db = await world.device("a", wall_ms=clock)
    await db.space("home").collection("todos").doc("x").set({"n": 1, "text": "secret words"})
    await db.synced()
    await world.stop()
    await until(lambda: db.status == "reconnecting")
    clock.shift_ms += 25 * HOUR_MS
    db._courier.tend()
    return db


async def test_reading_locks_when_the_lease_ends_and_writing_goes_on(world):
    clock = ShiftedClock()
    db = await locked_device(world, clock)
    todos = db.space("home").collection("todos")
    snaps = []
    todos.on_snapshot(snaps.append)

    assert db.status == "locked"
    assert snaps == []
    with pytest.raises(LeaseExpiredError):
        await todos.get()
    with pytest.raises(LeaseExpiredError):
        await todos.doc("x").get()
    with pytest.raises(LeaseExpiredError):
        await todos.doc("x").update({"tags": twinlock.array_remove("a")})
    writes = [
        await todos.doc("y").set({"n": 2}),
        await todos.doc("x").update({"n": twinlock.increment(5)}),
        await todos.add({"n": 3}),
    ]
    assert db.pending_count == 3
    assert b"secret" not in b"".join(path.read_bytes() for path in world.folder.glob("a/**/*") if path.is_file())

    await world.restart()
    await until(lambda: db.status == "connected")
    for write in writes:
        await write.durable()

    assert sorted(value["n"] for value in values(await todos.get())) == [2, 3, 6]
    assert snaps[-1].docs
    assert db.pending_count == 0
    assert not db.refused


async def test_writes_made_while_locked_survive_the_process_and_count_once(world):
    clock = ShiftedClock()
    db = await locked_device(world, clock)
    await db.space("home").collection("todos").doc("x").update({"n": twinlock.increment(10)})
    await db.close()

    db = await world.device("a", wall_ms=clock)
    todos = db.space("home").collection("todos")
    assert db.status == "locked"
    await todos.doc("x").update({"n": twinlock.increment(100)})
    assert db.pending_count == 2
    side_file = next(world.folder.glob("a/spaces/*/locked.log"))
    shutil.copy(side_file, world.folder / "kept")
    await world.restart()
    await until(lambda: db.status == "connected")
    await db.synced()
    assert (await todos.doc("x").get())["n"] == 111
    await db.close()
    # As if the crash had come after the writes were taken over and before the file was gone.
    shutil.copy(world.folder / "kept", side_file)

    db = await world.device("a", wall_ms=clock)
    await db.synced()

    assert (await db.space("home").collection("todos").doc("x").get())["n"] == 111


async def test_an_altered_side_file_is_set_aside_and_locks_nobody_out(world, caplog):
    clock = ShiftedClock()
    db = await locked_device(world, clock)
    await db.space("home").collection("todos").doc("y").set({"n": 2})
    await db.close()
    side_file = next(world.folder.glob("a/spaces/*/locked.log"))
    raw = bytearray(side_file.read_bytes())
    raw[-1] ^= 1
    side_file.write_bytes(raw)
    await world.restart()

    with caplog.at_level(logging.CRITICAL):
        db = await world.device("a", wall_ms=clock)
        await db.synced()

    assert (await db.space("home").collection("todos").doc("x").get())["n"] == 1
    assert side_file.with_name("locked.damaged").read_bytes() == raw


async def test_a_clock_set_back_does_not_make_a_lease_last(world):
    clock = ShiftedClock()
    db = await world.device("a", wall_ms=clock)
    await db.synced()
    await world.stop()
    await until(lambda: db.status == "reconnecting")
    clock.shift_ms = 10 * HOUR_MS
    db._courier.tend()
    assert db.status == "reconnecting"

    clock.shift_ms = -HOUR_MS
    db._courier.tend()

    assert db.status == "locked"


async def test_a_lease_is_renewed_every_half_hour(world):
    db = await world.device("a")
    keyring = next(iter(db._courier.runtimes.values())).keyring
    now_ms = db._context.clock.now_ms()
    # As if it had been given 31 minutes ago.
    held = keyring.keys(keyring.log.epoch).service_key
    keyring.install_service_key(keyring.log.epoch, held, now_ms + HOUR_MS, now_ms - 31 * 60_000)

    db._courier.tend()
    await db._courier.settled()

    assert keyring.renew_at(now_ms) >= now_ms + 24 * 60_000


async def test_the_replica_file_is_refused_without_a_lease_and_opened_with_it(world):
    db = await world.device("a")
    await db.unlock(PASSWORD)
    space = await db.create_space("strict", lease_hours=0)
    await space.collection("notes").doc("x").set({"text": "secret words"})
    await db.synced()
    await db.close()
    await world.stop()

    offline = await world.device("a")
    notes = offline.space("strict").collection("notes")
    assert offline.status == "locked"
    assert offline.space("strict").locked
    assert offline.space("strict").title is None
    with pytest.raises(LeaseExpiredError):
        await notes.get()
    # The other space may keep its lease, and stays readable.
    await offline.space("home").collection("todos").get()
    raw = b"".join(path.read_bytes() for path in world.folder.glob("a/**/*") if path.is_file())
    assert b"secret words" not in raw
    assert b"strict" not in raw

    await world.restart()
    await until(lambda: offline.status == "connected")
    assert await notes.doc("x").get() == {"text": "secret words"}


async def test_a_second_look_at_a_space_that_is_being_made_leaves_its_lease_on_the_disk(world):
    """The server tells of the new space while its maker goes on: a crash in between must not lock it."""
    db = await world.unlocked("a")
    space = await db.create_space("garden")
    await space.collection("plants").doc("x").set({"name": "rose"})
    await db.synced()
    await db._courier._logs.new_space(bytes.fromhex(space.id))
    # As a crash would, this leaves on the disk what lies there.
    shutil.copytree(world.folder / "a", world.folder / "after-crash")
    await world.stop()

    offline = await world.device("after-crash")

    assert await offline.space("garden").collection("plants").doc("x").get() == {"name": "rose"}


async def test_an_altered_key_file_of_the_replica_is_noticed(world):
    db = await world.device("a")
    await db.synced()
    await db.close()
    path = next(world.folder.glob("a/spaces/*/replica.key"))
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(raw)

    with pytest.raises(StoreDamagedError):
        await world.device("a")
