"""A new device in a process of its own: `python -m bench.first_sync URL NAME KIT PROFILE COUNT`.

It tells how long it took to read everything, and how much memory that needed.
"""

from __future__ import annotations

import asyncio
import json
import resource
import sys
import time
from pathlib import Path

import twinlock
from bench.scenarios.devices import SPACE, settled


async def main(url: str, name: str, kit: str, profile: str, count: int) -> None:
    """Enrol, read everything, and print what it took as JSON."""
    before_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.perf_counter()
    async with await twinlock.recover(url, name, kit, profile=Path(profile)) as db:
        docs = db.space(SPACE).collection("docs")

        async def complete() -> bool:
            return bool(await docs.count() >= count)

        await settled(complete)
        seconds = time.perf_counter() - started
    grown_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kib
    print(json.dumps({"seconds": seconds, "grown_mib": grown_kib / 1024}))


if __name__ == "__main__":
    server_url, account_name, recovery_kit, folder, documents_count = sys.argv[1:]
    asyncio.run(main(server_url, account_name, recovery_kit, folder, int(documents_count)))
