"""Engines with something in them, and where backups of them go."""

import time
from contextlib import asynccontextmanager
from pathlib import Path

from twinlock.backup import Holdings
from twinlock.engines.blobs import open_blobs
from twinlock.engines.sqlite import SqliteEngine
from twinlock.testing.contracts.log import read_all


def now_ms() -> int:
    """The wall clock in ms."""
    return time.time_ns() // 1_000_000


@asynccontextmanager
async def opened(folder: Path, *, is_beside: bool = False):
    """Open the data folder of a server, or make one."""
    path = folder / "twinlock.db"
    engine = SqliteEngine.open_reading(path) if is_beside else SqliteEngine.open(path)
    blobs = open_blobs(str(folder / "blobs"))
    try:
        yield Holdings(engine.log, engine.directory, engine.broker, blobs, engine.log.places)
    finally:
        await blobs.close()
        await engine.close()


async def records_of(holdings: Holdings) -> dict[str, bytes]:
    return {key: record.value async for key, record in holdings.directory.scan()}


async def objects_of(store) -> dict[str, bytes]:
    return {part.name: await store.get(part.name) async for part in store.list("blobs/")}


async def entries_of(holdings: Holdings, space) -> list[tuple[int, bytes]]:
    return [(entry.received_ms, entry.envelope) for entry in await read_all(holdings.log, space)]


async def all_entries(holdings: Holdings) -> dict[bytes, list[tuple[int, bytes]]]:
    return {place.space: await entries_of(holdings, place.space) async for place in holdings.all_places()}


async def names_in(store, prefix: str) -> set[str]:
    return {part.name async for part in store.list(prefix)}
