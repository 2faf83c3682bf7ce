"""A device restored from a backup, or cloned, takes up its chain where the server has it, and nothing is lost."""

import asyncio
import shutil

import pytest

import twinlock
from tests.client_kit import until
from twinlock.testing.workload import check_log


@pytest.fixture
def world(account_world):
    return account_world


async def add(db, *ids: str) -> None:
    """Write documents and count each, all in one change."""
    notes = db.space("home").collection("notes")
    for id in ids:
        batch = db.batch()
        batch.set(notes.doc(id), {"text": id})
        batch.set(notes.doc("tally"), {"total": twinlock.increment(1)}, merge=True)
        await batch.commit()


async def seen(db) -> tuple[set[str], int]:
    """The documents of a device and what its counter says."""
    found = {doc.id: doc.data for doc in await db.space("home").collection("notes").get()}
    total = found.pop("tally", {"total": 0})["total"]
    return set(found), total


async def agreed(world, *dbs) -> tuple[set[str], int]:
    """What all devices show in the end, a fresh one too."""
    async with asyncio.timeout(20):
        for _ in range(2):
            for db in dbs:
                await db.synced()
    fresh = await world.device("b")
    async with asyncio.timeout(20):
        await fresh.synced()
    shown = [await seen(db) for db in (*dbs, fresh)]
    assert all(one == shown[0] for one in shown), shown
    return shown[0]


def check(world) -> None:
    """No counter was used twice, whatever the device believed: the server's log says so."""
    assert check_log(world.folder / "server" / "twinlock.db") == []


async def backed_up(world, *ids: str) -> None:
    """Write with device "a", then keep a copy of its profile as "old"."""
    db = await world.device("a")
    await add(db, *ids)
    await db.synced()
    await db.close()
    shutil.copytree(world.folder / "a", world.folder / "old")


async def test_a_restored_device_counts_on_where_the_server_is(world):
    await backed_up(world, "1", "2", "3")
    db = await world.device("a")
    await add(db, "4", "5")
    await db.synced()
    await db.close()

    old = await world.device("old")
    await add(old, "6")

    assert await agreed(world, old) == ({"1", "2", "3", "4", "5", "6"}, 6)
    check(world)


async def restored_offline(world):
    """A restored device that writes while it cannot know yet how far the server is, and then meets it."""
    await backed_up(world, "1", "2", "3")
    db = await world.device("a")
    await add(db, "4", "5")
    await db.synced()
    await db.close()
    await world.stop()
    old = await world.device("old")
    await add(old, "6", "7", "8")
    await world.restart()
    old._connection.reconnect_now()
    await until(lambda: old.status == "connected")
    return old


async def test_what_a_restored_device_writes_before_it_meets_the_server_is_not_lost(world):
    old = await restored_offline(world)

    ids, _ = await agreed(world, old)

    assert ids == {str(number) for number in range(1, 9)}
    assert not old.refused
    check(world)


async def test_increments_of_a_restored_device_count_although_it_had_forgotten_some(world):
    old = await restored_offline(world)

    _, total = await agreed(world, old)

    assert total == 8


async def test_writes_that_were_sent_after_the_backup_are_not_sent_twice(world):
    """The copy was made with writes in the outbox; the original then sent them, and the copy has them still."""
    db = await world.device("a")
    await add(db, "1")
    await db.synced()
    await world.stop()
    await until(lambda: db.status == "reconnecting")
    await add(db, "2", "3")
    await db.close()
    shutil.copytree(world.folder / "a", world.folder / "old")
    await world.restart()
    db = await world.device("a")
    await db.synced()
    await add(db, "4")
    await db.synced()
    await db.close()

    old = await world.device("old")

    assert await agreed(world, old) == ({"1", "2", "3", "4"}, 4)
    check(world)


async def test_two_clones_of_a_device_lose_no_document(world):
    """Both believe to be the device, at once: each finds its counters taken and seals again on top."""
    await backed_up(world, "0")
    one, two = await world.device("a"), await world.device("old")
    notes = [db.space("home").collection("notes") for db in (one, two)]
    for number in range(15):
        await asyncio.gather(
            notes[0].doc(f"a{number}").set({"text": "a"}),
            notes[1].doc(f"b{number}").set({"text": "b"}),
        )
    ids, _ = await agreed(world, one, two)

    assert ids == {"0"} | {f"{name}{number}" for name in "ab" for number in range(15)}
    assert not one.refused
    assert not two.refused
    check(world)
