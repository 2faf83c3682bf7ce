"""Queries over the documents of a collection, on this device. See docs/reference/queries.md.

A query is a value that compiles itself on first use. Whoever runs it, by scan or by index, takes the documents that
it `matches`, sorts them by `sort_key`, leaves out those not above `start_key`, and stops after `limit_count`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import cached_property
from typing import Any, Literal

import msgspec

from twinlock.document.filters import MISSING, Filter, Test, all_of, check_filter, compile_filter, getter, has_field
from twinlock.document.ordering import descending, order_key
from twinlock.document.search import matches_text, words_of
from twinlock.document.values import Path, Value, check_collection, check_data, parse_path
from twinlock.errors import InvalidDataError, InvalidQueryError


class Order(msgspec.Struct, frozen=True):
    """One field to sort by."""

    path: Path
    descending: bool = False


class Query(msgspec.Struct, frozen=True, dict=True):
    """What is asked of a collection; every method returns a new query.

    A document without a field that the query filters or sorts by is left out. Ties are broken by the document's id,
    in the direction of the last field, so the order is total.
    """

    collection: str
    filters: tuple[Filter, ...] = ()
    order: tuple[Order, ...] = ()
    limit_count: int | None = None
    cursor: tuple[Value, ...] = ()
    search_text: str = ""

    @classmethod
    def over(cls, collection: str, *, reserved: bool = False) -> Query:
        """Ask for every document of a collection."""
        return cls(check_collection(collection, reserved=reserved))

    def where(self, field: str | tuple[str, ...], operator: str, value: Any) -> Query:
        """Keep the documents whose field compares so: `== != < <= > >= in not-in array-contains`."""
        try:
            path = parse_path(field)
            checked = check_data(value)
        except InvalidDataError as exc:
            raise InvalidQueryError(exc.detail) from exc
        return msgspec.structs.replace(self, filters=(*self.filters, check_filter(path, operator, checked)))

    def order_by(self, field: str | tuple[str, ...], direction: Literal["asc", "desc"] = "asc") -> Query:
        """Sort by a field; further calls sort what is equal."""
        if direction not in ("asc", "desc"):
            raise InvalidQueryError('a direction is "asc" or "desc"')
        if self.cursor:
            raise InvalidQueryError("order_by comes before start_after")
        try:
            path = parse_path(field)
        except InvalidDataError as exc:
            raise InvalidQueryError(exc.detail) from exc
        return msgspec.structs.replace(self, order=(*self.order, Order(path, direction == "desc")))

    def limit(self, count: int) -> Query:
        """Take the first `count` documents of the order."""
        if isinstance(count, bool) or not isinstance(count, int) or count < 1:
            raise InvalidQueryError("a limit is a number from 1")
        return msgspec.structs.replace(self, limit_count=count)

    def start_after(self, *values: Any) -> Query:
        """Begin after the place where a document with these values would stand.

        Args:
            values: one for each field of the order, and optionally the id of a document as the tie-break.
        """
        if not 1 <= len(values) <= len(self.order) + 1:
            raise InvalidQueryError("start_after takes the values of order_by's fields, then an id")
        try:
            checked = tuple(check_data(value) for value in values)
        except InvalidDataError as exc:
            raise InvalidQueryError(exc.detail) from exc
        if len(values) > len(self.order) and not isinstance(values[-1], str):
            raise InvalidQueryError("the last value of start_after is a document's id")
        return msgspec.structs.replace(self, cursor=checked)

    def start_after_document(self, document_id: str, value: Mapping[str, Value]) -> Query:
        """Begin after a document of an earlier page."""
        return self.start_after(*[_field(value, order.path) for order in self.order], document_id)

    def search(self, text: str) -> Query:
        """Keep the documents whose text has every word of `text`, or words that begin so."""
        if not isinstance(text, str) or not text.strip():
            raise InvalidQueryError("search for some text")
        return msgspec.structs.replace(self, search_text=text)

    @cached_property
    def matches(self) -> Test:
        """Tell whether a document's value is among the answers; ids, order and limit play no part."""
        tests = [compile_filter(item) for item in self.filters]
        filtered = {item.path for item in self.filters}
        tests += [has_field(order.path) for order in self.order if order.path not in filtered]
        if self.search_text:
            words = words_of(self.search_text)
            tests.append(lambda value: matches_text(value, words))
        return all_of(tests)

    @cached_property
    def sort_key(self) -> Callable[[str, dict[str, Value]], bytes]:
        """Return bytes that sort the documents of the answer; no two have the same."""
        parts = [(getter(order.path), order.descending) for order in self.order]
        last_descending = bool(parts) and parts[-1][1]

        def key(document_id: str, value: dict[str, Value]) -> bytes:
            out = b"".join([_key_part(get(value), down) for get, down in parts])
            return out + _key_part(document_id, last_descending)

        return key if parts else _id_key

    @cached_property
    def start_key(self) -> bytes | None:
        """The key that answers must lie above, None to begin at the first."""
        if not self.cursor:
            return None
        parts = [_key_part(value, order.descending) for value, order in zip(self.cursor, self.order, strict=False)]
        if len(self.cursor) > len(self.order):
            return b"".join(parts) + _key_part(self.cursor[-1], bool(self.order) and self.order[-1].descending)
        return b"".join(parts) + _AFTER_ALL_TIES

    def is_after_start(self, key: bytes) -> bool:
        """Tell whether a document of this `sort_key` lies after the place given to `start_after`."""
        return self.start_key is None or key > self.start_key

    def run(self, documents: Iterable[tuple[str, dict[str, Value]]]) -> list[tuple[str, dict[str, Value]]]:
        """Answer the query by a scan of a collection's documents."""
        keyed = [(self.sort_key(id_, value), id_, value) for id_, value in documents if self.matches(value)]
        keyed = sorted([item for item in keyed if self.is_after_start(item[0])], key=_by_key)
        return [(id_, value) for _, id_, value in keyed[: self.limit_count]]

    def count(self, documents: Iterable[dict[str, Value]]) -> int:
        """Return how many documents match, whatever the limit and the start."""
        return sum(map(self.matches, documents))


_AFTER_ALL_TIES = b"\xff\xff"
"""Above every encoded id, in both directions: the keys of strings begin with neither."""


def _id_key(document_id: str, value: dict[str, Value]) -> bytes:
    return order_key(document_id)


def _key_part(value: Value, down: bool) -> bytes:
    if value is MISSING:
        value = None
    key = order_key(value)
    return descending(key) if down else key


def _by_key(item: tuple[bytes, str, dict[str, Value]]) -> bytes:
    return item[0]


def _field(value: Mapping[str, Value], path: Path) -> Value:
    found = getter(path)(value)
    if found is MISSING:
        raise InvalidQueryError("start_after a document without the fields of the order")
    return found
