"""The canonical bytes of a document's merge state. See spec/documents.md, section 5."""

from __future__ import annotations

from typing import Any, Final

import msgspec

from twinlock.document.merge import State
from twinlock.document.operations import check_leaf, check_path, check_total
from twinlock.document.stamps import NEVER, STAMP_BYTES, Stamp, is_stamp
from twinlock.document.values import ATOMS, PATH_SEPARATOR, Path, canonical, check_received
from twinlock.errors import InvalidDataError, UpdateNeededError

VERSION: Final = 1

Group = tuple[bytes, bytes, dict[str, Any]]


class _Stored(msgspec.Struct, array_like=True, frozen=True):
    version: int
    alive: bytes = b""
    writes: list[Group] = []
    clears: dict[str, tuple[bytes, bytes]] = {}
    losers: list[Group] = []
    counters: dict[str, list[tuple[bytes, bytes, int | float]]] = {}
    members: dict[str, list[tuple[Any, list[tuple[bytes, bool]]]]] = {}
    unknown: list[tuple[bytes, bytes]] = []


_encode = msgspec.msgpack.Encoder(order="sorted").encode
_decode = msgspec.msgpack.Decoder(_Stored).decode


def encode_state(state: State) -> bytes:
    """Return the bytes that are the same for every replica with the same changes."""
    writes = _grouped(state.writes)
    alive = NEVER if writes and writes[-1][0] == state.alive else state.alive
    parts: list[Any] = [VERSION, alive, writes, state.clears]
    if state.losers or state.counters or state.members or state.unknown:
        parts += [_grouped(state.losers), _counters(state), _members(state), sorted(state.unknown)]
    while not parts[-1]:
        parts.pop()
    return _encode(parts)


def _grouped(writes: dict[Path, Any]) -> list[Any]:
    """Gather the leaves of each edit, so that its stamp is written once."""
    groups: dict[tuple[bytes, bytes], dict[str, Any]] = {}
    for path, (stamp, value, saw) in writes.items():
        group = groups.get((stamp, saw))
        if group is None:
            groups[stamp, saw] = {path: value}
        else:
            group[path] = value
    return [(stamp, saw, groups[stamp, saw]) for stamp, saw in sorted(groups)]


def _counters(state: State) -> dict[str, Any]:
    return {path: [devices[device] for device in sorted(devices)] for path, devices in state.counters.items()}


def _members(state: State) -> dict[str, Any]:
    return {
        path: [
            (msgspec.Raw(element), [elements[element][device] for device in sorted(elements[element])])
            for element in sorted(elements)
        ]
        for path, elements in state.members.items()
    }


def decode_state(data: bytes) -> State:
    """Read a state, also one that another device wrote, into its normal form.

    Raises:
        InvalidDataError: it is not the state of a document.
        UpdateNeededError: a newer version wrote it.
    """
    try:
        stored = _decode(data)
        return _restore(stored)
    except (msgspec.DecodeError, ValueError, RecursionError, TypeError) as exc:
        raise InvalidDataError(f"a document's state that cannot be read: {exc}") from exc


def _restore(stored: _Stored) -> State:
    if stored.version != VERSION:
        raise UpdateNeededError(f"a document's state of version {stored.version}")
    state = State()
    for path, (newest, saw) in stored.clears.items():
        if path:
            check_path(path)
        _saw(newest)
        _saw(saw)
    state.restore_clears(stored.clears)  # type: ignore[arg-type]  # just checked to be stamps
    _restore_writes(state, stored.writes)
    if stored.alive:
        state.revive(_stamp(stored.alive))
    if stored.losers:
        _restore_writes(state, stored.losers)
    if stored.counters:
        _restore_counters(state, stored)
    if stored.members:
        _restore_members(state, stored)
    state.unknown.update((_stamp(stamp), operation) for stamp, operation in stored.unknown)
    return state


def _restore_writes(state: State, groups: list[Group]) -> None:
    writes = state.writes
    drops = any(saw for _, saw in state.clears.values())
    for stamp_bytes, saw_bytes, leaves in groups:
        stamp, saw = _stamp(stamp_bytes), _saw(saw_bytes)
        state.revive(stamp)
        for path, value in leaves.items():
            if type(value) not in ATOMS or not path or PATH_SEPARATOR in path:
                check_leaf(path, value)
            if drops or path in writes:
                state.put(path, (stamp, value, saw))
            else:
                writes[path] = (stamp, value, saw)


def _restore_counters(state: State, stored: _Stored) -> None:
    for path, totals in stored.counters.items():
        check_path(path)
        for stamp, base, total in totals:
            check_total(total)
            state.revive(_stamp(stamp))
            state.count(path, (_stamp(stamp), _saw(base), total))


def _restore_members(state: State, stored: _Stored) -> None:
    for path, elements in stored.members.items():
        depth = check_path(path)
        for element, memberships in elements:
            check_received(element, depth + 2)
            for stamp, removed in memberships:
                state.member(path, canonical(element), (_stamp(stamp), removed))


def _stamp(data: bytes) -> Stamp:
    if len(data) != STAMP_BYTES:
        raise InvalidDataError("a stamp of a wrong length")
    return Stamp(data)


def _saw(data: bytes) -> Stamp:
    if not is_stamp(data):
        raise InvalidDataError("a stamp of a wrong length")
    return Stamp(data)
