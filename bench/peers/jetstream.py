"""Raw JetStream publishing: `python -m bench.peers.jetstream`, told what to publish in one line of JSON.

It stands for what the engine costs without Twinlock: the same bytes in messages of the same size, to as many subjects,
one in flight for each, each guarded by the subject's last sequence number as Twinlock's are. The client is `nats-py`.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time

import nats
from nats.js import JetStreamContext

from bench.event_loop import runner
from bench.json_child import tell_parent

GUARD = "Nats-Expected-Last-Subject-Sequence"


async def publish(js: JetStreamContext, subject: str, count: int, size: int) -> list[float]:
    """Publish messages one after the other and return how long each took, in ms."""
    taken_ms: list[float] = []
    last, payload = 0, os.urandom(size)
    for _ in range(count):
        started = time.perf_counter()
        last = (await js.publish(subject, payload, headers={GUARD: str(last)})).seq
        taken_ms.append((time.perf_counter() - started) * 1000)
    return taken_ms


async def main() -> None:
    """Publish what was asked for and tell what that took."""
    told = json.loads(sys.stdin.readline())  # nothing else runs yet
    client = await nats.connect(told["urls"])
    js = client.jetstream(timeout=30)
    subjects = [f"{prefix}.{os.urandom(16).hex()}" for prefix in told["prefixes"]]
    cpu_before_s, started = time.process_time(), time.perf_counter()
    taken = await asyncio.gather(*(publish(js, subject, told["count"], told["size"]) for subject in subjects))
    cpu_s, taken_s = time.process_time() - cpu_before_s, time.perf_counter() - started
    await client.close()
    tell_parent({"cpu_s": cpu_s, "taken_s": taken_s, "taken_ms": [each for some in taken for each in some]})


if __name__ == "__main__":
    with runner() as loop:
        loop.run(main())
