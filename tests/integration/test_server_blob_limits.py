"""What bounds the traffic of blobs: rates, memory, room and time; browsers, broken clients, kills, several servers."""

import asyncio
import os
import random
from contextlib import suppress

import msgspec
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.blob_kit import BlobDevice, blob_device, fresh_blob, told
from tests.membership_kit import House, make_person, refusal
from tests.server_kit import CallFailed, make_world
from twinlock.protocol.blob_calls import BeginBlob, NameBlob, part_path
from twinlock.protocol.limits import BLOB_BYTES_MAX, BLOB_PART_BYTES
from twinlock.server import Server, Settings, blob_http
from twinlock.server.stores import open_stores
from twinlock.testing.processes import ServerProcess

SMALL = os.urandom(1000)


class Site:
    """A server with a space and the device of its owner."""

    def __init__(self, server, house, device):
        self.server, self.house, self.device = server, house, device

    async def lends(self, size):
        """Wait until parts on their way take so much memory."""
        async with asyncio.timeout(10):
            while await self.counted("twinlock_blob_memory_bytes") != size:  # noqa: ASYNC110 - it is scraped
                await asyncio.sleep(0.01)

    async def counted(self, name, **labels):
        """Return a metric as it is scraped."""
        text = (await self.device.http.get("/metrics")).text
        samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
        return sum(each.value for each in samples if each.name == name and labels.items() <= each.labels.items())


@pytest.fixture
async def site(request):
    """A site with settings of the test's own."""
    settings = getattr(request, "param", {})
    server = Server(Settings(engine="memory:", port=0, unlocker_tries_per_min=0, drain_ms=100, **settings))
    await server.start()
    owner = await make_world(server)
    wire = await owner.open()
    device = await blob_device(owner, owner.space, wire)
    yield Site(server, House(owner, wire), device)
    await device.close()
    await server.stop()


def with_settings(**settings):
    return pytest.mark.parametrize("site", [settings], indirect=True)


# Rates, memory, room


