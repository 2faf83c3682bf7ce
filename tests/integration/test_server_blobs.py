"""Blobs on a real server: who may begin, put, finish, get, delete and bring them back, and what each request hears."""

import os

import msgspec
import pytest

from tests.blob_kit import BlobDevice, blob_device, fresh_blob, told
from tests.membership_kit import refusal
from tests.server_kit import open_anonymous
from twinlock.protocol.blob_calls import BeginBlob, ListBlobs, NameBlob
from twinlock.protocol.calls import AppendLog, Nothing
from twinlock.protocol.frames import Call
from twinlock.protocol.limits import BLOB_PART_BYTES
from twinlock.protocol.space_log import Role
from twinlock.sealing.identity import revoke_entry
from twinlock.sealing.space_entries import member_entry, shred_entry

SMALL = os.urandom(1000)


@pytest.fixture
async def device(house):
    """The owner's device."""
    opened = await blob_device(house.owner, house.space, house.wire)
    yield opened
    await opened.close()


@pytest.fixture
async def bens(house, ben):
    """The device of an editor."""
    opened = await blob_device(ben, house.space, await house.admit(ben))
    yield opened
    await opened.close()


async def test_a_blob_of_two_parts_is_put_and_read_by_another_member(house, device, bens):
    data = os.urandom(BLOB_PART_BYTES + 1000)
    blob = fresh_blob()

    begun = await device.begin(blob, len(data))
    assert (begun.parts, begun.is_finished) == ([], False)
    assert (await device.put(blob, 0, data[:BLOB_PART_BYTES])).status_code == 204
    assert (await device.begin(blob, len(data))).parts == [0]
    assert (await refusal(device.wire, "blob.finish", NameBlob(device.space, blob))) == "blob_incomplete"
    assert (await device.put(blob, 1, data[BLOB_PART_BYTES:])).status_code == 204
    assert told(await bens.get(blob)) == (404, "not_found")
    await device.finish(blob)

    read = b"".join([(await bens.get(blob, part)).content for part in (0, 1)])
    assert read == data
    info = await bens.info(blob)
    assert (info.sealed_bytes, info.is_finished, info.deleted_ms) == (len(data), True, 0)
    assert info.device == house.owner.device.device
    again = await device.begin(blob, len(data))
    assert (again.parts, again.is_finished) == ([0, 1], True)


async def test_ranges_are_read_as_http_has_them(device):
    blob = await device.store(SMALL)

    async def read(header):
        response = await device.get(blob, range=header)
        return response.status_code, response.headers.get("content-range"), response.content

    assert await read("bytes=0-0") == (206, "bytes 0-0/1000", SMALL[:1])
    assert await read("bytes=10-19") == (206, "bytes 10-19/1000", SMALL[10:20])
    assert await read("bytes=990-") == (206, "bytes 990-999/1000", SMALL[990:])
    assert await read("bytes=990-2000") == (206, "bytes 990-999/1000", SMALL[990:])
    assert await read("bytes=-7") == (206, "bytes 993-999/1000", SMALL[-7:])
    assert await read("bytes=0-999") == (200, None, SMALL)
    for no_range in ("bytes=5-2", "bytes=1-2,4-5", "chunks=1-2", "bytes=x"):
        assert (await read(no_range))[::2] == (200, SMALL)
    for beyond in ("bytes=1000-", "bytes=-0"):
        response = await device.get(blob, range=beyond)
        assert told(response) == (416, "invalid_call")
        assert response.headers["content-range"] == "bytes */1000"


async def test_a_head_tells_the_size_and_sends_nothing(device):
    blob = await device.store(SMALL)

    response = await device.get(blob, method="HEAD")

    assert (response.status_code, response.headers["content-length"], response.content) == (200, "1000", b"")
    assert (await device.get(fresh_blob(), method="HEAD")).status_code == 404


