"""Tables as pages of sorted rows, cut so that a change of some rows changes the pages around them and no others.

Where a page ends depends on the keys of its rows alone, not on how many came before: a row that is added makes one page
longer, and all others stay the same chunks.
"""

from __future__ import annotations

import zlib
from collections.abc import AsyncIterator
from typing import Any, Generic, TypeVar

import msgspec

from twinlock.backup.chunks import Chunks, encode_rows
from twinlock.errors import LimitExceededError

PAGE_BYTES_MAX = 1 << 20
ENDING_ONE_IN = 256
"""One key of so many ends a page."""

PAGES_MAX = 400_000
"""Pages of a table: their hashes are one chunk."""

Row = TypeVar("Row", bound=msgspec.Struct)


class PageWriter:
    """Takes a table's rows in the order of their keys and writes its pages."""

    __slots__ = ("_bytes", "_chunks", "_digests", "_rows")

    def __init__(self, chunks: Chunks) -> None:
        self._chunks = chunks
        self._rows: list[msgspec.Raw] = []
        self._bytes = 0
        self._digests: list[bytes] = []

    async def add(self, key: bytes, row: msgspec.Struct) -> None:
        """Take the next row."""
        encoded = msgspec.msgpack.encode(row)
        self._rows.append(msgspec.Raw(encoded))
        self._bytes += len(encoded)
        if zlib.crc32(key) % ENDING_ONE_IN == 0 or self._bytes >= PAGE_BYTES_MAX:
            await self._write()

    async def end(self) -> bytes:
        """Write what is left; return the hash of the chunk that lists the pages.

        Raises:
            LimitExceededError: the table is too large for a backup of this format.
        """
        if self._rows:
            await self._write()
        if len(self._digests) > PAGES_MAX:
            raise LimitExceededError(f"a table of {len(self._digests)} pages, {PAGES_MAX} at most")
        return await self._chunks.put(encode_rows(self._digests))

    async def _write(self) -> None:
        self._digests.append(await self._chunks.put(encode_rows(self._rows)))
        self._rows, self._bytes = [], 0


async def page_digests(chunks: Chunks, table: bytes) -> list[bytes]:
    """Return the hashes of a table's pages, in order.

    Raises:
        BackupDamagedError: they are missing or altered.
    """
    return await chunks.read(table, list[bytes])


async def read_page(chunks: Chunks, digest: bytes, form: type[Row]) -> list[Row]:
    """Return the rows of a page.

    Raises:
        BackupDamagedError: it is missing or altered.
    """
    rows_form: Any = list[form]  # type: ignore[valid-type]  # a type that is only known here
    rows: list[Row] = await chunks.read(digest, rows_form)
    return rows


async def read_rows(chunks: Chunks, table: bytes, form: type[Row]) -> AsyncIterator[Row]:
    """Yield a table's rows in the order of their keys.

    Raises:
        BackupDamagedError: some are missing or altered.
    """
    for digest in await page_digests(chunks, table):
        for row in await read_page(chunks, digest, form):
            yield row


class Peekable(Generic[Row]):
    """Rows in order, of which the next can be looked at: to merge two tables."""

    __slots__ = ("_rows", "next")

    def __init__(self, rows: AsyncIterator[Row]) -> None:
        self._rows = rows
        self.next: Row | None = None

    async def move(self) -> None:
        """Go on to the next row; `next` is None after the last."""
        self.next = await anext(self._rows, None)
