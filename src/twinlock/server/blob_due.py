"""When blobs are to be looked at again: notes in the directory by the hour, so that nobody searches all for a few."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable

import msgspec

from twinlock.contracts import Directory
from twinlock.ids import BlobId, SpaceId
from twinlock.protocol.labels import u64

HOUR_MS = 3_600_000
AHEAD_HOURS = 2
"""How far ahead a note is made at least: whoever makes one is not overtaken by whoever looks."""

BACK_HOURS = 4
"""Hours that are looked at again: the clock of another server may be late."""

HOURS_MAX = 24 * 366
_NOTES = "blob_due/"
_DONE = "blob_due_done"


class Due(msgspec.Struct, frozen=True):
    """A note whose hour has come."""

    key: str
    space: SpaceId
    blob: BlobId


class BlobDue:
    """Makes such notes, and finds those that are due."""

    __slots__ = ("_directory", "_now_ms")

    def __init__(self, directory: Directory, now_ms: Callable[[], int]) -> None:
        self._directory = directory
        self._now_ms = now_ms

    async def note(self, space: SpaceId, blob: BlobId, at_ms: int = 0) -> None:
        """Have a blob looked at at a time, or within the next hours."""
        hour = max(-(-at_ms // HOUR_MS), self._now_ms() // HOUR_MS + AHEAD_HOURS)
        await self._directory.put(f"{_NOTES}{hour:08x}/{space.hex()}/{blob.hex()}", b"")

    async def due(self) -> AsyncIterator[Due]:
        """Yield what is due; each is `taken` when it has been looked at."""
        for prefix in await self._prefixes():
            for key in await self._directory.list(prefix):
                hour, space, blob = key.removeprefix(_NOTES).split("/")
                if int(hour, 16) <= self._now_ms() // HOUR_MS:
                    yield Due(key, SpaceId(bytes.fromhex(space)), BlobId(bytes.fromhex(blob)))

    async def taken(self, due: Due) -> None:
        """Forget a note."""
        await self._directory.delete(due.key)

    async def finished(self) -> None:
        """Note that all that was due has been looked at."""
        hour = u64(self._now_ms() // HOUR_MS)
        stored = await self._directory.get(_DONE)
        if stored is None or stored.value != hour:
            await self._directory.put(_DONE, hour)

    async def _prefixes(self) -> list[str]:
        stored = await self._directory.get(_DONE)
        now = self._now_ms() // HOUR_MS
        first = int.from_bytes(stored.value, "big") - BACK_HOURS if stored else 0
        if now - first > HOURS_MAX:
            return [_NOTES]
        return [f"{_NOTES}{hour:08x}/" for hour in range(first, now + 1)]
