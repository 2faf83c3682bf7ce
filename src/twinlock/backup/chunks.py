"""Chunks in a store, each under the hash of its content: written once, checked whenever they are read."""

from __future__ import annotations

from typing import Any, TypeVar

import msgspec

from twinlock.backup.format import CHUNKS, DIGEST_BYTES, chunk_name, digest_of
from twinlock.contracts import BlobStore
from twinlock.errors import BackupDamagedError

Row = TypeVar("Row")

HELD_CHUNKS = 4
"""Chunks kept that were read last: spaces that follow one another mostly lie in the same."""


class Chunks:
    """Writes chunks that are not there yet, and reads them.

    `present` has the hashes of those that are there, once `list` was called.
    """

    __slots__ = ("_held", "_store", "present", "written_bytes")

    def __init__(self, store: BlobStore) -> None:
        self._store = store
        self._held: dict[bytes, bytes] = {}
        self.present: set[bytes] = set()
        self.written_bytes = 0

    async def list(self) -> None:
        """Learn which chunks are there, so that they are not written again."""
        async for part in self._store.list(CHUNKS):
            digest = _digest_in(part.name)
            if digest is not None and part.size > 0:
                self.present.add(digest)

    async def put(self, data: bytes) -> bytes:
        """Store a chunk durably unless it is there; return its hash."""
        digest = digest_of(data)
        if digest not in self.present:
            await self._store.put(chunk_name(digest), data)
            self.present.add(digest)
            self.written_bytes += len(data)
        return digest

    async def get(self, digest: bytes) -> bytes:
        """Return a chunk's content.

        Raises:
            BackupDamagedError: it is missing or altered.
        """
        held = self._held.get(digest)
        if held is not None:
            return held
        data = await self._store.get(chunk_name(digest))
        if data is None:
            raise BackupDamagedError(f"chunk {digest.hex()} is missing")
        if digest_of(data) != digest:
            raise BackupDamagedError(f"chunk {digest.hex()} was altered")
        while len(self._held) >= HELD_CHUNKS:
            del self._held[next(iter(self._held))]
        self._held[digest] = data
        return data

    async def read(self, digest: bytes, form: type[Row]) -> Row:
        """Return a chunk, decoded.

        Raises:
            BackupDamagedError: it is missing, altered, or of another form.
        """
        data = await self.get(digest)
        try:
            return msgspec.msgpack.decode(data, type=form)
        except (msgspec.MsgspecError, ValueError) as exc:
            raise BackupDamagedError(f"chunk {digest.hex()} cannot be read") from exc

    async def delete(self, digest: bytes) -> None:
        """Delete a chunk that nothing names any more."""
        await self._store.delete(chunk_name(digest))
        self.present.discard(digest)


def encode_rows(rows: list[Any]) -> bytes:
    """Return rows as a chunk's content."""
    return msgspec.msgpack.encode(rows)


def _digest_in(name: str) -> bytes | None:
    try:
        digest = bytes.fromhex(name.rpartition("/")[2])
    except ValueError:
        return None
    return digest if len(digest) == DIGEST_BYTES else None
