"""Signed logs: the key service is their authority, the directory keeps a copy that is quick to read."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from twinlock.contracts import Directory, KeyService
from twinlock.errors import KeyServiceError
from twinlock.ids import LogId
from twinlock.protocol.calls import LogHead, SignedEntry

_decode_entry = msgspec.msgpack.Decoder(SignedEntry).decode
_encode = msgspec.msgpack.encode


class SignedLogs:
    """Appends to both, in that order, and on load takes the longer of the two."""

    __slots__ = ("_directory", "_keys")

    def __init__(self, directory: Directory, keys: KeyService) -> None:
        self._directory = directory
        self._keys = keys

    async def read(self, log: LogId) -> list[SignedEntry]:
        """Return every entry of a log; none if there is no such log.

        A directory that was restored to an older state is mended here, so that nobody is served a shorter log.
        """
        records = await self._directory.list(_prefix(log))
        entries = [_decode_entry(record.value) for record in records.values()]
        try:
            missing = await self._keys.read_log(log, len(entries))
        except KeyServiceError:
            # Serving goes on without the key service; it alone decides about keys anyway.
            return entries
        await self._mirror(log, len(entries), missing)
        return entries + missing

    async def append(self, log: LogId, expect_seq: int, entries: Sequence[SignedEntry]) -> LogHead:
        """Append entries after the first `expect_seq`; appending what is there already is fine.

        Raises:
            LogConflictError, LogInvalidError, SignatureError, UpdateNeededError: as the key service decides.
        """
        head = await self._keys.append_log(log, expect_seq, entries)
        await self._mirror(log, expect_seq, entries)
        return head

    async def _mirror(self, log: LogId, after: int, entries: Sequence[SignedEntry]) -> None:
        for seq, entry in enumerate(entries, after + 1):
            await self._directory.put(f"{_prefix(log)}{seq:08d}", _encode(entry))


def _prefix(log: LogId) -> str:
    return f"log/{log.hex()}/"
