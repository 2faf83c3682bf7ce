"""The books of blobs: what a space's files take is counted exactly, whoever writes and wherever a process ends."""

import asyncio
import os

import msgspec
import pytest

from tests.membership_kit import FrailDirectory, Trouble
from twinlock.engines.memory import MemoryDirectory
from twinlock.errors import OverloadedError, RevisionError, SpaceFullError, StoreError
from twinlock.server import blob_book
from twinlock.server.blob_book import CHANGING_MAX, CHANGING_MS_MAX, BlobBook, BlobRecord, SpaceUse

SPACE = os.urandom(16)
DEVICE = os.urandom(16)


class Clock:
    def __init__(self):
        self.ms = 1_800_000_000_000

    def __call__(self):
        return self.ms


@pytest.fixture
def clock():
    return Clock()


def record(size=1000, **changes):
    return BlobRecord(1, size, 5, DEVICE, **changes)


def fits(_use):
    """Let everything in."""


def counted(use):
    return use.live_bytes, use.deleted_bytes, use.count


async def truth(book, space=SPACE):
    """Count what is there."""
    use = SpaceUse()
    for held in await book.page(space, b"", 10_000, SpaceUse()):
        use = use.plus(held.record, 1)
    return counted(use)


async def test_adding_deleting_and_removing_are_counted(clock):
    book, blob = BlobBook(MemoryDirectory(), clock), os.urandom(16)
    await book.add(SPACE, os.urandom(16), record(50), fits)

    await book.add(SPACE, blob, record(), fits)
    assert counted(await book.use(SPACE)) == (1050, 0, 2)
    held = await book.get(SPACE, blob)
    await book.replace(SPACE, held, record(deleted_ms=7))
    assert counted(await book.use(SPACE)) == (50, 1000, 2)
    with pytest.raises(RevisionError):
        await book.replace(SPACE, held, record())
    await book.remove(SPACE, await book.get(SPACE, blob))
    assert counted(await book.use(SPACE)) == (50, 0, 1) == await truth(book)
    assert (await book.use(SPACE)).changing == {}
    assert await book.get(SPACE, blob) is None


async def test_a_blob_is_added_once_and_counted_once(clock):
    book, blob = BlobBook(MemoryDirectory(), clock), os.urandom(16)
    await book.add(SPACE, blob, record(), fits)

    with pytest.raises(RevisionError):
        await book.add(SPACE, blob, record(2000), fits)

    assert counted(await book.use(SPACE)) == (1000, 0, 1)
    assert (await book.use(SPACE)).changing == {}


async def test_what_does_not_fit_leaves_nothing(clock):
    book = BlobBook(MemoryDirectory(), clock)

    def too_much(use):
        if use.live_bytes > 1000:
            raise SpaceFullError

    await book.add(SPACE, os.urandom(16), record(1000), too_much)
    with pytest.raises(SpaceFullError):
        await book.add(SPACE, os.urandom(16), record(1), too_much)

    assert counted(await book.use(SPACE)) == (1000, 0, 1) == await truth(book)


async def test_many_at_once_on_several_nodes_are_all_counted(clock):
    directory = MemoryDirectory()
    books = [BlobBook(directory, clock) for _ in range(4)]

    await asyncio.gather(*(book.add(SPACE, os.urandom(16), record(), fits) for book in books for _ in range(10)))

    assert counted(await books[0].use(SPACE)) == (40_000, 0, 40) == await truth(books[0])


async def steps_of(directory, clock, space):
    """Do one of each change."""
    book, blob = BlobBook(directory, clock), os.urandom(16)
    await book.add(space, blob, record(), fits)
    await book.replace(space, await book.get(space, blob), record(deleted_ms=7))
    await book.replace(space, await book.get(space, blob), record(deleted_ms=7, is_ending=True))
    await book.remove(space, await book.get(space, blob))


@pytest.mark.parametrize("is_done", [False, True])
async def test_wherever_a_process_ends_the_count_comes_right_again(clock, is_done):
    inner, trouble = MemoryDirectory(), Trouble()
    await steps_of(FrailDirectory(inner, trouble), clock, os.urandom(16))
    writes = trouble.writes
    assert writes == 10

    for fails_at in range(1, writes + 1):
        space, book = os.urandom(16), BlobBook(inner, clock)
        trouble.plan(fails_at, is_done=is_done)
        with pytest.raises(StoreError):
            await steps_of(FrailDirectory(inner, trouble), clock, space)
        trouble.mend()

        if (await book.use(space)).changing:
            # The process might still be at work.
            assert not await book.recount(space)
        clock.ms += CHANGING_MS_MAX
        assert await book.recount(space)
        assert counted(await book.use(space)) == await truth(book, space)
        assert (await book.use(space)).changing == {}


async def test_a_change_that_outlasts_a_recount_has_the_space_counted_once_more(clock):
    directory, blob = MemoryDirectory(), os.urandom(16)

    class Slow(FrailDirectory):
        async def put(self, key, value, expect_revision=None):
            if key.startswith("blob/"):
                clock.ms += CHANGING_MS_MAX
                assert await BlobBook(directory, clock).recount(SPACE)
            return await self.inner.put(key, value, expect_revision)

    book = BlobBook(Slow(directory, Trouble()), clock)
    await book.add(SPACE, blob, record(), fits)

    assert counted(await book.use(SPACE)) == (0, 0, 0)
    assert await book.recount(SPACE)
    assert counted(await book.use(SPACE)) == (1000, 0, 1)


async def test_changes_under_way_in_one_space_are_bounded(clock):
    directory = MemoryDirectory()
    marks = {str(number): clock.ms for number in range(CHANGING_MAX)}
    book = BlobBook(directory, clock)
    await directory.put(f"blobs/{SPACE.hex()}", msgspec.msgpack.encode(SpaceUse(changing=marks)))

    with pytest.raises(OverloadedError) as caught:
        await book.add(SPACE, os.urandom(16), record(), fits)
    assert caught.value.retry_after_ms

    marks.popitem()
    await directory.put(f"blobs/{SPACE.hex()}", msgspec.msgpack.encode(SpaceUse(changing=marks)))
    await book.add(SPACE, os.urandom(16), record(), fits)


@pytest.mark.parametrize("bucketed_from", [10**6, 0])
async def test_pages_are_sorted_and_complete(clock, monkeypatch, bucketed_from):
    monkeypatch.setattr(blob_book, "BUCKETED_FROM", bucketed_from)
    book = BlobBook(MemoryDirectory(), clock)
    blobs = sorted([bytes(16), bytes([255]) * 16, *(os.urandom(16) for _ in range(50))])
    for blob in blobs:
        await book.add(SPACE, blob, record(), fits)

    found, after = [], b""
    while page := await book.page(SPACE, after, 7, await book.use(SPACE)):
        assert len(page) <= 7
        found += [held.blob for held in page]
        after = page[-1].blob
    assert found == blobs


async def test_a_space_is_forgotten_whole_and_no_other(clock):
    directory = MemoryDirectory()
    book, other = BlobBook(directory, clock), os.urandom(16)
    for space in (SPACE, other):
        for _ in range(3):
            await book.add(space, os.urandom(16), record(), fits)

    await book.forget_all(SPACE)

    assert counted(await book.use(SPACE)) == (0, 0, 0) == await truth(book)
    assert counted(await book.use(other)) == (3000, 0, 3) == await truth(book, other)
    await book.forget_all(SPACE)
