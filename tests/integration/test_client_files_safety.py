"""What a server, a stranger and a careless device cannot do to files, and which files are cleaned away."""

import asyncio
import contextlib
import shutil
import sqlite3

import pytest

import twinlock
from tests.client_kit import ShiftedClock, until
from tests.files_kit import (
    MIB,
    SECRET,
    Wire,
    content_of,
    counted,
    files_of,
    files_world,
    put_by,
    seen,
    sent,
    staging_of,
)
from tests.integration.test_server_operation import make_certificate
from twinlock.client import file_upkeep
from twinlock.errors import (
    FileDamagedError,
    InvalidDataError,
    LeaseExpiredError,
    NotFoundError,
    OfflineError,
    RemovedError,
    RoleError,
    ShreddedError,
    SpaceFullError,
)
from twinlock.protocol.limits import BLOB_PART_BYTES
from twinlock.replica import keyring

HOUR_MS = 3_600_000
world = files_world


# What the server can do


def swap(parts):
    contents = [part.read_bytes() for part in parts]
    parts[0].write_bytes(contents[1][: len(contents[0])])
    parts[1].write_bytes(contents[0])


def reorder_chunks(parts):
    data, sealed = parts[0].read_bytes(), MIB + 16
    parts[0].write_bytes(data[sealed : 2 * sealed] + data[:sealed] + data[2 * sealed :])


def duplicate_chunk(parts):
    data, sealed = parts[0].read_bytes(), MIB + 16
    parts[0].write_bytes(data[:sealed] * 2 + data[2 * sealed :])


def alter(parts):
    data = bytearray(parts[1].read_bytes())
    data[-1] ^= 1
    parts[1].write_bytes(data)


def blank(parts):
    parts[0].write_bytes(bytes(parts[0].stat().st_size))


async def test_a_lie_about_the_bytes_is_noticed(world):
    ann, phone = await world.device("a"), await world.device("b", file_cache_bytes=0)
    file = await put_by(ann, phone, content_of(16 * MIB - 200))
    path, parts = world.folder / "saved", world.parts(file)
    true_parts = [part.read_bytes() for part in parts]

    for lie in (swap, reorder_chunks, duplicate_chunk, alter, blank):
        for part, data in zip(parts, true_parts, strict=True):
            part.write_bytes(data)
        lie(parts)
        with pytest.raises(FileDamagedError):
            await files_of(phone).get(file)
        with pytest.raises(FileDamagedError):
            await files_of(phone).save(file, path)
        assert not path.exists()
        assert not list(world.folder.glob("*.twinlock-part"))


async def test_another_files_bytes_and_a_cut_are_noticed(world):
    ann, phone = await world.device("a"), await world.device("b")
    one, other = await put_by(ann, phone, b"one" * 100), await put_by(ann, phone, b"two" * 100)
    (part,), (foreign,) = world.parts(one), world.parts(other)

    part.write_bytes(foreign.read_bytes())
    with pytest.raises(FileDamagedError):
        await files_of(phone).get(one)
    part.write_bytes(foreign.read_bytes()[:-1])
    with pytest.raises((FileDamagedError, OfflineError, NotFoundError)):
        async with asyncio.timeout(20):
            await files_of(phone).get(one)


async def test_files_travel_by_tls_where_the_socket_does(world, tmp_path, monkeypatch):
    certificate, key = make_certificate(tmp_path)
    monkeypatch.setenv("SSL_CERT_FILE", certificate)
    world.more = {"tls_certificate": certificate, "tls_key": key}
    await world.stop()
    await world.restart()
    url, content = f"wss://localhost:{world.server.port}", content_of(3 * MIB)

    async with (
        await twinlock.connect(url, world.folder / "a") as ann,
        await twinlock.connect(url, world.folder / "b") as phone,
    ):
        file = await put_by(ann, phone, content)
        assert await files_of(phone).get(file) == content


