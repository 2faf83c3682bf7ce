"""The reference of blob stores: a dict, forgotten at the end. For tests, trials and simulations."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator

from twinlock.contracts.blobs import BlobStore, StoredPart, check_name, check_object, check_prefix, check_range


class MemoryBlobs(BlobStore):
    """Objects in memory."""

    __slots__ = ("_objects",)

    def __init__(self) -> None:
        self._objects: dict[str, tuple[bytes, int]] = {}

    async def put(self, name: str, data: bytes) -> None:
        """Store an object."""
        check_object(name, data)
        self._objects[name] = bytes(data), time.time_ns() // 1_000_000

    async def get(self, name: str, first: int = 0, size: int | None = None) -> bytes | None:
        """Return an object's bytes from `first` on."""
        check_name(name)
        check_range(first, size)
        data, _ = self._objects.get(name, (None, 0))
        return None if data is None else data[first : None if size is None else first + size]

    async def delete(self, name: str) -> None:
        """Delete an object."""
        check_name(name)
        self._objects.pop(name, None)

    async def list(self, prefix: str) -> AsyncIterator[StoredPart]:
        """Yield every object below a prefix."""
        check_prefix(prefix)
        for name, (data, written_ms) in list(self._objects.items()):
            if name.startswith(prefix):
                yield StoredPart(name, len(data), written_ms)

    async def close(self) -> None:
        """Do nothing: what is here ends with the process."""
