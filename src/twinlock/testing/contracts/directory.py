"""What every engine's directory must do. Subclass with a `directory` fixture that gives an empty one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from twinlock.contracts.directory import (
    DIRECTORY_KEY_BYTES_MAX,
    DIRECTORY_VALUE_BYTES_MAX,
    Change,
    Directory,
    Record,
)
from twinlock.errors import InvalidCallError, LimitExceededError, RevisionError


async def next_change(watch: AsyncIterator[Change]) -> Change:
    """Return the next change, or fail instead of waiting for ever."""
    async with asyncio.timeout(10):
        return await anext(watch)


class DirectoryContract:
    """Small records with compare-and-set."""

    async def test_a_record_is_read_back(self, directory: Directory) -> None:
        """With its revision; an absent key has none."""
        revision = await directory.put("account/1", b"\x00\xff")

        assert await directory.get("account/1") == Record(b"\x00\xff", revision)
        assert await directory.get("account/2") is None

    async def test_every_put_raises_the_revision(self, directory: Directory) -> None:
        """Also one of the same value, and of no bytes."""
        revisions = [await directory.put("key", b"") for _ in range(3)]

        assert revisions == sorted(set(revisions))
        assert min(revisions) > 0

    async def test_expecting_absence_makes_a_key_only_once(self, directory: Directory) -> None:
        """The second is told, and changes nothing."""
        revision = await directory.put("key", b"first", expect_revision=0)

        with pytest.raises(RevisionError):
            await directory.put("key", b"second", expect_revision=0)

        assert await directory.get("key") == Record(b"first", revision)

    async def test_a_stale_revision_changes_nothing(self, directory: Directory) -> None:
        """Neither by put nor by delete; the present one does."""
        first = await directory.put("key", b"first")
        second = await directory.put("key", b"second", expect_revision=first)

        with pytest.raises(RevisionError):
            await directory.put("key", b"third", expect_revision=first)
        with pytest.raises(RevisionError):
            await directory.delete("key", expect_revision=first)
        assert await directory.get("key") == Record(b"second", second)

        await directory.delete("key", expect_revision=second)
        assert await directory.get("key") is None

    async def test_an_absent_key_may_be_deleted(self, directory: Directory) -> None:
        """Unless a revision was expected of it."""
        await directory.delete("key")
        await directory.delete("key", expect_revision=0)

        with pytest.raises(RevisionError):
            await directory.delete("key", expect_revision=1)
        with pytest.raises(RevisionError):
            await directory.put("key", b"", expect_revision=1)

    async def test_a_key_made_again_has_a_new_revision(self, directory: Directory) -> None:
        """So that whoever read the old one notices."""
        first = await directory.put("key", b"")
        await directory.delete("key")

        assert await directory.put("key", b"") > first

    async def test_of_many_writers_with_one_revision_one_wins(self, directory: Directory) -> None:
        """Counting by compare-and-set loses nothing."""
        await directory.put("count", b"0")

        async def add() -> None:
            while True:
                record = await directory.get("count")
                assert record is not None
                try:
                    await directory.put("count", b"%d" % (int(record.value) + 1), expect_revision=record.revision)
                except RevisionError:
                    continue
                return

        await asyncio.gather(*(add() for _ in range(12)))

        record = await directory.get("count")
        assert record is not None
        assert record.value == b"12"

    async def test_a_list_holds_the_keys_of_its_prefix(self, directory: Directory) -> None:
        """All of them, sorted, no wildcard among its characters."""
        for key in ("a/2", "a/1", "a/1/x", "a", "a0", "b/1", "a/~", "a/_%", "A/1"):
            await directory.put(key, key.encode())

        assert list(await directory.list("a/")) == ["a/1", "a/1/x", "a/2", "a/_%", "a/~"]
        assert list(await directory.list("a/_")) == ["a/_%"]
        assert len(await directory.list("")) == 9
        assert await directory.list("c") == {}
        assert (await directory.list("b"))["b/1"].value == b"b/1"

    async def test_a_scan_gives_every_record_once(self, directory: Directory) -> None:
        """More than a page of them, as they are now, without what was deleted."""
        for number in range(300):
            await directory.put(f"kind{number % 3}/{number:04d}", number.to_bytes(2, "big"))
        revision = await directory.put("kind1/0001", b"again")
        await directory.delete("kind2/0002")

        found = [pair async for pair in directory.scan()]

        records = dict(found)
        assert len(found) == len(records) == 299
        assert records["kind1/0001"] == Record(b"again", revision)
        assert "kind2/0002" not in records
        assert records["kind0/0003"].value == (3).to_bytes(2, "big")

    async def test_a_scan_beside_writes_loses_nothing_that_stays(self, directory: Directory) -> None:
        """What changes meanwhile appears as it was or as it is, and once."""
        for number in range(40):
            await directory.put(f"kept/{number:04d}", b"")
        found = []

        async for key, _ in directory.scan():
            found.append(key)
            await directory.put(f"new/{len(found):04d}", b"")
            await directory.put("kept/0007", b"changed")
            if len(found) > 400:
                break

        kept = [key for key in found if key.startswith("kept/")]
        assert sorted(kept) == [f"kept/{number:04d}" for number in range(40)]

    async def test_limits_of_keys_and_values(self, directory: Directory) -> None:
        """The last that is taken, and the first that is not."""
        await directory.put("k" * DIRECTORY_KEY_BYTES_MAX, bytes(DIRECTORY_VALUE_BYTES_MAX))

        with pytest.raises(LimitExceededError):
            await directory.put("k" * (DIRECTORY_KEY_BYTES_MAX + 1), b"")
        with pytest.raises(LimitExceededError):
            await directory.put("k", bytes(DIRECTORY_VALUE_BYTES_MAX + 1))
        with pytest.raises(InvalidCallError):
            await directory.put("clé", b"")
        with pytest.raises(InvalidCallError):
            await directory.put("", b"")

    async def test_a_watch_gives_every_later_change_of_its_prefix(self, directory: Directory) -> None:
        """From the call on, in order, deletes included; refused ones are no changes."""
        await directory.put("a/0", b"earlier")
        watch = directory.watch("a/")
        first = await directory.put("a/1", b"one")
        await directory.put("b/1", b"elsewhere")
        with pytest.raises(RevisionError):
            await directory.put("a/1", b"refused", expect_revision=0)
        second = await directory.put("a/1", b"two")
        await directory.delete("a/1")
        await directory.delete("a/1")
        third = await directory.put("a/2", b"three")

        changes = [await next_change(watch) for _ in range(4)]

        assert changes == [
            Change("a/1", Record(b"one", first)),
            Change("a/1", Record(b"two", second)),
            Change("a/1", None),
            Change("a/2", Record(b"three", third)),
        ]

    async def test_a_waiting_watcher_is_woken(self, directory: Directory) -> None:
        """Each of them."""
        watches = [directory.watch("a"), directory.watch("a/")]
        tasks = [asyncio.ensure_future(next_change(watch)) for watch in watches]
        await asyncio.sleep(0)

        await directory.put("a/1", b"")

        assert [change.key for change in await asyncio.gather(*tasks)] == ["a/1", "a/1"]
