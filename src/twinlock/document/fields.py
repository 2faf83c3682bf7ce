"""What may stand in place of a value in a write: increment, union, remove, delete, the time of the write."""

from __future__ import annotations

from math import isfinite
from typing import Final

import msgspec

from twinlock.document.values import INT_MAX, INT_MIN, Value
from twinlock.errors import InvalidDataError


class Increment(msgspec.Struct, frozen=True):
    """Add to a number; concurrent increments add up."""

    amount: int | float


class ArrayUnion(msgspec.Struct, frozen=True):
    """Add elements to a set, unless they are in it."""

    elements: tuple[Value, ...]


class ArrayRemove(msgspec.Struct, frozen=True):
    """Remove elements from a set, as far as this device sees them."""

    elements: tuple[Value, ...]


class DeleteField(msgspec.Struct, frozen=True):
    """Remove a field and everything below it."""


class ServerTimestamp(msgspec.Struct, frozen=True):
    """Become the corrected time of the edit."""


FieldOperator = Increment | ArrayUnion | ArrayRemove | DeleteField | ServerTimestamp

server_timestamp: Final = ServerTimestamp()
"""The corrected time of the edit that writes it."""


def increment(amount: int | float = 1) -> Increment:
    """Add `amount` to a number field; a field that is no number counts as 0."""
    if isinstance(amount, bool) or not isinstance(amount, int | float) or not isfinite(amount):
        raise InvalidDataError("an increment is an int of 64 bits or a finite float")
    if isinstance(amount, int) and not INT_MIN <= amount <= INT_MAX:
        raise InvalidDataError("an increment is an int of 64 bits or a finite float")
    return Increment(amount)


def array_union(*elements: Value) -> ArrayUnion:
    """Add elements to a set field; concurrent unions and removes of other elements all count."""
    return ArrayUnion(elements)


def array_remove(*elements: Value) -> ArrayRemove:
    """Remove elements from a set field; one that is added again concurrently stays."""
    return ArrayRemove(elements)


def delete_field() -> DeleteField:
    """Remove the field."""
    return DeleteField()
