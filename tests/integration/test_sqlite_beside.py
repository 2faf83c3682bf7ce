"""A database that another process serves is read beside it; one that was set back or moved away is told apart."""

import sqlite3
import time

import pytest

from twinlock.contracts import MOVING_KEY, Moving, Whereabouts, encode_moving
from twinlock.engines.sqlite import SqliteEngine, begin_new_life
from twinlock.errors import ClosedError, StoreError, UpdateNeededError
from twinlock.testing.contracts import Chain
from twinlock.testing.contracts.envelopes import new_space
from twinlock.testing.contracts.log import read_all


@pytest.fixture
def path(tmp_path):
    return tmp_path / "data" / "twinlock.db"


@pytest.fixture
async def engine(path):
    engine = SqliteEngine.open(path)
    yield engine
    await engine.close()


async def test_a_database_is_read_while_it_is_written(engine, path):
    chain = Chain(new_space())
    await engine.log.append(chain.space, chain.take(2), 1)
    await engine.directory.put("key", b"value")

    beside = SqliteEngine.open_reading(path)
    await engine.log.append(chain.space, chain.take(1), 2)

    assert beside.log.incarnation == engine.log.incarnation
    assert await beside.log.state(chain.space) == await engine.log.state(chain.space)
    assert await read_all(beside.log, chain.space) == await read_all(engine.log, chain.space)
    assert {key: record.value async for key, record in beside.directory.scan()} == {"key": b"value"}
    await beside.close()


async def test_what_is_only_read_takes_nothing(engine, path):
    chain = Chain(new_space())
    beside = SqliteEngine.open_reading(path)

    for write in (
        beside.log.append(chain.space, chain.take(1), 1),
        beside.log.purge(chain.space),
        beside.directory.put("key", b""),
        beside.directory.delete("key"),
    ):
        with pytest.raises(StoreError, match="reading only"):
            await write

    await beside.close()
    await beside.close()
    with pytest.raises(ClosedError):
        await beside.directory.put("key", b"")


async def test_reading_leaves_the_files_of_a_killed_server_as_they_are(engine, path, tmp_path):
    """What only the write-ahead log has is read, and stays there for the server that comes back."""
    chain = Chain(new_space())
    await engine.log.append(chain.space, chain.take(3), 1)
    killed = tmp_path / "killed" / path.name
    killed.parent.mkdir(mode=0o700)
    for file in (path, path.with_name(path.name + "-wal")):
        (killed.parent / file.name).write_bytes(file.read_bytes())
    before = {file.name: file.read_bytes() for file in killed.parent.iterdir()}

    beside = SqliteEngine.open_reading(killed)
    assert len(await read_all(beside.log, chain.space)) == 3
    await beside.close()

    after = {file.name: file.read_bytes() for file in killed.parent.iterdir()}
    assert {name: after[name] for name in before} == before


def test_what_is_no_database_of_a_server_is_not_read(tmp_path):
    with pytest.raises(StoreError):
        SqliteEngine.open_reading(tmp_path / "nothing.db")
    assert not list(tmp_path.iterdir())
    (tmp_path / "notes.db").write_bytes(b"these are my notes, not a database" * 100)
    sqlite3.connect(tmp_path / "other.db").executescript("CREATE TABLE notes (text)")
    newer = sqlite3.connect(tmp_path / "newer.db")
    newer.execute("PRAGMA user_version = 99")
    newer.close()

    with pytest.raises(StoreError):
        SqliteEngine.open_reading(tmp_path / "notes.db")
    with pytest.raises(StoreError, match="no database of a server"):
        SqliteEngine.open_reading(tmp_path / "other.db")
    with pytest.raises(UpdateNeededError):
        SqliteEngine.open_reading(tmp_path / "newer.db")


async def test_a_new_life_keeps_everything_but_the_incarnation(engine, path):
    chain = Chain(new_space())
    seqs = await engine.log.append(chain.space, chain.take(2), 1)
    with pytest.raises(StoreError, match="another process"):
        begin_new_life(path)
    await engine.close()

    incarnation = begin_new_life(path)

    again = SqliteEngine.open(path)
    assert again.log.incarnation == incarnation != engine.log.incarnation
    assert [entry.seq for entry in await read_all(again.log, chain.space)] == seqs
    await again.close()
    with pytest.raises(StoreError, match="no database"):
        begin_new_life(path.with_name("other.db"))


@pytest.mark.parametrize(("whereabouts", "told"), [("away", "moved to nats://b"), ("arriving", "not complete")])
async def test_a_database_that_bears_the_mark_is_not_served(engine, path, whereabouts, told):
    await engine.directory.put(MOVING_KEY, encode_moving(Moving(Whereabouts(whereabouts), "nats://b", 1)))
    await engine.close()

    with pytest.raises(StoreError, match=told):
        SqliteEngine.open(path)

    # Who moves it may go on; and the refusal has left no lock behind.
    again = SqliteEngine.open(path, even_moved=True)
    await again.directory.delete(MOVING_KEY)
    await again.close()
    await SqliteEngine.open(path).close()


async def test_a_start_does_not_wait_for_who_reads_the_log_all_the_time(engine, path):
    """Litestream does; SQLite would wait for it until its busy timeout, five seconds, has passed."""
    chain = Chain(new_space())
    await engine.log.append(chain.space, chain.take(3), 1)
    reading = sqlite3.connect(path, isolation_level=None)
    reading.execute("BEGIN")
    reading.execute("SELECT count(*) FROM log").fetchone()
    await engine.log.append(chain.space, chain.take(3), 1)
    await engine.close()

    began = time.monotonic()
    again = SqliteEngine.open(path)
    took_s = time.monotonic() - began

    reading.close()
    assert took_s < 4
    assert len(await read_all(again.log, chain.space)) == 6
    await again.close()


async def test_a_page_of_places_tells_start_and_head(engine, path):
    chains = sorted((Chain(new_space(partition)) for partition in (0, 3, 3)), key=lambda chain: chain.space)
    for chain in chains:
        seqs = await engine.log.append(chain.space, chain.take(3), 1)
    await engine.log.cut(chains[-1].space, seqs[0], 1)
    expected = []
    for chain in chains:
        state = await engine.log.state(chain.space)
        expected.append((chain.space, state.start, state.head))

    assert await engine.log.places(bytes(16), 10) == expected
    assert await engine.log.places(chains[0].space, 1) == expected[1:2]
