"""Queries as an application asks them: built step by step, answered from this device, once or live."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any, Generic, Literal

from twinlock.client.snapshots import Doc, Loader, Model, Snapshot
from twinlock.client.space_handle import SpaceHandle
from twinlock.document.query import Query

FieldPath = str | tuple[str, ...]
Direction = Literal["asc", "desc"]


class QueryHandle(Generic[Model]):
    """A query over a collection; every step returns a new one."""

    def __init__(self, space: SpaceHandle, query: Query, load: Loader[Model]) -> None:
        self._space = space
        self._query = query
        self._load = load

    def where(self, field: FieldPath, operator: str, value: Any) -> QueryHandle[Model]:
        """Keep documents whose field compares so: `== != < <= > >= in not-in array-contains`."""
        return self._step(self._query.where(field, operator, value))

    def order_by(self, field: FieldPath, direction: Direction = "asc") -> QueryHandle[Model]:
        """Sort by a field; further calls sort what is equal."""
        return self._step(self._query.order_by(field, direction))

    def limit(self, count: int) -> QueryHandle[Model]:
        """Take the first `count` documents."""
        return self._step(self._query.limit(count))

    def start_after(self, *values: Any) -> QueryHandle[Model]:
        """Begin after the place of these values of the order's fields, or after a document of an earlier page."""
        if len(values) == 1 and isinstance(values[0], Doc):
            return self._step(self._query.start_after_document(values[0].id, values[0].data))
        return self._step(self._query.start_after(*values))

    def search(self, text: str) -> QueryHandle[Model]:
        """Keep documents whose text has every word of `text`, or words that begin so."""
        return self._step(self._query.search(text))

    async def get(self) -> list[Doc[Model]]:
        """Return the documents that this device has now.

        Raises:
            LeaseExpiredError: the space is locked.
        """
        return [self._load(id, value) for id, value in self._space.run(self._query)]

    async def count(self) -> int:
        """Return how many documents match, whatever the limit and the start."""
        return self._space.count(self._query)

    def on_snapshot(self, callback: Callable[[Snapshot[Model]], object]) -> Callable[[], None]:
        """Call back with the result now, from this device, and whenever it changes; return what ends it.

        What the callback raises is logged and harms nothing else.
        """
        return self._space.subscribe(self._query, lambda result: callback(Snapshot(result, self._load)))

    async def watch(self) -> AsyncIterator[Snapshot[Model]]:
        """Yield the result now and whenever it has changed; a slow reader gets several changes in one snapshot."""
        waiting: list[Snapshot[Model]] = []
        ready = asyncio.Event()

        def receive(result: Any) -> None:
            # At most one snapshot waits: the newest, with the changes of those that nobody has looked at.
            earlier = waiting.pop() if waiting else None
            waiting.append(Snapshot(result, self._load, earlier))
            ready.set()

        unsubscribe = self._space.subscribe(self._query, receive, closed=ready.set)
        try:
            while not self._space.is_closed or waiting:
                await ready.wait()
                ready.clear()
                if waiting:
                    yield waiting.pop()
        finally:
            unsubscribe()

    def _step(self, query: Query) -> QueryHandle[Model]:
        return QueryHandle(self._space, query, self._load)
