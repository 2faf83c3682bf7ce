"""From a query to SQL over index tables whose columns are order keys. See `twinlock.document.ordering`.

The answer equals that of the query's own closures; a property test holds the two against each other.
"""

from __future__ import annotations

from typing import Any

import msgspec

from twinlock.document.ordering import order_key
from twinlock.document.query import Query
from twinlock.document.search import words_of
from twinlock.document.values import Value, keys_of

_TAG_MASK = 0xF0
_TAG_STEP = 0x10
ARRAY_CONTAINS = "array-contains"


class Column(msgspec.Struct, frozen=True, array_like=True):
    """A column of an index: the field's path, and its direction in the index."""

    path: str
    descending: bool = False


class IndexShape(msgspec.Struct, frozen=True, array_like=True):
    """What an index table is over: the collection and its columns, in order, and the id's place among them.

    A document has a row if it has every one of the fields.
    """

    collection: str
    columns: tuple[Column, ...]
    id_at: int = 0
    id_descending: bool = False

    def row(self, value: dict[str, Value]) -> tuple[bytes, ...] | None:
        """Return a document's keys, or None if it lacks a field."""
        keys = []
        for column in self.columns:
            found = field_of(value, column.path)
            if found is msgspec.UNSET:
                return None
            keys.append(order_key(found))
        return tuple(keys)


class Plan(msgspec.Struct, frozen=True):
    """How a query is answered: the index, the fields whose elements are looked up, and the SQL's parts.

    `{elements:N}` and `{words}` in `conditions` stand for the names of tables that are known at run time.
    """

    shape: IndexShape
    elements: tuple[str, ...]
    words: bool
    conditions: tuple[str, ...]
    parameters: tuple[Any, ...]
    order: str


def field_of(value: dict[str, Value], path: str) -> Any:
    """Return the value at a path of a document, or UNSET if there is none."""
    found: Any = value
    for key in keys_of(path):
        if not isinstance(found, dict) or key not in found:
            return msgspec.UNSET
        found = found[key]
    return found


def plan_query(query: Query, counts: bool = False) -> Plan:
    """Choose the index of a query and write its conditions; a count looks at neither start nor limit."""
    shape = _shape(query)
    place = {column.path: f"k{number}" for number, column in enumerate(shape.columns)}
    conditions: list[str] = []
    parameters: list[Any] = []
    elements: list[str] = []
    for each in query.filters:
        if each.operator == ARRAY_CONTAINS:
            # Names of tables and columns are made here; values travel as parameters.
            conditions.append(f"doc IN (SELECT doc FROM {{elements:{len(elements)}}} WHERE key = ?)")  # noqa: S608
            parameters.append(order_key(each.value))
            elements.append(each.path)
        else:
            sql, values = _comparison(place[each.path], each.operator, each.value)
            conditions.append(sql)
            parameters.extend(values)
    words = words_of(query.search_text) if query.search_text else []
    if words:
        conditions.append("doc IN (SELECT rowid FROM {words} WHERE {words} MATCH ?)")
        parameters.append(" ".join(f'"{word}"*' for word in words))
    after, values = ([], []) if counts else _after(query, place)
    conditions.extend(after)
    parameters.extend(values)
    sorts = [f"{place[each.path]} {direction(each.descending)}" for each in query.order]
    order = ", ".join([*sorts, f"id {direction(shape.id_descending)}"])
    return Plan(shape, tuple(elements), bool(words), tuple(conditions), tuple(parameters), order)


def _shape(query: Query) -> IndexShape:
    """Put what is equal first, then what sorts, then what is left: so one range of the index holds the answer."""
    sorts = {each.path: each.descending for each in reversed(query.order)}
    equal = {each.path for each in query.filters if each.operator == "=="} - sorts.keys()
    rest = {each.path for each in query.filters if each.operator not in ("==", ARRAY_CONTAINS)}
    ordered = [Column(path) for path in sorted(equal)]
    ordered += [Column(path, sorts[path]) for path in dict.fromkeys(each.path for each in query.order)]
    loose = [Column(path) for path in sorted(rest - equal - sorts.keys())]
    # Without an order the result goes by id, so a range comes before the id; with one, it is only looked at.
    id_at = len(ordered) if query.order else len(ordered) + len(loose)
    return IndexShape(query.collection, (*ordered, *loose), id_at, bool(query.order) and query.order[-1].descending)


def _comparison(column: str, operator: str, value: Value) -> tuple[str, list[bytes]]:
    match operator:
        case "==":
            return f"{column} = ?", [order_key(value)]
        case "!=":
            return f"{column} != ?", [order_key(value)]
        case "in" | "not-in":
            keys = [order_key(item) for item in value]
            word = "IN" if operator == "in" else "NOT IN"
            return f"{column} {word} ({', '.join('?' * len(keys))})", keys
    key = order_key(value)
    # Comparisons stay within one type.
    tag = key[0] & _TAG_MASK
    if operator in ("<", "<="):
        return f"{column} >= ? AND {column} {operator} ?", [bytes([tag]), key]
    return f"{column} {operator} ? AND {column} < ?", [key, bytes([tag + _TAG_STEP])]


def _after(query: Query, place: dict[str, str]) -> tuple[list[str], list[Any]]:
    """Write "sorts after the cursor": the first column that differs decides."""
    if not query.cursor:
        return [], []
    columns = [(place[each.path], "<" if each.descending else ">") for each in query.order]
    keys: list[Any] = [order_key(value) for value in query.cursor[: len(columns)]]
    if len(query.cursor) > len(columns):
        keys.append(query.cursor[-1])
    columns.append(("id", "<" if query.order and query.order[-1].descending else ">"))
    alternatives = []
    parameters: list[Any] = []
    for at in range(len(keys)):
        equal = [f"{column} = ?" for column, _ in columns[:at]]
        alternatives.append(" AND ".join([*equal, f"{columns[at][0]} {columns[at][1]} ?"]))
        parameters.extend(keys[: at + 1])
    # Said once more for the first column alone, so that SQLite seeks instead of scanning.
    column, sign = columns[0]
    return [f"{column} {sign}= ?", f"({' OR '.join(alternatives)})"], [keys[0], *parameters]


def direction(descending: bool) -> str:
    """Return the word of SQL."""
    return "DESC" if descending else "ASC"
