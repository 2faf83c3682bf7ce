"""What only an engine with a file can show: rights, locks, restarts, failures of the disk."""

import asyncio
import os
import resource
import sqlite3
import stat

import pytest

from twinlock.engines import sqlite_writer
from twinlock.engines.sqlite import SqliteEngine
from twinlock.errors import AppendConflictError, ClosedError, OverloadedError, StoreError, UpdateNeededError
from twinlock.ids import Seq
from twinlock.testing.contracts import Chain
from twinlock.testing.contracts.directory import next_change
from twinlock.testing.contracts.envelopes import new_space
from twinlock.testing.contracts.log import read_all

POISON_MS = 666


@pytest.fixture
def path(tmp_path):
    return tmp_path / "data" / "twinlock.db"


@pytest.fixture
async def engine(path):
    engine = SqliteEngine.open(path)
    yield engine
    await engine.close()


def refuse_some(path) -> None:
    """Make the database refuse entries of one receive time, as a disk might at any moment."""
    with sqlite3.connect(path) as other:
        other.execute(
            f"CREATE TRIGGER poison BEFORE INSERT ON log WHEN new.received_ms = {POISON_MS} "
            "BEGIN SELECT RAISE(ABORT, 'no'); END"
        )
    other.close()


async def test_only_the_owner_may_read_the_files(engine, path):
    chain = Chain(new_space())
    await engine.log.append(chain.space, chain.take(1), 1)
    await engine.log.state(chain.space)

    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    files = {file.name: stat.S_IMODE(file.stat().st_mode) for file in path.parent.iterdir()}
    assert set(files) == {"twinlock.db", "twinlock.db-wal", "twinlock.db-shm", "twinlock.db.lock"}
    assert set(files.values()) == {0o600}


async def test_a_second_engine_on_the_file_is_refused_until_the_first_is_closed(engine, path):
    with pytest.raises(StoreError, match="another process"):
        SqliteEngine.open(path)

    await engine.close()
    again = SqliteEngine.open(path)
    await again.close()


async def test_everything_is_there_after_a_restart(engine, path):
    chain = Chain(new_space())
    seqs = await engine.log.append(chain.space, chain.take(4), 1)
    await engine.log.cut(chain.space, seqs[1], 1)
    revision = await engine.directory.put("key", b"value")
    before = await engine.log.state(chain.space)
    incarnation = engine.log.incarnation
    await engine.close()

    again = SqliteEngine.open(path)
    assert again.log.incarnation == incarnation
    assert await again.log.state(chain.space) == before
    assert [entry.seq for entry in await read_all(again.log, chain.space)] == seqs[2:]
    assert (await again.directory.get("key")).revision == revision
    (following,) = await again.log.append(chain.space, [chain.next()], 1)
    assert following > seqs[-1]
    await again.close()


async def test_numbers_are_not_given_twice_after_deletes_and_a_restart(engine, path):
    chain, other = Chain(new_space()), Chain(new_space())
    seqs = await engine.log.append(chain.space, chain.take(3), 1)
    await engine.log.purge(chain.space)
    revision = await engine.directory.put("key", b"")
    await engine.directory.delete("key")
    await engine.close()

    again = SqliteEngine.open(path)
    (following,) = await again.log.append(other.space, other.take(1), 1)
    assert following > seqs[-1]
    assert await again.directory.put("key", b"") > revision
    await again.close()


async def test_two_databases_have_two_incarnations(engine, tmp_path):
    other = SqliteEngine.open(tmp_path / "other.db")

    assert other.log.incarnation != engine.log.incarnation
    await other.close()


async def test_a_file_of_another_kind_is_refused(tmp_path):
    (tmp_path / "notes.db").write_bytes(b"these are my notes, not a database" * 100)

    with pytest.raises(StoreError):
        SqliteEngine.open(tmp_path / "notes.db")
    with pytest.raises(StoreError):
        SqliteEngine.open(tmp_path / "notes.db" / "below" / "twinlock.db")


async def test_a_database_of_a_newer_version_is_refused(engine, path):
    await engine.close()
    with sqlite3.connect(path) as raw:
        raw.execute("PRAGMA user_version = 99")
    raw.close()

    with pytest.raises(UpdateNeededError):
        SqliteEngine.open(path)


async def test_a_failed_group_acknowledges_nothing_and_harms_no_later_one(engine, path):
    refuse_some(path)
    chain, poisoned = Chain(new_space()), Chain(new_space())
    first = chain.take(2)
    outcomes = await asyncio.gather(
        engine.log.append(chain.space, first, 1),
        engine.log.append(poisoned.space, poisoned.take(1), POISON_MS),
        engine.directory.put("key", b""),
        return_exceptions=True,
    )

    # All of them, if they met in one group: whoever was told of an error finds nothing stored, and tries again.
    assert isinstance(outcomes[1], StoreError)
    assert await read_all(engine.log, poisoned.space) == []
    if isinstance(outcomes[0], StoreError):
        assert (await engine.log.state(chain.space)).head == 0
        outcomes[0] = await engine.log.append(chain.space, first, 1)
    again = await engine.log.append(poisoned.space, [Chain(poisoned.space, poisoned.device).next()], 1)
    more = await engine.log.append(chain.space, chain.take(1), 1)
    assert [entry.seq for entry in await read_all(engine.log, chain.space)] == [*outcomes[0], *more]
    assert len(again) == 1


