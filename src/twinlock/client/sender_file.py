"""The file of a sender's drops: groups of records, appended. See docs/internals/sender.md.

    "twinlock sender 1\\n", then groups: u32 length, u32 CRC-32 of the body, body: MessagePack array of records

Integers are big-endian. What a crash left of the last group is not there for readers and is overwritten.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from io import FileIO
from pathlib import Path
from zlib import crc32

import msgspec

from twinlock.client.private_files import make_private_file, sync_folder
from twinlock.errors import StoreError
from twinlock.replica.drops import SenderStore

logger = logging.getLogger(__name__)

FILE_NAME = "sender.log"
DAMAGED_NAME = "sender.damaged"
_MAGIC = b"twinlock sender 1\n"
_FRONT_BYTES = 8
_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(list[bytes])


class SenderFile(SenderStore):
    """A plain file of mode 0600; what lies in it is sealed to the members of the space."""

    __slots__ = ("_end", "_file", "_path")

    def __init__(self, folder: Path) -> None:
        """Open the file, and make it if there is none.

        Raises:
            StoreError: the disk refused.
        """
        self._path = folder / FILE_NAME
        try:
            make_private_file(self._path)
            self._file = self._opened()
        except OSError as exc:
            raise _store_error(exc) from exc
        try:
            self._end = self._find_end()
            sync_folder(folder)
        except OSError as exc:
            self._file.close()
            raise _store_error(exc) from exc

    def _opened(self) -> FileIO:
        # Without a buffer, which would keep what the disk has refused.
        return FileIO(self._path, "r+")

    @staticmethod
    def exists(folder: Path) -> bool:
        """Tell whether a sender has written here."""
        return (folder / FILE_NAME).exists()

    def _find_end(self) -> int:
        """Return where the last whole group ends; keep a copy of a file that is broken before its end."""
        data_bytes = self._file.seek(0, os.SEEK_END)
        self._file.seek(0)
        if self._file.read(len(_MAGIC)) != _MAGIC:
            if data_bytes > len(_MAGIC):
                self._set_aside()
            self._file.seek(0)
            self._file.truncate()
            _write_whole(self._file, _MAGIC)
            os.fsync(self._file.fileno())
            return len(_MAGIC)
        end = len(_MAGIC)
        while (body := self._body(end, data_bytes)) is not None:
            end += _FRONT_BYTES + len(body)
        if not self._is_torn(end, data_bytes):
            self._set_aside()
        return end

    def _body(self, place: int, data_bytes: int) -> bytes | None:
        """Return the group's bytes, None where there is no whole group."""
        self._file.seek(place)
        front = self._file.read(_FRONT_BYTES)
        size = int.from_bytes(front[:4], "big")
        if len(front) < _FRONT_BYTES or not size or place + _FRONT_BYTES + size > data_bytes:
            return None
        body = self._file.read(size)
        return body if crc32(body) == int.from_bytes(front[4:], "big") else None

    def _is_torn(self, end: int, data_bytes: int) -> bool:
        """Tell whether what follows the last whole group is what a crash leaves: a part of one group, or zeros."""
        self._file.seek(end)
        front = self._file.read(_FRONT_BYTES)
        size = int.from_bytes(front[:4], "big")
        if len(front) < _FRONT_BYTES or end + _FRONT_BYTES + size >= data_bytes:
            return True
        return not any(front) and not any(self._file.read())

    def _set_aside(self) -> None:
        # What was written before stays in use, and the evidence must stay too.
        logger.error("a sender's file is damaged", extra={"file": str(self._path.name)})
        damaged = self._path.with_name(DAMAGED_NAME)
        make_private_file(damaged)
        shutil.copyfile(self._path, damaged)

    def groups(self) -> Iterator[tuple[int, list[bytes]]]:
        """Return every group and its place."""
        place = len(_MAGIC)
        while place < self._end:
            body = self._read(place)
            yield place, _decoder.decode(body)
            place += _FRONT_BYTES + len(body)

    def read(self, place: int) -> list[bytes]:
        """Return the group at a place."""
        return _decoder.decode(self._read(place))

    def _read(self, place: int) -> bytes:
        try:
            body = self._body(place, self._end)
        except OSError as exc:
            raise _store_error(exc) from exc
        if body is None:
            raise StoreError(f"{FILE_NAME} was altered")
        return body

    def append(self, records: Sequence[bytes], *, durable: bool) -> int:
        """Append a group and return its place."""
        place, group = self._end, _framed(records)
        try:
            self._file.seek(place)
            self._file.truncate()
            _write_whole(self._file, group)
            if durable:
                os.fsync(self._file.fileno())
        except OSError as exc:
            raise _store_error(exc) from exc
        self._end = place + len(group)
        return place

    def replace(self, groups: Iterable[Sequence[bytes]]) -> list[int]:
        """Put other groups in place of all, durably and all at once; return their places."""
        draft = self._path.with_name(FILE_NAME + ".new")
        places: list[int] = []
        try:
            draft.unlink(missing_ok=True)
            make_private_file(draft)
            with draft.open("r+b") as file:
                file.write(_MAGIC)
                for records in groups:
                    places.append(file.tell())
                    file.write(_framed(records))
                end = file.tell()
                file.flush()
                os.fsync(file.fileno())
            draft.replace(self._path)
            sync_folder(self._path.parent)
            self._file.close()
            self._file, self._end = self._opened(), end
        except OSError as exc:
            raise _store_error(exc) from exc
        return places

    @property
    def stored_bytes(self) -> int:
        """How large it is."""
        return self._end

    def close(self) -> None:
        """Let go of the file."""
        self._file.close()

    def remove(self) -> None:
        """Close and forget the file: nothing in it is needed any more."""
        self._file.close()
        self._path.unlink(missing_ok=True)


def _write_whole(file: FileIO, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[file.write(rest) :]


def _framed(records: Sequence[bytes]) -> bytes:
    body = _encoder.encode(records)
    return len(body).to_bytes(4, "big") + crc32(body).to_bytes(4, "big") + body


def _store_error(exc: OSError) -> StoreError:
    return StoreError(f"{FILE_NAME}: {exc.strerror}")