@with_settings(account_blob_bytes_per_s=200)
async def test_bytes_over_the_rate_are_told_when_to_come_back(site):
    device = site.device
    blob = await device.store(SMALL)

    response = await device.get(blob)

    assert told(response) == (429, "quota_exceeded")
    retry_after_ms = response.json()["retry_after_ms"]
    assert 0 < retry_after_ms <= 5_001
    assert response.headers["retry-after"] == str(-(-retry_after_ms // 1000))
    assert told(await device.put(await begun(device), 0, SMALL)) == (429, "quota_exceeded")


async def begun(device, sealed_bytes=1000):
    blob = fresh_blob()
    await device.begin(blob, sealed_bytes)
    return blob


@with_settings(calls_per_s=2)
async def test_requests_have_a_rate_too(site):
    blob = await site.device.store(SMALL)

    statuses = [(await site.device.get(blob, method="HEAD")).status_code for _ in range(20)]

    assert statuses[:3] == [200] * 3
    assert 429 in statuses


@with_settings(calls_per_s=2)
async def test_requests_that_are_refused_count_too(site):
    """Looking up who asks and for what has a cost; whoever asks for nothing must not do so without end."""
    statuses = [(await site.device.get(fresh_blob(), method="HEAD")).status_code for _ in range(20)]

    assert statuses[:3] == [404] * 3
    assert 429 in statuses


async def trickle(first: bytes, rest: asyncio.Event, data: bytes):
    """Send the first bytes of a body, and the others when told."""
    yield first
    await rest.wait()
    yield data[len(first) :]


@with_settings(blob_memory_bytes_max=4 * BLOB_PART_BYTES)
async def test_memory_for_parts_is_bounded_for_each_account_and_for_all(site):
    data, rest = bytes(BLOB_PART_BYTES), asyncio.Event()
    ben = await make_person(site.server)
    cleo = await make_person(site.server)
    devices = [
        site.device,
        await blob_device(ben, site.house.space, await site.house.admit(ben)),
        await blob_device(cleo, site.house.space, await site.house.admit(cleo)),
    ]
    blobs = [await begun(device, len(data)) for device in devices]

    def put_slowly(device, blob):
        body = trickle(data[:100], rest, data)
        return asyncio.create_task(device.put(blob, 0, body, **{"content-length": str(len(data))}))

    one = put_slowly(devices[0], blobs[0])
    await site.lends(1 * 2 * len(data))
    own = await devices[0].put(await begun(devices[0], len(data)), 0, data)
    assert told(own) == (503, "overloaded")
    assert own.headers["retry-after"] == "1"
    two = put_slowly(devices[1], blobs[1])
    await site.lends(2 * 2 * len(data))
    assert told(await devices[2].put(blobs[2], 0, data)) == (503, "overloaded")

    rest.set()
    assert [(await task).status_code for task in (one, two)] == [204, 204]
    await site.lends(0 * 2 * len(data))
    assert (await devices[2].put(blobs[2], 0, data)).status_code == 204
    for device in devices[1:]:
        await device.close()


@with_settings(space_blob_bytes_max=3000, blob_bytes_max=2000, space_blobs_max=5)
async def test_a_space_has_room_for_so_much(site):
    device = site.device

    def begin(size):
        return BeginBlob(device.space, fresh_blob(), 1, size)

    assert await refusal(device.wire, "blob.begin", begin(2001)) == "limit_exceeded"
    first = await begun(device, 2000)
    assert await refusal(device.wire, "blob.begin", begin(1001)) == "space_full"
    await begun(device, 1000)
    assert await refusal(device.wire, "blob.begin", begin(17)) == "space_full"
    # What is deleted makes room at once, but only once over.
    await device.delete(first)
    second = await begun(device, 2000)
    await device.delete(second)
    assert await refusal(device.wire, "blob.begin", begin(1001)) == "space_full"
    third = await begun(device, 1000)
    await device.restore(first)
    page = await device.list()
    assert (page.used_bytes, page.room_bytes) == (4000, 3000)
    await device.delete(first)
    await device.delete(third)
    assert await refusal(device.wire, "blob.begin", begin(17)) == "space_full"


@with_settings(space_blob_bytes_max=0, space_blobs_max=2)
async def test_a_space_has_so_many_files(site):
    await begun(site.device, BLOB_BYTES_MAX)
    await begun(site.device)

    over = BeginBlob(site.device.space, fresh_blob(), 1, 1000)
    assert await refusal(site.device.wire, "blob.begin", over) == "space_full"
    larger = BeginBlob(site.device.space, fresh_blob(), 1, BLOB_BYTES_MAX + 17)
    assert await refusal(site.device.wire, "blob.begin", larger) == "limit_exceeded"
    assert (await site.device.list()).room_bytes == 0


async def test_a_client_that_stalls_is_let_go_and_its_memory_is_free(site, monkeypatch):
    monkeypatch.setattr(blob_http, "IDLE_S_MAX", 0.1)
    blob = await begun(site.device)

    answer = await raw(site, head("PUT", part_path(site.device.space, blob, 0), site.device.token, 1000) + b"half")

    assert b" 408 " in answer.partition(b"\r\n")[0]
    assert b"overloaded" in answer
    assert await site.counted("twinlock_blob_memory_bytes") == 0
    assert (await site.device.put(blob, 0, SMALL)).status_code == 204


async def test_a_client_that_goes_in_the_middle_leaves_nothing(site):
    blob = await begun(site.device)
    _, writer = await asyncio.open_connection("127.0.0.1", site.server.port)
    writer.write(head("PUT", part_path(site.device.space, blob, 0), site.device.token, 1000) + b"half")
    await writer.drain()
    await site.lends(2000)
    writer.close()

    await site.lends(0)
    assert (await site.device.begin(blob, 1000)).parts == []
    assert await site.counted("twinlock_blob_requests_total", method="PUT", code="gone") == 1


def head(method: str, path: str, token: str, length: int | str) -> bytes:
    """Make the head of a request."""
    lines = [
        f"{method} {path} HTTP/1.1",
        "Host: x",
        "Connection: close",
        f"Authorization: Bearer {token}",
        f"Content-Length: {length}",
    ]
    return "\r\n".join([*lines, "", ""]).encode("latin-1")


async def test_requests_and_bytes_are_counted(site):
    device = site.device
    blob = await device.store(SMALL)
    await device.get(blob, range="bytes=0-99")
    await device.get(fresh_blob())
    await device.http.request("DELETE", part_path(device.space, blob, 0))

    assert await site.counted("twinlock_blob_bytes_stored_total") == 1000
    assert await site.counted("twinlock_blob_bytes_sent_total") == 100
    assert await site.counted("twinlock_blob_requests_total", method="PUT", code="ok") == 1
    assert await site.counted("twinlock_blob_requests_total", method="GET", code="ok") == 1
    assert await site.counted("twinlock_blob_requests_total", method="GET", code="not_found") == 1
    assert await site.counted("twinlock_blob_requests_total", method="other") == 1


# Browsers


@with_settings(browser_origins=["https://app.example.org"])
async def test_pages_of_known_origins_may_ask_and_no_others(site):
    device, blob = site.device, await site.device.store(SMALL)
    path = part_path(device.space, blob, 0)
    asked = {"access-control-request-method": "PUT", "access-control-request-headers": "authorization"}

    for origin in ("https://app.example.org", f"http://127.0.0.1:{site.server.port}"):
        allowed = await device.http.options(path, headers={"origin": origin, **asked})
        assert allowed.status_code == 204
        assert allowed.headers["access-control-allow-origin"] == origin
        assert "PUT" in allowed.headers["access-control-allow-methods"]
        assert "authorization" in allowed.headers["access-control-allow-headers"]
        got = await device.get(blob, origin=origin, range="bytes=0-9")
        assert (got.headers["access-control-allow-origin"], got.headers["vary"]) == (origin, "Origin")
        assert "content-range" in got.headers["access-control-expose-headers"]
        refused = await device.get(fresh_blob(), origin=origin)
        assert refused.headers["access-control-allow-origin"] == origin
    for origin in ("https://evil.example.org", "null", ""):
        response = await device.http.options(path, headers={"origin": origin, **asked})
        assert response.status_code == 403
        assert not any(name.startswith("access-control") for name in response.headers)
        assert "access-control-allow-origin" not in (await device.get(blob, origin=origin)).headers
    assert (await device.get(blob)).headers["cache-control"] == "no-store"


# Broken and hostile requests


ODD_PATHS = (
    "/blobs",
    "/blobs/",
    "/blobs/x/y/0",
    "/blobs/{space}/{blob}",
    "/blobs/{space}/{blob}/",
    "/blobs/{space}/{blob}/-1",
    "/blobs/{space}/{blob}/00",
    "/blobs/{space}/{blob}/0/",
    "/blobs/{space}/{blob}/0/1",
    "/blobs/{space}/{blob}/999999999",
    "/blobs/{space}/../{blob}/0",
    "/blobs/{space}/{blob}/%30",
    "//blobs/{space}/{blob}/0",
    "/BLOBS/{space}/{blob}/0",
)


async def test_odd_paths_lead_nowhere(site):
    blob = await site.device.store(SMALL)

    for odd in ODD_PATHS:
        path = odd.format(space=site.device.space.hex(), blob=blob.hex())
        for method in ("GET", "PUT"):
            answer = await raw(site, head(method, path, site.device.token, 0))
            assert answer.split(b" ", 2)[1] in (b"404", b"400"), (odd, answer)


async def raw(site, data: bytes, wait_s: float = 10) -> bytes:
    """Send bytes and return what comes until the server closes, or for so long."""
    reader, writer = await asyncio.open_connection("127.0.0.1", site.server.port)
    answer = b""
    with suppress(TimeoutError, ConnectionError):
        writer.write(data)
        async with asyncio.timeout(wait_s):
            while piece := await reader.read(1 << 16):
                answer += piece
    writer.close()
    return answer


@pytest.mark.parametrize("seed", [1])
async def test_garbled_requests_harm_nobody(site, seed):
    chance, device = random.Random(seed), site.device
    blob = await device.store(SMALL)
    unfinished = await begun(device)
    good = [
        head("PUT", part_path(device.space, unfinished, 0), device.token, 1000) + SMALL,
        head("GET", part_path(device.space, blob, 0), device.token, 0),
        head("PUT", part_path(device.space, unfinished, 0), device.token, "99999999999999999999"),
        head("PUT", part_path(device.space, unfinished, 0), device.token, "-1"),
        head("PUT", part_path(device.space, unfinished, 0), device.token, "1000, 1000"),
        head("GET", part_path(device.space, blob, 0), device.token, 0).replace(b"Host: x", b"Range: bytes=0-0"),
    ]
    for _ in range(60):
        data = bytearray(chance.choice(good))
        for _ in range(chance.randrange(4)):
            place = chance.randrange(min(len(data), 400))
            data[place : place + chance.randrange(3)] = chance.randbytes(chance.randrange(4))
        await raw(site, bytes(data[: chance.choice([len(data), chance.randrange(1, len(data))])]), wait_s=0.01)

    assert (await device.get(blob)).content == SMALL
    assert (await device.put(unfinished, 0, SMALL)).status_code in (204, 409)
    assert await site.counted("twinlock_blob_memory_bytes") == 0
    assert await site.counted("twinlock_blob_requests_total", code="internal") == 0


async def test_a_body_that_is_too_long_is_not_listened_to(site):
    blob = await begun(site.device)

    answer = await raw(site, head("PUT", part_path(site.device.space, blob, 0), site.device.token, 1 << 40))

    assert b" 413 " in answer.partition(b"\r\n")[0]
    assert b"connection: close" in answer.lower()


# Kills, drains and several servers


async def test_an_upload_goes_on_after_the_server_was_killed(tmp_path):
    data = os.urandom(BLOB_PART_BYTES + 1000)
    with ServerProcess(tmp_path) as process:
        owner = await make_world(process)
        device = await blob_device(owner, owner.space)
        blob = await begun(device, len(data))
        assert (await device.put(blob, 0, data[:BLOB_PART_BYTES])).status_code == 204
        _, writer = await asyncio.open_connection("127.0.0.1", process.port)
        writer.write(head("PUT", part_path(owner.space, blob, 1), device.token, 1000) + b"half")
        await writer.drain()
        process.kill()
        writer.close()
        await device.close()

        process.start()
        again = BlobDevice(await owner.open(), owner.space)
        # The token is the server's, not the process's.
        again.token = device.token
        assert (await again.begin(blob, len(data))).parts == [0]
        assert (await again.put(blob, 1, data[BLOB_PART_BYTES:])).status_code == 204
        await again.finish(blob)
        process.kill()
        process.start()
        assert b"".join([(await again.get(blob, part)).content for part in (0, 1)]) == data
        await again.close()
        assert device.token not in process.log_path.read_text()
        folder = tmp_path / "data" / "blobs" / "blobs" / owner.space.hex() / blob.hex()
        assert sorted(path.name for path in folder.iterdir()) == ["00000000", "00000001"]
        assert (folder / "00000000").read_bytes() == data[:BLOB_PART_BYTES]


async def test_two_servers_on_one_store_serve_the_same_blobs():
    settings = Settings(engine="memory:", port=0, drain_ms=100, unlocker_tries_per_min=0)
    stores = await open_stores(settings)

    async def leave_open():
        pass

    servers = [Server(settings, stores), Server(settings, msgspec.structs.replace(stores, close=leave_open))]
    for server in servers:
        await server.start()
    owner = await make_world(servers[0])
    devices = [await blob_device(owner, owner.space)]
    owner.port = servers[1].port
    devices.append(BlobDevice(await owner.open(), owner.space))
    devices[1].token = devices[0].token
    data = os.urandom(BLOB_PART_BYTES + 1000)

    blob = await begun(devices[0], len(data))
    assert (await devices[1].put(blob, 0, data[:BLOB_PART_BYTES])).status_code == 204
    assert (await devices[0].put(blob, 1, data[BLOB_PART_BYTES:])).status_code == 204
    assert (await devices[1].begin(blob, len(data))).parts == [0, 1]
    await devices[1].finish(blob)
    for device in devices:
        assert (await device.get(blob, 1)).content == data[BLOB_PART_BYTES:]
        assert told(await device.put(blob, 1, data[BLOB_PART_BYTES:])) == (409, "blob_conflict")

    async def begin_some(device):
        for _ in range(10):
            await begun(device)

    await asyncio.gather(*map(begin_some, devices))
    assert (await devices[0].list()).used_bytes == len(data) + 20_000

    for device in devices:
        await device.close()
    for server in reversed(servers):
        await server.stop()


async def test_a_part_that_comes_after_the_deletion_is_not_kept(site):
    device, rest = site.device, asyncio.Event()
    blob = await begun(device)
    sending = asyncio.create_task(device.put(blob, 0, trickle(b"x", rest, SMALL), **{"content-length": "1000"}))
    await site.lends(2000)

    await device.delete(blob)
    rest.set()

    assert told(await sending) == (409, "blob_conflict")
    with pytest.raises(CallFailed, match="blob_conflict"):
        await device.wire.call("blob.finish", NameBlob(device.space, blob))
