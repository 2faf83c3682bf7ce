"""A server's data moves to another engine while devices write all the time: nothing lost, nothing doubled."""

import asyncio
import shutil

import pytest

from tests.backup_kit import all_entries, now_ms, opened, records_of
from tests.client_kit import values
from twinlock import increment
from twinlock.backup import EnginePlace, Steps, migrate
from twinlock.contracts import MOVING_KEY
from twinlock.engines.sqlite import SqliteEngine
from twinlock.errors import StoreError
from twinlock.ids import Seq
from twinlock.testing.contracts import Chain
from twinlock.testing.contracts.envelopes import new_space


@pytest.fixture
def world(account_world):
    return account_world


def place(folder, blobs=""):
    return EnginePlace(f"sqlite:{folder}", blobs)


async def no_stop():
    """Nobody serves it."""


def steps(stop=no_stop):
    return Steps(lambda _: None, stop, 10.0)


class Writer:
    """A device that writes until it is told to end, and counts what it wrote."""

    def __init__(self, db, name, counter):
        self.db = db
        self.todos = db.space("home").collection("todos")
        self.name = name
        self.counter = counter
        self.count = 0
        self._is_ended = False
        self.task = asyncio.ensure_future(self._write())

    async def _write(self):
        while not self._is_ended:
            await self.todos.add({"who": self.name, "n": self.count})
            await self.todos.doc(self.counter).update({"total": increment(1)})
            self.count += 1
            await asyncio.sleep(0.01)

    async def end(self):
        self._is_ended = True
        await self.task
        await self.db.synced()


async def test_devices_that_write_all_the_time_go_on_at_the_new_place(world, tmp_path):
    a, b = await world.device("a"), await world.device("b")
    counter = (await a.space("home").collection("todos").add({"who": "nobody", "total": 0})).id
    await a.synced()
    await b.synced()
    writers = [Writer(a, "a", counter), Writer(b, "b", counter)]
    old, new = tmp_path / "server", tmp_path / "new"

    moved = await migrate(place(old), place(new), steps(world.stop), now_ms)
    for name in ("server.key", "keyservice"):
        copy = shutil.copytree if (old / name).is_dir() else shutil.copy
        copy(old / name, new / name)
    await restart_at(world, new)
    await asyncio.sleep(0.05)
    for writer in writers:
        await writer.end()

    expected = {(writer.name, n) for writer in writers for n in range(writer.count)} | {("nobody", None)}
    async with asyncio.timeout(20):
        while True:
            shown = [values(await writer.todos.get()) for writer in writers]
            if all(len(each) == len(expected) for each in shown):
                break
            await asyncio.sleep(0.02)
    for each in shown:
        assert {(doc["who"], doc.get("n")) for doc in each} == expected
        assert next(doc for doc in each if doc["who"] == "nobody")["total"] == sum(w.count for w in writers)
    assert moved.cutover_ms < 5_000
    assert moved.verified.entries_count > 0
    with pytest.raises(StoreError, match="moved to"):
        SqliteEngine.open(old / "twinlock.db")


async def restart_at(world, folder):
    """Start the server again at its old address, with another data folder."""
    folder.joinpath("server.key").chmod(0o600)
    world.server = type(world.server)(
        type(world.server.settings)(data=str(folder), port=world.server.port, log_level="error", drain_ms=200)
    )
    await world.server.start()


@pytest.fixture
async def source(tmp_path):
    """A data folder with some spaces that nobody serves at the moment."""
    chains = [Chain(new_space(number)) for number in range(3)]
    async with opened(tmp_path / "old") as holdings:
        for chain in chains:
            await holdings.log.append(chain.space, chain.take(5), 1_000)
            await holdings.directory.put(f"name/{chain.space.hex()}", b"x")
            await holdings.blobs.put(f"blobs/{chain.space.hex()}/{'0' * 32}/00000000", chain.space)
    return chains


