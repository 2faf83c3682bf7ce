"""A hundred thousand documents: imported, queried on the device, and read by a new device for the first time."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.figure import Figure, quantile
from bench.machine import LOAD_CORE, pinned_to
from bench.scale import PAYLOAD_BYTES, Scale
from bench.scenarios.devices import SPACE, first_device
from bench.server_process import serving

BATCH_DOCUMENTS = 100
GROUPS = 1_000
QUERY_RUNS = 20


async def many_documents(folder: Path, scale: Scale) -> list[Figure]:
    """Measure import, queries and a new device's first sync with 1,000, 10,000 and 100,000 documents."""
    figures: list[Figure] = []
    for count in (1_000,) if scale.quick else (1_000, 10_000, 100_000):
        place = folder / str(count)
        place.mkdir()
        with serving(place) as server:
            async with first_device(server, place) as (db, name, kit):
                figures += await _import(db, count)
                figures += await _queries(db, count)
            figures += await _first_sync([server.url, name, kit, str(place / "device-b"), str(count)], count)
    return figures


def _figure(count: int, name: str, value: float, unit: str, target: float | None) -> Figure:
    is_full = count == 100_000
    return Figure("documents", name, value, unit, "lower", target if is_full else None, growth=count / 1_000)


async def _import(db: Any, count: int) -> list[Figure]:
    docs = db.space(SPACE).collection("docs")
    started = time.perf_counter()
    for start in range(0, count, BATCH_DOCUMENTS):
        batch = db.batch()
        for index in range(start, start + BATCH_DOCUMENTS):
            batch.set(docs.doc(f"{index:06}"), document(index))
        await batch.commit()
        # An application that imports lets its connection breathe.
        await asyncio.sleep(0)
    await db.synced()
    taken_s = time.perf_counter() - started
    return [_figure(count, "import, until the server has all (1,000, 10,000, 100,000)", taken_s, "s", 30)]


def document(index: int) -> dict[str, Any]:
    """Return a document of about 256 bytes with a number, a group and some words."""
    words = f"word{index % GROUPS} "
    return {"n": index, "group": index % GROUPS, "text": words + "x" * (PAYLOAD_BYTES - len(words))}


async def _queries(db: Any, count: int) -> list[Figure]:
    docs = db.space(SPACE).collection("docs")
    queries: dict[str, Callable[[], Any]] = {
        "query: range, ordered, 50 of them": lambda: docs.where("n", ">=", count // 2).order_by("n").limit(50).get(),
        "query: equality": lambda: docs.where("group", "==", 7).get(),
        "query: full text": lambda: docs.search("word7").limit(50).get(),
    }
    figures = []
    for name, ask in queries.items():
        # The first time builds what the others use; it is measured by the import's figure only where it happens there.
        await ask()
        taken_ms = []
        for _ in range(QUERY_RUNS):
            started = time.perf_counter()
            await ask()
            taken_ms.append((time.perf_counter() - started) * 1000)
        figures.append(_figure(count, f"{name}, p50", quantile(taken_ms, 0.5), "ms", 50))
    return figures


async def _first_sync(arguments: list[str], count: int) -> list[Figure]:
    child = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "bench.first_sync",
        *arguments,
        stdout=asyncio.subprocess.PIPE,
        preexec_fn=pinned_to(LOAD_CORE),
    )
    output, _ = await child.communicate()
    if child.returncode:
        raise RuntimeError("the new device broke down; its words stand above")
    result = json.loads(output)
    return [
        _figure(count, "first sync of a new device (1,000, 10,000, 100,000)", result["seconds"], "s", 20),
        _figure(count, "memory of its process at most, above an empty one", result["grown_mib"], "MiB", None),
    ]
