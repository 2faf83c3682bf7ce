"""Collections and documents as an application names them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Generic

from twinlock.client.ordered_list import ListHandle
from twinlock.client.query import QueryHandle
from twinlock.client.snapshots import DocSnapshot, Loader, Model, loader
from twinlock.client.space_handle import SpaceHandle
from twinlock.client.subscriptions import DocumentState
from twinlock.client.writes import Write
from twinlock.document.query import Query
from twinlock.document.schema import Schema
from twinlock.replica.batch import DeleteDocument, Intent, SetDocument, UpdateDocument

Data = Mapping[str, Any]


class DocumentHandle(Generic[Model]):
    """A document by its id, whether it exists or not."""

    def __init__(
        self, space: SpaceHandle, collection: str, id: str, schema: Schema[Model] | None, load: Loader[Model]
    ) -> None:
        self._space = space
        self._schema = schema
        self._load = load
        self.collection = collection
        self.id = id

    @property
    def space(self) -> SpaceHandle:
        """The space that it belongs to."""
        return self._space

    async def get(self) -> Model | dict[str, Any] | None:
        """Return the document's value, in a typed collection as the type; None if there is no such document.

        Raises:
            LeaseExpiredError: the space is locked.
            SchemaError: it does not fit the collection's type.
        """
        value = self._space.get(self.collection, self.id)
        return None if value is None else self._load(self.id, value).value

    async def set(self, data: Data | Model, merge: bool = False) -> Write:
        """Replace the document, or with `merge` lay the given fields over it."""
        return await self._space.write([self.set_intent(data, merge)], self.id)

    async def update(self, changes: Mapping[str | tuple[str, ...], Any]) -> Write:
        """Change single fields, by name or by dotted path, of a document that exists."""
        return await self._space.write([self.update_intent(changes)], self.id)

    async def delete(self) -> Write:
        """Delete the document; deleting what is not there is fine."""
        return await self._space.write([self.delete_intent()], self.id)

    async def conflicts(self) -> dict[str, Any]:
        """Return the losing value of every field that was written concurrently, by dotted path."""
        return self._space.conflicts(self.collection, self.id)

    def list(self, path: str | tuple[str, ...]) -> ListHandle:
        """Return an ordered list field, whose elements merge one by one."""
        return ListHandle(self._space, self.collection, self.id, path)

    def on_snapshot(self, callback: Callable[[DocSnapshot[Model]], object]) -> Callable[[], None]:
        """Call back with the document now and whenever it changes; return what ends it."""

        def receive(state: DocumentState) -> None:
            doc = None if state.value is None else self._load(self.id, state.value)
            callback(DocSnapshot(doc, state.pending, state.syncing))

        return self._space.watch_document(self.collection, self.id, receive)

    # What a batch writes

    def set_intent(self, data: Data | Model, merge: bool = False) -> Intent:
        """Return what `set` writes."""
        return SetDocument(self.collection, self.id, self._dump(data, merge), merge)

    def update_intent(self, changes: Mapping[str | tuple[str, ...], Any]) -> Intent:
        """Return what `update` writes."""
        return UpdateDocument(self.collection, self.id, changes)

    def delete_intent(self) -> Intent:
        """Return what `delete` writes."""
        return DeleteDocument(self.collection, self.id)

    def _dump(self, data: Data | Model, merge: bool) -> Data:
        if self._schema is None or merge:
            return data  # type: ignore[return-value]  # checked when it is written
        known = None if self._space.runtime.replica is None else self._space.get(self.collection, self.id)
        return self._schema.dump(data, known)


class Collection(QueryHandle[Model]):
    """A collection of documents, which is also the query over all of them."""

    def __init__(self, space: SpaceHandle, name: str, schema: Schema[Model] | None = None) -> None:
        super().__init__(space, Query.over(name), loader(schema))
        self._schema = schema
        self.name = name

    def query(self) -> QueryHandle[Model]:
        """Return the query over all documents."""
        return QueryHandle(self._space, self._query, self._load)

    def doc(self, id: str | None = None) -> DocumentHandle[Model]:
        """Return a document by its id; without one, a new document with a random id."""
        return DocumentHandle(
            self._space, self.name, self._space.new_id() if id is None else id, self._schema, self._load
        )

    async def add(self, data: Data | Model) -> Write:
        """Write a new document with a random id, which stands in the result's `id`."""
        return await self.doc().set(data)
