"""Sealed parts of files that were read or sent, kept up to so many bytes; what was used longest ago goes first.

Nothing here is trusted: whoever opens a chunk finds out whether it is the true one.
"""

from __future__ import annotations

import os
from pathlib import Path

from twinlock.client.private_files import make_private_file, make_private_folder
from twinlock.ids import BlobId, SpaceId
from twinlock.protocol.limits import BLOB_PART_BYTES

FOLDER_NAME = "cached"
_WHOLE, _PART = ".whole", ".part"


class FileCache:
    """The cache of a profile: in each space's folder, bounded over all. Blocking: called in a thread."""

    __slots__ = ("_bytes_max", "_spaces")

    def __init__(self, spaces: Path, bytes_max: int) -> None:
        self._spaces = spaces
        self._bytes_max = bytes_max

    def place_for(self, space: SpaceId, blob: BlobId, sealed_bytes: int) -> Path | None:
        """Return where a whole blob may be put; None if it takes too much room."""
        if sealed_bytes > self._bytes_max:
            return None
        folder = self._folder(space)
        make_private_folder(folder)
        return folder / f"{blob.hex()}{_WHOLE}"

    def read(self, space: SpaceId, blob: BlobId, first: int, size: int) -> bytes | None:
        """Return sealed bytes of a blob, all of one part, if they are here."""
        part, at = divmod(first, BLOB_PART_BYTES)
        folder = self._folder(space)
        places = [(folder / f"{blob.hex()}{_WHOLE}", first), (folder / f"{blob.hex()}-{part}{_PART}", at)]
        for path, offset in places:
            try:
                with path.open("rb") as file:
                    file.seek(offset)
                    data = file.read(size)
                if len(data) == size:
                    os.utime(path)
                    return data
            except OSError:
                continue
        return None

    def put(self, space: SpaceId, blob: BlobId, part: int, data: bytes | bytearray) -> None:
        """Keep a whole part; a disk that refuses it keeps nothing."""
        if len(data) > self._bytes_max:
            return
        folder = self._folder(space)
        path = folder / f"{blob.hex()}-{part}{_PART}"
        draft = path.with_suffix(".new")
        try:
            make_private_folder(folder)
            make_private_file(draft)
            draft.write_bytes(data)
            draft.replace(path)
        except OSError:
            draft.unlink(missing_ok=True)
        self.trim()

    def take(self, space: SpaceId, blob: BlobId, sealed_bytes: int, target: Path) -> bool:
        """Put all chunks of a blob into a file, if every part of it is here; return whether it is."""
        firsts = range(0, sealed_bytes, BLOB_PART_BYTES)
        with target.open("wb") as file:
            for first in firsts:
                part = self.read(space, blob, first, min(BLOB_PART_BYTES, sealed_bytes - first))
                if part is None:
                    target.unlink()
                    return False
                file.write(part)
            file.flush()
            os.fsync(file.fileno())
        return True

    def forget(self, space: SpaceId, blob: BlobId) -> None:
        """Drop what is kept of a blob."""
        for path in self._folder(space).glob(f"{blob.hex()}*"):
            path.unlink(missing_ok=True)

    def trim(self) -> None:
        """Drop what was used longest ago, down to the bound."""
        found = []
        for path in self._spaces.glob(f"*/{FOLDER_NAME}/*"):
            try:
                stat = path.stat()
            except OSError:
                continue
            found.append((stat.st_mtime_ns, stat.st_size, path))
        total = sum(size for _, size, _ in found)
        for _, size, path in sorted(found):
            if total <= self._bytes_max:
                break
            path.unlink(missing_ok=True)
            total -= size

    def _folder(self, space: SpaceId) -> Path:
        return self._spaces / space.hex() / FOLDER_NAME
