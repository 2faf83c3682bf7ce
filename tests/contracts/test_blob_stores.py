"""The blob stores keep their contract: in memory, in a folder, and in a bucket of a real SeaweedFS."""

import asyncio
import os
import stat
import subprocess
import sys
import time

import pytest

from twinlock.contracts import BlobStore
from twinlock.engines.blob_folder import DRAFT_S_MAX
from twinlock.engines.blobs import open_blobs
from twinlock.errors import StoreError
from twinlock.testing.contracts import BlobStoreContract
from twinlock.testing.contracts.blobs import names
from twinlock.testing.seaweed_process import SeaweedProcess


class TestMemoryBlobs(BlobStoreContract):
    @pytest.fixture
    def blobs(self):
        return open_blobs("memory:")


class TestFolderBlobs(BlobStoreContract):
    @pytest.fixture
    async def blobs(self, tmp_path):
        store = open_blobs(str(tmp_path / "deep" / "blobs"))
        yield store
        await store.close()


@pytest.fixture(scope="module")
def seaweed(tmp_path_factory):
    """A SeaweedFS, whose credentials are in the environment."""
    process = SeaweedProcess(tmp_path_factory.mktemp("seaweed"))
    process.start()
    with process.in_environment():
        yield process
    process.kill()


class TestBucketBlobs(BlobStoreContract):
    @pytest.fixture
    async def blobs(self, seaweed):
        store = open_blobs(f"s3://bucket/{os.urandom(4).hex()}/deep", seaweed.endpoint)
        yield store
        await store.close()

    async def test_wrong_credentials_are_an_error_and_not_an_absence(self, seaweed, monkeypatch):
        """Nobody takes a blob for lost because a key was changed."""
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "another")
        store = open_blobs("s3://bucket/x", seaweed.endpoint)

        with pytest.raises(StoreError):
            await store.put("a/b", b"1")
        with pytest.raises(StoreError):
            await store.get("a/b")
        with pytest.raises(StoreError):
            await names(store, "a/")

    async def test_a_server_that_is_gone_is_an_error(self, seaweed):
        """And its detail names neither host nor key."""
        store = open_blobs("s3://bucket/x", "http://127.0.0.1:1")

        with pytest.raises(StoreError) as caught:
            await store.get("a/b")
        assert "127.0.0.1" not in str(caught.value)


async def test_a_folder_is_its_owners_alone(tmp_path):
    store = open_blobs(str(tmp_path / "blobs"))
    await store.put("a/b/c", b"1")
    await store.close()

    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "blobs").rglob("*")}
    assert modes == {".drafts": 0o700, "a": 0o700, "b": 0o700, "c": 0o600}
    assert stat.S_IMODE((tmp_path / "blobs").stat().st_mode) == 0o700


async def test_drafts_of_an_earlier_process_are_deleted_and_those_of_another_are_not(tmp_path):
    drafts = tmp_path / ".drafts"
    drafts.mkdir()
    for name, age_s in (("old", DRAFT_S_MAX + 60), ("young", 60)):
        (drafts / name).write_bytes(b"half")
        os.utime(drafts / name, times=(time.time() - age_s,) * 2)

    await open_blobs(str(tmp_path)).close()

    assert [path.name for path in drafts.iterdir()] == ["young"]


async def test_a_full_disk_stores_nothing(tmp_path):
    store = open_blobs(str(tmp_path / "blobs"))
    await store.put("a/b", b"before")
    # A folder in the place of the object cannot be replaced; so the last step fails.
    (tmp_path / "blobs" / "a" / "c").mkdir()

    with pytest.raises(StoreError):
        await store.put("a/c", b"1")

    assert list((tmp_path / "blobs" / ".drafts").iterdir()) == []
    assert await names(store, "a/") == ["a/b"]
    await store.close()


KILLED = """
import asyncio, sys
from twinlock.engines.blobs import open_blobs

async def main():
    store = open_blobs(sys.argv[1])
    number = 0
    while True:
        await store.put(f"a/{number:08d}", number.to_bytes(8, "big") * 50_000)
        print(number, flush=True)
        number += 1

asyncio.run(main())
"""


def killed_after(count, folder):
    """Have a process put objects, kill it in the middle, and return how many it had put for certain."""
    child = subprocess.Popen([sys.executable, "-c", KILLED, str(folder)], stdout=subprocess.PIPE)
    acked = [child.stdout.readline() for _ in range(count)]
    child.kill()
    acked += child.stdout.readlines()
    child.wait()
    child.stdout.close()
    return len(acked)


def test_what_a_killed_process_had_put_is_whole(tmp_path):
    acked = killed_after(10, tmp_path)

    async def check():
        store = open_blobs(str(tmp_path))
        found = await names(store, "a/")
        assert len(found) >= acked >= 10
        for number, name in enumerate(found):
            assert await store.get(name) == number.to_bytes(8, "big") * 50_000
        await store.close()

    asyncio.run(check())


@pytest.mark.parametrize("where", ["s3://", "s3:///prefix"])
def test_a_bucket_has_a_name(where):
    with pytest.raises(StoreError):
        open_blobs(where)


def test_a_folder_that_cannot_be_made_is_told(tmp_path):
    (tmp_path / "file").write_bytes(b"")

    with pytest.raises(StoreError):
        open_blobs(str(tmp_path / "file" / "blobs"))


@pytest.mark.slow
async def test_a_bucket_outlives_its_server(tmp_path):
    process = SeaweedProcess(tmp_path)
    process.start()
    data = os.urandom(8 << 20)
    try:
        with process.in_environment():
            store: BlobStore = open_blobs("s3://bucket/x", process.endpoint)
        await store.put("a/b", data)
        process.kill()
        with pytest.raises(StoreError):
            await asyncio.wait_for(store.get("a/b"), 60)
        process.start()
        assert await store.get("a/b") == data
    finally:
        process.kill()
