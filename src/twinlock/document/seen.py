"""What a device has seen when it writes: the stamps that go into `saw`. See spec/documents.md, section 3."""

from __future__ import annotations

from twinlock.document.merge import State, is_below
from twinlock.document.stamps import NEVER, Stamp
from twinlock.document.values import Path, prefixes_of


def newest_at(state: State, path: Path) -> Stamp:
    """Return the newest stamp of what a write to `path` replaces: the field, and leaves above it."""
    newest = NEVER
    for prefix in prefixes_of(path):
        write = state.writes.get(prefix)
        if write is not None and write[0] > newest:
            newest = write[0]
    loser = state.losers.get(path)
    if loser is not None:
        newest = max(newest, loser[0])
    if path in state.counters or path in state.members:
        newest = max(newest, *_counted_stamps(state, path), *_member_stamps(state, path), NEVER)
    return newest


def newest_below(state: State, path: Path) -> Stamp:
    """Return the newest stamp of what a clear of `path` takes away, what earlier clears had seen included."""
    newest = NEVER
    for at, (_, saw) in state.clears.items():
        if saw > newest and is_below(at, path):
            newest = saw
    for writes in (state.writes, state.losers):
        for at, write in writes.items():
            if write[0] > newest and is_below(at, path):
                newest = write[0]
    for at in {*state.counters, *state.members}:
        if is_below(at, path):
            newest = max(newest, *_counted_stamps(state, at), *_member_stamps(state, at), NEVER)
    return newest


def _counted_stamps(state: State, path: Path) -> list[Stamp]:
    return [total[0] for total in state.counters.get(path, {}).values()]


def _member_stamps(state: State, path: Path) -> list[Stamp]:
    return [stamp for devices in state.members.get(path, {}).values() for stamp, _ in devices.values()]
