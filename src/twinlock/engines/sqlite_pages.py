"""What is read of a space's log.

A page comes back as one row, all its envelopes joined to one blob: `sqlite3` gives up the interpreter at every row
that it steps to, and beside a busy event loop each time costs a turn of waiting. `group_concat` joins blobs byte for
byte in a UTF-8 database (NULs too); the cast only gives the result back its type.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Collection, Iterator

from twinlock.contracts.log import DeviceHead, SpaceState
from twinlock.ids import ENVELOPE_ID_BYTES, ID_BYTES, Counter, DeviceId, EnvelopeId, Seq, SpaceId
from twinlock.protocol.envelope import ENVELOPE_BYTES_MIN, parse
from twinlock.protocol.frames import Entry

PAGE_ENTRIES_MAX = 8192
SEQ_MAX = (1 << 63) - 1

_SIZES = """
SELECT group_concat(size) FROM (
    SELECT length(envelope) AS size FROM log
    WHERE space = ?1 AND seq > max(?2, coalesce((SELECT start - 1 FROM starts WHERE space = ?1), 0))
    ORDER BY seq LIMIT ?3
)
"""
_PAGE = """
SELECT group_concat(seq), group_concat(received_ms), group_concat(length(envelope)),
    CAST(group_concat(envelope, '') AS BLOB)
FROM (
    SELECT seq, received_ms, envelope FROM log
    WHERE space = ?1 AND seq > max(?2, coalesce((SELECT start - 1 FROM starts WHERE space = ?1), 0))
    ORDER BY seq LIMIT ?3
)
"""
_STATE = """
SELECT group_concat(counter), CAST(group_concat(device, '') AS BLOB), CAST(group_concat(id, '') AS BLOB),
    coalesce(max(seq), 0), coalesce(sum(bytes), 0),
    coalesce((SELECT start FROM starts WHERE space = ?1), 1),
    coalesce((SELECT bytes_before FROM starts WHERE space = ?1), 0),
    coalesce((SELECT received_ms FROM log WHERE space = ?1 ORDER BY seq DESC LIMIT 1), 0)
FROM heads WHERE space = ?1
"""
_PLACES = """
SELECT space, coalesce((SELECT start FROM starts WHERE starts.space = heads.space), 1), max(seq)
FROM heads WHERE space > ? GROUP BY space ORDER BY space LIMIT ?
"""
# In an envelope's header the device stands at byte 24 and the counter at byte 40; SQL counts from 1.
_KNOWN = """
SELECT seq, envelope FROM log
WHERE space = ?1 AND seq <= (SELECT seq FROM heads WHERE space = ?1 AND device = ?2)
    AND substr(envelope, 25, 16) = ?2 AND substr(envelope, 41, 8) BETWEEN ?3 AND ?4
ORDER BY seq DESC LIMIT ?5
"""


def read_state(connection: sqlite3.Connection, space: SpaceId) -> SpaceState:
    """Return a space's state, in time that grows with its devices and not with its log."""
    row = connection.execute(_STATE, (space,)).fetchone()
    counters, devices, ids, head, log_bytes, start, bytes_before, received_ms = row
    heads = {}
    for place, counter in enumerate(_integers(counters)):
        device = DeviceId(devices[place * ID_BYTES : (place + 1) * ID_BYTES])
        identifier = EnvelopeId(ids[place * ENVELOPE_ID_BYTES : (place + 1) * ENVELOPE_ID_BYTES])
        heads[device] = DeviceHead(Counter(counter), identifier)
    return SpaceState(Seq(start), Seq(head), log_bytes - bytes_before, heads, received_ms)


def read_page(connection: sqlite3.Connection, space: SpaceId, after: int, bytes_max: int) -> list[Entry]:
    """Return entries after a seq, at least one if there is any, about `bytes_max` of envelopes in all."""
    after = max(0, min(after, SEQ_MAX))
    limit = min(max(bytes_max, 0) // ENVELOPE_BYTES_MIN + 1, PAGE_ENTRIES_MAX)
    (sizes,) = connection.execute(_SIZES, (space, after, limit)).fetchone()
    count = _count_within(_integers(sizes), bytes_max)
    if count == 0:
        return []
    seqs, times, lengths, joined = connection.execute(_PAGE, (space, after, count)).fetchone()
    entries, offset = [], 0
    for seq, received_ms, length in zip(_integers(seqs), _integers(times), _integers(lengths), strict=True):
        entries.append(Entry(Seq(seq), received_ms, joined[offset : offset + length]))
        offset += length
    return entries


def find_known(
    connection: sqlite3.Connection, space: SpaceId, device: DeviceId, counters: Collection[Counter]
) -> dict[Counter, tuple[EnvelopeId, Seq]]:
    """Return id and seq of a device's stored envelopes with these counters; those cleaned away are missing.

    A repeated envelope is nearly always among its device's last, so the search goes back from the device's head
    until it has met them all. An index of all counters would cost every append.
    """
    lowest, highest = (counter.to_bytes(8, "big") for counter in (min(counters), max(counters)))
    found = {}
    for seq, data in connection.execute(_KNOWN, (space, device, lowest, highest, max(counters) - min(counters) + 1)):
        envelope = parse(data)
        found[envelope.header.counter] = (envelope.id, Seq(seq))
    return found


def bytes_between(connection: sqlite3.Connection, space: SpaceId, first: int, last: int) -> int:
    """Return the envelope bytes from one seq to another, both included."""
    sql = "SELECT coalesce(sum(length(envelope)), 0) FROM log WHERE space = ? AND seq BETWEEN ? AND ?"
    (total,) = connection.execute(sql, (space, first, last)).fetchone()
    return int(total)


def read_spaces(connection: sqlite3.Connection, after: SpaceId, count_max: int) -> list[SpaceId]:
    """Return spaces above an id that anything was ever appended to, sorted."""
    found: list[SpaceId] = []
    while len(found) < count_max:
        # One step down the primary key for each space, however many devices wrote to it.
        row = connection.execute("SELECT min(space) FROM heads WHERE space > ?", (after,)).fetchone()
        if row[0] is None:
            break
        after = SpaceId(row[0])
        found.append(after)
    return found


def read_places(connection: sqlite3.Connection, after: SpaceId, count_max: int) -> list[tuple[SpaceId, Seq, Seq]]:
    """Return start and head of the spaces above an id, sorted, in one query."""
    rows = connection.execute(_PLACES, (after, count_max))
    return [(SpaceId(space), Seq(start), Seq(head)) for space, start, head in rows]


def _integers(joined: str | None) -> Iterator[int]:
    return map(int, joined.split(",")) if joined else iter(())


def _count_within(sizes: Iterator[int], bytes_max: int) -> int:
    total = count = 0
    for size in sizes:
        total += size
        if count and total > bytes_max:
            break
        count += 1
    return count
