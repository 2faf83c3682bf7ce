"""What every blob store must do. Subclass with a `blobs` fixture that gives an empty one."""

from __future__ import annotations

import asyncio
import os
import time

import pytest

from twinlock.contracts.blobs import BLOB_NAME_BYTES_MAX, BLOB_PART_BYTES_MAX, BlobStore, StoredPart
from twinlock.errors import InvalidCallError, LimitExceededError

NO_NAMES = (
    "",
    "/",
    "a/",
    "/a",
    "a//b",
    ".",
    "..",
    "a/../b",
    "a/..",
    "../a",
    "./a",
    "a/.hidden",
    "a b",
    "a\\b",
    "a\0",
    "ä",
    "a\n",
    "%2e%2e",
    "a?b",
    "a#1",
    "x" * (BLOB_NAME_BYTES_MAX + 1),
)


async def names(blobs: BlobStore, prefix: str) -> list[str]:
    """Return the names below a prefix, sorted."""
    return sorted([part.name async for part in blobs.list(prefix)])


class BlobStoreContract:
    """Objects that are put as a whole and read in ranges."""

    async def test_an_object_is_read_back(self, blobs: BlobStore) -> None:
        """Whole; an absent one is None."""
        data = os.urandom(3000)
        await blobs.put("blobs/one/two/00000000", data)

        assert await blobs.get("blobs/one/two/00000000") == data
        assert await blobs.get("blobs/one/two/00000001") is None
        assert await blobs.get("blobs/one/two") is None

    async def test_ranges_end_with_the_object(self, blobs: BlobStore) -> None:
        """Behind its end there is nothing, and that is no error."""
        data = bytes(range(100))
        await blobs.put("a/object", data)

        assert await blobs.get("a/object", 10, 5) == data[10:15]
        assert await blobs.get("a/object", 90) == data[90:]
        assert await blobs.get("a/object", 90, 50) == data[90:]
        assert await blobs.get("a/object", 0, 0) == b""
        assert await blobs.get("a/object", 100) == b""
        assert await blobs.get("a/object", 200, 10) == b""
        assert await blobs.get("a/none", 5, 5) is None
        for first, size in ((-1, None), (0, -1)):
            with pytest.raises(InvalidCallError):
                await blobs.get("a/object", first, size)

    async def test_a_later_put_replaces_the_whole(self, blobs: BlobStore) -> None:
        """Also where it is shorter."""
        await blobs.put("a/object", b"long before")
        await blobs.put("a/object", b"short")

        assert await blobs.get("a/object") == b"short"

    async def test_an_empty_object_is_one(self, blobs: BlobStore) -> None:
        """It is there, and has no bytes."""
        await blobs.put("a/empty", b"")

        assert await blobs.get("a/empty") == b""
        assert await names(blobs, "a/") == ["a/empty"]

    async def test_a_deleted_object_is_gone(self, blobs: BlobStore) -> None:
        """Deleting it again is fine, and its folder may be used again."""
        await blobs.put("a/b/c", b"1")
        await blobs.delete("a/b/c")
        await blobs.delete("a/b/c")

        assert await blobs.get("a/b/c") is None
        assert await names(blobs, "a/") == []
        await blobs.put("a/b/d", b"2")
        assert await blobs.get("a/b/d") == b"2"

    async def test_a_listing_names_what_lies_below(self, blobs: BlobStore) -> None:
        """With size and time; not what has the prefix's words only in part."""
        before_ms = time.time() * 1000
        for name in ("a/b/1", "a/b/2", "a/b/c/3", "a/bc/4", "b/5"):
            await blobs.put(name, b"x" * int(name[-1]))

        assert await names(blobs, "a/b/") == ["a/b/1", "a/b/2", "a/b/c/3"]
        assert await names(blobs, "a/") == ["a/b/1", "a/b/2", "a/b/c/3", "a/bc/4"]
        assert await names(blobs, "none/") == []
        [part] = [part async for part in blobs.list("b/")]
        assert part == StoredPart("b/5", 5, part.written_ms)
        # Stores tell whole seconds at worst, and clocks differ a little.
        assert abs(part.written_ms - before_ms) < 10_000
        for prefix in ("a", "", "/", "../", "a//"):
            with pytest.raises(InvalidCallError):
                await names(blobs, prefix)

    async def test_only_short_plain_paths_are_names(self, blobs: BlobStore) -> None:
        """None leads out of its folder."""
        for name in NO_NAMES:
            with pytest.raises(InvalidCallError):
                await blobs.put(name, b"")
            with pytest.raises(InvalidCallError):
                await blobs.get(name)
            with pytest.raises(InvalidCallError):
                await blobs.delete(name)
        longest = "/".join(("x" * 63,) * 4)
        assert len(longest) == BLOB_NAME_BYTES_MAX
        await blobs.put(longest, b"1")
        assert await blobs.get(longest) == b"1"

    async def test_an_object_has_16_mib_and_no_more(self, blobs: BlobStore) -> None:
        """The largest comes back whole."""
        largest = os.urandom(1 << 20) * (BLOB_PART_BYTES_MAX >> 20)
        await blobs.put("a/largest", largest)

        assert await blobs.get("a/largest") == largest
        assert await blobs.get("a/largest", BLOB_PART_BYTES_MAX - 7) == largest[-7:]
        with pytest.raises(LimitExceededError):
            await blobs.put("a/larger", largest + b"x")
        assert await blobs.get("a/larger") is None

    async def test_many_at_once_keep_their_own_bytes(self, blobs: BlobStore) -> None:
        """Puts of one name end with one of them, whole."""
        contents = {f"a/{number}": os.urandom(20_000) for number in range(20)}
        same = [bytes([number]) * 10_000 for number in range(8)]
        puts = [blobs.put(name, data) for name, data in contents.items()]
        await asyncio.gather(*puts, *(blobs.put("b/same", data) for data in same))

        assert {name: await blobs.get(name) for name in contents} == contents
        assert await blobs.get("b/same") in same

    async def test_a_folder_that_empties_takes_new_objects(self, blobs: BlobStore) -> None:
        """Puts and deletes of neighbours do not disturb one another."""

        async def come_and_go(number: int) -> None:
            for _ in range(5):
                await blobs.put(f"a/b/{number}", b"1")
                await blobs.delete(f"a/b/{number}")
            await blobs.put(f"a/b/{number}", b"2")

        await asyncio.gather(*map(come_and_go, range(6)))

        assert await names(blobs, "a/b/") == [f"a/b/{number}" for number in range(6)]
