"""What happens to blobs in time: given up uploads end, deleted ones go after the grace, strays go, the rest stays."""

import os
from contextlib import suppress

import pytest

from tests.membership_kit import FrailDirectory, Trouble
from twinlock.contracts import BlobStore, StoredPart
from twinlock.engines.blobs_memory import MemoryBlobs
from twinlock.engines.memory import MemoryDirectory
from twinlock.errors import StoreError
from twinlock.server.blob_book import BlobBook, BlobRecord
from twinlock.server.blob_chores import SWEEP_MS, BlobChores
from twinlock.server.blob_due import HOUR_MS, BlobDue
from twinlock.server.blob_places import part_place
from twinlock.server.metrics import Metrics
from twinlock.server.settings import Settings

SPACE, DEVICE = os.urandom(16), os.urandom(16)
DAY_MS = 24 * HOUR_MS


class TimedBlobs(MemoryBlobs):
    """A store whose objects are written at the test's own time."""

    def __init__(self, now_ms):
        super().__init__()
        self.now_ms = now_ms
        self.times = {}

    async def put(self, name, data):
        self.times[name] = self.now_ms()
        await super().put(name, data)

    async def list(self, prefix):
        async for part in super().list(prefix):
            yield StoredPart(part.name, part.size, self.times[part.name])


class World:
    """Books, store and chores on one clock."""

    def __init__(self, **settings):
        self.ms = 1_800_000_000_000
        self.directory = MemoryDirectory()
        self.store: BlobStore = TimedBlobs(self.now_ms)
        self.book = BlobBook(self.directory, self.now_ms)
        self.due = BlobDue(self.directory, self.now_ms)
        self.settings = Settings(grace_days=7.0, blob_begun_hours=24.0, **settings)
        self.metrics = Metrics()
        self.chores = self.chores_on(self.directory)

    def now_ms(self):
        return self.ms

    def chores_on(self, directory):
        book, due = BlobBook(directory, self.now_ms), BlobDue(directory, self.now_ms)
        return BlobChores(self.store, directory, book, due, self.settings, self.metrics, self.now_ms)

    async def add(self, parts=2, **changes):
        blob = os.urandom(16)
        await self.due.note(SPACE, blob)
        await self.book.add(SPACE, blob, BlobRecord(1, 1000, self.ms, DEVICE, **changes), lambda _: None)
        for part in range(parts):
            await self.put(blob, part)
        return blob

    async def put(self, blob, part):
        await self.store.put(part_place(SPACE, blob, part), b"x" * 500)

    async def change(self, blob, **changes):
        held = await self.book.get(SPACE, blob)
        fields = {name: getattr(held.record, name) for name in held.record.__struct_fields__}
        await self.due.note(SPACE, blob)
        await self.book.replace(SPACE, held, BlobRecord(**{**fields, **changes}))

    async def live_through(self, hours):
        """Let time pass, with chores every hour."""
        for _ in range(hours):
            self.ms += HOUR_MS
            await self.chores.clean()

    async def holds(self, blob):
        """Tell whether record and objects are there; both or none."""
        has_record = await self.book.get(SPACE, blob) is not None
        parts = [part async for part in self.store.list(f"blobs/{SPACE.hex()}/{blob.hex()}/")]
        assert has_record == bool(parts)
        return has_record

    async def notes(self):
        return list(await self.directory.list("blob_due/"))


@pytest.fixture
def world():
    return World()


async def test_an_upload_ends_a_day_after_its_last_part(world):
    blob = await world.add()
    await world.live_through(20)
    await world.put(blob, 1)

    await world.live_through(23)
    assert await world.holds(blob)
    await world.live_through(3)
    assert not await world.holds(blob)
    assert (await world.book.use(SPACE)).live_bytes == 0
    assert await world.notes() == []


async def test_a_finished_blob_stays(world):
    blob = await world.add(is_finished=True)

    await world.live_through(24 * 30)

    assert await world.holds(blob)
    assert await world.notes() == []


