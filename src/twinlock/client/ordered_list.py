"""Ordered lists that merge element by element: concurrent inserts all stay, and every device sees the same order."""

from __future__ import annotations

from typing import Any

import msgspec

from twinlock.client.space_handle import SpaceHandle
from twinlock.client.writes import Write
from twinlock.replica.batch import EditList, ListAction

LIST_END = 1 << 30
"""An index after every element; the end of the list is wherever it is when the write happens."""


class Element(msgspec.Struct, frozen=True):
    """One element: its id, which stays while it moves, and its value."""

    id: str
    value: Any


class ListHandle:
    """An ordered list field of a document that exists. A plain list becomes an ordered one at its first change."""

    def __init__(self, space: SpaceHandle, collection: str, id: str, path: str | tuple[str, ...]) -> None:
        self._space = space
        self._collection = collection
        self._id = id
        self._path = path

    async def elements(self) -> list[Element]:
        """Return the elements in order."""
        document = self._space.document(self._collection, self._id)
        return [Element(id, value) for id, value in document.list_elements(self._path)]

    async def insert(self, index: int, value: Any) -> Write:
        """Insert an element before the one at `index`; its id stands in the result's `id`."""
        return await self._write(ListAction.INSERT, self._space.new_id(), index, value)

    async def append(self, value: Any) -> Write:
        """Insert an element at the end; its id stands in the result's `id`."""
        return await self.insert(LIST_END, value)

    async def set(self, element: str, value: Any) -> Write:
        """Replace an element's value, wherever it is moved to meanwhile."""
        return await self._write(ListAction.SET, element, value=value)

    async def move(self, element: str, index: int) -> Write:
        """Move an element to `index`, counted without it."""
        return await self._write(ListAction.MOVE, element, index)

    async def remove(self, element: str) -> Write:
        """Remove an element."""
        return await self._write(ListAction.REMOVE, element)

    async def _write(self, action: ListAction, element: str, index: int = 0, value: Any = None) -> Write:
        intent = EditList(self._collection, self._id, self._path, action, element, index, value)
        return await self._space.write([intent], element)
