"""Appends to a database until it is killed, and says on stdout what was acknowledged: device, counter, seq."""

import asyncio
import hashlib
import sys

from twinlock.engines.sqlite import SqliteEngine
from twinlock.testing.contracts import Chain

WRITERS = 8


def content(device: bytes, counter: int) -> bytes:
    """Return what an envelope holds, so that the reader can tell it from another."""
    return hashlib.sha256(device + counter.to_bytes(8, "big")).digest() * (1 + counter % 20)


async def write(log, space: bytes, number: int, heads) -> None:
    """Append without end, from where the device's chain stands."""
    device = hashlib.sha256(b"device %d" % number).digest()[:16]
    chain = Chain(space, device)
    if device in heads:
        chain.counter, chain.prev = heads[device].counter, heads[device].id
    while True:
        envelopes = [chain.next(content(device, chain.counter + 1)) for _ in range(1 + number % 3)]
        seqs = await log.append(space, envelopes, 1)
        lines = [f"{device.hex()} {e.header.counter} {seq}\n" for e, seq in zip(envelopes, seqs, strict=True)]
        sys.stdout.write("".join(lines))
        sys.stdout.flush()


async def main(path: str, space: bytes) -> None:
    engine = SqliteEngine.open(path)
    heads = (await engine.log.state(space)).heads
    await asyncio.gather(*(write(engine.log, space, number, heads) for number in range(WRITERS)))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], bytes.fromhex(sys.argv[2])))