async def test_every_round_takes_along_cuts_deletions_and_new_things(source, tmp_path):
    old, new = tmp_path / "old", tmp_path / "new"
    first, second, third = source
    newcomer = Chain(new_space(9))

    async def meanwhile():
        """What happens between the rounds beside the live server and the last one."""
        async with opened(old) as holdings:
            seqs = await holdings.log.append(first.space, first.take(4), 2_000)
            await holdings.log.cut(first.space, seqs[1], 2_000)
            await holdings.log.purge(second.space)
            await holdings.log.append(newcomer.space, newcomer.take(2), 3_000)
            await holdings.directory.put("name/new", b"y")
            await holdings.directory.delete(f"name/{second.space.hex()}")
            await holdings.blobs.delete(f"blobs/{second.space.hex()}/{'0' * 32}/00000000")
            await holdings.blobs.put(f"blobs/{third.space.hex()}/{'1' * 32}/00000000", b"more")

    await migrate(place(old), place(new), steps(meanwhile), now_ms)

    async with opened(new) as target:
        source_engine = SqliteEngine.open_reading(old / "twinlock.db")
        for chain in (*source, newcomer):
            state = await source_engine.log.state(chain.space)
            assert (await target.log.state(chain.space)).heads == state.heads
        entries = await all_entries(target)
        assert len(entries[first.space]) == 2
        assert entries[second.space] == []
        assert [len(entries[chain.space]) for chain in (third, newcomer)] == [5, 2]
        records = {key: value for key, value in (await records_of(target)).items() if not key.startswith("birth/")}
        expected = {key: record.value async for key, record in source_engine.directory.scan() if key != MOVING_KEY}
        assert records == expected
        names = {part.name async for part in target.blobs.list("blobs/")}
        assert len(names) == 3
        assert f"blobs/{third.space.hex()}/{'1' * 32}/00000000" in names
        # The chains go on where they were.
        for chain in (*source, newcomer):
            await target.log.append(chain.space, [chain.next()], 9)
        await source_engine.close()


async def test_a_move_that_was_cut_short_goes_on_where_it_was(source, tmp_path):
    old, new = tmp_path / "old", tmp_path / "new"

    async def fail():
        raise StoreError("the operator's power has failed")

    with pytest.raises(StoreError, match="power"):
        await migrate(place(old), place(new), steps(fail), now_ms)
    with pytest.raises(StoreError, match="not complete"):
        SqliteEngine.open(new / "twinlock.db")
    async with opened(old) as holdings:
        first, second, _ = source
        await holdings.log.append(first.space, first.take(2), 2_000)
        await holdings.log.cut(first.space, Seq(2), 2_000)
        await holdings.log.append(second.space, second.take(1), 2_000)
        await holdings.directory.delete(f"name/{first.space.hex()}")
        before = await all_entries(holdings)

    moved = await migrate(place(old), place(new), steps(), now_ms)

    assert moved.verified.records_count == 2 + 3
    async with opened(new) as target:
        assert await all_entries(target) == before


async def test_a_target_that_holds_something_else_is_left_alone(source, tmp_path):
    async with opened(tmp_path / "new") as target:
        await target.directory.put("name/other", b"")

    with pytest.raises(StoreError, match="records already"):
        await migrate(place(tmp_path / "old"), place(tmp_path / "new"), steps(), now_ms)

    await SqliteEngine.open(tmp_path / "old" / "twinlock.db").close()


async def test_a_server_that_does_not_stop_is_not_moved(source, tmp_path):
    engine = SqliteEngine.open(tmp_path / "old" / "twinlock.db")
    stuck = Steps(lambda _: None, no_stop, 0.1)

    with pytest.raises(StoreError, match="another process"):
        await migrate(place(tmp_path / "old"), place(tmp_path / "new"), stuck, now_ms)

    assert await engine.directory.get(MOVING_KEY) is None
    await engine.close()


async def test_files_in_one_bucket_are_not_copied(source, tmp_path):
    shared = str(tmp_path / "old" / "blobs")

    moved = await migrate(place(tmp_path / "old"), place(tmp_path / "new", shared), steps(), now_ms)

    assert moved.verified.blobs_count == 0
    assert not (tmp_path / "new" / "blobs").exists()
