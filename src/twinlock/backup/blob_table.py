"""The blobs' part of a backup: every object under its own name, copied once."""

from __future__ import annotations

from collections.abc import AsyncIterator

import msgspec

from twinlock.backup.chunks import Chunks
from twinlock.backup.format import BLOBS, BlobRow, digest_of
from twinlock.backup.pages import PageWriter, Peekable
from twinlock.backup.spool import Spool, new_spool
from twinlock.contracts import BlobStore, StoredPart
from twinlock.errors import BackupDamagedError


class BlobTable:
    """Copies objects that the backup does not have yet, and writes the table of all."""

    __slots__ = ("_from", "_pages", "_there", "_to", "bytes_count", "count", "written_bytes")

    def __init__(self, blobs: BlobStore, store: BlobStore, chunks: Chunks) -> None:
        self._from = blobs
        self._to = store
        self._pages = PageWriter(chunks)
        self.count = self.bytes_count = self.written_bytes = 0

    async def write(self, before: AsyncIterator[BlobRow]) -> bytes:
        """Copy what is new since the generation before; return the table's hash."""
        known = Peekable(before)
        await known.move()
        with new_spool() as there, new_spool() as parts:
            async for part in self._to.list(BLOBS):
                there.put(part.name, b"")
            async for part in self._from.list(BLOBS):
                parts.put(part.name, msgspec.msgpack.encode(part))
            for name, encoded in parts.rows():
                while known.next is not None and known.next.name < name:
                    await known.move()
                row = known.next if known.next is not None and known.next.name == name else None
                await self._add(msgspec.msgpack.decode(encoded, type=StoredPart), row, there)
        return await self._pages.end()

    async def _add(self, part: StoredPart, before: BlobRow | None, there: Spool) -> None:
        is_known = before is not None and (before.size, before.written_ms) == (part.size, part.written_ms)
        row = before if is_known and there.get(part.name) is not None else await self._copy(part)
        if row is not None:
            self.count += 1
            self.bytes_count += row.size
            await self._pages.add(row.name.encode(), row)

    async def _copy(self, part: StoredPart) -> BlobRow | None:
        data = await self._from.get(part.name)
        if data is None:
            # Deleted since it was listed: the grace of its blob has ended.
            return None
        await self._to.put(part.name, data)
        self.written_bytes += len(data)
        return BlobRow(part.name, len(data), part.written_ms, digest_of(data))


async def read_blob(store: BlobStore, row: BlobRow) -> bytes:
    """Return an object of a backup.

    Raises:
        BackupDamagedError: it is missing or altered.
    """
    data = await store.get(row.name)
    if data is None:
        raise BackupDamagedError(f"{row.name} is missing")
    if digest_of(data) != row.digest:
        raise BackupDamagedError(f"{row.name} was altered")
    return data
