"""The merge state of a document: a join-semilattice in normal form. See spec/documents.md, section 4.

Every fact lies at a path and has a stamp. A clear at a path hides all older facts at the path and below it, and
drops those that its author had seen (`saw`); the rest stays for `conflicts`. Whatever is dropped is dropped because
of something that stays, and together with everything older at its place: so the order of arrival cannot matter.
"""

from __future__ import annotations

from typing import Any, Final, TypeVar

import msgspec

from twinlock.document.operations import CLEAR, INCREMENT, PUT, REMOVE, REPLACE, UNION, Operation
from twinlock.document.stamps import NEVER, Stamp, device_of, instant_of
from twinlock.document.values import EXT_STAMP_TIME, PATH_SEPARATOR, Ext, Path, Value, canonical, prefixes_of

Write = tuple[Stamp, Value, Stamp]
"""A leaf's stamp, its value, and the stamp that it replaced (`saw`)."""

Cleared = tuple[Stamp, Stamp]
"""The newest stamp of the clears of a path, and the newest stamp that one of them saw."""

Total = tuple[Stamp, Stamp, int | float]
"""A device's newest increment: its stamp, its base, the running total since the base."""

Membership = tuple[Stamp, bool]
"""A device's newest add of an element, and whether it was removed again."""

_Fact = TypeVar("_Fact")

_NOTHING: Final[Cleared] = (NEVER, NEVER)


class State:
    """The facts of one document that are still needed. Merging is commutative, associative and idempotent."""

    __slots__ = ("alive", "clears", "counters", "losers", "members", "unknown", "writes")

    def __init__(self) -> None:
        self.alive: Stamp = NEVER
        """The newest write of any kind: the document exists unless it was deleted later."""
        self.writes: dict[Path, Write] = {}
        """The highest write of each leaf."""
        self.losers: dict[Path, Write] = {}
        """The second highest write, where the author of the highest had not seen it."""
        self.clears: dict[Path, Cleared] = {}
        self.counters: dict[Path, dict[bytes, Total]] = {}
        """By path and device."""
        self.members: dict[Path, dict[bytes, dict[bytes, Membership]]] = {}
        """Elements of sets by path, by canonical bytes of the element, by device."""
        self.unknown: set[tuple[Stamp, bytes]] = set()
        """Operations of newer SDKs, as they came."""

    def apply(self, operation: Operation, stamp: Stamp) -> None:
        """Take in one operation."""
        if isinstance(operation, msgspec.Raw):
            self.unknown.add((stamp, bytes(operation)))
            return
        code = operation[0]
        if code in (PUT, REPLACE):
            self._put_all(operation, stamp)
        elif code == CLEAR:
            self.clear(operation[2], (stamp, operation[1]))
        elif code == INCREMENT:
            self.revive(stamp)
            self.count(operation[2], (stamp, operation[1], operation[3]))
        elif code == UNION:
            self._unite(operation[1], operation[2], stamp)
        elif code == REMOVE:
            self._remove(operation[1], operation[2])

    def revive(self, stamp: Stamp) -> None:
        """Note that the document was written to."""
        if stamp > self.alive:
            self.alive = stamp

    def _put_all(self, operation: list[Any], stamp: Stamp) -> None:
        code, saw, leaves = operation
        if code == REPLACE:
            self.clear("", (stamp, saw))
        self.revive(stamp)
        for path, value in leaves.items():
            if type(value) is Ext and value.code == EXT_STAMP_TIME:
                value = instant_of(stamp)
            self.put(path, (stamp, value, saw))

    def put(self, path: Path, write: Write) -> None:
        """Take in a write: of two writes the higher wins, and the other stays if the winner had not seen it."""
        if self.clears and self._is_dropped(path, write[0]):
            return
        top = self.writes.get(path)
        if top is None:
            self.writes[path] = write
            return
        if top == write and _rank(top) == _rank(write):
            return
        winner, loser = (write, top) if _outranks(write, top) else (top, write)
        self.writes[path] = winner
        previous = self.losers.get(path)
        if previous is not None and _outranks(previous, loser):
            loser = previous
        if loser[0] > winner[2]:
            self.losers[path] = loser
        else:
            self.losers.pop(path, None)

    def clear(self, path: Path, cleared: Cleared) -> None:
        """Take in a clear: its two parts count each for itself, where no clear further up has the same or a newer."""
        above = self._cleared_to(prefixes_of(path)[:-1])
        known = self.clears.get(path, _NOTHING)
        merged = _beyond(above, (max(known[0], cleared[0]), max(known[1], cleared[1])))
        if merged == known:
            return
        self.clears[path] = merged
        for below in [at for at in self.clears if at != path and is_below(at, path)]:
            rest = _beyond(merged, self.clears[below])
            if rest == _NOTHING:
                del self.clears[below]
            else:
                self.clears[below] = rest
        if any(saw for _, saw in self.clears.values()):
            self._drop_below(path)

    def restore_clears(self, clears: dict[Path, Cleared]) -> None:
        """Take in the clears of a stored state, into one without facts; paths above others sort before them."""
        for path in sorted(clears):
            rest = _beyond(self._cleared_to(prefixes_of(path)[:-1]), clears[path])
            if rest != _NOTHING:
                self.clears[path] = rest

    def count(self, path: Path, total: Total) -> None:
        """Take in a device's running total."""
        if self.clears and self._is_dropped(path, total[0]):
            return
        devices = self.counters.setdefault(path, {})
        device = device_of(total[0])
        known = devices.get(device)
        if known is None or _total_rank(total) > _total_rank(known):
            devices[device] = total

    def member(self, path: Path, element: bytes, membership: Membership) -> None:
        """Take in an add or the removal of an add."""
        if self.clears and self._is_dropped(path, membership[0]):
            return
        devices = self.members.setdefault(path, {}).setdefault(element, {})
        device = device_of(membership[0])
        known = devices.get(device)
        if known is None or membership > known:
            devices[device] = membership

    def _unite(self, path: Path, elements: list[Value], stamp: Stamp) -> None:
        self.revive(stamp)
        for element in elements:
            self.member(path, canonical(element), (stamp, False))

    def _remove(self, path: Path, removed: list[tuple[Value, list[Stamp]]]) -> None:
        for element, stamps in removed:
            for stamp in stamps:
                self.member(path, canonical(element), (stamp, True))

    def copy(self) -> State:
        """Return a state of its own with the same facts."""
        twin = State()
        twin.alive = self.alive
        twin.writes = self.writes.copy()
        twin.losers = self.losers.copy()
        twin.clears = self.clears.copy()
        twin.counters = {path: totals.copy() for path, totals in self.counters.items()}
        twin.members = {
            path: {element: memberships.copy() for element, memberships in elements.items()}
            for path, elements in self.members.items()
        }
        twin.unknown = self.unknown.copy()
        return twin

    def merge(self, other: State) -> None:
        """Take in everything of another state of the same document."""
        self.revive(other.alive)
        for path, cleared in other.clears.items():
            self.clear(path, cleared)
        for path, write in other.writes.items():
            self.put(path, write)
        for path, write in other.losers.items():
            self.put(path, write)
        for path, totals in other.counters.items():
            for total in totals.values():
                self.count(path, total)
        for path, elements in other.members.items():
            for element, memberships in elements.items():
                for membership in memberships.values():
                    self.member(path, element, membership)
        self.unknown |= other.unknown

    def _cleared_to(self, prefixes: list[Path]) -> Cleared:
        newest = saw = NEVER
        for prefix in prefixes:
            cleared = self.clears.get(prefix)
            if cleared is not None:
                newest, saw = max(newest, cleared[0]), max(saw, cleared[1])
        return newest, saw

    def _is_dropped(self, path: Path, stamp: Stamp) -> bool:
        """Tell whether a fact is older than a clear and was seen by one."""
        newest, saw = self._cleared_to(prefixes_of(path))
        return stamp <= saw and stamp < newest

    def _drop_below(self, path: Path) -> None:
        for writes in (self.writes, self.losers):
            for at in [p for p, write in writes.items() if is_below(p, path) and self._is_dropped(p, write[0])]:
                del writes[at]
        for at in [p for p in self.counters if is_below(p, path)]:
            totals = self.counters[at]
            _replace(self.counters, at, {d: total for d, total in totals.items() if not self._is_dropped(at, total[0])})
        for at in [p for p in self.members if is_below(p, path)]:
            newest, saw = self._cleared_to(prefixes_of(at))
            _replace(self.members, at, _without(self.members[at], newest, saw))


