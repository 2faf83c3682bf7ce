"""What a server's data folder tells of itself: metadata only, since more than that it does not have."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import msgspec

LOG_TABLES = {"log", "heads", "starts"}


class SpaceFacts(msgspec.Struct, frozen=True):
    """One space as the server knows it."""

    space: str
    entries: int
    size: int
    start: int
    head: int
    devices: int


def database_in(folder: Path) -> Path | None:
    """Return the engine's database file in a folder, None if there is none."""
    for path in sorted(folder.glob("*.db")):
        connection = open_read_only(path)
        try:
            names = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        except sqlite3.DatabaseError:
            names = set()
        finally:
            connection.close()
        if names >= LOG_TABLES:
            return path
    return None


def space_facts(database: Path) -> list[SpaceFacts]:
    """Return what the database holds of each space, the largest first."""
    connection = open_read_only(database)
    try:
        rows = connection.execute(
            "SELECT h.space, count(l.seq), coalesce(sum(length(l.envelope)), 0), coalesce(min(l.seq), 0),"
            " h.head, h.devices FROM (SELECT space, max(seq) AS head, count(*) AS devices FROM heads GROUP BY space) h"
            " LEFT JOIN log l ON l.space = h.space"
            " AND l.seq >= coalesce((SELECT start FROM starts WHERE space = h.space), 0)"
            " GROUP BY h.space ORDER BY 3 DESC"
        ).fetchall()
    finally:
        connection.close()
    return [SpaceFacts(bytes(row[0]).hex(), *row[1:]) for row in rows]


def open_read_only(path: Path) -> sqlite3.Connection:
    """Open a database that a running server may have open as well."""
    return sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)
