"""Writes made while locked: sealed records in a file that this device cannot open. See spec/sealing.md, 7."""

from __future__ import annotations

import os
from pathlib import Path

from twinlock.client.private_files import make_private_file, sync_folder
from twinlock.errors import StoreError

FILE_NAME = "locked.log"
SET_ASIDE_NAME = "locked.damaged"
_LENGTH_BYTES = 4


class SideFile:
    """An append-only list of records. A record is on the disk when `append` returns."""

    __slots__ = ("_path",)

    def __init__(self, folder: Path) -> None:
        self._path = folder / FILE_NAME

    def append(self, record: bytes) -> None:
        """Append a record durably.

        Raises:
            StoreError: the disk refused; the record does not count.
        """
        whole = sum(_LENGTH_BYTES + len(known) for known in self.records())
        try:
            make_private_file(self._path)
            with self._path.open("r+b") as file:
                # What a crash left half written is overwritten.
                file.truncate(whole)
                file.seek(whole)
                file.write(len(record).to_bytes(_LENGTH_BYTES, "big") + record)
                file.flush()
                os.fsync(file.fileno())
            sync_folder(self._path.parent)
        except OSError as exc:
            raise StoreError(f"{FILE_NAME}: {exc.strerror}") from exc

    def records(self) -> list[bytes]:
        """Return all records that were written whole, in order."""
        try:
            data = self._path.read_bytes()
        except FileNotFoundError:
            return []
        except OSError as exc:
            raise StoreError(f"{FILE_NAME}: {exc.strerror}") from exc
        found = []
        at = 0
        while at + _LENGTH_BYTES <= len(data):
            end = at + _LENGTH_BYTES + int.from_bytes(data[at : at + _LENGTH_BYTES], "big")
            if end > len(data):
                break
            found.append(data[at + _LENGTH_BYTES : end])
            at = end
        return found

    def set_aside(self) -> None:
        """Keep a file that does not open under another name, out of the way."""
        self._path.replace(self._path.with_name(SET_ASIDE_NAME))

    def clear(self) -> None:
        """Forget the records, which lie in the outbox now."""
        self._path.unlink(missing_ok=True)
