"""What an application gets to see: documents, and the state of a live query."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from typing import Any, Generic, TypeVar

import msgspec

from twinlock.document.schema import Schema
from twinlock.errors import SchemaError
from twinlock.replica.live import ChangeKind, QuerySnapshot

Model = TypeVar("Model")
Loader = Callable[[str, dict[str, Any]], "Doc[Model]"]


class Doc(Mapping[str, Any], Generic[Model]):
    """A document as it was when it was read: its id, and its fields like a dict's.

    In a typed collection `value` is the model, and `error` says why a document does not fit it (`value` then raises).
    """

    __slots__ = ("_model", "data", "error", "id")

    def __init__(
        self, id: str, data: dict[str, Any], model: Model | None = None, error: SchemaError | None = None
    ) -> None:
        self.id = id
        self.data = data
        self._model = model
        self.error = error

    @property
    def value(self) -> Model:
        """The document as the collection's type; in an untyped collection, the dict.

        Raises:
            SchemaError: the document does not fit; `data` holds it as it is.
        """
        if self.error is not None:
            raise self.error
        return self._model if self._model is not None else self.data  # type: ignore[return-value]  # untyped: a dict

    def __getitem__(self, name: str) -> Any:
        return self.data[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.data)

    def __len__(self) -> int:
        return len(self.data)

    def __repr__(self) -> str:
        return f"Doc({self.id!r}, {self.data!r})"


class DocChange(msgspec.Struct, Generic[Model], frozen=True):
    """What happened to one document since the snapshot before: `added`, `modified` or `removed`."""

    kind: ChangeKind
    doc: Doc[Model]


class Snapshot(Generic[Model]):
    """The result of a query at one moment.

    `docs` are in the query's order, `changes` tell what is new since the snapshot before. `from_cache`: the server has
    not confirmed that this is all there is. `pending`: it shows writes that the server does not have yet. `syncing`:
    this device is still reading what it missed. Values are shared between snapshots and must not be changed.
    """

    def __init__(self, result: QuerySnapshot, load: Loader[Model], earlier: Snapshot[Model] | None = None) -> None:
        self._result = result
        self._load = load
        self.changes = [DocChange(change.kind, load(change.id, change.value)) for change in result.changes]
        if earlier is not None:
            self.changes = earlier.changes + self.changes
        self.from_cache = result.from_cache
        self.pending = result.pending
        self.syncing = result.syncing

    @cached_property
    def docs(self) -> list[Doc[Model]]:
        """The documents, made when they are first looked at."""
        return [self._load(id, value) for id, value in self._result.documents]

    def __len__(self) -> int:
        return len(self._result.documents)

    def __repr__(self) -> str:
        return f"Snapshot({len(self)} docs, {len(self.changes)} changes)"


class DocSnapshot(msgspec.Struct, Generic[Model], frozen=True):
    """One document at one moment; `doc` is None if there is none."""

    doc: Doc[Model] | None
    pending: bool
    syncing: bool


def loader(schema: Schema[Model] | None) -> Loader[Model]:
    """Return what makes a document of a stored value."""
    if schema is None:
        return Doc

    def load(id: str, value: dict[str, Any]) -> Doc[Model]:
        loaded = schema.load(value)
        return Doc(id, value, loaded.value, loaded.error)

    return load
