"""A new device in a process of its own: `python -m bench.first_sync URL NAME KIT PROFILE COUNT`.

It tells how long it took to read everything, and how much memory that needed.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import twinlock
from bench.event_loop import runner
from bench.machine import resident_bytes_max
from bench.scenarios.devices import SPACE, settled


async def main(url: str, name: str, kit: str, profile: str, count: int) -> None:
    """Enrol, read everything, and print what it took as JSON."""
    before = resident_bytes_max()
    started = time.perf_counter()
    async with await twinlock.recover(url, name, kit, profile=Path(profile)) as db:
        docs = db.space(SPACE).collection("docs")

        async def complete() -> bool:
            return bool(await docs.count() >= count)

        await settled(complete)
        seconds = time.perf_counter() - started
    grown = resident_bytes_max() - before
    print(json.dumps({"seconds": seconds, "grown_mib": grown / (1 << 20)}))


if __name__ == "__main__":
    server_url, account_name, recovery_kit, folder, documents_count = sys.argv[1:]
    with runner() as loop:
        loop.run(main(server_url, account_name, recovery_kit, folder, int(documents_count)))
