"""`twinlock bench`: a short measure of this machine and, if asked, of a running server."""

from __future__ import annotations

import asyncio
import os
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from twinlock.cli.output import fail, need_server_parts, people, run

if TYPE_CHECKING:
    from twinlock.client.client import Client

COLLECTION = "twinlock-bench"
PAYLOAD = "x" * 256
WRITES_IN_FLIGHT = 64


def bench(
    profile: Annotated[
        Path | None,
        typer.Option(help="Measure the server of this profile. [dim]default: a server in this process[/]"),
    ] = None,
    space: Annotated[str, typer.Option(help="The space to write to; what is written is deleted.")] = "home",
    writes: Annotated[int, typer.Option(help="How many writes to time.", min=10)] = 500,
) -> None:
    """Measure writes of this device: on its disk, on the server's disk, and many at once.

    `make bench` of the repository measures the server itself, with cores set apart and beside peers.
    """
    if profile is None:
        need_server_parts()
    run(_bench(profile, space, writes))


async def _bench(profile: Path | None, space: str, writes: int) -> None:
    import twinlock

    if profile is not None:
        async with await twinlock.connect(profile=profile) as db:
            if not db.is_connected:
                fail("offline", "The server of this profile does not answer.", "Start it, or leave out --profile.")
            await _measure(db, space, writes)
        return
    people.print("[dim]A server in this process shares its core with the device: expect more from a real one.[/]")
    async with _own_server() as db:
        await _measure(db, space, writes)


@asynccontextmanager
async def _own_server() -> AsyncIterator[Client]:
    import twinlock
    from twinlock.server.app import Server
    from twinlock.server.settings import Settings

    with tempfile.TemporaryDirectory(prefix="twinlock-bench-") as folder:
        server = Server(Settings(data=f"{folder}/server", port=0, log_level="warning"))
        await server.start()
        try:
            password = os.urandom(12).hex()
            async with await twinlock.sign_up(server.url, "bench", password, profile=Path(folder, "profile")) as db:
                yield db
        finally:
            await server.stop()


async def _measure(db: Client, space: str, writes: int) -> None:
    docs: Any = db.space(space).collection(COLLECTION)
    stored_ms, durable_ms = [], []
    ids: list[str] = []
    for _ in range(writes):
        started = time.perf_counter()
        write = await docs.add({"text": PAYLOAD})
        stored_ms.append((time.perf_counter() - started) * 1000)
        await write.durable()
        durable_ms.append((time.perf_counter() - started) * 1000)
        ids.append(write.id)
    started = time.perf_counter()
    for start in range(0, writes, WRITES_IN_FLIGHT):
        group = [await docs.add({"text": PAYLOAD}) for _ in range(min(WRITES_IN_FLIGHT, writes - start))]
        for write in group:
            await write.durable()
        ids += [write.id for write in group]
    rate = writes / (time.perf_counter() - started)
    _show(stored_ms, durable_ms, rate)
    await _delete(db, docs, ids)


async def _delete(db: Client, docs: Any, ids: Sequence[str]) -> None:
    for start in range(0, len(ids), WRITES_IN_FLIGHT):
        batch = db.batch()
        for name in ids[start : start + WRITES_IN_FLIGHT]:
            batch.delete(docs.doc(name))
        await batch.commit()
    async with asyncio.timeout(60):
        await db.synced()


def _show(stored_ms: Sequence[float], durable_ms: Sequence[float], rate: float) -> None:
    table = Table(box=SIMPLE, header_style="bold")
    table.add_column("one write after another")
    table.add_column("p50", justify="right")
    table.add_column("p99", justify="right")
    table.add_row("safe on this device", _at(stored_ms, 0.5), _at(stored_ms, 0.99))
    table.add_row("durable on the server", _at(durable_ms, 0.5), _at(durable_ms, 0.99))
    console = Console(highlight=False)
    console.print(table)
    console.print(f"  {WRITES_IN_FLIGHT} at once: [bold]{rate:,.0f}[/] durable writes/s, sealed one by one\n")


def _at(values: Sequence[float], fraction: float) -> str:
    return f"{sorted(values)[min(len(values) - 1, int(fraction * len(values)))]:.2f} ms"
