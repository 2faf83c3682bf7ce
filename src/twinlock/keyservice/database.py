"""The key service's own file: wrapped keys, the bytes of all signed logs, the ledger. Nothing of the server's."""

from __future__ import annotations

import fcntl
import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import msgspec

from twinlock.errors import StoreError, UpdateNeededError

SCHEMA_VERSION = 2
BUSY_TIMEOUT_MS = 5_000
_SCHEMA = """
CREATE TABLE meta (name TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE entries (
    log BLOB NOT NULL, seq INTEGER NOT NULL, body BLOB NOT NULL, sig BLOB NOT NULL, PRIMARY KEY (log, seq)
) WITHOUT ROWID;
CREATE TABLE keys (
    space BLOB NOT NULL, epoch INTEGER NOT NULL, wrapped BLOB NOT NULL, root_version INTEGER NOT NULL,
    PRIMARY KEY (space, epoch)
) WITHOUT ROWID;
CREATE TABLE pending (
    id INTEGER PRIMARY KEY, space BLOB NOT NULL, epoch INTEGER NOT NULL, account BLOB NOT NULL,
    b_commit BLOB NOT NULL, wrapped BLOB NOT NULL, created_ms INTEGER NOT NULL, root_version INTEGER NOT NULL
);
CREATE INDEX pending_by_space ON pending (space, epoch, account);
CREATE TABLE nonces (
    device BLOB NOT NULL, nonce BLOB NOT NULL, expires_ms INTEGER NOT NULL, PRIMARY KEY (device, nonce)
) WITHOUT ROWID;
CREATE INDEX nonces_by_expiry ON nonces (expires_ms);
CREATE TABLE ledger (n INTEGER PRIMARY KEY, record BLOB NOT NULL, hash BLOB NOT NULL);
INSERT INTO meta VALUES ('keyservice_id', randomblob(16));
"""
# Version 1 did not note which version of the root key wrapped a row: 0 has each of them wrapped anew once.
_FROM_VERSION_1 = """
ALTER TABLE keys ADD COLUMN root_version INTEGER NOT NULL DEFAULT 0;
ALTER TABLE pending ADD COLUMN root_version INTEGER NOT NULL DEFAULT 0;
"""
_SINCE_VERSION_2 = """
CREATE INDEX keys_by_root_version ON keys (root_version);
CREATE INDEX pending_by_root_version ON pending (root_version);
CREATE TABLE root_versions (
    version INTEGER PRIMARY KEY, made_ms INTEGER NOT NULL,
    retired_ms INTEGER NOT NULL DEFAULT 0, destroyed_ms INTEGER NOT NULL DEFAULT 0
);
CREATE TABLE denied (space BLOB PRIMARY KEY) WITHOUT ROWID;
"""


class Opened(msgspec.Struct, frozen=True):
    """An open database, in a transaction that the caller commits; `before` is the schema it had, 0 for a new one."""

    connection: sqlite3.Connection
    before: int


def lock_database(path: Path) -> int:
    """Make sure that no other process serves this database; return the descriptor that holds the lock.

    Raises:
        StoreError: another process has it open.
    """
    descriptor = os.open(path.with_name(path.name + ".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as exc:
        os.close(descriptor)
        raise StoreError(f"another key service has {path.name} open; stop it first") from exc
    return descriptor


def open_database(path: Path) -> Opened:
    """Open or create the database, readable by its owner alone.

    It is left in an open transaction, so that it comes into being together with what else belongs to it.

    Raises:
        StoreError: it cannot be opened, or is no database of a key service.
        UpdateNeededError: a newer version of Twinlock wrote it.
    """
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    except (OSError, sqlite3.Error) as exc:
        raise StoreError(f"{path.name}: {exc}") from exc
    try:
        return Opened(connection, _prepare(connection))
    except sqlite3.Error as exc:
        connection.close()
        raise StoreError(f"{path.name}: {exc}") from exc
    except UpdateNeededError:
        connection.close()
        raise


@contextmanager
def reading(path: Path) -> Iterator[sqlite3.Connection]:
    """Open a database or a backup of one for reading, as it is at this moment, whoever writes meanwhile.

    Raises:
        StoreError: there is none, or it is damaged or of another version.
    """
    if not path.exists():
        raise StoreError(f"there is no key service in {path.parent.name}, nor a backup of one")
    try:
        with closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True, isolation_level=None)) as database:
            (version,) = database.execute("PRAGMA user_version").fetchone()
            if not 0 < version <= SCHEMA_VERSION:
                raise StoreError(f"{path.name} is of another version, or no key service's")
            database.execute("BEGIN")
            yield database
    except sqlite3.Error as exc:
        raise StoreError(f"{path.name}: {exc}") from exc


def meta(connection: sqlite3.Connection, name: str) -> bytes:
    """Return a value that is there since the database was made."""
    (value,) = connection.execute("SELECT value FROM meta WHERE name = ?", (name,)).fetchone()
    return bytes(value)


def truncate_journal(connection: sqlite3.Connection) -> bool:
    """Bring everything into the database itself and empty the write-ahead log; return whether nobody was in the way."""
    # Whoever waits for a lease does not wait for a reader.
    connection.execute("PRAGMA busy_timeout = 0")
    try:
        (is_busy, _, _) = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
    finally:
        connection.execute(f"PRAGMA busy_timeout = {BUSY_TIMEOUT_MS}")
    return not is_busy


def _prepare(connection: sqlite3.Connection) -> int:
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("PRAGMA foreign_keys = ON")
    connection.execute("PRAGMA secure_delete = ON")
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version > SCHEMA_VERSION:
        raise UpdateNeededError(f"the key service's database has schema {version}, this version knows {SCHEMA_VERSION}")
    connection.execute("BEGIN IMMEDIATE")
    if version < SCHEMA_VERSION:
        script = (_SCHEMA if version == 0 else _FROM_VERSION_1) + _SINCE_VERSION_2
        for statement in filter(str.strip, script.split(";")):
            connection.execute(statement)
        connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
    return int(version)
