"""What a file may be put from: a path, bytes, an open file, or anything that yields bytes."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Iterator
from pathlib import Path
from typing import Any, Final, Protocol, runtime_checkable

from twinlock.errors import InvalidDataError, NotFoundError

PIECE_BYTES: Final = 1 << 20


@runtime_checkable
class Readable(Protocol):
    """An open binary file."""

    def read(self, size: int, /) -> bytes:
        """Return the next bytes; none at the end."""


FileContent = (
    str | os.PathLike[str] | bytes | bytearray | memoryview | Readable | Iterable[bytes] | AsyncIterable[bytes]
)
"""Text is a path, never content."""


def name_of(source: FileContent) -> str:
    """Return the name that a source brings along."""
    named: Any = source if isinstance(source, str | os.PathLike) else getattr(source, "name", "")
    return Path(named).name if isinstance(named, str | os.PathLike) else ""


def size_of(source: FileContent) -> int | None:
    """Return the length of a source where it is known before it is read."""
    if isinstance(source, bytes | bytearray | memoryview):
        return memoryview(source).nbytes
    if isinstance(source, str | os.PathLike):
        try:
            return os.stat(source).st_size
        except OSError:
            return None
    return None


def pieces_of(source: FileContent) -> AsyncIterator[memoryview]:
    """Yield a source's content in pieces of at most 1 MiB, read in a thread where reading may block.

    Raises:
        NotFoundError: there is no such file, or it cannot be read.
        InvalidDataError: it is no source.
    """
    if isinstance(source, bytes | bytearray | memoryview):
        return _each((source,))
    if isinstance(source, str | os.PathLike):
        return _opened(source)
    if isinstance(source, Readable):
        return _read(source)
    if isinstance(source, AsyncIterable):
        return _awaited(source)
    if isinstance(source, Iterable):
        return _each(source)
    raise InvalidDataError(f"a file is not put from a {type(source).__name__}")


async def _opened(path: str | os.PathLike[str]) -> AsyncIterator[memoryview]:
    try:
        with await asyncio.to_thread(open, path, "rb") as file:
            async for piece in _read(file):
                yield piece
    except OSError as exc:
        raise NotFoundError(f"{os.fspath(path)}: {exc.strerror}") from exc


async def _read(file: Readable) -> AsyncIterator[memoryview]:
    while data := _checked(await asyncio.to_thread(file.read, PIECE_BYTES)):
        for piece in _cut(data):
            yield piece


async def _each(source: Iterable[bytes | bytearray | memoryview]) -> AsyncIterator[memoryview]:
    for data in source:
        for piece in _cut(_checked(data)):
            yield piece
        await asyncio.sleep(0)


async def _awaited(source: AsyncIterable[bytes]) -> AsyncIterator[memoryview]:
    async for data in source:
        for piece in _cut(_checked(data)):
            yield piece


def _cut(data: memoryview) -> Iterator[memoryview]:
    for at in range(0, len(data), PIECE_BYTES):
        yield data[at : at + PIECE_BYTES]


def _checked(data: object) -> memoryview:
    if not isinstance(data, bytes | bytearray | memoryview):
        raise InvalidDataError(f"a file consists of bytes, not of {type(data).__name__}")
    return memoryview(data).cast("B")
