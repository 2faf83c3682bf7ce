"""One of two devices, a process of its own: `python -m bench.device write URL PROFILE` or `read URL PROFILE NAME KIT`.

The writer tells its account's name and recovery kit first. Then, for each line `{"rate": ..., "count": ...}`, the
reader tells that it is ready, and in the end how long each change took from the call that wrote it to the callback:
the clock is that of the machine, the same in both processes.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from pathlib import Path
from typing import Any

import twinlock
from bench.event_loop import loop_name, runner
from bench.json_child import hear_parent, tell_parent
from bench.scale import PAYLOAD_BYTES
from bench.scenarios.devices import SPACE, settled

SECONDS_MAX = 110.0


async def write(url: str, profile: str) -> None:
    """Sign up, then write at each rate that is asked for."""
    password = os.urandom(12).hex()
    async with await twinlock.sign_up(url, f"bench-{os.urandom(4).hex()}", password, profile=Path(profile)) as db:
        tell_parent([db.name, db.recovery_kit()])
        while load := await hear_parent():
            docs = db.space(SPACE).collection(f"at-{load['rate']}")
            if load.get("warm_up"):
                await docs.add({"text": "what opens the space on both sides before the clock starts"})
                await db.synced()
                tell_parent("warm")
            else:
                tell_parent({"reached": await _paced(docs, load["rate"], load["count"]), "loop": loop_name()})


async def _paced(docs: Any, rate: int, count: int) -> float:
    text = "x" * PAYLOAD_BYTES
    started = time.perf_counter()
    for index in range(count):
        ahead = started + index / rate - time.perf_counter()
        if ahead > 0:
            await asyncio.sleep(ahead)
        await docs.add({"text": text, "at": time.perf_counter()})
    return count / (time.perf_counter() - started)


async def read(url: str, profile: str, name: str, kit: str) -> None:
    """Enrol, then tell how late each change came."""
    async with await twinlock.recover(url, name, kit, profile=Path(profile)) as db:
        while load := await hear_parent():
            tell_parent(await _lateness_ms(db, load["rate"], load["count"]))


async def _lateness_ms(db: Any, rate: int, count: int) -> list[float]:
    taken_ms: list[float] = []
    complete = asyncio.Event()

    def on_snapshot(snap: Any) -> None:
        now = time.perf_counter()
        taken_ms.extend((now - change.doc.data["at"]) * 1000 for change in snap.changes if "at" in change.doc.data)
        if len(taken_ms) >= count:
            complete.set()

    docs = db.space(SPACE).collection(f"at-{rate}")

    async def is_warm() -> bool:
        return bool(await docs.count())

    await settled(is_warm)
    unsubscribe = docs.on_snapshot(on_snapshot)
    tell_parent("ready")
    await asyncio.wait_for(complete.wait(), SECONDS_MAX)
    unsubscribe()
    return taken_ms


if __name__ == "__main__":
    role, *arguments = sys.argv[1:]
    with runner() as loop:
        loop.run((write if role == "write" else read)(*arguments))
