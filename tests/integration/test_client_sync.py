"""Two devices of one account on a real server: live, offline, restarted, rolled back."""

import asyncio
import logging
import shutil
import time

import pytest

import twinlock
from tests.client_kit import PASSWORD, ShiftedClock, until, values
from twinlock.client.courier import Courier
from twinlock.errors import NotFoundError, ProfileInUseError, UnknownSpaceError

DAY_MS = 24 * 3_600_000


@pytest.fixture
def world(account_world):
    return account_world


@pytest.fixture
async def pair(world):
    """Two devices with the collection "todos" of the space "home"."""
    one, two = await world.device("a"), await world.device("b")
    return one.space("home").collection("todos"), two.space("home").collection("todos")


async def test_a_write_is_seen_live_on_the_other_device_both_ways(pair):
    one, two = pair
    seen_one, seen_two = [], []
    one.on_snapshot(lambda snap: seen_one.append(snap))
    two.on_snapshot(lambda snap: seen_two.append(snap))

    write = await one.add({"text": "buy milk", "done": False})
    await until(lambda: seen_two[-1].docs)
    assert [change.kind for change in seen_two[-1].changes] == ["added"]
    await two.doc(write.id).update({"done": True})
    await until(lambda: seen_one[-1].docs[0]["done"] and not seen_one[-1].pending)

    assert values(seen_one[-1].docs) == values(seen_two[-1].docs) == [{"text": "buy milk", "done": True}]
    assert await one.doc(write.id).get() == {"text": "buy milk", "done": True}


async def test_everything_works_offline_and_arrives_later(world, pair):
    one, two = pair
    first, second = world.open
    write = await one.add({"n": 0})
    await first.synced()
    await second.synced()
    await world.stop()
    await until(lambda: first.status == second.status == "reconnecting")

    await one.doc(write.id).update({"from_one": True})
    await two.doc(write.id).update({"from_two": True})
    await one.add({"n": 1})
    assert first.pending_count == 2
    assert await one.where("n", ">=", 0).order_by("n").count() == 2
    offline = await one.get()
    await world.restart()
    await asyncio.gather(first.synced(), second.synced())
    await until(lambda: second.pending_count == first.pending_count == 0)

    assert len(offline) == 2
    await settled(one, two)
    assert await one.doc(write.id).get() == {"n": 0, "from_one": True, "from_two": True}


async def test_a_lost_connection_leaves_no_cancellation_behind(world, pair):
    """One would end the reconnecting for ever at its first wait, on a Python that has not outgrown the fault."""
    first, second = world.open
    await world.stop()
    await until(lambda: first.status == second.status == "reconnecting")

    assert [task.get_name() for task in asyncio.all_tasks() if task.cancelling()] == []

    await world.restart()
    await asyncio.gather(first.synced(), second.synced())


async def test_a_fault_of_this_side_ends_no_more_than_one_connection(world, monkeypatch, caplog):
    db = await world.device("a")
    faults = [RuntimeError("a fault")]
    tend = Courier.tend

    def tend_with_a_fault(courier):
        if faults:
            raise faults.pop()
        tend(courier)

    monkeypatch.setattr(Courier, "tend", tend_with_a_fault)
    with caplog.at_level(logging.CRITICAL):
        await until(lambda: db.status == "reconnecting")
        await db.space("home").collection("todos").add({"text": "meanwhile"})

        async with asyncio.timeout(10):
            await db.synced()

    assert db.status == "connected"
    assert db.pending_count == 0


async def settled(one, two):
    """Wait until two devices show the same."""
    async with asyncio.timeout(10):
        while values(await one.get()) != values(await two.get()):  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def test_a_database_opens_without_its_server_and_reads_and_writes(world):
    db = await world.device("a")
    await db.space("home").collection("todos").add({"text": "kept"})
    await db.close()
    await world.stop()

    db = await world.device("a")
    todos = db.space("home").collection("todos")
    snaps = []
    todos.on_snapshot(snaps.append)
    await todos.add({"text": "written offline"})

    assert db.status == "reconnecting"
    assert sorted(doc["text"] for doc in await todos.get()) == ["kept", "written offline"]
    assert snaps[-1].from_cache
    await db.close()
    await world.restart()
    db = await world.device("a")
    await db.synced()
    assert db.pending_count == 0


