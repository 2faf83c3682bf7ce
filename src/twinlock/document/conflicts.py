"""The writes that concurrent writes overrode, still readable. See spec/documents.md, section 7."""

from __future__ import annotations

import msgspec

from twinlock.document.merge import State, Write, is_below
from twinlock.document.stamps import NEVER, Stamp, device_of, hlc_of
from twinlock.document.values import (
    Path,
    Value,
    canonical,
    copy_value,
    from_canonical,
    is_list_marker,
    keys_of,
    prefixes_of,
)
from twinlock.document.view import ABSENT, ELEMENT_PLACE, ELEMENT_VALUE, View, is_leaf
from twinlock.ids import DeviceId
from twinlock.protocol.clock import Hlc


class Conflict(msgspec.Struct, frozen=True):
    """A write that a concurrent write overrode, and whose value is still here.

    `added` tells that the value is an increment, or an element added to a set, that a concurrent replacement or
    deletion overrode, and not the whole value of the field.
    """

    path: tuple[str, ...]
    value: Value
    stamp: Hlc
    device: DeviceId
    added: bool = False


def conflicts_of(state: State) -> list[Conflict]:
    """Return the lost writes of a document, also of a deleted one, ordered by path and stamp."""
    if not (state.losers or state.counters or state.members) and len(state.writes) <= 1 and not state.clears:
        return []
    view = View(state)
    found = [*_losers(state), *_hidden(state, view), *_counted(state, view), *_added(state, view)]
    return sorted(found, key=_order)


def _order(conflict: Conflict) -> tuple[tuple[str, ...], Hlc, DeviceId, bytes]:
    return conflict.path, conflict.stamp, conflict.device, canonical(conflict.value)


def _conflict(state: State, path: Path, value: Value, stamp: Stamp, added: bool = False) -> Conflict:
    keys = keys_of(path)
    if len(keys) > 2 and keys[-1] == ELEMENT_VALUE and _in_list(state, path):
        keys = keys[:-1]
    return Conflict(keys, copy_value(value), hlc_of(stamp), device_of(stamp), added)


def _in_list(state: State, path: Path) -> bool:
    prefixes = prefixes_of(path)
    list_path = prefixes[-3] if len(prefixes) > 3 else ""
    found = (state.writes.get(list_path), state.losers.get(list_path))
    return any(write is not None and is_list_marker(write[1]) for write in found)


def _is_told(state: State, path: Path, value: Value) -> bool:
    """Markers and places of list elements are bookkeeping, not anyone's data."""
    return is_leaf(value) and not (path.endswith("\0" + ELEMENT_PLACE) and _in_list(state, path))


def _losers(state: State) -> list[Conflict]:
    return [
        _conflict(state, path, loser[1], loser[0])
        for path, loser in state.losers.items()
        if _is_told(state, path, loser[1]) and canonical(loser[1]) != canonical(state.writes[path][1])
    ]


def _hidden(state: State, view: View) -> list[Conflict]:
    """Return writes that a clear, a leaf above or objects below hide, and whose authors had not seen them."""
    parents = _parents(state)
    return [
        _conflict(state, path, write[1], write[0])
        for path, write in state.writes.items()
        if _is_told(state, path, write[1])
        and (_is_covered(state, view, path, write) or (path in parents and _is_outgrown(state, view, path, write[0])))
    ]


def _parents(state: State) -> set[Path]:
    return {
        prefix
        for facts in (state.writes, state.counters, state.members)
        for path in facts
        for prefix in prefixes_of(path)[1:-1]
    }


def _is_covered(state: State, view: View, path: Path, write: Write) -> bool:
    """Tell whether a clear or a leaf above hides a write, or a counter or a set at its own path, unseen."""
    if write[0] < view.limit(path):
        return _was_unseen(state, path, write[0])
    return view.is_overlaid(path, write)


def _is_outgrown(state: State, view: View, path: Path, stamp: Stamp) -> bool:
    """Tell whether newer fields below a leaf hide it, unseen.

    A counter or a set has no `saw`, but grows below a leaf only unseen: who sees the leaf writes a field.
    """
    if stamp < view.limit(path):
        return False
    facts = {*state.writes, *state.counters, *state.members}
    shown = [at for at in facts if at != path and is_below(at, path) and view.leaf(at) is not ABSENT]
    saws = [state.writes[at][2] for at in shown if at in state.writes and state.writes[at][0] >= stamp]
    return stamp > max(saws) if saws else bool(shown)


def _was_unseen(state: State, path: Path, stamp: Stamp) -> bool:
    """Tell whether a hidden fact was unknown to all that hide it; what a clear had seen is not here any more."""
    for prefix in prefixes_of(path)[:-1]:
        above = state.writes.get(prefix)
        if above is not None and is_leaf(above[1]) and stamp < above[0] and stamp <= above[2]:
            return False
    return True


def _counted(state: State, view: View) -> list[Conflict]:
    found = []
    for path, devices in state.counters.items():
        base = view.base(path)
        write = state.writes.get(path)
        saw = write[2] if write is not None and write[0] == base else NEVER
        for stamp, known_base, total in devices.values():
            if known_base < base and stamp > saw and _was_unseen(state, path, stamp):
                found.append(_conflict(state, path, total, stamp, added=True))
    return found


def _added(state: State, view: View) -> list[Conflict]:
    found = []
    for path, elements in state.members.items():
        shown = {canonical(element) for element, _ in view.elements(path)}
        limit = view.limit(path)
        write = state.writes.get(path)
        floor, saw = (write[0], write[2]) if write is not None and write[0] >= limit else (limit, NEVER)
        for key in elements.keys() - shown:
            for stamp, removed in elements[key].values():
                if not removed and stamp < floor and stamp > saw and _was_unseen(state, path, stamp):
                    found.append(_conflict(state, path, from_canonical(key), stamp, added=True))
    return found