async def test_a_full_disk_acknowledges_nothing_and_is_got_over(engine, path):
    chain = Chain(new_space())
    stored = chain.take(3)
    await engine.log.append(chain.space, stored, 1)
    big = [chain.next(os.urandom(1_000_000)) for _ in range(4)]
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2 << 20, hard))
    try:
        with pytest.raises(StoreError):
            await engine.log.append(chain.space, big, 1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    assert len(await read_all(engine.log, chain.space)) == 3
    await engine.log.append(chain.space, big, 1)
    await engine.close()
    again = SqliteEngine.open(path)
    assert [entry.envelope for entry in await read_all(again.log, chain.space)] == [e.data for e in [*stored, *big]]
    await again.close()


async def test_limit_of_bytes_that_wait_for_the_disk(engine, monkeypatch):
    chains = [Chain(new_space()) for _ in range(4)]
    envelopes = [chain.next(bytes(10_000)) for chain in chains]
    monkeypatch.setattr(sqlite_writer, "WAITING_BYTES_MAX", 3 * len(envelopes[0].data))

    outcomes = await asyncio.gather(
        *(engine.log.append(chain.space, [envelope], 1) for chain, envelope in zip(chains, envelopes, strict=True)),
        return_exceptions=True,
    )

    assert [isinstance(outcome, list) for outcome in outcomes] == [True, True, True, False]
    assert isinstance(outcomes[3], OverloadedError)
    assert outcomes[3].retry_after_ms > 0
    await engine.log.append(chains[3].space, [envelopes[3]], 1)


async def test_an_append_whose_caller_left_is_still_whole(engine):
    chain = Chain(new_space())
    envelopes = chain.take(2)
    task = asyncio.ensure_future(engine.log.append(chain.space, envelopes, 1))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    seqs = await engine.log.append(chain.space, envelopes, 2)
    assert [entry.seq for entry in await read_all(engine.log, chain.space)] == seqs


async def test_closing_finishes_what_was_begun_and_refuses_the_rest(engine, path):
    chain = Chain(new_space())
    task = asyncio.ensure_future(engine.log.append(chain.space, chain.take(2), 1))
    await asyncio.sleep(0)
    await engine.close()

    assert len(await task) == 2
    with pytest.raises(ClosedError):
        await engine.log.append(chain.space, chain.take(1), 1)
    with pytest.raises(ClosedError):
        await engine.log.read(chain.space, Seq(0), 1)
    await engine.close()


async def test_a_purge_that_was_cut_short_is_finished_by_cleaning(engine, path):
    chain = Chain(new_space())
    seqs = await engine.log.append(chain.space, chain.take(900), 1)
    task = asyncio.ensure_future(engine.log.purge(chain.space))
    async with asyncio.timeout(20):
        while (await engine.log.state(chain.space)).start == 1:
            continue
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await engine.close()

    again = SqliteEngine.open(path)
    assert await read_all(again.log, chain.space) == []
    await again.log.clean(1)
    with sqlite3.connect(path) as raw:
        assert raw.execute("SELECT count(*) FROM log").fetchone() == (0,)
    raw.close()
    assert (await again.log.state(chain.space)).head == seqs[-1]
    await again.close()


async def test_heads_are_found_again_after_the_cache_was_dropped(engine, monkeypatch):
    monkeypatch.setattr("twinlock.engines.sqlite_group.HEADS_CACHED_MAX", 2)
    chains = [Chain(new_space()) for _ in range(5)]

    for _ in range(3):
        for chain in chains:
            await engine.log.append(chain.space, chain.take(2), 1)

    with pytest.raises(AppendConflictError):
        await engine.log.append(chains[0].space, [chains[0].make(9, chains[0].prev)], 1)
    assert [len(await read_all(engine.log, chain.space)) for chain in chains] == [6] * 5


async def test_limit_of_changes_that_a_directory_watcher_leaves_unread(engine, monkeypatch):
    directory = engine.directory
    monkeypatch.setattr("twinlock.engines.one_process.CHANGES_WAITING_MAX", 3)
    in_time, late = directory.watch("a/"), directory.watch("a/")
    for _ in range(3):
        await directory.put("a/1", b"")
    for _ in range(3):
        await next_change(in_time)
    await directory.put("a/1", b"")

    await next_change(in_time)
    for _ in range(3):
        await next_change(late)
    with pytest.raises(OverloadedError):
        await next_change(late)
