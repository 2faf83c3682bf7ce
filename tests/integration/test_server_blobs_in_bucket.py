"""A server whose files lie in a bucket of a real SeaweedFS: large ones, range reads, deletion, and its failure."""

import os

import pytest

from tests.blob_kit import blob_device, fresh_blob, told
from tests.server_kit import make_world
from twinlock.protocol.limits import BLOB_PART_BYTES
from twinlock.server import Server, Settings
from twinlock.testing.seaweed_process import BUCKET, SeaweedProcess

pytestmark = pytest.mark.slow


@pytest.fixture
def seaweed(tmp_path):
    process = SeaweedProcess(tmp_path)
    process.start()
    with process.in_environment():
        yield process
    process.kill()


async def test_files_lie_in_a_bucket_and_its_failure_is_told(seaweed):
    where = {"blobs": f"s3://{BUCKET}/files", "blobs_endpoint": seaweed.endpoint}
    server = Server(Settings(engine="memory:", port=0, drain_ms=100, **where))
    await server.start()
    owner = await make_world(server)
    device = await blob_device(owner, owner.space)
    data = os.urandom(3 * BLOB_PART_BYTES + 5000)
    blob = fresh_blob()

    await device.begin(blob, len(data))
    for part in range(4):
        piece = data[part * BLOB_PART_BYTES : (part + 1) * BLOB_PART_BYTES]
        assert (await device.put(blob, part, piece)).status_code == 204
    assert (await device.begin(blob, len(data))).parts == [0, 1, 2, 3]
    await device.finish(blob)
    assert b"".join([(await device.get(blob, part)).content for part in range(4)]) == data
    one = await device.get(blob, 2, range="bytes=1000000-5000000")
    first = 2 * BLOB_PART_BYTES + 1_000_000
    assert (one.status_code, one.content) == (206, data[first : first + 4_000_001])

    seaweed.kill()
    failed = await device.get(blob)
    assert told(failed) == (503, "store_failed")
    assert failed.headers["retry-after"]
    assert "127.0.0.1" not in failed.text
    seaweed.start()
    assert (await device.get(blob, 3)).content == data[3 * BLOB_PART_BYTES :]

    await device.close()
    await server.stop()