async def test_only_a_token_that_holds_is_let_in(device):
    blob = await device.store(SMALL)
    good = device.token

    changed = good[:20] + ("A" if good[20] != "A" else "B") + good[21:]
    for token in ("", "x", good[:-1], good + "A", "A" * len(good), changed):
        device.token = token
        response = await device.get(blob)
        assert told(response) == (401, "bearer_refused")
        assert response.headers["www-authenticate"] == "Bearer"
        assert told(await device.put(blob, 0, SMALL)) == (401, "bearer_refused")
    device.token = ""
    assert (await device.get(blob, authorization=f"Basic {good}")).status_code == 401
    assert (await device.get(blob, authorization=f"bearer {good}")).status_code == 200
    assert (await device.http.get(f"/blobs/?token={good}")).status_code == 401


async def test_sizes_are_exact_and_are_refused_before_they_are_read(device):
    blob = fresh_blob()
    await device.begin(blob, BLOB_PART_BYTES + 1000)

    async def endless():
        yield b"x"

    assert told(await device.put(blob, 0, SMALL)) == (400, "invalid_call")
    assert told(await device.put(blob, 1, SMALL + b"x")) == (413, "limit_exceeded")
    assert told(await device.put(blob, 1, bytes(BLOB_PART_BYTES + 1))) == (413, "limit_exceeded")
    assert told(await device.put(blob, 1, SMALL[:-1])) == (400, "invalid_call")
    assert told(await device.put(blob, 1, endless())) == (411, "invalid_call")
    assert told(await device.put(blob, 2, SMALL)) == (404, "not_found")
    assert (await device.put(blob, 1, SMALL)).status_code == 204
    assert (await device.put(blob, 1, SMALL)).status_code == 204
    assert (await device.begin(blob, BLOB_PART_BYTES + 1000)).parts == [1]


async def test_a_finished_blob_is_not_written_again(device):
    blob = await device.store(SMALL)

    assert told(await device.put(blob, 0, SMALL)) == (409, "blob_conflict")
    await device.finish(blob)
    assert (await device.get(blob)).content == SMALL


async def test_a_blob_is_begun_in_one_way_and_by_one_device(house, device, bens):
    blob, params = fresh_blob(), device.space
    await device.begin(blob, 1000)

    for other in (BeginBlob(params, blob, 1, 1001), BeginBlob(params, blob, 2, 1000)):
        assert await refusal(device.wire, "blob.begin", other) in ("blob_conflict", "invalid_call")
    assert await refusal(bens.wire, "blob.begin", BeginBlob(params, blob, 1, 1000)) == "role_forbids"
    assert await refusal(bens.wire, "blob.finish", NameBlob(params, blob)) == "role_forbids"
    assert told(await bens.put(blob, 0, SMALL)) == (403, "role_forbids")
    for size in (0, -5, 16, (1 << 20) + 16 + 16):
        assert await refusal(device.wire, "blob.begin", BeginBlob(params, fresh_blob(), 1, size)) == "invalid_call"
    assert await refusal(device.wire, "blob.begin", BeginBlob(params, fresh_blob(), 1, 1 << 41)) == "limit_exceeded"
    for epoch in (0, 2):
        assert await refusal(device.wire, "blob.begin", BeginBlob(params, fresh_blob(), epoch, 1000)) == "invalid_call"
    assert await refusal(device.wire, "blob.begin", BeginBlob(params, b"short", 1, 1000)) == "invalid_call"


@pytest.mark.parametrize("role", [Role.ADMIN, Role.EDITOR, Role.READER, Role.SENDER])
async def test_what_each_role_may_do(house, device, ben, role):
    blob, unfinished = await device.store(SMALL), fresh_blob()
    link_role = Role.EDITOR if role is Role.ADMIN else role
    theirs = await blob_device(ben, house.space, await house.admit(ben, link_role))
    if role is Role.ADMIN:
        await house.append(member_entry_of(house, ben, role))
    writes, reads = role in (Role.ADMIN, Role.EDITOR), role is not Role.SENDER

    begin = BeginBlob(house.space, unfinished, 1, 1000)
    if writes:
        await theirs.store(SMALL)
    else:
        assert await refusal(theirs.wire, "blob.begin", begin) == "role_forbids"
        assert await refusal(theirs.wire, "blob.delete", NameBlob(house.space, blob)) == "role_forbids"
        assert told(await theirs.put(blob, 0, SMALL)) == (403, "role_forbids")
    if reads:
        assert (await theirs.get(blob)).content == SMALL
        assert (await theirs.info(blob)).is_finished
        assert len((await theirs.list()).blobs) == 1 + writes
    else:
        assert told(await theirs.get(blob)) == (403, "role_forbids")
        assert await refusal(theirs.wire, "blob.info", NameBlob(house.space, blob)) == "role_forbids"
        assert await refusal(theirs.wire, "blob.list", ListBlobs(house.space, b"")) == "role_forbids"
    if writes:
        await theirs.delete(blob)
        assert told(await theirs.get(blob)) == (404, "not_found")
    if role is Role.ADMIN:
        await theirs.restore(blob)
        assert (await theirs.get(blob)).content == SMALL
    else:
        assert await refusal(theirs.wire, "blob.restore", NameBlob(house.space, blob)) == "role_forbids"
    await theirs.close()


