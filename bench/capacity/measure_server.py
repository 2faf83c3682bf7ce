"""What connections, spaces and accounts cost a sync node, the directory and the key service, on a real server."""

from __future__ import annotations

import asyncio
import sqlite3
from pathlib import Path
from typing import Any

import msgspec

from bench.cluster_process import clustered
from bench.machine import resident_bytes
from bench.people import make_person, sign_up
from bench.raw_client import open_client
from bench.scale import Scale
from bench.scenarios.connections import connections
from bench.scenarios.leases import leases
from bench.scenarios.writes import Writer, drive
from bench.server_process import serving
from bench.world import make_world
from twinlock.engines.jetstream import JetstreamEngine
from twinlock.protocol.client import ClientIdentity
from twinlock.protocol.limits import CONNECTION_SPACES_MAX

SPACES = 400
ACCOUNTS = 200
ACCOUNT_RECORDS = 5
WRITERS, CHANGES = 64, 200
SETTLE_SECONDS = 1.0
MEMORY_NAME = "server memory of an idle connection"
LEASE_NAME = "processor time of a lease, many at once, in a process of its own"


class _Stock(msgspec.Struct, frozen=True):
    """What the databases of a server hold."""

    records: int
    keys_bytes: int
    leases: int
    ledger_bytes: int


async def measure_server(folder: Path) -> dict[str, Any]:
    """Make spaces and accounts on a server, and serve the spaces; return this share of `Measured`."""
    parts = {name: folder / name for name in ("stock", "connections", "leases")}
    for part in parts.values():
        part.mkdir()
    served = await _spaces_and_accounts(parts["stock"])
    each = {figure.name: figure.value for figure in await connections(parts["connections"], Scale())}
    lease = {figure.name: figure.value for figure in await leases(parts["leases"], Scale())}
    return {**served, "connection_memory_bytes": each[MEMORY_NAME] * 1024, "lease_cpu_ms": lease[LEASE_NAME]}


async def measure_changes(folder: Path) -> dict[str, Any]:
    """Measure what a change costs a sync node over three NATS servers, and what a space adds to their directory."""
    with clustered(folder, 1) as running:
        await running.ready()
        await make_world(running.ports[0])
        records_before = await _records(running.nats.url)
        world = await make_world(running.ports[0], spaces_count=WRITERS)
        writers = [Writer(await world.open(), world.source(space).pushes(CHANGES)) for space in range(WRITERS)]
        before = running.cpu()
        await drive(writers)
        per_core_s = WRITERS * CHANGES / running.cpu().since(before).nodes
        records = await _records(running.nats.url) - records_before
    # The account that makes the spaces is new too.
    return {"changes_per_core_s": per_core_s, "records_per_space": (records - ACCOUNT_RECORDS) / WRITERS}


async def _records(url: str) -> int:
    engine = await JetstreamEngine.connect(url)
    try:
        found = await engine.status()
    finally:
        await engine.close()
    return sum(stream.subjects for stream in found.streams[: found.settings.shards])


async def _spaces_and_accounts(folder: Path) -> dict[str, Any]:
    with serving(folder) as server:
        await server.ready()
        await make_world(server.port)
    empty = _stock(folder)
    with serving(folder) as server:
        await server.ready()
        spaces = await make_world(server.port, spaces_count=SPACES)
    with_spaces = _stock(folder)
    with serving(folder) as server:
        await server.ready()
        await _sign_up_many(server.port)
    with_accounts = _stock(folder)
    with serving(folder) as server:
        await server.ready()
        await asyncio.sleep(SETTLE_SECONDS)
        bare = resident_bytes(server.child.pid)
        client = await open_client(server.port, spaces.identity())
        for number in range(min(SPACES, CONNECTION_SPACES_MAX)):
            await client.attach(spaces.space_id(number))
        await asyncio.sleep(SETTLE_SECONDS)
        served = resident_bytes(server.child.pid)
        client.close()
    leases_count = with_spaces.leases - empty.leases
    ledger_bytes = with_spaces.ledger_bytes - empty.ledger_bytes
    return {
        "served_space_memory_bytes": (served - bare) / SPACES,
        "sync_process_memory_bytes": bare,
        "records_per_account": (with_accounts.records - with_spaces.records) / ACCOUNTS,
        "keys_bytes_per_space": (with_spaces.keys_bytes - empty.keys_bytes - ledger_bytes) / SPACES,
        "keys_bytes_per_account": (with_accounts.keys_bytes - with_spaces.keys_bytes) / ACCOUNTS,
        "keys_bytes_per_lease": ledger_bytes / max(leases_count, 1),
    }


async def _sign_up_many(port: int) -> None:
    for _ in range(ACCOUNTS):
        anonymous = await open_client(port, ClientIdentity())
        await sign_up(anonymous, make_person(), (await anonymous.welcomed).server_id)
        anonymous.close()


def _stock(folder: Path) -> _Stock:
    """Look into the files of a server that has stopped."""
    (log,) = (folder / "data").glob("twinlock.db")
    (keys,) = (folder / "data" / "keyservice").glob("*.db")
    (records,) = _ask(log, "SELECT count(*) FROM records")
    pages, size = _ask(
        keys, "SELECT (SELECT page_count FROM pragma_page_count), (SELECT page_size FROM pragma_page_size)"
    )
    leases_count, ledger = _ask(
        keys, "SELECT count(*), coalesce(sum(length(record) + length(hash) + 8), 0) FROM ledger"
    )
    return _Stock(records, pages * size, leases_count, ledger)


def _ask(path: Path, sql: str) -> tuple[int, ...]:
    connection = sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)
    try:
        row: tuple[int, ...] = connection.execute(sql).fetchone()
    finally:
        connection.close()
    return row
