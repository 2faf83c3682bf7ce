"""Typed collections: values of an application's own classes in and out of documents. See docs/concepts/documents.md.

A schema is never needed, and never stands in the way of data: what does not fit is handed over raw with the error.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import is_dataclass
from datetime import UTC, datetime
from typing import Any, Final, Generic, TypeVar

import msgspec

from twinlock.document.fields import ArrayRemove, ArrayUnion, DeleteField, Increment, ServerTimestamp
from twinlock.document.values import Value
from twinlock.errors import SchemaError

T = TypeVar("T")

Step = Callable[[dict[str, Value]], dict[str, Value]]

VERSION_FIELD: Final = "$schema"
"""Where a document carries the version of its form; without it, it has the first version."""

FIRST_VERSION: Final = 1
_NATIVE: Final = (bytes, datetime)
_ANY_TIME: Final = datetime(1970, 1, 1, tzinfo=UTC)


class Migration(msgspec.Struct, frozen=True):
    """How documents of one version are read as another, upwards and, if it can be, downwards."""

    from_version: int
    to_version: int
    up: Step
    down: Step | None = None


class Loaded(msgspec.Struct, Generic[T], frozen=True):
    """A document as it was read: `value` if it fits, else None and `error`; `raw` always."""

    raw: dict[str, Value]
    value: T | None = None
    error: SchemaError | None = None


class Schema(Generic[T]):
    """The form of a collection's documents: a `msgspec.Struct`, a dataclass or a pydantic model.

    Args:
        model: the class.
        version: the version of the form that `model` describes.
        migrations: how other versions are read; run on read only, stored documents stay as they are.
    """

    __slots__ = ("_migrations", "_model", "_version")

    def __init__(self, model: type[T], *, version: int = FIRST_VERSION, migrations: tuple[Migration, ...] = ()) -> None:
        if not (_is_pydantic(model) or is_dataclass(model) or _is_struct(model)):
            raise SchemaError("a model is a msgspec.Struct, a dataclass or a pydantic model")
        self._model = model
        self._version = version
        self._migrations = migrations

    def dump(self, value: T | Mapping[str, Any], current: Mapping[str, Value] | None = None) -> dict[str, Value]:
        """Return the plain document for a value, validated.

        Args:
            value: of the model, or a mapping that fits it; field operators in it count as what they become in a new
                document.
            current: the document as it is; its fields that the model does not know are kept.

        Raises:
            SchemaError: the value does not fit the model.
        """
        plain = dict(value) if isinstance(value, Mapping) else self._to_plain(value)
        self._to_model(_without_operators(plain))
        if current is not None:
            plain = _with_unknown(plain, self._unknown_in(current))
        if self._version != FIRST_VERSION:
            plain[VERSION_FIELD] = self._version
        return plain

    def load(self, raw: dict[str, Value]) -> Loaded[T]:
        """Read a document, through the migrations it needs; never raises for what others wrote."""
        try:
            return Loaded(raw, self._to_model(self._migrated(raw)))
        except SchemaError as exc:
            return Loaded(raw, error=exc)

    def _migrated(self, raw: dict[str, Value]) -> dict[str, Value]:
        version = raw.get(VERSION_FIELD, FIRST_VERSION)
        value = {key: item for key, item in raw.items() if key != VERSION_FIELD}
        while version != self._version:
            step, version = self._step(version)
            try:
                value = step(value)
            except Exception as exc:  # An application's function met data that it did not foresee.
                raise SchemaError(f"the migration to version {version} failed: {exc!r}") from exc
        return value

    def _step(self, version: Any) -> tuple[Step, int]:
        for migration in self._migrations:
            if migration.from_version == version < migration.to_version <= self._version:
                return migration.up, migration.to_version
            if migration.to_version == version > migration.from_version >= self._version and migration.down:
                return migration.down, migration.from_version
        raise SchemaError(f"no migration from version {version} to {self._version}")

    def _unknown_in(self, current: Mapping[str, Value]) -> dict[str, Value]:
        loaded = self.load(dict(current))
        if loaded.value is None:
            return {}
        known = self._to_plain(loaded.value)
        return _left_over(self._migrated(loaded.raw), known)

    def _to_model(self, plain: dict[str, Value]) -> T:
        try:
            if _is_pydantic(self._model):
                return self._model.model_validate(plain)  # type: ignore[attr-defined, no-any-return]  # pydantic is optional
            return msgspec.convert(plain, self._model, builtin_types=_NATIVE)
        except ValueError as exc:
            raise SchemaError(str(exc)) from exc

    def _to_plain(self, value: T) -> dict[str, Value]:
        try:
            if _is_pydantic(type(value)):
                return value.model_dump(mode="python")  # type: ignore[attr-defined, no-any-return]  # pydantic is optional
            plain = msgspec.to_builtins(value, builtin_types=_NATIVE, str_keys=True)
        except (TypeError, ValueError) as exc:
            raise SchemaError(str(exc)) from exc
        if not isinstance(plain, dict):
            raise SchemaError(f"a {type(value).__name__} is no document")
        return plain


def _is_pydantic(model: type) -> bool:
    return hasattr(model, "model_validate") and hasattr(model, "model_dump")


def _is_struct(model: type) -> bool:
    return isinstance(model, type) and issubclass(model, msgspec.Struct)


def _without_operators(plain: Mapping[str, Any]) -> dict[str, Any]:
    """Put in the place of each field operator what it becomes in a new document."""
    out: dict[str, Any] = {}
    for key, value in plain.items():
        match value:
            case DeleteField():
                continue
            case ServerTimestamp():
                out[key] = _ANY_TIME
            case Increment(amount):
                out[key] = amount
            case ArrayUnion(elements):
                out[key] = list(elements)
            case ArrayRemove():
                out[key] = []
            case Mapping():
                out[key] = _without_operators(value)
            case _:
                out[key] = value
    return out


def _left_over(raw: Mapping[str, Value], known: Mapping[str, Value]) -> dict[str, Value]:
    """Return what a model did not take in, also inside of nested objects."""
    out: dict[str, Value] = {}
    for key, value in raw.items():
        if key not in known:
            out[key] = value
        elif isinstance(value, dict) and isinstance(known[key], dict):
            below = _left_over(value, known[key])
            if below:
                out[key] = below
    return out


def _with_unknown(plain: dict[str, Value], unknown: Mapping[str, Value]) -> dict[str, Value]:
    out = dict(plain)
    for key, value in unknown.items():
        if key not in out:
            out[key] = value
        elif isinstance(value, dict) and isinstance(out[key], dict):
            out[key] = _with_unknown(out[key], value)
    return out
