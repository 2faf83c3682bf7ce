"""Chores that one node at a time does for all: a record of the directory says whose they are, and until when."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from twinlock.contracts import Directory
from twinlock.errors import RevisionError

CHORES_KEY = "chores"


class Holder(msgspec.Struct, frozen=True, array_like=True):
    """Which node does the chores, and until when nobody else does."""

    node: bytes
    until_ms: int


_decode = msgspec.msgpack.Decoder(Holder).decode


class Chores:
    """Whether this node does the chores now. Two that think so do no harm: they only work twice."""

    __slots__ = ("_directory", "_node", "_now_ms")

    def __init__(self, directory: Directory, node: bytes, now_ms: Callable[[], int]) -> None:
        self._directory = directory
        self._node = node
        self._now_ms = now_ms

    async def take(self, for_ms: int) -> bool:
        """Take the chores over for a time, or go on doing them; tell whether they are this node's.

        Raises:
            StoreError: the directory does not say.
        """
        record, now_ms = await self._directory.get(CHORES_KEY), self._now_ms()
        holder = _decode(record.value) if record is not None else Holder(b"", 0)
        # A time that lies further ahead than anybody asks for comes of a clock that was wrong.
        is_taken = holder.node != self._node and now_ms < holder.until_ms <= now_ms + 2 * for_ms
        if is_taken:
            return False
        try:
            value = msgspec.msgpack.encode(Holder(self._node, now_ms + for_ms))
            await self._directory.put(CHORES_KEY, value, record.revision if record is not None else 0)
        except RevisionError:
            return False
        return True

    async def leave(self) -> None:
        """Leave the chores to the other nodes at once.

        Raises:
            StoreError: they will wait for their time.
        """
        record = await self._directory.get(CHORES_KEY)
        if record is not None and _decode(record.value).node == self._node:
            try:
                await self._directory.delete(CHORES_KEY, record.revision)
            except RevisionError:
                return
