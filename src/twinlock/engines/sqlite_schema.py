"""The SQLite engine's file: its tables, how it is opened, and that only one process writes it."""

from __future__ import annotations

import fcntl
import os
import sqlite3
from pathlib import Path

from twinlock.contracts.moving import MOVING_KEY, refuse_moved
from twinlock.errors import StoreError, UpdateNeededError
from twinlock.ids import Incarnation

SCHEMA_VERSION = 1
NO_LOCK = -1
"""In place of the lock of a database that is only read."""

WAL_PAGES_MAX = 4000
WAL_WAIT_MS = 50
"""How long a start waits for those who read the write-ahead log; it grows on then, and nothing else is different."""

WAL_ROOM_BYTES = 16 << 20
"""Room for those pages, written once at the start: to sync a file that grows costs twice as much."""

# `seq` is the rowid, so that an entry is appended at the end of its table and the index on the space alone is
# sorted by (space, seq). `bytes` of a head counts all that its device ever appended: with it the size of a log is
# known without reading the log, and an append touches no row that it would not touch anyhow.
_SCHEMA = """
CREATE TABLE meta (name TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE log (
    seq INTEGER PRIMARY KEY, space BLOB NOT NULL, received_ms INTEGER NOT NULL, envelope BLOB NOT NULL
);
CREATE INDEX log_by_space ON log (space);
CREATE TABLE heads (
    space BLOB NOT NULL, device BLOB NOT NULL, counter INTEGER NOT NULL, id BLOB NOT NULL,
    seq INTEGER NOT NULL, bytes INTEGER NOT NULL, PRIMARY KEY (space, device)
) WITHOUT ROWID;
CREATE TABLE starts (
    space BLOB PRIMARY KEY, start INTEGER NOT NULL, cleaned INTEGER NOT NULL, bytes_before INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE cuts (
    space BLOB NOT NULL, upto INTEGER NOT NULL, cut_ms INTEGER NOT NULL, PRIMARY KEY (space, upto)
) WITHOUT ROWID;
CREATE TABLE records (key TEXT PRIMARY KEY, value BLOB NOT NULL, revision INTEGER NOT NULL);
INSERT INTO meta VALUES ('incarnation', randomblob(16)), ('seq_floor', 0), ('revision_floor', 0);
"""


def lock_file(path: Path) -> int:
    """Make sure that no other process writes this database; return the descriptor that holds the lock.

    Raises:
        StoreError: another process holds it.
    """
    descriptor = os.open(path.with_name(path.name + ".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as exc:
        os.close(descriptor)
        raise StoreError(f"another process has {path.name} open for writing; stop it first") from exc
    return descriptor


def open_for_writing(path: Path) -> sqlite3.Connection:
    """Open or create the database, readable by its owner alone; give it a random incarnation when it is new.

    Raises:
        StoreError: it cannot be opened, or is no database of this engine.
        UpdateNeededError: a newer version of Twinlock wrote it.
    """
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False, cached_statements=256)
    except (OSError, sqlite3.Error) as exc:
        raise StoreError(f"{path.name}: {exc}") from exc
    try:
        _prepare(connection)
        _make_room(path)
    except (OSError, sqlite3.Error) as exc:
        connection.close()
        raise StoreError(f"{path.name}: {exc}") from exc
    except UpdateNeededError:
        connection.close()
        raise
    return connection


def open_for_reading(path: Path) -> sqlite3.Connection:
    """Open a connection that can only read; it may be used in any one thread at a time."""
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    connection.execute("PRAGMA query_only = ON")
    return connection


def open_beside(path: Path) -> sqlite3.Connection:
    """Open a connection to a database that another process may be serving: it reads, and leaves all files alone.

    Raises:
        StoreError: there is no such database.
        UpdateNeededError: a newer version of Twinlock wrote it.
    """
    try:
        connection = sqlite3.connect(
            f"{path.resolve().as_uri()}?mode=ro", uri=True, isolation_level=None, check_same_thread=False
        )
    except sqlite3.Error as exc:
        raise StoreError(f"{path.name}: {exc}") from exc
    try:
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        if version == 0:
            raise StoreError(f"{path.name} is no database of a server")
        _check_version(version)
    except sqlite3.Error as exc:
        connection.close()
        raise StoreError(f"{path.name}: {exc}") from exc
    except BaseException:
        connection.close()
        raise
    return connection


def refuse_if_moved(connection: sqlite3.Connection) -> None:
    """Refuse a database that was moved to another engine, or is not yet wholly here.

    Raises:
        StoreError: it bears the mark.
    """
    row = connection.execute("SELECT value FROM records WHERE key = ?", (MOVING_KEY,)).fetchone()
    if row is not None:
        refuse_moved(row[0])


def replace_incarnation(connection: sqlite3.Connection) -> Incarnation:
    """Begin another life of a database that was set back, durably; return its random id."""
    incarnation = Incarnation(os.urandom(16))
    connection.execute("UPDATE meta SET value = ? WHERE name = 'incarnation'", (incarnation,))
    return incarnation


def read_incarnation(connection: sqlite3.Connection) -> Incarnation:
    """Return the random id that the database was given when it was made."""
    (incarnation,) = connection.execute("SELECT value FROM meta WHERE name = 'incarnation'").fetchone()
    return Incarnation(incarnation)


def _prepare(connection: sqlite3.Connection) -> None:
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("PRAGMA foreign_keys = ON")
    connection.execute("PRAGMA cache_size = -32768")
    connection.execute(f"PRAGMA wal_autocheckpoint = {WAL_PAGES_MAX}")
    connection.execute("PRAGMA journal_size_limit = 67108864")
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    _check_version(version)
    if version == 0:
        connection.executescript(f"BEGIN IMMEDIATE; {_SCHEMA} PRAGMA user_version = {SCHEMA_VERSION}; COMMIT;")
    _empty_wal(connection)


def _empty_wal(connection: sqlite3.Connection) -> None:
    """Take what the write-ahead log has into the database, unless somebody reads it: Litestream always does."""
    (timeout_ms,) = connection.execute("PRAGMA busy_timeout").fetchone()
    connection.execute(f"PRAGMA busy_timeout = {WAL_WAIT_MS}")
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.execute(f"PRAGMA busy_timeout = {timeout_ms}")


def _check_version(version: int) -> None:
    if version > SCHEMA_VERSION:
        raise UpdateNeededError(f"the database has schema {version}, this version knows {SCHEMA_VERSION}")


def _make_room(path: Path) -> None:
    """Fill the empty write-ahead log with zeros, which are no valid frames: SQLite writes over them."""
    descriptor = os.open(path.with_name(path.name + "-wal"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        if os.fstat(descriptor).st_size == 0:
            for _ in range(WAL_ROOM_BYTES >> 20):
                os.write(descriptor, bytes(1 << 20))
            os.fsync(descriptor)
    finally:
        os.close(descriptor)
