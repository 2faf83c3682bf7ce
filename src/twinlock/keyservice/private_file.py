"""Files that only their owner may read, written so that a crash leaves the old content or the new one."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from twinlock.errors import StoreError


def write_new(path: Path, data: bytes) -> None:
    """Write a file that does not exist yet, durably.

    Raises:
        OSError: it exists, or cannot be written.
    """
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    _write_and_sync(descriptor, data)
    sync_folder(path.parent)


def replace(path: Path, data: bytes) -> None:
    """Write a file in place of the one that is there, durably.

    Raises:
        OSError: it cannot be written.
    """
    beside = path.with_name(path.name + ".new")
    descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    _write_and_sync(descriptor, data)
    os.replace(beside, path)
    sync_folder(path.parent)


def check_private(path: Path, what: str) -> None:
    """Refuse a file that others may read.

    Raises:
        StoreError: they may.
        OSError: there is none.
    """
    if stat.S_IMODE(path.stat().st_mode) & 0o077:
        raise StoreError(f"others may read the {what} {path.name}; run `chmod 600` on it")


def sync_folder(folder: Path) -> None:
    """Make durable which files a folder holds."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write_and_sync(descriptor: int, data: bytes) -> None:
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
