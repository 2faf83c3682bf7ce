"""A server that burnt down comes back from an older backup; its devices bring back what it had acknowledged since."""

import asyncio
import shutil
from pathlib import Path

import pytest

from tests.backup_kit import now_ms, opened
from tests.client_kit import until, values
from twinlock import increment
from twinlock.backup import drill, make_backup, read_generation, restore
from twinlock.engines.blobs import open_blobs


@pytest.fixture
def world(account_world):
    return account_world


@pytest.fixture
async def store(tmp_path):
    store = open_blobs(str(tmp_path / "backup"))
    yield store
    await store.close()


async def back_up(world, store):
    """Back up the running server, as another process does it."""
    async with opened(world.folder / "server", is_beside=True) as holdings:
        return (await make_backup(holdings, store, now_ms)).manifest


async def burn_down(world, store) -> None:
    """Lose the server's data; bring back the newest backup, and what was kept apart: its key and the key service."""
    await world.stop()
    data, lost = world.folder / "server", world.folder / "lost"
    data.rename(lost)
    manifest, _ = await read_generation(store)
    async with opened(data) as into:
        await restore(manifest, store, into, now_ms)
    keep_apart(lost, data)
    await world.restart()


def keep_apart(lost: Path, data: Path) -> None:
    shutil.copy(lost / "server.key", data)
    shutil.copytree(lost / "keyservice", data / "keyservice")


async def settled(*collections, count: int) -> list[dict]:
    """Wait until all show the same, and so many documents."""
    async with asyncio.timeout(20):
        while True:
            shown = [values(await each.order_by("n").get()) for each in collections]
            if all(each == shown[0] for each in shown) and len(shown[0]) == count:
                return shown[0]
            await asyncio.sleep(0.02)


async def test_devices_bring_back_what_was_acknowledged_after_the_backup(world, store):
    a, b = await world.device("a"), await world.device("b")
    todos, theirs = a.space("home").collection("todos"), b.space("home").collection("todos")
    counter = (await todos.add({"n": 0, "total": 0})).id
    for number in range(1, 6):
        await todos.add({"n": number})
    await a.synced()
    await back_up(world, store)
    for number in range(6, 10):
        await (todos if number % 2 else theirs).add({"n": number})
        await todos.doc(counter).update({"total": increment(1)})
        await theirs.doc(counter).update({"total": increment(10)})
    await todos.doc(counter).update({"name": "by a"})
    await asyncio.gather(a.synced(), b.synced())
    before = await settled(todos, theirs, count=10)
    assert before[0]["total"] == 44

    await burn_down(world, store)

    await asyncio.gather(a.synced(), b.synced())
    assert await settled(todos, theirs, count=10) == before
    # The server itself has it all again: a device that begins with nothing reads it.
    await theirs.doc(counter).update({"total": increment(100)})
    await until(lambda: a.pending_count == b.pending_count == 0)
    after = await settled(todos, theirs, count=10)
    assert after[0]["total"] == 144
    assert not a.quarantine.get("home")


@pytest.mark.slow
async def test_a_device_that_missed_everything_reads_what_others_healed(world, store):
    b = await world.device("b")
    await b.synced()
    await b.close()
    a = await world.device("a")
    todos = a.space("home").collection("todos")
    await todos.add({"n": 0})
    await a.synced()
    await back_up(world, store)
    for number in range(1, 5):
        await todos.add({"n": number})
    await a.synced()

    await burn_down(world, store)
    await a.synced()
    late = await world.device("b")

    assert len(await settled(todos, late.space("home").collection("todos"), count=5)) == 5


@pytest.mark.slow
async def test_what_only_an_absent_device_has_comes_back_with_it(world, store):
    """Acknowledged, delivered to nobody else, lost with the server: its author sends it again."""
    a = await world.device("a")
    todos = a.space("home").collection("todos")
    await todos.add({"n": 0})
    await a.synced()
    await back_up(world, store)
    await todos.add({"n": 1})
    await a.synced()
    await a.close()

    await burn_down(world, store)
    b = await world.device("b")
    theirs = b.space("home").collection("todos")
    assert len(await settled(theirs, count=1)) == 1
    await theirs.add({"n": 2})
    await b.synced()
    a = await world.device("a")

    assert len(await settled(a.space("home").collection("todos"), theirs, count=3)) == 3


@pytest.mark.slow
async def test_a_backup_made_while_devices_write_restores_to_a_moment_of_each_space(world, store):
    a = await world.device("a")
    todos = a.space("home").collection("todos")
    stop = asyncio.Event()

    async def write() -> int:
        number = 0
        while not stop.is_set():
            await todos.add({"n": number})
            number += 1
            await asyncio.sleep(0)
        return number

    writing = asyncio.ensure_future(write())
    for _ in range(3):
        await back_up(world, store)
    stop.set()
    count = await writing
    await a.synced()

    report = await drill(store, now_ms)
    assert report.problems == []
    await burn_down(world, store)
    await a.synced()
    b = await world.device("b")
    assert [doc["n"] for doc in await settled(todos, b.space("home").collection("todos"), count=count)] == [
        *range(count)
    ]


async def test_files_come_back_with_the_backup_and_are_read_by_others(world, store):
    a, b = await world.device("a"), await world.device("b")
    content = bytes(range(256)) * 5_000
    file = await a.space("home").files.put(content, name="numbers.bin")
    async with asyncio.timeout(20):
        while (await a.space("home").files.info(file)).state != "uploaded":  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    await asyncio.gather(a.synced(), b.synced())
    manifest = await back_up(world, store)

    report = await drill(store, now_ms)
    await burn_down(world, store)
    await asyncio.gather(a.synced(), b.synced())

    assert report.problems == []
    assert report.blobs_count == 1
    assert manifest.counts.blobs >= 1
    assert await b.space("home").files.get(file) == content


async def test_a_drill_proves_that_a_backup_would_be_served(world, store):
    a = await world.device("a")
    await a.space("home").collection("todos").add({"n": 0})
    await a.synced()
    await back_up(world, store)

    report = await drill(store, now_ms)

    assert report.passed, report.problems
    assert report.account_logs_count == 3
    assert report.space_logs_count >= 1
    assert report.served_spaces_count == report.manifest.counts.spaces >= 1
    assert not report.has_identity
