"""The profile folder: everything that this device keeps for one account, open in one place at a time.

`lock` is held while the profile is open, `store.key` says where the StoreKey is, `vault.db` holds records sealed under
it, and `spaces/<id>/` holds each space's encrypted replica.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from twinlock.client.private_files import destroy_file, make_private_file, make_private_folder, write_private
from twinlock.errors import ProfileExistsError, ProfileInUseError, ProfileMissingError, StoreError
from twinlock.ids import SpaceId

ENVIRONMENT_NAME = "TWINLOCK_PROFILE"
LOCK_FILE_NAME = "lock"
VAULT_FILE_NAME = "vault.db"
STORE_KEY_FILE_NAME = "store.key"
SPACES_FOLDER_NAME = "spaces"
REVOKED_FILE_NAME = "revoked.json"
"""What stays of a profile whose device was revoked."""


def data_folder() -> Path:
    """Return the folder where this platform keeps a user's application data for Twinlock."""
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Application Support" / "twinlock"
    given = os.environ.get("XDG_DATA_HOME", "")
    return (Path(given) if given else Path.home() / ".local" / "share") / "twinlock"


def default_profile() -> Path:
    """Return the profile used where none is named: TWINLOCK_PROFILE, else that of the dev server."""
    given = os.environ.get(ENVIRONMENT_NAME, "")
    return Path(given) if given else data_folder() / "dev" / "profile"


class Profile:
    """One profile folder, held by an exclusive lock until `close`."""

    __slots__ = ("_lock", "folder")

    def __init__(self, folder: Path, lock: int) -> None:
        self.folder = folder
        self._lock = lock

    @staticmethod
    def exists(folder: Path) -> bool:
        """Tell whether there is a profile, or what is left of one whose device was revoked."""
        return (folder / VAULT_FILE_NAME).exists() or (folder / REVOKED_FILE_NAME).exists()

    @classmethod
    def open(cls, folder: Path) -> Profile:
        """Open an existing profile.

        Raises:
            ProfileMissingError: there is none.
            ProfileInUseError: another process, or this one, has it open.
            StoreError: the folder cannot be used.
        """
        with _refusals_told(folder):
            if not cls.exists(folder):
                raise ProfileMissingError(str(folder))
            return cls(folder, _lock(folder))

    @classmethod
    def create(cls, folder: Path) -> Profile:
        """Make a new profile folder and open it.

        Raises:
            ProfileExistsError: there is one already.
            ProfileInUseError: another process is making one here.
            StoreError: the folder cannot be made or used.
        """
        with _refusals_told(folder):
            if (folder / VAULT_FILE_NAME).exists():
                raise ProfileExistsError(str(folder))
            make_private_folder(folder)
            folder.chmod(0o700)
            profile = cls(folder, _lock(folder))
            # A device that was revoked has nothing left here; a new one may take its place.
            (folder / REVOKED_FILE_NAME).unlink(missing_ok=True)
            return profile

    def reopened(self) -> Profile:
        """Open this profile again after it was closed."""
        return Profile.open(self.folder)

    @property
    def vault_path(self) -> Path:
        """The file of sealed records."""
        return self.folder / VAULT_FILE_NAME

    def space_folder(self, space: SpaceId) -> Path:
        """Return the folder of a space's replica, made if it is not there."""
        folder = self.folder / SPACES_FOLDER_NAME / space.hex()
        make_private_folder(folder)
        return folder

    @property
    def is_revoked(self) -> bool:
        """Tell whether this device was revoked, so that nothing of it is left but the mark."""
        return (self.folder / REVOKED_FILE_NAME).exists()

    def mark_revoked(self, mark: bytes) -> None:
        """Note durably that this device was revoked; the first note stays."""
        if not self.is_revoked:
            write_private(self.folder / REVOKED_FILE_NAME, mark)

    def erase_data(self) -> None:
        """Delete the sealed records and the replicas, and drafts of the StoreKey's file."""
        for pattern in (f"{VAULT_FILE_NAME}*", f"{STORE_KEY_FILE_NAME}.*"):
            for path in self.folder.glob(pattern):
                destroy_file(path)
        shutil.rmtree(self.folder / SPACES_FOLDER_NAME, ignore_errors=True)

    def erase_space(self, space: SpaceId) -> None:
        """Delete the folder of a space's replica; it is fine if there is none."""
        shutil.rmtree(self.folder / SPACES_FOLDER_NAME / space.hex(), ignore_errors=True)

    def erase(self) -> None:
        """Close the profile and delete what this SDK keeps in its folder, and nothing else that may lie there."""
        self.erase_data()
        for name in (STORE_KEY_FILE_NAME, LOCK_FILE_NAME, REVOKED_FILE_NAME):
            (self.folder / name).unlink(missing_ok=True)
        self.close()
        with contextlib.suppress(OSError):
            self.folder.rmdir()

    def close(self) -> None:
        """Give the profile free for others."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1


@contextlib.contextmanager
def _refusals_told(folder: Path) -> Iterator[None]:
    """Turn what the system refuses into an error that names the folder."""
    try:
        yield
    except OSError as exc:
        raise StoreError(f"the profile's folder {folder}: {exc.strerror}") from exc


def _lock(folder: Path) -> int:
    path = folder / LOCK_FILE_NAME
    make_private_file(path)
    descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        # A lock belongs to the open file, not to the process: a second opener in this process is refused as well.
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as exc:
        os.close(descriptor)
        raise ProfileInUseError(str(folder)) from exc
    return descriptor
