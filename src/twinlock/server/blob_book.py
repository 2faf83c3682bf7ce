"""What the directory knows of blobs: a record for each, and for each space how much they take.

Two records cannot be written in one step. So the space's record is first given the change, already counted, and a mark
that it is under way; then the blob's own record is written; then the mark is taken out. A process that ends between
leaves its mark behind, which `recount` finds: nothing drifts.
"""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import Callable

import msgspec

from twinlock.contracts import Directory, Record
from twinlock.errors import OverloadedError, RevisionError
from twinlock.ids import BlobId, Epoch, SpaceId
from twinlock.protocol.blob_calls import BlobInfo

CHANGING_MS_MAX = 60_000
"""After how long a change was left behind by a process that ended."""

CHANGING_MAX = 1_000
"""Changes of one space under way at once; above it they are asked to come back."""

TRIES_MAX = 40
RETRY_AFTER_MS = 500
_MARK_BYTES = 4
_PAUSE_S_MAX = 0.02
BUCKETED_FROM = 2_048
"""Blobs of a space from which on they are listed by the first byte of their ids: a directory lists all or nothing."""


class BlobRecord(msgspec.Struct, frozen=True, array_like=True):
    """A blob as the directory keeps it. `is_ending`: its bytes are being deleted, it does not come back."""

    epoch: Epoch
    sealed_bytes: int
    begun_ms: int
    device: bytes
    is_finished: bool = False
    deleted_ms: int = 0
    is_ending: bool = False

    def info(self, blob: BlobId) -> BlobInfo:
        """Return what a member hears of it."""
        return BlobInfo(
            blob, self.epoch, self.sealed_bytes, self.begun_ms, self.is_finished, self.deleted_ms, self.device
        )


class HeldBlob(msgspec.Struct, frozen=True):
    """A record and the revision at which it was read."""

    blob: BlobId
    record: BlobRecord
    revision: int


class SpaceUse(msgspec.Struct, frozen=True, array_like=True):
    """What the blobs of a space take. `changing`: marks of changes under way, and since when."""

    live_bytes: int = 0
    deleted_bytes: int = 0
    count: int = 0
    changing: dict[str, int] = {}

    def plus(self, record: BlobRecord | None, sign: int) -> SpaceUse:
        """Return this with a blob counted in or out."""
        if record is None:
            return self
        size = sign * record.sealed_bytes
        live, deleted = (0, size) if record.deleted_ms else (size, 0)
        return SpaceUse(self.live_bytes + live, self.deleted_bytes + deleted, self.count + sign, self.changing)


CheckUse = Callable[[SpaceUse], None]
"""Refuses what a space would then take by raising."""

_decode_blob = msgspec.msgpack.Decoder(BlobRecord).decode
_decode_use = msgspec.msgpack.Decoder(SpaceUse).decode


