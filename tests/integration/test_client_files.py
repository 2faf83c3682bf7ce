"""Files between devices and a real server: put offline, sent in the background, read anywhere."""

import asyncio
import io
import subprocess
import sys
import tracemalloc
from contextlib import asynccontextmanager

import pytest

import twinlock
from tests.client_kit import until
from tests.files_kit import MIB, SECRET, Wire, content_of, files_of, files_world, put_by, seen, sent, staging_of
from twinlock.errors import (
    FileDamagedError,
    FileTooLargeError,
    InvalidDataError,
    NotFoundError,
    OfflineError,
    StoreError,
)
from twinlock.protocol.limits import BLOB_PART_BYTES

world = files_world


# There and back


async def test_files_of_lengths_at_the_borders_come_back_on_another_device(world):
    ann, phone = await world.device("a"), await world.device("b")

    for size in (0, 1, 127, 128, MIB - 1, MIB, MIB + 1, 8 * MIB, 8 * MIB + 1):
        content = content_of(size)
        file = await put_by(ann, phone, content, name="numbers.bin")
        info = await files_of(phone).info(file)
        assert (info.name, info.size, info.state, len(world.parts(file))) == (
            "numbers.bin",
            size,
            "uploaded",
            -(-info.sealed_bytes // BLOB_PART_BYTES),
        )
        assert await files_of(phone).get(file) == content
        pieces = [piece async for piece in files_of(phone).stream(file)]
        assert pieces == [content[at : at + MIB] for at in range(0, size, MIB)]
        assert (await files_of(phone).save(file, world.folder / "saved")).read_bytes() == content
        with pytest.raises(StoreError, match="is a folder"):
            await files_of(phone).save(file, ".")
    assert staging_of(world, "a") == []


async def test_a_file_is_put_from_anything_that_has_bytes(world, tmp_path):
    db, content = await world.device("a"), content_of(2 * MIB + 5)
    path = tmp_path / "a photo.jpg"
    path.write_bytes(content)

    def pieces():
        for at in range(0, len(content), 300_001):
            yield content[at : at + 300_001]

    async def awaited():
        for piece in pieces():
            yield piece

    sources = [
        content,
        bytearray(content),
        memoryview(content),
        path,
        str(path),
        pieces(),
        awaited(),
        io.BytesIO(content),
    ]
    files = [await files_of(db).put(source) for source in sources]
    with path.open("rb") as opened:
        files.append(await files_of(db).put(opened))

    infos = [await files_of(db).info(file) for file in files]
    assert [await files_of(db).get(file) for file in files] == [content] * 9
    assert [infos[at].name for at in (0, 3, 4, 8)] == ["file", "a photo.jpg", "a photo.jpg", "a photo.jpg"]
    assert (infos[0].type, infos[3].type) == ("application/octet-stream", "image/jpeg")
    for wrong in (5, ["text"], [b"x", None]):
        with pytest.raises(InvalidDataError):
            await files_of(db).put(wrong)
    with pytest.raises(NotFoundError):
        await files_of(db).put(tmp_path / "none")


async def test_names_and_types_are_kept_harmless(world):
    db = await world.device("a")
    names = {
        "../../etc/passwd": "passwd",
        "C:\\dos\\x.txt": "x.txt",
        "a\nb\x00.md": "ab.md",
        "ünïcode 🎈": "ünïcode 🎈",
    }

    for given, kept in names.items():
        assert (await files_of(db).info(await files_of(db).put(b"x", name=given))).name == kept
    for wrong in ("", "..", "/", "x" * 256):
        with pytest.raises(InvalidDataError):
            await files_of(db).put(b"x", name=wrong)
    with pytest.raises(InvalidDataError):
        await files_of(db).put(b"x", type="text/\nplain")


async def test_a_range_fetches_the_chunks_that_it_needs_and_no_more(world):
    ann, wire = await world.device("a"), Wire()
    phone = await world.device("b", dial_streams=wire.dial)
    content = content_of(20 * MIB + 7)
    file = await put_by(ann, phone, content)

    for first, size in [(0, 10), (5 * MIB - 5, 10), (8 * MIB - 1, 2), (20 * MIB, 100), (3 * MIB, MIB), (21 * MIB, 5)]:
        wire.received = 0
        pieces = [piece async for piece in files_of(phone).stream(file, first, size)]
        assert b"".join(pieces) == content[first : first + size]
        assert wire.received <= (size // MIB + 2) * (MIB + 1000)
    assert b"".join([piece async for piece in files_of(phone).stream(file, 19 * MIB)]) == content[19 * MIB :]
    for first, size in [(-1, 5), (0, -1)]:
        with pytest.raises(InvalidDataError):
            [piece async for piece in files_of(phone).stream(file, first, size)]


async def test_what_was_read_is_kept_sealed_and_read_again_offline_up_to_the_bound(world):
    ann = await world.device("a")
    phone = await world.device("b", file_cache_bytes=2 * BLOB_PART_BYTES)
    small, large = content_of(3 * MIB), content_of(17 * MIB)
    first, second = await put_by(ann, phone, small), await put_by(ann, phone, large)
    assert await files_of(phone).get(first) == small
    cached = list((world.folder / "b" / "spaces").glob("*/cached/*"))
    assert cached
    await world.stop()

    assert await files_of(phone).get(first) == small
    # The device that put them has their chunks too.
    assert await files_of(ann).get(second) == large
    for path in cached:
        path.write_bytes(bytes(path.stat().st_size))
    with pytest.raises(OfflineError):
        await files_of(phone).get(first)
    await world.restart()
    assert await files_of(phone).get(first) == small
    assert await files_of(phone).get(second) == large
    kept = [path.stat().st_size for path in (world.folder / "b" / "spaces").glob("*/cached/*")]
    assert 0 < sum(kept) <= 2 * BLOB_PART_BYTES


async def test_get_holds_a_bounded_file_only(world, monkeypatch):
    from twinlock.client import files

    monkeypatch.setattr(files, "GET_BYTES_MAX", 100)
    db = await world.device("a")
    file = await files_of(db).put(bytes(101))

    assert await files_of(db).get(await files_of(db).put(bytes(100))) == bytes(100)
    with pytest.raises(FileTooLargeError, match="stream"):
        await files_of(db).get(file)


# Offline, and again


async def test_a_file_put_offline_survives_a_restart_and_is_sent_later(world):
    db = await world.device("a")
    await world.stop()
    content = SECRET * 50_000

    file = await files_of(db).put(content, name="letter.txt")

    assert db.pending_count == 1
    info = await files_of(db).info(file)
    assert (info.state, info.name, info.type, info.sent_bytes) == ("waiting", "letter.txt", "text/plain", 0)
    assert await files_of(db).get(file) == content
    await db.close()
    db = await world.device("a")
    assert b"".join([piece async for piece in files_of(db).stream(file, MIB - 3, 9)]) == content[MIB - 3 : MIB + 6]
    assert [info.id for info in await files_of(db).list()] == [file.id]

    await world.restart()
    await sent(db, file)
    phone = await world.device("b")
    await seen(phone, file)
    assert await files_of(phone).get(file) == content
    await db.synced()
    assert db.pending_count == 0


async def test_an_upload_goes_on_where_the_connection_was_cut(world):
    wire = Wire(sent_max=2 * BLOB_PART_BYTES + MIB)
    db, content = await world.device("a", dial_streams=wire.dial), content_of(33 * MIB)

    file = await files_of(db).put(content)
    await until(lambda: wire.sent > wire.sent_max)
    wire.sent_max = None
    await sent(db, file)

    # What had arrived was not sent again; what was under way was.
    assert wire.sent < 33 * MIB * 1.07 + 5 * BLOB_PART_BYTES
    assert await files_of(await world.device("b")).get(file) == content


async def test_an_upload_goes_on_after_the_server_and_the_device_were_gone(world):
    gate = asyncio.Event()

    class Narrow(Wire):
        """All but the first connection wait."""

        async def dial(self, address):
            self.dialled += 1
            if self.dialled > 1:
                await gate.wait()
            return await super().dial(address)

        dialled = 0

    wire = Narrow()
    db, content = await world.device("a", dial_streams=wire.dial), content_of(20 * MIB)
    file = await files_of(db).put(content)
    await until(lambda: len(world.parts(file)) == 1)
    await db.close()
    await world.stop()
    gate.set()
    wire.heads.clear()

    await world.restart()
    db = await world.device("a", dial_streams=wire.dial)
    await sent(db, file)

    assert sorted(head.split()[1].rpartition("/")[2] for head in wire.heads) == ["1", "2"]
    assert await files_of(await world.device("b")).get(file) == content


async def test_a_file_is_not_seen_before_it_is_complete(world):
    wire = Wire(sent_max=MIB)
    ann, phone = await world.device("a", dial_streams=wire.dial), await world.device("b")
    album = phone.space("home").collection("album")
    file = await files_of(ann).put(content_of(10 * MIB))
    await ann.space("home").collection("album").doc("1").set({"photo": file})
    await until(lambda: album.doc("1")._space.get("album", "1"))

    for ask in (files_of(phone).info, files_of(phone).get):
        with pytest.raises(NotFoundError, match="complete"):
            await ask(file)
    assert await files_of(phone).list() == []
    wire.sent_max = None
    await seen(phone, file)
    assert (await files_of(phone).info(file)).size == 10 * MIB


async def test_the_upload_tells_how_it_comes_along(world):
    db, told, done = await world.device("a"), [], []
    unsubscribe = files_of(db).on_change(told.append)

    file = await files_of(db).put(content_of(17 * MIB), progress=lambda *at: done.append(at))
    await sent(db, file)
    unsubscribe()

    assert told[0].state == "uploading"
    assert told[-1].state == "uploaded"
    assert {info.sent_bytes for info in told} > {0, told[-1].sealed_bytes}
    assert done[-1] == (17 * MIB, 17 * MIB)
    assert [at for at, _ in done] == sorted(at for at, _ in done)


async def test_what_is_cancelled_leaves_nothing_behind(world):
    db, began = await world.device("a"), asyncio.Event()

    async def endless():
        while True:
            yield bytes(MIB)
            began.set()

    putting = asyncio.ensure_future(files_of(db).put(endless()))
    await began.wait()
    putting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await putting
    assert staging_of(world, "a") == []
    assert await files_of(db).list() == []
    await world.stop()
    file = await files_of(db).put(bytes(MIB))
    await files_of(db).delete(file)
    assert staging_of(world, "a") == []
    assert db.pending_count == 0
    with pytest.raises(NotFoundError):
        await files_of(db).get(file)


async def test_a_draft_that_a_crash_left_is_cleared_away(world):
    db = await world.device("a")
    await world.stop()
    file = await files_of(db).put(b"whole")
    folder = staging_of(world, "a")[0].parent
    (folder / f"{'0' * 32}.sealed").write_bytes(b"half")
    await db.close()

    db = await world.device("a")

    assert sorted(path.name for path in staging_of(world, "a")) == [f"{file.id}.note", f"{file.id}.sealed"]
    assert await files_of(db).get(file) == b"whole"


async def test_a_saved_file_goes_on_where_it_was_interrupted(world):
    ann, wire = await world.device("a"), Wire()
    phone = await world.device("b", dial_streams=wire.dial, file_cache_bytes=0)
    content, path = content_of(12 * MIB + 5), world.folder / "film"
    file = await put_by(ann, phone, content)

    def stop_half_way(done, size):
        if done > 9 * MIB:
            raise KeyError

    with pytest.raises(KeyError):
        await files_of(phone).save(file, path, progress=stop_half_way)
    assert not path.exists()
    wire.received = 0
    await files_of(phone).save(file, path)
    assert path.read_bytes() == content
    assert wire.received < 5 * MIB
    assert [other for other in world.folder.iterdir() if other.name.startswith("film")] == [path]


async def test_a_partial_that_was_altered_is_noticed(world):
    ann, phone = await world.device("a"), await world.device("b")
    content, path = content_of(3 * MIB), world.folder / "film"
    file = await put_by(ann, phone, content)
    partial = world.folder / f"film.{file.id[:8]}.twinlock-part"
    partial.write_bytes(bytes(2 * MIB))

    with pytest.raises(FileDamagedError):
        await files_of(phone).save(file, path)
    assert not path.exists()
    await files_of(phone).save(file, path)
    assert path.read_bytes() == content


async def test_a_token_that_ended_is_replaced(world):
    db = await world.device("a")
    token = db._files.transfer
    file = await files_of(db).put(b"first")
    await sent(db, file)
    assert token._token is not None
    token._token = twinlock.client.blob_transfer.BearerToken("ended", token._token.expires_ms)

    second = await files_of(db).put(b"second")
    await sent(db, second)

    assert await files_of(await world.device("b")).get(second) == b"second"


# Size


@asynccontextmanager
async def measured(mib_max: float):
    """Check that no more memory is taken in between than so many MiB."""
    tracemalloc.start()
    try:
        yield
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < mib_max * MIB, f"{peak / MIB:.0f} MiB"


async def there_and_back(world, tmp_path, mib: int) -> None:
    source = tmp_path / "large"
    with source.open("wb") as file:
        for number in range(mib):
            file.write(number.to_bytes(4, "big") * (MIB // 4))
    ann = await world.device("a")
    put = await files_of(ann).put(source)
    async with asyncio.timeout(600):
        await files_of(ann).uploaded(put)
    phone = await world.device("b")
    await files_of(phone).save(put, tmp_path / "back")
    with source.open("rb") as one, (tmp_path / "back").open("rb") as other:
        while data := one.read(MIB):
            assert other.read(MIB) == data


async def test_a_file_is_never_held_whole(world, tmp_path):
    # The server in this process holds parts of 8 MiB while they come and go, some of them twice.
    async with measured(80):
        await there_and_back(world, tmp_path, 96)


DEVICE = """
import asyncio, resource, sys
import twinlock

async def main():
    url, profile, source, back = sys.argv[1:]
    async with await twinlock.connect(url, profile) as db:
        files = db.space("home").files
        small = await files.put(bytes(1 << 20))
        await files.uploaded(small)
        await files.get(small)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        file = await files.put(source)
        await files.uploaded(file)
        await files.save(file, back)
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)

asyncio.run(main())
"""


@pytest.mark.slow
@pytest.mark.timeout(900)
async def test_a_file_of_2_gib_takes_less_than_64_mib(world, tmp_path):
    source, back = tmp_path / "large", tmp_path / "back"
    with source.open("wb") as file:
        for number in range(2048):
            file.write(number.to_bytes(4, "big") * (MIB // 4))
    device = await asyncio.create_subprocess_exec(
        sys.executable, "-c", DEVICE, world.url, str(tmp_path / "a"), str(source), str(back), stdout=subprocess.PIPE
    )
    try:
        async with asyncio.timeout(900):
            printed, _ = await device.communicate()
    finally:
        if device.returncode is None:
            device.kill()
            await device.wait()

    assert int(printed) < 64 << 10
    assert back.stat().st_size == 2048 * MIB
    with back.open("rb") as file:
        file.seek(2047 * MIB)
        assert file.read() == (2047).to_bytes(4, "big") * (MIB // 4)
