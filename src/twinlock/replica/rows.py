"""The rows of a live query's result, sorted; a snapshot of them costs no copy of the result.

Rows lie in short lists that are never changed, only replaced: a snapshot keeps those of its moment.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, islice
from typing import Any, SupportsIndex, overload

CHUNK_ROWS_MAX = 512

Place = tuple[bytes, str]
"""Sort key and id."""

Row = tuple[bytes, str, dict[str, Any]]
"""Sort key, id and value. A place compares with a row as one that stands just before it."""

Document = tuple[str, dict[str, Any]]


class Documents(Sequence[Document]):
    """The ids and values of a result at one moment, in its order."""

    __slots__ = ("_chunks", "_count")

    def __init__(self, chunks: Iterable[Sequence[Row]], count: int) -> None:
        self._chunks = tuple(chunks)
        self._count = count

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Document]:
        return ((identifier, value) for _, identifier, value in chain.from_iterable(self._chunks))

    @overload
    def __getitem__(self, index: SupportsIndex) -> Document: ...
    @overload
    def __getitem__(self, index: slice) -> list[Document]: ...
    def __getitem__(self, index: SupportsIndex | slice) -> Document | list[Document]:
        if isinstance(index, slice):
            return list(self)[index]
        at = range(self._count)[index]
        return next(islice(self, at, None))

    def __eq__(self, other: object) -> bool:
        return list(self) == list(other) if isinstance(other, Sequence) else NotImplemented

    __hash__ = None  # type: ignore[assignment]  # it is equal to lists

    def __repr__(self) -> str:
        return repr(list(self))


class SortedRows:
    """Rows by sort key and id."""

    __slots__ = ("_chunks", "_count", "_lasts")

    def __init__(self) -> None:
        self._chunks: list[list[Row]] = []
        self._lasts: list[Place] = []
        self._count = 0

    def __len__(self) -> int:
        return self._count

    @property
    def last(self) -> Place:
        """The place of the last row."""
        return self._lasts[-1]

    def fill(self, rows: list[Row]) -> None:
        """Take rows that are sorted, in place of all that were here."""
        self._chunks = [rows[at : at + CHUNK_ROWS_MAX] for at in range(0, len(rows), CHUNK_ROWS_MAX)]
        self._lasts = [chunk[-1][:2] for chunk in self._chunks]
        self._count = len(rows)

    def insert(self, row: Row) -> int:
        """Put in a row that is not here, and return its index."""
        place = row[:2]
        self._count += 1
        # What comes after everything begins a new list once the last is full, so that those before stay full.
        if not self._chunks or (place > self._lasts[-1] and len(self._chunks[-1]) >= CHUNK_ROWS_MAX):
            self._chunks.append([row])
            self._lasts.append(place)
            return self._count - 1
        at = min(bisect_left(self._lasts, place), len(self._chunks) - 1)
        chunk = self._chunks[at]
        within = bisect_left(chunk, place)
        self._replace(at, [*chunk[:within], row, *chunk[within:]])
        return self._before(at) + within

    def remove(self, place: Place) -> int:
        """Take out a row that is here, and return the index it had."""
        self._count -= 1
        at = bisect_left(self._lasts, place)
        chunk = self._chunks[at]
        within = bisect_left(chunk, place)
        index = self._before(at) + within
        self._replace(at, [*chunk[:within], *chunk[within + 1 :]])
        return index

    def documents(self) -> Documents:
        """Return the result as it is now."""
        return Documents(self._chunks, self._count)

    def _before(self, at: int) -> int:
        return sum(map(len, self._chunks[:at]))

    def _replace(self, at: int, chunk: list[Row]) -> None:
        half = len(chunk) // 2
        parts = [chunk[:half], chunk[half:]] if len(chunk) > CHUNK_ROWS_MAX else [chunk] if chunk else []
        self._chunks[at : at + 1] = parts
        self._lasts[at : at + 1] = [part[-1][:2] for part in parts]
