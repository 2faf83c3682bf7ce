"""The key service's own file: wrapped keys, the bytes of all signed logs, the ledger. Nothing of the server's."""

from __future__ import annotations

import fcntl
import os
import sqlite3
from pathlib import Path

from twinlock.errors import StoreError, UpdateNeededError

SCHEMA_VERSION = 1
_SCHEMA = """
CREATE TABLE meta (name TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE entries (
    log BLOB NOT NULL, seq INTEGER NOT NULL, body BLOB NOT NULL, sig BLOB NOT NULL, PRIMARY KEY (log, seq)
) WITHOUT ROWID;
CREATE TABLE keys (
    space BLOB NOT NULL, epoch INTEGER NOT NULL, wrapped BLOB NOT NULL, PRIMARY KEY (space, epoch)
) WITHOUT ROWID;
CREATE TABLE pending (
    id INTEGER PRIMARY KEY, space BLOB NOT NULL, epoch INTEGER NOT NULL, account BLOB NOT NULL,
    b_commit BLOB NOT NULL, wrapped BLOB NOT NULL, created_ms INTEGER NOT NULL
);
CREATE INDEX pending_by_space ON pending (space, epoch, account);
CREATE TABLE nonces (
    device BLOB NOT NULL, nonce BLOB NOT NULL, expires_ms INTEGER NOT NULL, PRIMARY KEY (device, nonce)
) WITHOUT ROWID;
CREATE INDEX nonces_by_expiry ON nonces (expires_ms);
CREATE TABLE ledger (n INTEGER PRIMARY KEY, record BLOB NOT NULL, hash BLOB NOT NULL);
INSERT INTO meta VALUES ('keyservice_id', randomblob(16));
"""


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


def open_database(path: Path) -> tuple[sqlite3.Connection, bool]:
    """Open or create the database, readable by its owner alone; the flag tells that it is new.

    A new one is left in an open transaction, so that it comes into being together with what else belongs to it.

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
        return connection, _prepare(connection)
    except sqlite3.Error as exc:
        connection.close()
        raise StoreError(f"{path.name}: {exc}") from exc
    except UpdateNeededError:
        connection.close()
        raise


def meta(connection: sqlite3.Connection, name: str) -> bytes:
    """Return a value that is there since the database was made."""
    (value,) = connection.execute("SELECT value FROM meta WHERE name = ?", (name,)).fetchone()
    return bytes(value)


def _prepare(connection: sqlite3.Connection) -> bool:
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("PRAGMA foreign_keys = ON")
    connection.execute("PRAGMA secure_delete = ON")
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version > SCHEMA_VERSION:
        raise UpdateNeededError(f"the key service's database has schema {version}, this version knows {SCHEMA_VERSION}")
    if version == SCHEMA_VERSION:
        return False
    connection.execute("BEGIN IMMEDIATE")
    for statement in filter(str.strip, _SCHEMA.split(";")):
        connection.execute(statement)
    connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
    return True
