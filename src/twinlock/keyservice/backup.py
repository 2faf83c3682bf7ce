"""Backups of a key service, and their way back. See docs/reference/keyservice.md.

A backup holds the database and the sealed root key if it was split. It holds neither the root key nor the deny list:
whoever finds a backup has no key, and no backup brings a shredded space back.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import msgspec

from twinlock.errors import StoreError
from twinlock.keyservice import root_backup
from twinlock.keyservice.database import meta, reading
from twinlock.keyservice.deny_list import DenyList
from twinlock.keyservice.ledger import LedgerReport
from twinlock.keyservice.private_file import sync_folder, write_new
from twinlock.keyservice.service import DATABASE_NAME, DENY_LIST_NAME, LocalKeyService
from twinlock.keyservice.settings import KeyServiceSettings
from twinlock.keyservice.wrapper import KeyWrapper
from twinlock.keyservice.wrapper_file import FileKeyWrapper
from twinlock.keyservice.wrappers import ROOT_KEY_FILE_NAME

MANIFEST_NAME = "backup.json"
FORMAT = 1
_COUNTED = {"entries_count": "entries", "keys_count": "keys", "ledger_records_count": "ledger"}


class Manifest(msgspec.Struct, frozen=True):
    """What a backup held when it was made: to notice what is missing later. `ledger_head` is in hex."""

    made_ms: int
    keyservice_id: str
    entries_count: int
    keys_count: int
    ledger_records_count: int
    ledger_head: str
    format: int = FORMAT


class Restored(msgspec.Struct, frozen=True):
    """What a restore brought back; `purged_count` keys of denied spaces were in the backup and are deleted.

    `missing` names what the backup held when it was made and holds no longer; without a manifest, as in a copy that
    another tool made, that cannot be known.
    """

    manifest: Manifest | None
    missing: list[str]
    denied_count: int
    purged_count: int
    ledger: LedgerReport


def back_up(folder: Path, to: Path, now_ms: int) -> Manifest:
    """Copy a key service's database as it is at this moment, also while it is at work, into a new folder.

    Raises:
        StoreError: there is no key service, or the new folder exists or cannot be written.
    """
    with _new_folder(to) as draft:
        manifest = _copy_database(folder, draft, now_ms)
        sealed = folder / root_backup.FILE_NAME
        if sealed.exists():
            root_backup.read_root_backup(sealed)
            write_new(draft / root_backup.FILE_NAME, sealed.read_bytes())
        write_new(draft / MANIFEST_NAME, msgspec.json.format(msgspec.json.encode(manifest), indent=1) + b"\n")
    return manifest


async def restore(
    backup: Path, to: Path, wrapper: KeyWrapper, deny_list: Path | None, settings: KeyServiceSettings
) -> Restored:
    """Make a key service's folder of a backup. What the deny list denies is deleted before the folder is there.

    A root key in memory is written beside the database, with its split backup if it has one. `deny_list` is None only
    where no space was ever shredded, or where the list is lost and what that means was accepted.

    Raises:
        StoreError: the folder exists; the backup, the root key or the list cannot be used, or do not fit together.
        KeyServiceError: what holds the root key does not answer.
    """
    with _new_folder(to) as draft:
        restored = await restore_database(backup, draft, wrapper, deny_list, settings)
        if isinstance(wrapper, FileKeyWrapper):
            wrapper.save(draft / ROOT_KEY_FILE_NAME, draft / root_backup.FILE_NAME)
    return restored


async def restore_database(
    backup: Path, to: Path, wrapper: KeyWrapper, deny_list: Path | None, settings: KeyServiceSettings
) -> Restored:
    """Do what `restore` does but for the root key, which is not written anywhere, into a folder that exists.

    Raises:
        StoreError, KeyServiceError: as there.
    """
    manifest = read_manifest(backup)
    present = _copy_database(backup, to, now_ms=0)
    if manifest is not None and present.keyservice_id != manifest.keyservice_id:
        raise StoreError(f"{MANIFEST_NAME} is that of another backup")
    _copy_deny_list(deny_list, to)
    # The service itself applies the list when it is opened, before it answers anybody.
    here = msgspec.structs.replace(settings, deny_list_file="", root_key_file="")
    keys = LocalKeyService.open(to, here, wrapper)
    try:
        ledger = await keys.verify_ledger()
    finally:
        await keys.close()
    with reading(to / DATABASE_NAME) as connection:
        (left,) = connection.execute("SELECT count(*) FROM keys").fetchone()
        (denied,) = connection.execute("SELECT count(*) FROM denied").fetchone()
    return Restored(manifest, _missing(manifest, present), denied, present.keys_count - left, ledger)


def read_manifest(backup: Path) -> Manifest | None:
    """Read what a backup says of itself; None of one that another tool made.

    Raises:
        StoreError: it cannot be read, or is of a newer version.
    """
    try:
        manifest = msgspec.json.decode((backup / MANIFEST_NAME).read_bytes(), type=Manifest)
    except FileNotFoundError:
        return None
    except OSError as exc:
        raise StoreError(f"{MANIFEST_NAME} of {backup.name} cannot be read: {exc.strerror}") from exc
    except (msgspec.MsgspecError, ValueError) as exc:
        raise StoreError(f"{MANIFEST_NAME} of {backup.name} is damaged") from exc
    if manifest.format != FORMAT:
        raise StoreError(f"{backup.name} is of format {manifest.format}, this version knows {FORMAT}")
    return manifest


def _copy_database(folder: Path, to: Path, now_ms: int) -> Manifest:
    path = to / DATABASE_NAME
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        with reading(folder / DATABASE_NAME) as source, closing(sqlite3.connect(path, isolation_level=None)) as target:
            source.backup(target)
            # One file, with nothing beside it that could be left behind.
            target.execute("PRAGMA journal_mode = DELETE")
            manifest = _manifest(target, now_ms)
        _sync_file(path)
    except (OSError, sqlite3.Error) as exc:
        raise StoreError(f"{path.name} cannot be copied: {exc}") from exc
    return manifest


def _manifest(connection: sqlite3.Connection, now_ms: int) -> Manifest:
    counts = {
        name: connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0]  # noqa: S608 - names of our own
        for name, table in _COUNTED.items()
    }
    newest = connection.execute("SELECT CAST(hash AS BLOB) FROM ledger ORDER BY n DESC LIMIT 1").fetchone()
    head = "" if newest is None else bytes(newest[0]).hex()
    return Manifest(now_ms, meta(connection, "keyservice_id").hex(), **counts, ledger_head=head)


def _missing(manifest: Manifest | None, present: Manifest) -> list[str]:
    if manifest is None:
        return []
    found = []
    for name, table in _COUNTED.items():
        then, now = getattr(manifest, name), getattr(present, name)
        if then != now:
            found.append(f"the backup was made with {then} rows of {table} and has {now}")
    if not found and manifest.ledger_head != present.ledger_head:
        found.append("the newest record of the ledger is not the one that the backup was made with")
    return found


def _copy_deny_list(deny_list: Path | None, to: Path) -> None:
    if deny_list is not None and not deny_list.is_file():
        raise StoreError(f"there is no deny list {deny_list.name}")
    path = to / DENY_LIST_NAME
    try:
        write_new(path, b"" if deny_list is None else deny_list.read_bytes())
    except OSError as exc:
        raise StoreError(f"the deny list cannot be copied: {exc}") from exc
    # Read once, so that a list that is damaged is named as such.
    DenyList(path)


@contextmanager
def _new_folder(to: Path) -> Iterator[Path]:
    """Give a folder beside the wanted one, which takes its place if all went well and is removed if not."""
    draft = to.with_name(to.name + ".new")
    try:
        if to.exists() and (not to.is_dir() or any(to.iterdir())):
            raise StoreError(f"{to.name} exists already: name a folder that does not")
        to.parent.mkdir(parents=True, exist_ok=True)
        draft.mkdir(mode=0o700)
    except FileExistsError as exc:
        raise StoreError(f"{draft.name} is left over from an attempt that was cut short: remove it first") from exc
    except OSError as exc:
        raise StoreError(f"{to.name} cannot be made: {exc.strerror}") from exc
    try:
        yield draft
        sync_folder(draft)
        draft.rename(to)
        sync_folder(to.parent)
    except BaseException as exc:
        shutil.rmtree(draft, ignore_errors=True)
        if isinstance(exc, OSError):
            raise StoreError(f"{to.name} cannot be written: {exc.strerror}") from exc
        raise


def _sync_file(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