def member_entry_of(house, person, role):
    keys = person.account
    return member_entry(house.owner.account, house.log, keys.sign_pk, keys.kem_pk, keys.account, role)


async def test_a_stranger_learns_nothing(house, device, ben):
    blob = await device.store(SMALL)
    stranger = await blob_device(ben, house.space)

    assert told(await stranger.get(blob)) == (404, "unknown_space")
    assert told(await stranger.put(blob, 0, SMALL)) == (404, "unknown_space")
    for method in ("blob.info", "blob.finish", "blob.delete", "blob.restore"):
        assert await refusal(stranger.wire, method, NameBlob(house.space, blob)) == "unknown_space"
    await stranger.close()


async def test_a_removed_members_token_stops(house, device, ben, bens):
    blob = await device.store(SMALL)
    assert (await bens.get(blob)).status_code == 200

    await house.remove(ben.account.account)

    assert told(await bens.get(blob)) == (403, "removed")
    assert told(await bens.put(blob, 0, SMALL)) == (403, "removed")


async def test_a_revoked_devices_token_stops(house, device):
    blob, owner = await device.store(SMALL), house.owner
    phone = await owner.add_device(house.wire)
    lost = BlobDevice(await owner.open(phone), house.space)
    await lost.sign_in()
    assert (await lost.get(blob)).status_code == 200

    await revoke(owner, house.wire, phone)

    assert told(await lost.get(blob)) == (403, "device_revoked")
    await lost.close()


async def revoke(owner, wire, device):
    entry = revoke_entry(owner.account, owner.account_log, device.device)
    await wire.call("account.append", AppendLog(owner.account.account, owner.account_log.seq, [entry]))


async def test_a_shredded_space_gives_nothing_and_its_objects_go(house, stores, device):
    blob, unfinished = await device.store(SMALL), fresh_blob()
    await device.begin(unfinished, 1000)
    await device.put(unfinished, 0, SMALL)

    await house.append(shred_entry(house.owner.account, house.log))

    assert told(await device.get(blob)) == (403, "shredded")
    assert told(await device.put(unfinished, 0, SMALL)) == (403, "shredded")
    assert [part.name async for part in stores.blobs.list("blobs/")] == []
    assert await stores.directory.list("blob/") == {}
    assert await stores.directory.list("blobs/") == {}


async def test_a_session_without_a_device_gets_no_token(server):
    wire, _ = await open_anonymous(server.port)
    await wire.send(Call(1, "session.token", msgspec.Raw(msgspec.msgpack.encode(Nothing()))))

    assert await wire.refused() == "unexpected_frame"


async def test_pages_of_blobs_tell_what_they_take(device):
    blobs = [fresh_blob() for _ in range(300)]
    for blob in blobs:
        await device.begin(blob, 1000)
    await device.delete(blobs[0])

    first = await device.list()
    second = await device.list(first.blobs[-1].blob)

    assert [info.blob for info in first.blobs + second.blobs] == sorted(blobs)
    assert (len(first.blobs), first.has_more, second.has_more) == (256, True, False)
    assert (first.used_bytes, first.room_bytes) == (299_000, 64 << 30)
    assert await refusal(device.wire, "blob.list", ListBlobs(device.space, b"xy")) == "invalid_call"