async def test_a_deleted_blob_stays_for_the_grace_and_no_longer(world):
    blob, other = await world.add(is_finished=True), await world.add(is_finished=True)
    await world.live_through(5)
    await world.change(blob, deleted_ms=world.ms)

    await world.live_through(7 * 24 - 1)
    assert await world.holds(blob)
    await world.live_through(3)

    assert not await world.holds(blob)
    assert await world.holds(other)
    use = await world.book.use(SPACE)
    assert (use.live_bytes, use.deleted_bytes, use.count) == (1000, 0, 1)
    assert world.metrics.blobs_deleted.value == 1


async def test_what_is_brought_back_within_the_grace_stays(world):
    blob = await world.add(is_finished=True)
    await world.change(blob, deleted_ms=world.ms)
    await world.live_through(100)
    await world.change(blob, deleted_ms=0)

    await world.live_through(24 * 10)

    assert await world.holds(blob)
    assert (await world.book.use(SPACE)).live_bytes == 1000


async def test_a_server_that_was_off_for_a_year_goes_on(world):
    blobs = [await world.add(), await world.add()]
    await world.change(blobs[1], is_finished=True, deleted_ms=world.ms)
    world.ms += 500 * DAY_MS

    await world.chores.clean()

    assert [await world.holds(blob) for blob in blobs] == [False, False]


async def test_strays_go_after_the_grace_and_nothing_else_does(world):
    kept = await world.add(is_finished=True)
    await world.live_through(1)
    stray = os.urandom(16)
    await world.put(stray, 0)
    await world.store.put("blobs/something/else", b"of the operator's")

    await world.live_through(24 * 7)
    assert [part async for part in world.store.list(f"blobs/{SPACE.hex()}/{stray.hex()}/")]
    await world.live_through(24 * 3)

    assert not [part async for part in world.store.list(f"blobs/{SPACE.hex()}/{stray.hex()}/")]
    assert await world.holds(kept)
    assert await world.store.get("blobs/something/else") is not None


async def test_a_stray_whose_record_comes_back_in_time_stays(world):
    await world.live_through(1)
    blob = os.urandom(16)
    await world.put(blob, 0)
    await world.live_through(24 * 3)

    await world.book.add(SPACE, blob, BlobRecord(1, 500, world.ms, DEVICE, is_finished=True), lambda _: None)
    await world.live_through(24 * 10)

    assert await world.holds(blob)


async def test_objects_are_compared_once_a_day_by_one_of_several_nodes(world):
    await world.live_through(1)
    blob = os.urandom(16)
    await world.put(blob, 0)
    others = [world.chores_on(world.directory) for _ in range(3)]
    world.ms += SWEEP_MS

    for chores in (world.chores, *others):
        await chores.clean()

    assert len(await world.notes()) == 1


@pytest.mark.parametrize("is_done", [False, True])
async def test_wherever_a_deletion_is_cut_short_it_is_finished_later(is_done):
    for fails_at in range(1, 40):
        world, trouble = World(), Trouble()
        blob = await world.add(is_finished=True)
        await world.change(blob, deleted_ms=world.ms)
        await world.live_through(7 * 24)
        trouble.plan(fails_at, is_done=is_done)
        frail = world.chores_on(FrailDirectory(world.directory, trouble))
        for _ in range(3):
            world.ms += HOUR_MS
            with suppress(StoreError):
                await frail.clean()

        trouble.mend()
        await world.live_through(10)
        use = await world.book.use(SPACE)
        assert not await world.holds(blob)
        assert (use.live_bytes, use.deleted_bytes, use.count, use.changing) == (0, 0, 0, {})
        assert await world.notes() == []
        if trouble.writes < fails_at:
            break
    else:
        pytest.fail("no run came through without a fault")


async def test_a_space_is_purged_whole(world):
    blobs = [await world.add(), await world.add(is_finished=True)]

    await world.chores.purge(SPACE)
    await world.chores.purge(SPACE)

    assert [await world.holds(blob) for blob in blobs] == [False, False]
    await world.live_through(24 * 10)
    assert await world.notes() == []
