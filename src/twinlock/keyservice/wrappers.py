"""Which key wrapper a key service uses: its own root key file, or a key in OpenBao Transit."""

from __future__ import annotations

from pathlib import Path

from twinlock.errors import StoreError
from twinlock.keyservice import root_backup
from twinlock.keyservice.settings import FILE_WRAPPER, OPENBAO_WRAPPER, KeyServiceSettings
from twinlock.keyservice.wrapper import KeyWrapper
from twinlock.keyservice.wrapper_file import FileKeyWrapper

ROOT_KEY_FILE_NAME = "root.key"


def open_wrapper(settings: KeyServiceSettings, folder: Path, is_new: bool) -> KeyWrapper:
    """Open the wrapper of a key service; a root key is only ever made for a new database.

    Raises:
        StoreError: the root key is missing, damaged, of another kind, or others may read it.
        KeyServiceError: OpenBao does not answer.
    """
    if settings.wrapper == OPENBAO_WRAPPER:
        # Imported only where it is used: most key services need no HTTP client.
        from twinlock.keyservice.wrapper_openbao import OpenBaoKeyWrapper

        return OpenBaoKeyWrapper.open(settings, is_new)
    if settings.wrapper != FILE_WRAPPER:
        raise StoreError(f"wrapper {settings.wrapper!r} is not known: use {FILE_WRAPPER!r} or {OPENBAO_WRAPPER!r}")
    path, backup_path = root_key_path(settings, folder), folder / root_backup.FILE_NAME
    # A missing file beside a database that exists is an accident to be mended, not a reason to make another key.
    if is_new and not path.exists():
        return FileKeyWrapper.create(path, backup_path)
    return FileKeyWrapper.load(path, backup_path)


def root_key_path(settings: KeyServiceSettings, folder: Path) -> Path:
    """Return where the root key file of a key service lies."""
    return Path(settings.root_key_file or folder / ROOT_KEY_FILE_NAME)