async def test_a_server_that_has_moved_is_found_again_by_the_profile_alone(world):
    async with await twinlock.connect(world.url, world.folder / "a") as db:
        await until(lambda: db.is_connected)

    async with await twinlock.connect(profile=world.folder / "a") as db:
        await until(lambda: db.is_connected)


async def test_an_address_that_leads_nowhere_is_not_kept(world):
    async with await twinlock.connect(world.url, world.folder / "a") as db:
        await until(lambda: db.is_connected)
    async with await twinlock.connect("ws://127.0.0.1:9", world.folder / "a") as db:
        await until(lambda: db.status == "reconnecting")

    async with await twinlock.connect(profile=world.folder / "a") as db:
        await until(lambda: db.is_connected)


async def test_a_profile_is_open_once_at_a_time(world):
    await world.device("a")

    with pytest.raises(ProfileInUseError):
        await world.device("a")


async def test_a_rolled_back_profile_loses_nothing(world):
    db = await world.device("a")
    todos = db.space("home").collection("todos")
    await todos.add({"n": 0})
    await db.synced()
    await db.close()
    shutil.copytree(world.folder / "a", world.folder / "old")
    db = await world.device("a")
    await db.space("home").collection("todos").add({"n": 1})
    await db.synced()
    await db.close()

    db = await world.device("old")
    todos = db.space("home").collection("todos")
    await todos.add({"n": 2})
    await db.synced()
    other = await world.device("b")
    await other.synced()

    assert sorted(doc["n"] for doc in await todos.get()) == [0, 1, 2]
    assert sorted(doc["n"] for doc in await other.space("home").collection("todos").get()) == [0, 1, 2]
    assert not db.refused


async def test_a_profile_rolled_back_with_unsent_writes_sends_them(world):
    db = await world.device("a")
    await db.synced()
    await world.stop()
    await until(lambda: db.status == "reconnecting")
    await db.space("home").collection("todos").add({"n": "unsent"})
    await db.close()
    shutil.copytree(world.folder / "a", world.folder / "old")
    await world.restart()
    db = await world.device("a")
    await db.space("home").collection("todos").add({"n": "sent"})
    await db.synced()
    await db.close()

    db = await world.device("old")
    await db.synced()

    assert sorted(doc["n"] for doc in await db.space("home").collection("todos").get()) == ["sent", "unsent"]


async def test_a_clock_a_day_ahead_is_corrected_before_anything_is_stamped(world):
    ahead = await world.device("a", wall_ms=ShiftedClock(DAY_MS))
    true = await world.device("b")
    one, two = ahead.space("home").collection("todos"), true.space("home").collection("todos")
    write = await one.add({"by": "the wrong clock", "at": twinlock.server_timestamp})
    await ahead.synced()
    await until_count(two, 1)

    await two.doc(write.id).update({"by": "the true clock"})
    await true.synced()
    await settled(one, two)

    stored = await one.doc(write.id).get()
    assert stored["by"] == "the true clock"
    assert abs(stored["at"].timestamp() - time.time()) < 60
    assert not true.quarantine


async def test_offline_edits_of_a_clock_a_day_ahead_lose_nothing(world):
    clock = ShiftedClock()
    db = await world.device("a", wall_ms=clock)
    other = await world.device("b")
    await db.synced()
    await world.stop()
    await until(lambda: db.status == "reconnecting")
    clock.shift_ms = 20 * 3_600_000
    await db.space("home").collection("todos").add({"n": 1})
    await world.restart()

    await db.synced()
    todos = other.space("home").collection("todos")
    await until_count(todos, 1)

    assert values(await todos.get()) == [{"n": 1}]
    assert not other.quarantine


async def until_count(collection, count):
    async with asyncio.timeout(10):
        while await collection.count() != count:  # noqa: ASYNC110
            await asyncio.sleep(0.005)


async def test_a_batch_is_seen_all_at_once(pair):
    one, two = pair
    sizes = []
    two.on_snapshot(lambda snap: sizes.append(len(snap)))
    batch = twinlock.WriteBatch()
    for number in range(20):
        batch.set(one.doc(f"{number}"), {"n": number})

    write = await batch.commit()
    await write.durable()
    await until(lambda: sizes[-1] == 20)

    assert set(sizes) == {0, 20}


