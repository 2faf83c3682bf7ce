"""From merge state to what the application sees. See spec/documents.md, section 6."""

from __future__ import annotations

from typing import Final

import msgspec

from twinlock.document.merge import Membership, State, Write
from twinlock.document.stamps import NEVER, Stamp, device_of
from twinlock.document.values import (
    INT_MAX,
    INT_MIN,
    PATH_SEPARATOR,
    Ext,
    Path,
    Value,
    canonical,
    copy_value,
    from_canonical,
    is_list_marker,
    keys_of,
)

ELEMENT_VALUE: Final = "v"
ELEMENT_PLACE: Final = "p"
"""The two keys of an ordered list's element: its value and its place."""

_LAST_PLACE: Final = "\U0010ffff"
ABSENT: Final = msgspec.UNSET


def exists(state: State) -> bool:
    """Tell whether the document is there: written to, and not deleted since."""
    deleted = state.clears.get("")
    return bool(state.alive) and (deleted is None or state.alive >= deleted[0])


def value_of(state: State) -> dict[str, Value] | None:
    """Return the document as a plain dict, the caller's own; None if there is none."""
    if not exists(state):
        return None
    flat = _flat_value(state)
    return View(state).value() if flat is None else flat


def _flat_value(state: State) -> dict[str, Value] | None:
    """Return the value of a document of top-level leaves only, which most are; None if it is another."""
    if state.counters or state.members or len(state.clears) > 1:
        return None
    limit = NEVER
    for path, cleared in state.clears.items():
        if path:
            return None
        limit = cleared[0]
    out = {}
    for path, (stamp, value, _) in state.writes.items():
        if PATH_SEPARATOR in path:
            return None
        if stamp >= limit:
            kind = type(value)
            if kind is list or kind is dict:
                value = copy_value(value)
            elif kind is Ext and is_list_marker(value):
                value = []
            out[path] = value
    return out


class View:
    """One pass over a state that resolves, at each path, what is visible."""

    __slots__ = ("_hidden", "_state")

    def __init__(self, state: State) -> None:
        self._state = state
        self._hidden: dict[Path, Stamp] = {}

    def tree(self) -> _Node:
        """Place every visible leaf under its path."""
        root = _Node()
        state = self._state
        for path in sorted({*state.writes, *state.counters, *state.members}):
            value = self.leaf(path)
            if value is not ABSENT:
                _graft(root, path, value)
        return root

    def value(self) -> dict[str, Value]:
        """Build the nested value."""
        return {key: _render(child) for key, child in self.tree().children.items()}

    def list_elements(self, path: Path) -> list[tuple[str, str, Value]]:
        """Return the place, id and value of each element of an ordered list; nothing if there is none at `path`."""
        node: _Node | None = self.tree()
        for key in keys_of(path):
            node = node.children.get(key) if node is not None else None
        return list_elements(node) if node is not None and is_list_marker(node.value) else []

    def hidden_before(self, path: Path) -> Stamp:
        """Return the stamp below which facts strictly below `path` are hidden: by clears, and by leaves above them."""
        known = self._hidden.get(path)
        if known is None:
            limit = self.limit(path)
            write = self._state.writes.get(path)
            if write is not None and write[0] > limit and is_leaf(write[1]):
                limit = write[0]
            known = self._hidden[path] = limit
        return known

    def limit(self, path: Path) -> Stamp:
        """Return the stamp below which facts at `path` are hidden."""
        cleared = self._state.clears.get(path)
        own = cleared[0] if cleared else NEVER
        if not path:
            return own
        above = self.hidden_before(path.rpartition(PATH_SEPARATOR)[0])
        return max(own, above)

    def base(self, path: Path) -> Stamp:
        """Return the stamp of the newest set or delete at `path`: what increments count from."""
        write = self._state.writes.get(path)
        limit = self.limit(path)
        return max(limit, write[0]) if write is not None else limit

    def leaf(self, path: Path) -> Value:
        """Return what is visible at `path` itself, `UNSET` if nothing."""
        limit = self.limit(path)
        write = self._state.writes.get(path)
        visible = write if write is not None and write[0] >= limit else None
        counted = self._counted(path, visible)
        united = self._united(path, visible)
        if counted is not None and (united is None or counted[0] > united[0]):
            return counted[1]
        if united is not None:
            return united[1]
        return copy_value(visible[1]) if visible is not None else ABSENT

    def is_overlaid(self, path: Path, write: Write) -> bool:
        """Tell whether a visible write is not seen because a counter or a set grew over a value of another kind."""
        if self._united(path, write) is not None and type(write[1]) is not list:
            return True
        counted = self._counted(path, write)
        return counted is not None and type(write[1]) not in (int, float)

    def _counted(self, path: Path, visible: Write | None) -> tuple[Stamp, int | float] | None:
        devices = self._state.counters.get(path)
        if devices is None:
            return None
        base = self.base(path)
        totals = [devices[device] for device in sorted(devices) if devices[device][1] == base]
        if not totals:
            return None
        number = visible[1] if visible is not None and type(visible[1]) in (int, float) else 0
        for _, _, total in totals:
            number += total
        return max(total[0] for total in totals), _saturated(number)

    def _united(self, path: Path, visible: Write | None) -> tuple[Stamp, list[Value]] | None:
        members = self._state.members.get(path)
        if members is None:
            return None
        floor = self.floor(path, visible)
        newest = max(stamp for devices in members.values() for stamp, _ in devices.values())
        if visible is not None and type(visible[1]) is list:
            return max(newest, visible[0]), [element for element, _ in self.elements(path)]
        if newest < floor or (visible is not None and newest == visible[0]):
            return None
        return newest, [element for element, _ in self.elements(path)]

    def floor(self, path: Path, visible: Write | None) -> Stamp:
        """Return the stamp that an add at `path` must reach to count."""
        return max(self.limit(path), visible[0]) if visible is not None else self.limit(path)

    def elements(self, path: Path) -> list[tuple[Value, list[Stamp]]]:
        """Return the elements of a set with the stamps of their adds: first the written list's, then by time."""
        write = self._state.writes.get(path)
        limit = self.limit(path)
        visible = write if write is not None and write[0] >= limit else None
        members = self._state.members.get(path, {})
        found: list[tuple[Value, list[Stamp]]] = []
        written = set()
        if visible is not None and type(visible[1]) is list:
            for element in visible[1]:
                key = canonical(element)
                written.add(key)
                stamps = _live_adds(members.get(key, {}), self.floor(path, visible), visible[0])
                if stamps:
                    found.append((copy_value(element), stamps))
        added = []
        for key in members.keys() - written:
            stamps = [stamp for stamp, removed in members[key].values() if not removed and stamp >= limit]
            stamps = [stamp for stamp in stamps if visible is None or stamp > visible[0]]
            if stamps:
                added.append((min(stamps), key, sorted(stamps)))
        return found + [(from_canonical(key), stamps) for _, key, stamps in sorted(added)]


