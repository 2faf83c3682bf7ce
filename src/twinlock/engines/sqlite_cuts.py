"""Where a space's log begins, and the deletion of what lies before it. All of it runs in the writer's thread."""

from __future__ import annotations

import sqlite3

import msgspec

from twinlock.contracts.log import SpaceState
from twinlock.engines.sqlite_pages import bytes_between, read_state
from twinlock.errors import CutRefusedError
from twinlock.ids import Seq, SpaceId

CLEAN_STEP_ENTRIES = 500
"""Entries deleted in one group, so that appends wait for a few milliseconds at most."""


class Start(msgspec.Struct, frozen=True):
    """`start` is the first seq delivered, `cleaned` the last one deleted, `bytes_before` what lay before the start."""

    start: int = 1
    cleaned: int = 0
    bytes_before: int = 0


def read_start(connection: sqlite3.Connection, space: SpaceId) -> Start:
    """Return where a space's log begins."""
    row = connection.execute("SELECT start, cleaned, bytes_before FROM starts WHERE space = ?", (space,)).fetchone()
    return Start() if row is None else Start(*row)


def cut(connection: sqlite3.Connection, space: SpaceId, upto: Seq, now_ms: int) -> SpaceState:
    """Move the start up and note when."""
    before, state = read_start(connection, space), read_state(connection, space)
    if upto > state.head:
        raise CutRefusedError(f"up to {upto}, and the head is {state.head}")
    if upto < before.start:
        return state
    total = before.bytes_before + bytes_between(connection, space, before.start, upto)
    _write_start(connection, space, Start(upto + 1, before.cleaned, total))
    connection.execute("INSERT INTO cuts VALUES (?, ?, ?)", (space, upto, now_ms))
    return read_state(connection, space)


def uncut(connection: sqlite3.Connection, space: SpaceId, upto: Seq) -> SpaceState:
    """Move the start down as far as the entries are still there."""
    before = read_start(connection, space)
    start = max(upto, before.cleaned) + 1
    if start < before.start:
        total = before.bytes_before - bytes_between(connection, space, start, before.start - 1)
        _write_start(connection, space, Start(start, before.cleaned, total))
        # What stays cut of the lowest cut undone was cut when that was.
        sql = "SELECT min(upto), cut_ms FROM cuts WHERE space = ? AND upto >= ?"
        _, cut_ms = connection.execute(sql, (space, start)).fetchone()
        connection.execute("DELETE FROM cuts WHERE space = ? AND upto >= ?", (space, start))
        if start > before.cleaned + 1:
            connection.execute("INSERT OR IGNORE INTO cuts VALUES (?, ?, ?)", (space, start - 1, cut_ms))
    return read_state(connection, space)


def begin_purge(connection: sqlite3.Connection, space: SpaceId) -> int:
    """Put the start behind the head, out of reach of any `uncut`; return the last seq that is to be deleted."""
    state, before = read_state(connection, space), read_start(connection, space)
    total = before.bytes_before + state.log_bytes
    _write_start(connection, space, Start(state.head + 1, state.head, total))
    connection.execute("DELETE FROM cuts WHERE space = ?", (space,))
    # Were the process to end before they are all deleted, the next `clean` would go on.
    connection.execute("INSERT INTO cuts VALUES (?, ?, 0)", (space, state.head))
    return state.head


def ripe_cuts(connection: sqlite3.Connection, cut_before_ms: int) -> list[tuple[SpaceId, int]]:
    """Return the cuts made before a time."""
    rows = connection.execute("SELECT space, upto FROM cuts WHERE cut_ms < ?", (cut_before_ms,))
    return [(SpaceId(space), upto) for space, upto in rows]


def clean_step(connection: sqlite3.Connection, space: SpaceId, upto: int) -> int | None:
    """Delete some entries of a cut; return how many, or None when the cut is done with (or was undone)."""
    known = connection.execute("SELECT 1 FROM cuts WHERE space = ? AND upto = ?", (space, upto)).fetchone()
    if known is None:
        return None
    sql = "SELECT max(seq), count(*) FROM (SELECT seq FROM log WHERE space = ? AND seq <= ? ORDER BY seq LIMIT ?)"
    last, count = connection.execute(sql, (space, upto, CLEAN_STEP_ENTRIES)).fetchone()
    before = read_start(connection, space)
    if count == 0:
        connection.execute("DELETE FROM cuts WHERE space = ? AND upto = ?", (space, upto))
        _write_start(connection, space, Start(before.start, max(before.cleaned, upto), before.bytes_before))
        return None
    connection.execute("DELETE FROM log WHERE space = ? AND seq <= ?", (space, last))
    connection.execute("UPDATE meta SET value = max(value, ?) WHERE name = 'seq_floor'", (last,))
    _write_start(connection, space, Start(before.start, max(before.cleaned, last), before.bytes_before))
    return int(count)


def _write_start(connection: sqlite3.Connection, space: SpaceId, start: Start) -> None:
    sql = "INSERT OR REPLACE INTO starts (space, start, cleaned, bytes_before) VALUES (?, ?, ?, ?)"
    connection.execute(sql, (space, start.start, start.cleaned, start.bytes_before))