def _without(
    elements: dict[bytes, dict[bytes, Membership]], newest: Stamp, saw: Stamp
) -> dict[bytes, dict[bytes, Membership]]:
    kept = {
        element: {device: known for device, known in devices.items() if known[0] > saw or known[0] >= newest}
        for element, devices in elements.items()
    }
    return {element: devices for element, devices in kept.items() if devices}


def _replace(facts: dict[Path, dict[bytes, _Fact]], path: Path, kept: dict[bytes, _Fact]) -> None:
    if kept:
        facts[path] = kept
    else:
        del facts[path]


def is_below(path: Path, top: Path) -> bool:
    """Tell whether a path is `top` or lies below it."""
    return not top or path == top or path.startswith(top + PATH_SEPARATOR)


def _beyond(upper: Cleared, lower: Cleared) -> Cleared:
    """Return what a clear says beyond one further up."""
    return (lower[0] if lower[0] > upper[0] else NEVER, lower[1] if lower[1] > upper[1] else NEVER)


def _outranks(left: Write, right: Write) -> bool:
    if left[0] != right[0]:
        return left[0] > right[0]
    return _rank(left) > _rank(right)


def _rank(write: Write) -> tuple[Stamp, bytes, Stamp]:
    return (write[0], canonical(write[1]), write[2])


def _total_rank(total: Total) -> tuple[Stamp, Stamp, bytes]:
    return (total[0], total[1], canonical(total[2]))
