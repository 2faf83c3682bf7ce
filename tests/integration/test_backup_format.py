"""Backups by the engine's contracts alone: what is in them, what is written again, what goes, what a damage costs."""

import asyncio
import os

import msgspec
import pytest

from tests.backup_kit import all_entries, entries_of, names_in, now_ms, objects_of, opened, records_of
from twinlock.backup import Holdings, list_generations, make_backup, read_generation, restore
from twinlock.backup.chunks import Chunks
from twinlock.backup.format import chunk_name
from twinlock.backup.pages import page_digests
from twinlock.engines.blobs import open_blobs
from twinlock.engines.memory import MemoryDirectory, MemoryLog
from twinlock.engines.one_process import OneProcessBroker
from twinlock.errors import BackupDamagedError, StoreError
from twinlock.ids import Seq
from twinlock.testing.contracts import Chain
from twinlock.testing.contracts.envelopes import new_space


@pytest.fixture
async def store(tmp_path):
    store = open_blobs(str(tmp_path / "backup"))
    yield store
    await store.close()


@pytest.fixture
async def source(tmp_path):
    async with opened(tmp_path / "source") as holdings:
        yield holdings


async def filled(holdings: Holdings, spaces_count: int = 3) -> list[Chain]:
    """Write to some spaces, to the directory and the blobs."""
    chains = [Chain(new_space(number % 16)) for number in range(spaces_count)]
    for chain in chains:
        await holdings.log.append(chain.space, chain.take(4), 1_000)
        await holdings.directory.put(f"log/{chain.space.hex()}/00000001", os.urandom(80))
        await holdings.blobs.put(f"blobs/{chain.space.hex()}/{os.urandom(16).hex()}/00000000", os.urandom(300))
    await asyncio.gather(*(holdings.directory.put(f"account/{number:04d}", os.urandom(40)) for number in range(600)))
    return chains


def memory_holdings() -> Holdings:
    return Holdings(MemoryLog(), MemoryDirectory(), OneProcessBroker(), open_blobs("memory:"))


def births_left_out(records: dict[str, bytes]) -> dict[str, bytes]:
    return {key: value for key, value in records.items() if not key.startswith("birth/")}


async def newest(store):
    manifest, _ = await read_generation(store)
    return manifest


async def test_everything_comes_back_on_another_engine_under_new_seqs(source, store):
    chains = await filled(source)
    chains[0].take(0)
    made = await make_backup(source, store, now_ms)

    into = memory_holdings()
    restored = await restore(made.manifest, store, into, now_ms)

    assert await all_entries(into) == await all_entries(source)
    assert births_left_out(await records_of(into)) == await records_of(source)
    assert await objects_of(into.blobs) == await objects_of(source.blobs)
    for chain in chains:
        assert (await into.log.state(chain.space)).heads == (await source.log.state(chain.space)).heads
    counts = made.manifest.counts
    assert (restored.spaces_count, restored.entries_count, restored.blobs_count) == (3, 12, 3)
    assert (counts.spaces, counts.entries, counts.records, counts.blobs) == (3, 12, 603, 3)
    assert restored.problems == []


async def test_every_space_begins_anew_in_the_new_life(source, store):
    chains = await filled(source)
    old = [[os.urandom(16), 0], [os.urandom(16), 7]]
    await source.directory.put(f"birth/{chains[0].space.hex()}", msgspec.msgpack.encode(old))
    await make_backup(source, store, now_ms)

    into = memory_holdings()
    await restore(await newest(store), store, into, now_ms)

    now = [into.log.incarnation, 0]
    records = await records_of(into)
    assert msgspec.msgpack.decode(records[f"birth/{chains[0].space.hex()}"]) == [*old, now]
    assert msgspec.msgpack.decode(records[f"birth/{chains[1].space.hex()}"]) == [now]


async def test_what_has_not_changed_is_not_written_again(source, store):
    chains = await filled(source, 40)
    first = (await make_backup(source, store, now_ms)).manifest

    second = (await make_backup(source, store, now_ms)).manifest
    await source.log.append(chains[3].space, chains[3].take(1), 2_000)
    await source.directory.put("account/0300", b"changed")
    await source.directory.delete("account/0301")
    third = (await make_backup(source, store, now_ms)).manifest

    assert second.written_bytes == 0
    assert (second.spaces, second.records, second.blobs) == (first.spaces, first.records, first.blobs)
    # One entry, a page of its space's row, a page of records, and the lists of pages.
    assert 0 < third.written_bytes < first.written_bytes // 2
    assert third.counts.entries == first.counts.entries + 1
    into = memory_holdings()
    await restore(third, store, into, now_ms)
    assert await all_entries(into) == await all_entries(source)
    assert births_left_out(await records_of(into)) == await records_of(source)


async def test_each_generation_is_what_was_there_then(source, store):
    (chain,) = await filled(source, 1)
    await make_backup(source, store, now_ms)
    then = await all_entries(source)
    seqs = await source.log.append(chain.space, chain.take(5), 2_000)
    await source.log.cut(chain.space, seqs[2], 2_000)
    await make_backup(source, store, now_ms)
    await source.log.purge(chain.space)
    await make_backup(source, store, now_ms)

    found = []
    for generation in await list_generations(store):
        manifest, _ = await read_generation(store, generation)
        into = memory_holdings()
        await restore(manifest, store, into, now_ms)
        found.append(await entries_of(into, chain.space))
        heads = (await into.log.state(chain.space)).heads
        assert heads[chain.device].counter == (4 if generation == 1 else 9)

    assert found[0] == then[chain.space]
    assert len(found[1]) == 2
    assert found[2] == []


