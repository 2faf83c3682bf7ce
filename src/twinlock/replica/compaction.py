"""The rule by which devices bound the log: what to pack, how far to cut. See spec/sealing.md, section 5.

Pure functions over numbers, so that the simulator's model and the replica follow one and the same rule.

`base_seq` of a document is the oldest entry still needed to rebuild it. A snapshot moves it forward, as far as this
device can prove that the snapshot holds everything before. `holes` are entries that this device could not open for a
reason that may differ between readers: it does not know what they change. A device packs only while it has no hole and
has reached the head that `attached` told, so that what it packs is complete up to its cursor.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from twinlock.ids import Seq

LOG_BYTES_MIN = 1 << 20
"""A log up to this size is left alone."""

LIVE_FACTOR = 2
"""A log is compacted when it is larger than this many times the live data."""

PACK_BYTES = 512 << 10
"""About how much merge state goes into one pack."""

JITTER_MS_MAX = 30_000
"""Devices wait up to this long before they begin, so that they do not all do the same work."""


class Progress(msgspec.Struct, frozen=True, gc=False):
    """What this device has read of the log: all of [read_from, cursor], but for the holes (ascending)."""

    read_from: Seq
    cursor: Seq
    holes: Sequence[Seq] = ()

    def has_read(self, after: Seq, before: Seq) -> bool:
        """Tell whether every entry between two seqs (both excluded) was read and merged."""
        if after + 1 < self.read_from or before > self.cursor + 1:
            return False
        return not any(after < hole < before for hole in self.holes)


def base_after_change(base_seq: Seq, seq: Seq) -> Seq:
    """Return a document's base_seq after a change at `seq`; `base_seq` 0 means that nothing was known of it."""
    return min(base_seq, seq) if base_seq else seq


def base_after_snapshot(base_seq: Seq, last_seq: Seq, as_of: Seq, seq: Seq, progress: Progress) -> Seq:
    """Return a document's base_seq after a snapshot at `seq` that holds it whole.

    Args:
        base_seq: what it was (0: nothing was known of the document).
        last_seq: the newest change of the document that this device knows.
        as_of: up to where the snapshot's author had read.
        seq: where the snapshot stands.
        progress: what this device has read, before the snapshot.
    """
    if last_seq <= as_of and progress.has_read(as_of, seq):
        return seq
    if base_seq > seq:
        # Known so far only by an own change that was acknowledged ahead of the cursor: what it says of the start of
        # this document is worth nothing beside a snapshot that was written earlier.
        return Seq(as_of + 1)
    # Something between as_of and the snapshot may be missing from it, so it is needed from there on.
    return max(base_seq, Seq(as_of + 1))


def cut_upto(as_of: Seq, lowest_base_seq: Seq | None, progress: Progress) -> Seq:
    """Return how far the log may be cut after a pack of `as_of` was read back."""
    limits = [as_of, *(hole - 1 for hole in progress.holes)]
    if lowest_base_seq is not None:
        limits.append(Seq(lowest_base_seq - 1))
    return Seq(max(0, min(limits)))


def is_due(
    log_bytes: int, live_bytes: int, newest_retired_seq: Seq, start: Seq, log_bytes_min: int = LOG_BYTES_MIN
) -> bool:
    """Tell whether the log is worth compacting: long beyond its contents, or holding entries of a retired epoch."""
    if newest_retired_seq >= start:
        return True
    return log_bytes > log_bytes_min and log_bytes > LIVE_FACTOR * live_bytes
