"""Spaces whose keys are gone for good. A file of its own, so that no backup of the database brings them back."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from io import FileIO
from pathlib import Path

from twinlock.errors import StoreError
from twinlock.ids import ID_BYTES, SpaceId
from twinlock.keyservice.private_file import write_new


class DenyList:
    """Only grows: one line of hex for each space."""

    __slots__ = ("_path", "_spaces")

    def __init__(self, path: Path, *, may_make: bool = True) -> None:
        """Read the file, or make an empty one where it may be missing.

        Raises:
            StoreError: it is missing where it must be, it cannot be read, or a line is no space id.
        """
        self._path = path
        try:
            if not path.exists():
                _make(path, may_make)
            lines = _whole_lines(path)
            self._spaces = {SpaceId(bytes.fromhex(line)) for line in lines}
        except (OSError, ValueError) as exc:
            raise StoreError(f"the deny list {path.name} cannot be read") from exc
        if any(len(space) != ID_BYTES for space in self._spaces):
            raise StoreError(f"the deny list {path.name} is damaged")

    def __iter__(self) -> Iterator[SpaceId]:
        return iter(sorted(self._spaces))

    def __contains__(self, space: SpaceId) -> bool:
        return space in self._spaces

    def add(self, space: SpaceId) -> None:
        """Deny a space, durably, from now on.

        Raises:
            StoreError: it could not be written.
        """
        if space in self._spaces:
            return
        try:
            descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
            with os.fdopen(descriptor, "ab", buffering=0) as file:
                _append(file, f"{space.hex()}\n".encode("ascii"))
        except OSError as exc:
            raise StoreError(f"the deny list cannot be written: {exc.strerror}") from exc
        self._spaces.add(space)


def _append(file: FileIO, line: bytes) -> None:
    """Write a line as a whole, or leave the file as it was: the next line must not go on in the middle of this one."""
    size = os.fstat(file.fileno()).st_size
    try:
        if file.write(line) != len(line):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        os.fsync(file.fileno())
    except OSError:
        file.truncate(size)
        raise


def _make(path: Path, may_make: bool) -> None:
    # Without its deny list a restored database would release the keys of spaces that were shredded.
    if not may_make:
        raise StoreError(
            f"the deny list {path.name} is missing: bring it back, or make an empty file if no space was ever shredded"
        )
    write_new(path, b"")


def _whole_lines(path: Path) -> list[str]:
    """Return the file's lines; a last one whose writing was cut short is removed, for nobody was told of it."""
    text = path.read_text("ascii")
    whole = text[: text.rfind("\n") + 1]
    if len(whole) < len(text):
        os.truncate(path, len(whole))
    return whole.split()