async def test_an_undone_cut_is_in_the_next_backup(source, store):
    (chain,) = await filled(source, 1)
    seqs = await source.log.append(chain.space, chain.take(5), 2_000)
    await source.log.cut(chain.space, seqs[0], 2_000)
    await make_backup(source, store, now_ms)
    await source.log.uncut(chain.space, Seq(0))
    await make_backup(source, store, now_ms)

    into = memory_holdings()
    await restore(await newest(store), store, into, now_ms)

    assert len(await entries_of(into, chain.space)) == 9


async def test_a_backup_of_another_life_is_made_anew(source, store, tmp_path):
    (chain,) = await filled(source, 1)
    await make_backup(source, store, now_ms)
    async with opened(tmp_path / "other") as other:
        await restore(await newest(store), store, other, now_ms)
        await other.log.append(chain.space, chain.take(2), 3_000)
        await make_backup(other, store, now_ms)

        into = memory_holdings()
        await restore(await newest(store), store, into, now_ms)

        assert await all_entries(into) == await all_entries(other)


async def test_old_generations_go_with_all_that_only_they_named(source, store):
    (chain, *_) = await filled(source)
    for number in range(4):
        await source.log.append(chain.space, chain.take(1), number)
        await source.blobs.put(f"blobs/{chain.space.hex()}/{number:032x}/00000000", b"%d" % number)
        await source.blobs.delete(f"blobs/{chain.space.hex()}/{number - 1:032x}/00000000")
        await make_backup(source, store, now_ms)
    await store.put("chunks/00/" + "0" * 64, b"left by an attempt that was cut short")
    before = await names_in(store, "chunks/")

    made = await make_backup(source, store, now_ms, keep=2)

    assert made.pruned_count == 3
    assert await list_generations(store) == [4, 5]
    assert len(await names_in(store, "chunks/")) < len(before)
    blobs = await names_in(store, "blobs/")
    assert blobs == await names_in(source.blobs, "blobs/")
    for generation in (4, 5):
        manifest, _ = await read_generation(store, generation)
        into = memory_holdings()
        await restore(manifest, store, into, now_ms)
        assert await all_entries(into) == await all_entries(source)


async def test_what_is_of_the_engine_or_of_this_moment_stays_behind(source, store):
    for key in ("heads/00", "start/00", "cluster/settings", "chores", "probe", "changing/00"):
        await source.directory.put(key, b"")
    await source.directory.put("account/1", b"kept")
    await make_backup(source, store, now_ms)

    into = memory_holdings()
    await restore(await newest(store), store, into, now_ms)

    assert await records_of(into) == {"account/1": b"kept"}


@pytest.mark.parametrize(
    ("prefix", "what"),
    [
        ("chunks/", "altered"),
        ("blobs/", "missing"),
        ("generations/", "altered"),
        *[
            pytest.param(prefix, what, marks=pytest.mark.slow)
            for prefix, what in (
                ("chunks/", "missing"),
                ("chunks/", "emptied"),
                ("blobs/", "altered"),
                ("blobs/", "emptied"),
                ("generations/", "missing"),
                ("generations/", "emptied"),
            )
        ],
    ],
)
async def test_no_damage_goes_unnoticed(source, store, prefix, what):
    """Every object of the backup in turn; a restore refuses, or restores all the same but names it."""
    await filled(source, 2)
    made = await make_backup(source, store, now_ms)
    for name in sorted(await names_in(store, prefix)):
        true = await store.get(name)
        if what == "missing":
            await store.delete(name)
        else:
            middle = len(true) // 2
            changed = true[:middle] + bytes([true[middle] ^ 1]) + true[middle + 1 :]
            await store.put(name, changed if what == "altered" else b"")
        if prefix == "generations/":
            with pytest.raises(BackupDamagedError):
                await read_generation(store, 1)
        else:
            with pytest.raises(BackupDamagedError):
                await restore(made.manifest, store, memory_holdings(), now_ms)
            restored = await restore(made.manifest, store, memory_holdings(), now_ms, even_damaged=True)
            assert restored.problems
        await store.put(name, true)


@pytest.mark.parametrize("what", ["missing", "altered"])
async def test_what_a_backup_has_lost_the_next_one_writes_again(source, store, what):
    """Chunks that are gone, and pages that are broken; a broken run of entries is for the drill to find."""
    await filled(source, 2)
    made = await make_backup(source, store, now_ms)
    pages = await page_digests(Chunks(store), bytes.fromhex(made.manifest.spaces))
    for name in await names_in(store, "chunks/") if what == "missing" else map(chunk_name, pages):
        if what == "missing":
            await store.delete(name)
        else:
            await store.put(name, b"broken")
    await make_backup(source, store, now_ms)

    into = memory_holdings()
    await restore(await newest(store), store, into, now_ms)

    assert await all_entries(into) == await all_entries(source)
    assert births_left_out(await records_of(into)) == await records_of(source)


async def test_an_engine_that_holds_something_is_left_alone(source, store):
    await filled(source, 1)
    made = await make_backup(source, store, now_ms)
    into = memory_holdings()
    await into.directory.put("account/1", b"")

    with pytest.raises(StoreError, match="records already"):
        await restore(made.manifest, store, into, now_ms)
    with pytest.raises(StoreError, match="spaces already"):
        await restore(made.manifest, store, source, now_ms)


async def test_a_restore_that_was_cut_short_is_not_served(source, store, tmp_path):
    await filled(source, 2)
    made = await make_backup(source, store, now_ms)
    for name in await names_in(store, "blobs/"):
        await store.delete(name)

    async with opened(tmp_path / "into") as into:
        with pytest.raises(BackupDamagedError):
            await restore(made.manifest, store, into, now_ms, place="the backup")

    with pytest.raises(StoreError, match="what comes from the backup has not ended"):
        async with opened(tmp_path / "into"):
            pass