async def test_plaintext_lies_nowhere(world):
    wire = Wire(sent_max=BLOB_PART_BYTES // 2)
    ann = await world.device("a", dial_streams=wire.dial)
    content = SECRET * 250_000
    file = await files_of(ann).put(content, name="diary-of-ann.txt", type="text/x-confession")
    await until(lambda: wire.sent > wire.sent_max)
    looked_at = [*staging_of(world, "a")]
    assert len(looked_at) == 2
    seen_bytes = b"".join(path.read_bytes() for path in looked_at)
    wire.sent_max = None
    phone = await world.device("b")
    await sent(ann, file)
    await seen(phone, file)
    assert await files_of(phone).get(file) == content

    disk = [path for path in world.folder.rglob("*") if path.is_file()]
    assert world.parts(file)
    assert any("cached" in path.parts for path in disk)
    seen_bytes += b"".join(path.read_bytes() for path in disk)
    for word in (SECRET, b"diary-of-ann", b"x-confession"):
        assert word not in seen_bytes
    assert len(world.parts(file)[0].read_bytes()) == BLOB_PART_BYTES


async def forget_blobs(world) -> None:
    """Have the server lose every file."""
    await world.stop()
    with contextlib.closing(sqlite3.connect(world.folder / "server" / "twinlock.db")) as database, database:
        database.execute("DELETE FROM records WHERE key LIKE 'blob%'")
    shutil.rmtree(world.blobs, ignore_errors=True)
    await world.restart()


# Who may


async def joined(world, owner, name: str, role: str):
    db = await world.unlocked(name)
    space = await db.join(await owner.space("home").invite(role))
    return db, space


async def test_a_reader_reads_files_and_puts_none_and_a_removed_member_does_neither(world):
    ann = await world.unlocked("a")
    ben, space = await joined(world, ann, "ben", "reader")
    file = await files_of(ann).put(SECRET * 30_000)
    await sent(ann, file)
    await counted(space.files, 1)

    assert await space.files.get(file) == SECRET * 30_000
    for refused in (space.files.put(b"x"), space.files.delete(file)):
        with pytest.raises(RoleError):
            await refused
    assert list((world.folder / "ben" / "spaces").glob(f"{space.id}/cached/*"))

    transfer, token = ben._files.transfer, ben._files.transfer._token
    await ann.space("home").remove("ben")
    await until(lambda: ben.ended_spaces())
    with pytest.raises(RemovedError):
        await space.files.get(file)
    assert not (world.folder / "ben" / "spaces" / space.id).exists()
    transfer._token = token
    with pytest.raises((RemovedError, NotFoundError, RoleError)):
        async with transfer.get(bytes.fromhex(space.id), bytes.fromhex(file.id), 0, 0, 100) as response:
            await response.read()


async def test_a_sender_has_no_files(world):
    ann = await world.unlocked("a")
    _, space = await joined(world, ann, "ben", "sender")

    for refused in (space.files.put(b"x"), space.files.list(), space.files.delete("0" * 32), space.files.get("0" * 32)):
        with pytest.raises(RoleError):
            await refused


async def test_a_locked_space_takes_and_gives_no_file_but_still_sends(world):
    clock = ShiftedClock()
    db = await world.device("a", wall_ms=clock)
    await world.stop()
    file = await files_of(db).put(SECRET)
    clock.shift_ms = 30 * HOUR_MS

    for refused in (files_of(db).put(b"x"), files_of(db).get(file), files_of(db).list(), files_of(db).info(file)):
        with pytest.raises(LeaseExpiredError):
            await refused
    await until(lambda: db.space("home").locked)
    clock.shift_ms = 0
    await world.restart()
    await until(lambda: not db.space("home").locked, 20)
    await sent(db, file)


async def test_a_file_put_before_a_rotation_is_sent_and_read_after_it(world, monkeypatch):
    monkeypatch.setattr(keyring, "LEASE_EPOCHS_MAX", 2)
    ann = await world.unlocked("a")
    await world.stop()
    file = await files_of(ann).put(SECRET)
    await ann.close()
    await world.restart()
    wire = Wire(sent_max=0)
    ann = await world.unlocked("a", dial_streams=wire.dial)
    for _ in range(3):
        await ann.space("home").rotate()
    wire.sent_max = None

    await sent(ann, file)
    later = await files_of(ann).put(b"later")
    await sent(ann, later)

    phone = await world.device("b")
    await seen(phone, later)
    assert [await files_of(phone).get(each) for each in (file, later)] == [SECRET, b"later"]
    epochs = {
        files_of(phone)._service.manifest(phone.space("home")._runtime, each.id)[0].epoch for each in (file, later)
    }
    assert epochs == {1, 4}


async def test_a_full_space_holds_the_file_back_and_takes_it_when_there_is_room(world):
    world.more = {"space_blob_bytes_max": 3 * MIB}
    await world.stop()
    await world.restart()
    db = await world.device("a")
    first = await files_of(db).put(bytes(2 * MIB))
    await sent(db, first)

    second = await files_of(db).put(bytes(2 * MIB))

    with pytest.raises(SpaceFullError):
        await sent(db, second)
    info = await files_of(db).info(second)
    assert (info.state, info.error.code) == ("held", "space_full")
    async with asyncio.timeout(10):
        await db.synced()
    with pytest.raises(OfflineError):
        await db.sign_out()
    await files_of(db).delete(first)
    await until(lambda: db._courier._chores.is_idle)
    await db.close()
    db = await world.device("a")
    await sent(db, second)
    assert (await files_of(db).info(second)).error is None


async def test_an_upload_over_the_accounts_rate_is_slower_and_comes_to_its_end(world):
    world.more = {"account_blob_bytes_per_s": 8 * MIB}
    await world.stop()
    await world.restart()
    db, content = await world.device("a"), content_of(18 * MIB)

    file = await files_of(db).put(content)
    await sent(db, file)

    assert db._files.held_count == 0
    assert await files_of(db).get(file) == content


async def test_an_upload_that_the_server_has_given_up_begins_anew(world):
    wire = Wire(sent_max=BLOB_PART_BYTES // 2)
    db = await world.device("a", dial_streams=wire.dial)
    file = await files_of(db).put(content_of(10 * MIB))
    await until(lambda: wire.sent > wire.sent_max)
    await forget_blobs(world)

    wire.sent_max = None
    await until(lambda: db.is_connected, 40)
    await sent(db, file)

    assert len(world.parts(file)) == 2


async def test_a_file_that_is_deleted_is_gone_for_all(world):
    ann, phone = await world.device("a"), await world.device("b")
    file = await put_by(ann, phone, SECRET)
    await files_of(phone).get(file)

    write = await files_of(phone).delete(file)

    await write.durable()
    await until(lambda: phone._courier._chores.is_idle)
    await counted(files_of(ann), 0)
    for db in (ann, phone):
        with pytest.raises(NotFoundError):
            await files_of(db).get(file)
    infos = [info async for info in ann._files.transfer.list(ann.space("home")._handle.id)]
    assert [(info.blob.hex(), info.deleted_ms > 0) for info in infos] == [(file.id, True)]
    assert await files_of(ann).delete(file) is not None


async def test_a_shredded_space_takes_its_files_with_it(world):
    ann = await world.unlocked("a")
    space = await ann.create_space("album")
    await world.stop()
    file = await space.files.put(SECRET)
    folder = world.folder / "a" / "spaces" / space.id
    assert list(folder.glob("files/*"))
    wire_file = staging_of(world, "a")
    assert wire_file
    await world.restart()
    async with asyncio.timeout(20):
        await ann.synced()

    await space.shred()

    assert not folder.exists()
    with pytest.raises(ShreddedError):
        await space.files.get(file)


# In documents


async def test_documents_name_files_at_any_depth(world):
    db = await world.device("a")
    file = await files_of(db).put(b"x")
    album = db.space("home").collection("album")

    await album.doc("1").set({"cover": file, "pages": [{"image": file}], "deep": {"er": file}})
    await album.doc("1").update({"deep.est": file})

    stored = await album.doc("1").get()
    reference = {"$file": file.id}
    assert stored == {"cover": reference, "pages": [{"image": reference}], "deep": {"er": reference, "est": reference}}
    assert await files_of(db).get(stored["pages"][0]["image"]) == b"x"
    assert twinlock.FileRef.of(stored["cover"]) == file == twinlock.FileRef(file.id)
    found = await album.where("cover", "==", file).get()
    assert [doc.id for doc in found] == ["1"]
    for wrong in ("", "x" * 32, {"$file": 5}, {}, file.id.upper() + "0"):
        with pytest.raises(InvalidDataError):
            twinlock.FileRef.of(wrong)


async def test_manifests_are_out_of_an_applications_reach(world):
    db = await world.device("a")

    with pytest.raises(InvalidDataError):
        db.space("home").collection("$files")


async def clean(db) -> None:
    await db.synced()
    await db._file_upkeep.clean(db.space("home")._runtime)


async def test_attached_files_that_no_document_names_are_deleted_after_their_time_and_others_never(world):
    clock = ShiftedClock()
    ann, phone = await world.device("a", unused_file_days=1), await world.device("b")
    album = ann.space("home").collection("album")
    kept, dropped, lost = [await put_by(ann, phone, name, attached=True) for name in (b"kept", b"dropped", b"lost")]
    free = await put_by(ann, phone, b"free")
    await album.doc("1").set({"photos": [kept, dropped], "note": f"see {lost.id} too"})
    await clean(ann)
    await album.doc("1").set({"photos": [kept]})
    await clean(ann)
    assert len(await files_of(ann).list()) == 4

    upkeep = ann._file_upkeep
    upkeep._unused_ms = 1
    await asyncio.sleep(0.01)
    await clean(ann)

    assert {info.id for info in await files_of(ann).list()} == {kept.id, free.id}
    assert {dropped.id, lost.id}.isdisjoint(info.id for info in await files_of(ann).list())
    assert clock.shift_ms == 0


async def test_a_device_that_is_behind_deletes_nothing(world):
    ann, phone = await world.device("a"), await world.device("b")
    await put_by(ann, phone, b"unused", attached=True)
    upkeep = phone._file_upkeep
    upkeep._unused_ms = 1
    await clean(phone)
    await asyncio.sleep(0.01)
    await world.stop()
    await until(lambda: not phone.is_connected)

    await upkeep.clean(phone.space("home")._runtime)
    assert len(await files_of(phone).list()) == 1
    await phone.space("home").collection("x").add({"written": "offline"})
    await upkeep.clean(phone.space("home")._runtime)
    assert len(await files_of(phone).list()) == 1
    upkeep._unused_ms = 0
    await world.restart()
    await until(lambda: phone.is_connected, 40)
    await clean(phone)
    assert len(await files_of(phone).list()) == 1


async def test_a_losing_value_of_a_conflict_keeps_its_file(world):
    ann, phone = await world.device("a"), await world.device("b")
    one, other = [await put_by(ann, phone, name, attached=True) for name in (b"one", b"other")]
    await ann.space("home").collection("album").doc("1").set({"cover": "none"})
    await ann.synced()
    await phone.synced()
    await world.stop()
    await ann.space("home").collection("album").doc("1").update({"cover": one})
    await phone.space("home").collection("album").doc("1").update({"cover": other})
    await world.restart()
    await until(lambda: ann.is_connected and phone.is_connected, 40)
    await phone.synced()
    await ann.synced()
    await phone.synced()
    ann._file_upkeep._unused_ms = 1
    await clean(ann)
    await asyncio.sleep(0.01)
    await clean(ann)

    assert {info.id for info in await files_of(ann).list()} == {one.id, other.id}


async def test_an_upload_that_was_given_up_is_cleared_from_the_server_after_a_week(world, monkeypatch):
    wire = Wire(sent_max=BLOB_PART_BYTES + MIB)
    ann, phone = await world.device("a", dial_streams=wire.dial), await world.device("b")
    file = await files_of(ann).put(bytes(20 * MIB))
    await until(lambda: wire.sent > wire.sent_max)
    named = await put_by(phone, phone, b"named")
    await ann.close()

    await clean(phone)
    transfer, space = phone._files.transfer, phone.space("home")._handle.id
    assert {info.blob.hex(): info.deleted_ms for info in [i async for i in transfer.list(space)]} == {
        file.id: 0,
        named.id: 0,
    }
    monkeypatch.setattr(file_upkeep, "ORPHAN_MS", -1000)
    await clean(phone)
    marked = {info.blob.hex(): bool(info.deleted_ms) for info in [i async for i in transfer.list(space)]}
    assert marked == {file.id: True, named.id: False}

    # Whoever began it comes back: it was not given up after all.
    wire.sent_max = None
    ann = await world.device("a", dial_streams=wire.dial)
    await sent(ann, file)
    await seen(phone, file)
    assert await files_of(phone).get(file) == bytes(20 * MIB)


async def test_a_restored_server_gets_back_what_a_device_still_has(world):
    ann, phone = await world.device("a"), await world.device("b", file_cache_bytes=0)
    content = content_of(9 * MIB)
    file = await put_by(ann, phone, content)
    await phone.close()
    transfer, space = ann._files.transfer, ann.space("home")._handle.id
    await forget_blobs(world)
    await until(lambda: ann.is_connected, 40)
    assert [info async for info in transfer.list(space)] == []

    await clean(ann)
    await sent(ann, file)

    phone = await world.device("b", file_cache_bytes=0)
    assert await files_of(phone).get(file) == content
