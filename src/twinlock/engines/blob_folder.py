"""Objects as files below a folder: written beside, synced, and moved to their place in one step."""

from __future__ import annotations

import asyncio
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from twinlock.errors import StoreError

DRAFTS = ".drafts"
"""Where objects are written before they get their name. No object's name begins with a dot."""

DRAFT_S_MAX = 24 * 3600.0
"""Age from which a draft was left by a process that ended; several processes may share the folder."""

WRITERS = 4
_TRIES_MAX = 8


class BlobFolder:
    """Writes objects durably; readable by its owner alone."""

    __slots__ = ("_drafts", "_threads", "root")

    def __init__(self, root: Path) -> None:
        self.root = root
        self._drafts = root / DRAFTS
        self._threads = ThreadPoolExecutor(WRITERS, thread_name_prefix="blobs")

    @classmethod
    def open(cls, root: Path) -> BlobFolder:
        """Open a folder, or make it, and delete the drafts that a former process left.

        Raises:
            StoreError: the folder cannot be made or read.
        """
        folder = cls(root.absolute())
        try:
            _make_folder(folder._drafts)
            oldest_s = time.time() - DRAFT_S_MAX
            for draft in folder._drafts.iterdir():
                if draft.stat().st_mtime < oldest_s:
                    draft.unlink(missing_ok=True)
        except OSError as exc:
            raise StoreError(f"the folder of blobs: {exc.strerror}") from exc
        return folder

    async def write(self, name: str, data: bytes) -> None:
        """Store an object; on return it is durable.

        Raises:
            StoreError: the disk failed or is full; nothing was stored.
        """
        try:
            await asyncio.get_running_loop().run_in_executor(self._threads, self._write, name, data)
        except OSError as exc:
            raise StoreError(f"the folder of blobs: {exc.strerror}") from exc

    async def close(self) -> None:
        """Wait for what is being written."""
        await asyncio.to_thread(self._threads.shutdown)

    def _write(self, name: str, data: bytes) -> None:
        draft, place = self._drafts / os.urandom(16).hex(), self.root / name
        try:
            _write_synced(draft, data)
            _move(draft, place)
        except BaseException:
            draft.unlink(missing_ok=True)
            raise
        _sync_folder(place.parent)


def _write_synced(file: Path, data: bytes) -> None:
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        left = memoryview(data)
        while left:
            left = left[os.write(descriptor, left) :]
        # Synced before it has its name: a name never leads to bytes that a power cut can take back.
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _move(draft: Path, place: Path) -> None:
    """Give a draft its name; a folder that has just become empty may be deleted by others meanwhile."""
    for tries_left in reversed(range(_TRIES_MAX)):
        try:
            _make_folder(place.parent)
            draft.replace(place)
        except FileNotFoundError:
            if not tries_left:
                raise
        else:
            return


def _make_folder(folder: Path) -> None:
    """Make a folder and those above it, durably."""
    if folder.is_dir():
        return
    _make_folder(folder.parent)
    try:
        folder.mkdir(mode=0o700)
    except FileExistsError:
        return
    _sync_folder(folder.parent)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
