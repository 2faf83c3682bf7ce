"""Signed logs: the key service is their authority, the directory keeps a copy that is quick to read.

While an append is under way the directory says so. If that is still there when a log is read, the copy may be shorter
than what the key service holds, and may lack a removal: then nothing is served before the key service has answered.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

import msgspec

from twinlock.contracts import Directory, KeyService
from twinlock.errors import (
    KeyServiceError,
    LeaseRefusedError,
    LogConflictError,
    LogInvalidError,
    OverloadedError,
    StoreError,
    TwinlockError,
)
from twinlock.ids import LogId
from twinlock.protocol.calls import LogHead, SignedEntry
from twinlock.protocol.limits import LOG_PAGE_ENTRIES_MAX
from twinlock.server.together import together

LONG_ENTRIES = 64
"""A longer log is kept in memory once it was read: it is asked for by the page, and the directory gives all of it."""

LONG_BYTES_MAX = 64 << 20
_ENTRY_OVERHEAD_BYTES = 200
_decode_entry = msgspec.msgpack.Decoder(SignedEntry).decode
_encode = msgspec.msgpack.encode


class _LongLogs:
    """Copies of long logs that were lately read, within a number of bytes."""

    __slots__ = ("_bytes", "_logs")

    def __init__(self) -> None:
        self._logs: dict[LogId, tuple[list[SignedEntry], int]] = {}
        self._bytes = 0

    def get(self, log: LogId) -> list[SignedEntry] | None:
        held = self._logs.pop(log, None)
        if held is None:
            return None
        self._logs[log] = held
        return list(held[0])

    def keep(self, log: LogId, entries: Sequence[SignedEntry]) -> None:
        self.drop(log)
        size = sum(len(entry.body) + _ENTRY_OVERHEAD_BYTES for entry in entries)
        if len(entries) <= LONG_ENTRIES or size > LONG_BYTES_MAX:
            return
        while self._bytes + size > LONG_BYTES_MAX:
            self.drop(next(iter(self._logs)))
        self._logs[log] = (list(entries), size)
        self._bytes += size

    def drop(self, log: LogId) -> None:
        self._bytes -= self._logs.pop(log, ([], 0))[1]


class SignedLogs:
    """Appends to both, in that order, and on load takes the longer of the two; the shorter is mended.

    Args:
        directory: where the copies are.
        keys: the authority.
        node: what this node signs its marks with.
        is_alive: tells whether a mark is of another node that may still be about to append.
        is_shared: whether other nodes may append.
    """

    __slots__ = ("_directory", "_is_alive", "_is_shared", "_keys", "_long", "_mirrors_count", "_node", "_under_way")

    def __init__(
        self,
        directory: Directory,
        keys: KeyService,
        node: bytes = b"",
        is_alive: Callable[[bytes], bool] = lambda _: False,
        *,
        is_shared: bool = False,
    ) -> None:
        self._is_shared = is_shared
        self._node = node
        self._is_alive = is_alive
        self._directory = directory
        self._keys = keys
        self._under_way: Counter[LogId] = Counter()
        self._long = _LongLogs()
        self._mirrors_count = 0

    async def read(self, log: LogId) -> list[SignedEntry]:
        """Return every entry of a log; none if there is no such log.

        A directory that was restored to an older state is mended here, so that nobody is served a shorter log.

        Raises:
            KeyServiceError, OverloadedError: it does not answer, and the copy here may be behind it.
        """
        mark = await self._directory.get(_mark(log))
        is_left = mark is not None and not self._under_way[log] and not self._is_alive(mark.value)
        if is_left:
            # Whoever left the mark appends nothing more after this.
            await self.take_turn(log)
        entries = await self._copy(log)
        try:
            entries = await self._completed(log, entries)
        except (KeyServiceError, OverloadedError):
            if mark is not None:
                raise
            # Serving goes on without the key service; it alone decides about keys anyway.
            return entries
        if is_left:
            await self._unmark(log)
        return entries

    async def has_grown(self, log: LogId, seq: int) -> bool:
        """Tell whether another node has added to the first so many entries; asks nobody where there are no others."""
        return self._is_shared and await self.has_more(log, seq)

    async def has_more(self, log: LogId, seq: int) -> bool:
        """Tell whether the copy goes on after so many entries."""
        return await self._directory.get(f"{_prefix(log)}{seq + 1:08d}") is not None

    async def exists(self, log: LogId) -> bool:
        """Tell whether there is a log at all, as far as the copy says: what is missing there is asked for by `read`."""
        return await self.has_more(log, 0)

    async def read_certain(self, log: LogId) -> list[SignedEntry]:
        """Return every entry of a log as the key service has it; whoever began to change it appends nothing more.

        Raises:
            KeyServiceError, OverloadedError: the key service does not answer.
        """
        await self.take_turn(log)
        entries = await self._completed(log, await self._copy(log))
        await self._unmark(log)
        return entries

    async def append(self, log: LogId, expect_seq: int, entries: Sequence[SignedEntry]) -> LogHead:
        """Append entries after the first `expect_seq`; appending what is there already is fine.

        Raises:
            LogConflictError, LogInvalidError, SignatureError, UpdateNeededError: as the key service decides.
            KeyServiceError, StoreError: whether they were appended is not known; `read_certain` tells later.
        """
        return await self.append_in_turn(log, expect_seq, entries, await self.take_turn(log))

    async def take_turn(self, log: LogId) -> int:
        """Begin to change a log: whoever began before, here or on another node, appends nothing more.

        It also shows whether the key service answers: what is not even tried leaves nothing in doubt.

        Raises:
            KeyServiceError, OverloadedError: it does not.
        """
        return await self._keys.take_turn(log)

    async def append_in_turn(self, log: LogId, expect_seq: int, entries: Sequence[SignedEntry], turn: int) -> LogHead:
        """Append as `append` does, unless somebody began to change the log after `turn` was taken."""
        self._under_way[log] += 1
        try:
            await self._directory.put(_mark(log), self._node)
            head = await self._append(log, expect_seq, entries, turn)
        finally:
            self._under_way[log] -= 1
            if not self._under_way[log]:
                del self._under_way[log]
        await self._unmark(log)
        return head

    async def _append(self, log: LogId, expect_seq: int, entries: Sequence[SignedEntry], turn: int) -> LogHead:
        try:
            head = await self._keys.append_log(log, expect_seq, entries, turn)
        except (KeyServiceError, StoreError):
            raise
        except TwinlockError:
            if self._under_way[log] == 1:
                await self._directory.delete(_mark(log))
            raise
        await self._mirror(log, expect_seq, entries)
        return head

    async def _unmark(self, log: LogId) -> None:
        """Note that the copy is complete, unless another append is under way."""
        if not self._under_way[log]:
            await self._directory.delete(_mark(log))

    async def _copy(self, log: LogId) -> list[SignedEntry]:
        """Return what the directory has, up to the first gap that a failed write left."""
        held = self._long.get(log)
        # Another node may have written more of it since.
        if held is not None and not await self.has_more(log, len(held)):
            return held
        prefix, mirrors_count = _prefix(log), self._mirrors_count
        entries: list[SignedEntry] = []
        for key, record in (await self._directory.list(prefix)).items():
            if key != f"{prefix}{len(entries) + 1:08d}":
                break
            entries.append(_decode_entry(record.value))
        if self._mirrors_count == mirrors_count:
            # Nothing was written meanwhile, so that this is all of it.
            self._long.keep(log, entries)
        return entries

    async def _completed(self, log: LogId, entries: list[SignedEntry]) -> list[SignedEntry]:
        if entries:
            try:
                head = await self._keys.append_log(log, len(entries), [])
            except LogConflictError:
                await self._give_back(log, entries)
                return entries
            if head.seq == len(entries):
                return entries
        missing = await self._keys.read_log(log, len(entries))
        await self._mirror(log, len(entries), missing)
        return entries + missing

    async def _give_back(self, log: LogId, entries: Sequence[SignedEntry]) -> None:
        """Give a key service what it lacks: one that was restored must not forget who was revoked or lowered since.

        It checks them like any others. An epoch whose key it lost with them it cannot take.
        """
        try:
            for first in range(0, len(entries), LOG_PAGE_ENTRIES_MAX):
                await self._keys.append_log(log, first, entries[first : first + LOG_PAGE_ENTRIES_MAX])
        except (LogConflictError, LogInvalidError, LeaseRefusedError) as exc:
            raise KeyServiceError("it was set back to before this log's newest keys were made") from exc

    async def _mirror(self, log: LogId, after: int, entries: Sequence[SignedEntry]) -> None:
        self._mirrors_count += 1
        try:
            # One commit carries them all; should only some get there, the gap is seen.
            await together(
                self._directory.put(f"{_prefix(log)}{seq:08d}", _encode(entry))
                for seq, entry in enumerate(entries, after + 1)
            )
        finally:
            self._mirrors_count += 1
            self._long.drop(log)


def _prefix(log: LogId) -> str:
    return f"log/{log.hex()}/"


def _mark(log: LogId) -> str:
    return f"appending/{log.hex()}"