async def test_a_batch_that_is_refused_writes_nothing(pair):
    one, _ = pair
    batch = twinlock.WriteBatch()
    batch.set(one.doc("a"), {"n": 1}).update(one.doc("missing"), {"n": 2})

    with pytest.raises(NotFoundError):
        await batch.commit()

    assert await one.get() == []


async def test_concurrent_edits_agree_and_the_loser_stays_readable(world, pair):
    one, two = pair
    first, second = world.open
    await one.doc("x").set({"title": "start", "count": 0})
    await first.synced()
    await until_count(two, 1)
    await world.stop()
    await until(lambda: first.status == second.status == "reconnecting")
    await one.doc("x").update({"title": "one", "count": twinlock.increment(2)})
    await two.doc("x").update({"title": "two", "count": twinlock.increment(3)})
    await world.restart()
    await asyncio.gather(first.synced(), second.synced())
    await settled(one, two)

    value = await one.doc("x").get()
    assert value["count"] == 5
    # Two clocks a millisecond apart, or a tie: which one wins is settled by the stamps, and is the same everywhere.
    loser = {"one": "two", "two": "one"}[value["title"]]
    assert await one.doc("x").conflicts() == await two.doc("x").conflicts() == {"title": loser}


async def test_pending_count_falls_to_nothing_and_durable_means_on_the_server(world):
    db = await world.device("a")
    todos = db.space("home").collection("todos")
    writes = await asyncio.gather(*[todos.add({"n": number}) for number in range(300)])
    assert db.pending_count > 0

    await asyncio.gather(*[write.durable() for write in writes])

    assert db.pending_count == 0
    assert all(write.is_durable for write in writes)


async def test_ten_thousand_changes_are_caught_up_with(world):
    one = await world.device("a")
    two = await world.device("b")
    await two.close()
    todos = one.space("home").collection("todos")
    for start in range(0, 10_000, 1_000):
        await asyncio.gather(*[todos.doc(f"{n}").set({"n": n}) for n in range(start, start + 1_000)])
        await one.synced()

    two = await world.device("b")
    await two.synced()

    assert await two.space("home").collection("todos").count() == 10_000


async def test_a_fault_in_a_callback_harms_nothing_else(pair, caplog):
    one, two = pair
    seen = []
    two.on_snapshot(lambda snap: 1 / 0)
    two.on_snapshot(seen.append)

    with caplog.at_level(logging.CRITICAL):
        await one.add({"n": 1})
        await until(lambda: seen[-1].docs)


async def test_an_unknown_space_is_refused_with_those_that_are_known(world):
    db = await world.device("a")
    await db.unlock(PASSWORD)
    await db.create_space("Sächsische Schweiz")

    with pytest.raises(UnknownSpaceError, match="'home', 'Sächsische Schweiz'"):
        db.space("elsewhere")
    assert db.space(db.space("home").id).title == "home"


async def test_a_space_made_on_one_device_comes_to_the_other(world):
    one, two = await world.device("a"), await world.device("b")

    await one.unlock(PASSWORD)
    await one.create_space("trips")
    await one.space("trips").collection("places").add({"name": "Bastei"})
    await one.synced()
    await until(lambda: len(two.spaces()) == 2 and all(space.title for space in two.spaces()))
    places = two.space("trips").collection("places")
    await until_count(places, 1)

    assert values(await places.get()) == [{"name": "Bastei"}]


async def test_the_status_tells_the_truth(world):
    db = await world.device("a")
    seen = []
    db.on_status(seen.append)

    await world.stop()
    await until(lambda: db.status == "reconnecting")
    await world.restart()
    await until(lambda: db.status == "connected")
    await db.close()

    assert seen == ["reconnecting", "connected", "disconnected"]


async def test_writes_of_one_loop_turn_share_one_flush(world):
    db = await world.device("a")
    todos = db.space("home").collection("todos")
    await todos.add({"warm": "up"})

    begin = time.perf_counter()
    await asyncio.gather(*[todos.add({"n": n}) for n in range(200)])
    together = time.perf_counter() - begin

    assert await todos.count() == 201
    assert together < 1.0
