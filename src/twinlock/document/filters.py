"""The comparisons of a query, checked and compiled to closures. See docs/reference/queries.md."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime
from operator import eq, ge, gt, le, lt
from typing import Any, Final

import msgspec

from twinlock.document.ordering import order_key, type_range
from twinlock.document.values import PATH_SEPARATOR, Path, Value
from twinlock.errors import InvalidQueryError

OPERATORS: Final = ("==", "!=", "<", "<=", ">", ">=", "in", "not-in", "array-contains")
IN_VALUES_MAX: Final = 1000

MISSING: Final = msgspec.UNSET
"""What a getter gives for a field that is not there."""

Test = Callable[[Mapping[str, Value]], bool]
Getter = Callable[[Mapping[str, Value]], Value]
_ValueTest = Callable[[Value], bool]

_RANGES: Final[Mapping[str, Callable[[Any, Any], bool]]] = {"<": lt, "<=": le, ">": gt, ">=": ge}
_NUMBERS: Final = (int, float)


class Filter(msgspec.Struct, frozen=True):
    """One comparison of one field."""

    path: Path
    operator: str
    value: Value


def check_filter(path: Path, operator: str, value: Value) -> Filter:
    """Build a filter from values that are already checked.

    Raises:
        InvalidQueryError: there is no such operator, or it does not take such a value.
    """
    if operator not in OPERATORS:
        raise InvalidQueryError(f"an operator is one of {' '.join(OPERATORS)}")
    if operator in ("in", "not-in") and not (isinstance(value, list) and 1 <= len(value) <= IN_VALUES_MAX):
        raise InvalidQueryError(f"{operator} takes a list of 1 to {IN_VALUES_MAX} values")
    return Filter(path, operator, value)


def getter(path: Path) -> Getter:
    """Return a closure that finds a field, or `MISSING`."""
    keys = path.split(PATH_SEPARATOR)
    if len(keys) == 1:
        key = keys[0]
        return lambda document: document.get(key, MISSING)

    def get(document: Mapping[str, Value]) -> Value:
        found: Any = document
        for step in keys:
            if type(found) is not dict:
                return MISSING
            found = found.get(step, MISSING)
        return found

    return get


def has_field(path: Path) -> Test:
    """Return a test for a field being there, whatever its value."""
    get = getter(path)
    return lambda document: get(document) is not MISSING


def all_of(tests: list[Test]) -> Test:
    """Return a test for all of some tests."""
    match tests:
        case []:
            return lambda document: True
        case [only]:
            return only
        case [first, second]:
            return lambda document: first(document) and second(document)
    return lambda document: all(test(document) for test in tests)


def compile_filter(item: Filter) -> Test:
    """Return a closure that tests a document."""
    get = getter(item.path)
    test = _value_test(item.operator, item.value)
    return lambda document: test(get(document))


def key_range(item: Filter) -> tuple[bytes, bytes] | None:
    """Return the range of order keys, first and end, that an index must look through; None if it is of no use."""
    key = order_key(item.value)
    first, end = type_range(key)
    match item.operator:
        case "==":
            return key, key + b"\x00"
        case "<":
            return first, key
        case "<=":
            return first, key + b"\x00"
        case ">":
            return key + b"\x00", end
        case ">=":
            return key, end
    return None


def _value_test(operator: str, value: Value) -> _ValueTest:
    match operator:
        case "==":
            return _equal(value)
        case "!=":
            equal = _equal(value)
            return lambda found: found is not MISSING and not equal(found)
        case "in":
            return _among(value)
        case "not-in":
            among = _among(value)
            return lambda found: found is not MISSING and not among(found)
        case "array-contains":
            return _contains(value)
    return _compared(_RANGES[operator], value)


def _equal(value: Value) -> _ValueTest:
    if value is None or isinstance(value, bool):
        return lambda found: found is value
    return _compared(eq, value)


def _compared(compare: Callable[[Any, Any], bool], value: Value) -> _ValueTest:
    """Compare within the value's own type; other types are neither above nor below."""
    kind = type(value)
    if kind in _NUMBERS:
        return lambda found: type(found) in _NUMBERS and compare(found, value)
    if kind in (str, bytes, datetime, bool):
        return lambda found: type(found) is kind and compare(found, value)
    key = order_key(value)
    return lambda found: type(found) is kind and compare(order_key(found), key)


def _among(values: list[Value]) -> _ValueTest:
    keys = frozenset(order_key(value) for value in values)
    return lambda found: found is not MISSING and order_key(found) in keys


def _contains(value: Value) -> _ValueTest:
    equal = _equal(value)
    return lambda found: type(found) is list and any(map(equal, found))
