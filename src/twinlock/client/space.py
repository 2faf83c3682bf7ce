"""A space as an application names it."""

from __future__ import annotations

from typing import Any, overload

from twinlock.client.batch import WriteBatch
from twinlock.client.collection import Collection
from twinlock.client.snapshots import Model
from twinlock.client.space_handle import SpaceHandle
from twinlock.document.schema import Schema


class Space:
    """The unit of sharing, of keys and of sync: a set of collections."""

    def __init__(self, handle: SpaceHandle) -> None:
        self._handle = handle

    @property
    def id(self) -> str:
        """The space's id, in hex."""
        return self._handle.id.hex()

    @property
    def title(self) -> str | None:
        """The space's name; None while it is locked."""
        return self._handle.runtime.title

    @property
    def locked(self) -> bool:
        """Whether the lease has ended: reading waits for the server, writing goes on."""
        return self._handle.runtime.is_locked

    @overload
    def collection(self, name: str) -> Collection[dict[str, Any]]: ...

    @overload
    def collection(self, name: str, model: type[Model] | Schema[Model]) -> Collection[Model]: ...

    def collection(self, name: str, model: Any = None) -> Collection[Any]:
        """Return a collection, typed if a `msgspec.Struct`, dataclass, pydantic model or `Schema` is given."""
        if model is None:
            return Collection(self._handle, name)
        return Collection(self._handle, name, model if isinstance(model, Schema) else Schema(model))

    def batch(self) -> WriteBatch:
        """Begin a batch of writes that happen all at once."""
        return WriteBatch(self._handle)
