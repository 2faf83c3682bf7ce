"""Ordered lists that merge element by element: operations for insert, set, move and remove.

A list is a marker at its path; each element lies below it under its id, as a value and a place. A field that holds a
plain list becomes an ordered one at the first such operation: its elements get ids that are the same on every device.
See spec/documents.md, section 4.
"""

from __future__ import annotations

from typing import Any

from twinlock.document.document import Document
from twinlock.document.intent import Operations, flatten, replace_ops
from twinlock.document.operations import CLEAR, PUT
from twinlock.document.places import place_between
from twinlock.document.seen import newest_at, newest_below
from twinlock.document.stamps import Stamp, hlc_of
from twinlock.document.values import (
    LIST_MARKER,
    PATH_SEPARATOR,
    Path,
    Value,
    check_data,
    check_key,
    is_list_marker,
    keys_of,
    parse_path,
)
from twinlock.document.view import ELEMENT_PLACE, ELEMENT_VALUE, View
from twinlock.errors import InvalidDataError, NotFoundError
from twinlock.protocol.limits import DOCUMENT_DEPTH_MAX

FieldPath = str | tuple[str, ...]


def insert_ops(document: Document, field: FieldPath, index: int, element_id: str, value: Value) -> Operations:
    """Return the operations that insert an element before the one at `index`; the end counts as an index.

    Args:
        element_id: a new random id; two elements must never share one.
    """
    target = _Target(document, field)
    target.put_value(check_key(element_id), value)
    target.put_place(element_id, index)
    return target.ops()


def set_element_ops(document: Document, field: FieldPath, element_id: str, value: Value) -> Operations:
    """Return the operations that replace the value of an element, wherever it is moved to meanwhile."""
    target = _Target(document, field)
    target.check_known(element_id)
    target.put_value(element_id, value)
    return target.ops()


def move_ops(document: Document, field: FieldPath, element_id: str, index: int) -> Operations:
    """Return the operations that move an element to `index`, counted without it."""
    target = _Target(document, field)
    target.check_known(element_id)
    target.put_place(element_id, index)
    return target.ops()


def remove_element_ops(document: Document, field: FieldPath, element_id: str) -> Operations:
    """Return the operations that remove an element; a concurrent new value of it brings it back, at the end."""
    target = _Target(document, field)
    target.check_known(element_id)
    target.remove(element_id)
    return target.ops()


class _Target:
    """An ordered list that operations are being made for."""

    __slots__ = ("_clears", "_elements", "_leaves", "_path", "_state")

    def __init__(self, document: Document, field: FieldPath) -> None:
        self._path: Path = parse_path(field)
        self._state = document.state
        self._clears: Operations = []
        self._leaves: dict[Path, Value] = {self._path: LIST_MARKER}
        if len(keys_of(self._path)) + 2 > DOCUMENT_DEPTH_MAX:
            raise InvalidDataError(f"nested deeper than {DOCUMENT_DEPTH_MAX}")
        view = View(self._state)
        write = self._state.writes.get(self._path)
        if write is not None and write[0] >= view.limit(self._path) and is_list_marker(write[1]):
            self._elements = [(place, element_id) for place, element_id, _ in view.list_elements(self._path)]
        else:
            self._elements = []
            self._convert(document)

    def _convert(self, document: Document) -> None:
        """Make an ordered list of what is there, with ids that every device derives alike."""
        value: Any = document.value() or {}
        for key in keys_of(self._path):
            value = value.get(key) if isinstance(value, dict) else None
        if value is None:
            return
        if not isinstance(value, list):
            raise InvalidDataError("the field holds something else than a list")
        self._clears += replace_ops(self._state, self._path)
        origin = f"{hlc_of(newest_at(self._state, self._path)):016x}"
        for index, item in enumerate(value):
            element_id = f"{origin}.{index}"
            self.put_value(element_id, item)
            self.put_place(element_id, index)

    def check_known(self, element_id: str) -> None:
        if all(known != element_id for _, known in self._elements):
            raise NotFoundError(f"no element {element_id!r} in this list")

    def put_value(self, element_id: str, value: Value) -> None:
        path = self._below(element_id, ELEMENT_VALUE)
        depth = len(keys_of(path))
        self._clears += replace_ops(self._state, path)
        checked = check_data(value, depth + 1)
        if isinstance(checked, dict) and checked:
            flatten(checked, path, depth + 1, self._leaves)
        else:
            self._leaves[path] = checked

    def put_place(self, element_id: str, index: int) -> None:
        others = [element for element in self._elements if element[1] != element_id]
        index = max(0, min(index, len(others)))
        low = others[index - 1][0] if index else ""
        high = others[index][0] if index < len(others) else ""
        place = place_between(low, high, element_id)
        self._leaves[self._below(element_id, ELEMENT_PLACE)] = place
        others.insert(index, (place, element_id))
        self._elements = others

    def remove(self, element_id: str) -> None:
        path = self._below(element_id)
        self._leaves = {at: value for at, value in self._leaves.items() if not at.startswith(path + PATH_SEPARATOR)}
        self._clears.append([CLEAR, newest_below(self._state, path), path])

    def _below(self, *keys: str) -> Path:
        return PATH_SEPARATOR.join((self._path, *keys))

    def ops(self) -> Operations:
        puts: dict[Stamp, dict[Path, Value]] = {}
        for path, value in self._leaves.items():
            puts.setdefault(newest_at(self._state, path), {})[path] = value
        return self._clears + [[PUT, saw, leaves] for saw, leaves in puts.items()]
