"""Batches: any number of writes to one space that every reader sees at once, or never."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from twinlock.client.collection import DocumentHandle
from twinlock.client.space_handle import SpaceHandle
from twinlock.client.writes import Write
from twinlock.errors import InvalidDataError
from twinlock.replica.batch import Intent


class WriteBatch:
    """Collects writes until `commit`. All documents must be of one space."""

    def __init__(self, space: SpaceHandle | None = None) -> None:
        self._space = space
        self._intents: list[Intent] = []

    def set(self, document: DocumentHandle[Any], data: Any, merge: bool = False) -> WriteBatch:
        """Replace a document, or with `merge` lay the given fields over it."""
        return self._add(document, document.set_intent(data, merge))

    def update(self, document: DocumentHandle[Any], changes: Mapping[str | tuple[str, ...], Any]) -> WriteBatch:
        """Change single fields of a document that exists."""
        return self._add(document, document.update_intent(changes))

    def delete(self, document: DocumentHandle[Any]) -> WriteBatch:
        """Delete a document."""
        return self._add(document, document.delete_intent())

    async def commit(self) -> Write:
        """Write everything as one atomic change.

        Raises:
            TwinlockError: something in it was refused; nothing was written.
        """
        if self._space is None:
            raise InvalidDataError("an empty batch")
        intents, self._intents = self._intents, []
        return await self._space.write(intents)

    def _add(self, document: DocumentHandle[Any], intent: Intent) -> WriteBatch:
        self._space = self._space or document.space
        if document.space.id != self._space.id:
            raise InvalidDataError("a batch writes to one space only")
        self._intents.append(intent)
        return self