def _live_adds(devices: dict[bytes, Membership], floor: Stamp, written: Stamp) -> list[Stamp]:
    """Return the adds of an element of a written list that nobody removed, the list's own write among them."""
    live = [stamp for stamp, removed in devices.values() if not removed and stamp > floor]
    removal = devices.get(device_of(written), (NEVER, False))
    if removal[0] < written or (not removal[1]):
        live.append(written)
    return sorted(live)


class _Node:
    __slots__ = ("children", "value")

    def __init__(self) -> None:
        self.value: Value = ABSENT
        self.children: dict[str, _Node] = {}


def _graft(root: _Node, path: Path, value: Value) -> None:
    node = root
    for key in path.split(PATH_SEPARATOR):
        node = node.children.setdefault(key, _Node())
    node.value = value


def _render(node: _Node) -> Value:
    if is_list_marker(node.value):
        return [value for _, _, value in list_elements(node)]
    if node.children:
        return {key: _render(child) for key, child in node.children.items()}
    return node.value


def list_elements(node: _Node) -> list[tuple[str, str, Value]]:
    """Return an ordered list's elements in their order: place, id, value. Without a place (revived) they come last."""
    elements = []
    for element_id, child in node.children.items():
        value = child.children.get(ELEMENT_VALUE)
        if value is not None:
            place = child.children.get(ELEMENT_PLACE)
            at = place.value if place is not None and type(place.value) is str else _LAST_PLACE
            elements.append((at, element_id, _render(value)))
    return sorted(elements, key=_place_order)


def _place_order(element: tuple[str, str, Value]) -> tuple[str, str]:
    return element[:2]


def is_leaf(value: Value) -> bool:
    """Tell whether a value at a path ends it: objects and ordered lists go on below."""
    return type(value) is not dict and value is not ABSENT and not is_list_marker(value)


def _saturated(number: int | float) -> int | float:
    return number if isinstance(number, float) else max(INT_MIN, min(INT_MAX, number))