class BlobBook:
    """Reads and changes these records, each by compare-and-set."""

    __slots__ = ("_directory", "_now_ms")

    def __init__(self, directory: Directory, now_ms: Callable[[], int]) -> None:
        self._directory = directory
        self._now_ms = now_ms

    async def get(self, space: SpaceId, blob: BlobId) -> HeldBlob | None:
        """Return a blob's record."""
        stored = await self._directory.get(_blob_key(space, blob))
        return HeldBlob(blob, _decode_blob(stored.value), stored.revision) if stored else None

    async def use(self, space: SpaceId) -> SpaceUse:
        """Return what the blobs of a space take."""
        stored = await self._directory.get(_use_key(space))
        return _decode_use(stored.value) if stored else SpaceUse()

    async def add(self, space: SpaceId, blob: BlobId, record: BlobRecord, check: CheckUse) -> None:
        """Note a new blob.

        Raises:
            RevisionError: there is one of that id.
            TwinlockError: what `check` raises.
        """
        await self._change(space, blob, None, record, check)

    async def replace(self, space: SpaceId, held: HeldBlob, record: BlobRecord) -> None:
        """Replace a record.

        Raises:
            RevisionError: it is no longer the one that was read.
        """
        await self._change(space, held.blob, held, record)

    async def remove(self, space: SpaceId, held: HeldBlob) -> None:
        """Forget a blob; raises as `replace`."""
        await self._change(space, held.blob, held, None)

    async def page(self, space: SpaceId, after: BlobId, count: int, use: SpaceUse) -> list[HeldBlob]:
        """Return the first blobs of a space above an id, sorted by id, at most so many."""
        found: list[HeldBlob] = []
        buckets = range(after[0] if after else 0, 256) if use.count >= BUCKETED_FROM else (None,)
        for bucket in buckets:
            found += [held for held in await self._bucket(space, bucket) if held.blob > after]
            if len(found) >= count:
                break
        return found[:count]

    async def recount(self, space: SpaceId) -> bool:
        """Count a space anew if a change of it was left behind; return whether nothing is left to do."""
        stored = await self._directory.get(_use_key(space))
        if stored is None:
            return True
        changing = _decode_use(stored.value).changing
        if not changing:
            return True
        if max(changing.values()) > self._now_ms() - CHANGING_MS_MAX:
            # Somebody is between two steps: what is counted now would be wrong.
            return False
        use = SpaceUse()
        for bucket in range(256):
            for held in await self._bucket(space, bucket):
                use = use.plus(held.record, 1)
        try:
            await self._directory.put(_use_key(space), msgspec.msgpack.encode(use), stored.revision)
        except RevisionError:
            return False
        return True

    async def forget_all(self, space: SpaceId) -> None:
        """Forget every blob of a space, and what they took."""
        for key in await self._directory.list(f"blob/{space.hex()}/"):
            await self._directory.delete(key)
        await self._directory.delete(_use_key(space))

    async def _bucket(self, space: SpaceId, bucket: int | None) -> list[HeldBlob]:
        prefix = f"blob/{space.hex()}/" + ("" if bucket is None else f"{bucket:02x}/")
        return [_held(key, stored) for key, stored in (await self._directory.list(prefix)).items()]

    async def _change(
        self,
        space: SpaceId,
        blob: BlobId,
        held: HeldBlob | None,
        record: BlobRecord | None,
        check: CheckUse | None = None,
    ) -> None:
        before = held.record if held else None
        is_counted = SpaceUse().plus(before, 1) != SpaceUse().plus(record, 1)
        if not is_counted:
            await self._write(space, blob, held, record)
            return
        mark = os.urandom(_MARK_BYTES).hex()
        await self._count(space, mark, before, record, check)
        try:
            await self._write(space, blob, held, record)
        except RevisionError:
            await self._settle(space, mark, record, before)
            raise
        await self._settle(space, mark)

    async def _write(self, space: SpaceId, blob: BlobId, held: HeldBlob | None, record: BlobRecord | None) -> None:
        key, revision = _blob_key(space, blob), held.revision if held else 0
        if record is None:
            await self._directory.delete(key, revision)
        else:
            await self._directory.put(key, msgspec.msgpack.encode(record), revision)

    async def _count(
        self, space: SpaceId, mark: str, before: BlobRecord | None, after: BlobRecord | None, check: CheckUse | None
    ) -> None:
        def change(use: SpaceUse) -> SpaceUse:
            if len(use.changing) >= CHANGING_MAX:
                raise OverloadedError("many blobs of this space are being changed", retry_after_ms=RETRY_AFTER_MS)
            counted = use.plus(before, -1).plus(after, 1)
            if check is not None:
                check(counted)
            return msgspec.structs.replace(counted, changing={**use.changing, mark: self._now_ms()})

        await self._change_use(space, change)

    async def _settle(
        self, space: SpaceId, mark: str, before: BlobRecord | None = None, after: BlobRecord | None = None
    ) -> None:
        """Take a mark out, and with it perhaps what was counted for a change that did not come about."""

        def change(use: SpaceUse) -> SpaceUse:
            if mark not in use.changing:
                # It was so slow that the space was counted anew meanwhile; that has to be done once more.
                return msgspec.structs.replace(use, changing={**use.changing, mark: 0})
            left = {name: since for name, since in use.changing.items() if name != mark}
            return msgspec.structs.replace(use.plus(before, -1).plus(after, 1), changing=left)

        await self._change_use(space, change)

    async def _change_use(self, space: SpaceId, change: Callable[[SpaceUse], SpaceUse]) -> None:
        key = _use_key(space)
        for _ in range(TRIES_MAX):
            stored = await self._directory.get(key)
            use = change(_decode_use(stored.value) if stored else SpaceUse())
            try:
                await self._directory.put(key, msgspec.msgpack.encode(use), stored.revision if stored else 0)
            except RevisionError:
                # Several at once change the same record: they are spread, so that each gets its turn.
                await asyncio.sleep(random.uniform(0, _PAUSE_S_MAX))  # noqa: S311 - a pause is no secret
            else:
                return
        raise OverloadedError("many blobs of this space are being changed", retry_after_ms=RETRY_AFTER_MS)


def _held(key: str, stored: Record) -> HeldBlob:
    return HeldBlob(BlobId(bytes.fromhex(key.rpartition("/")[2])), _decode_blob(stored.value), stored.revision)


def _blob_key(space: SpaceId, blob: BlobId) -> str:
    return f"blob/{space.hex()}/{blob[:1].hex()}/{blob.hex()}"


def _use_key(space: SpaceId) -> str:
    return f"blobs/{space.hex()}"
