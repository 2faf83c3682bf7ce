"""Heads of very many devices: pieces and the record that names them, with several nodes that write at once."""

import asyncio
import random

import pytest

from twinlock.engines.jetstream_starts import INLINE_HEADS, Checkpoint, Starts, StoredHead
from twinlock.engines.memory import MemoryDirectory
from twinlock.errors import StoreError
from twinlock.ids import Counter, EnvelopeId, Seq
from twinlock.testing.contracts.envelopes import new_device, new_space


class FarDirectory(MemoryDirectory):
    """A directory whose every call takes some turns of the loop, so that calls of several nodes interleave."""

    __slots__ = ("turns",)

    def __init__(self, seed):
        super().__init__()
        self.turns = random.Random(seed)

    async def _travel(self):
        for _ in range(self.turns.randrange(4)):
            await asyncio.sleep(0)

    async def get(self, key):
        await self._travel()
        record = await super().get(key)
        await self._travel()
        return record

    async def put(self, key, value, expect_revision=None):
        await self._travel()
        return await super().put(key, value, expect_revision)

    async def delete(self, key, expect_revision=None):
        await self._travel()
        await super().delete(key, expect_revision)

    async def list(self, prefix):
        await self._travel()
        return await super().list(prefix)


async def top():
    """Return the number of the log's last message."""
    return 100


DEVICES = [new_device() for _ in range(INLINE_HEADS + 1)]


def heads_at(number):
    """Return heads that all tell of which message they are."""
    return [StoredHead(device, Counter(number), EnvelopeId(bytes(32)), Seq(number)) for device in DEVICES]


@pytest.mark.parametrize("seed", range(8))
async def test_heads_are_whole_whoever_writes_and_reads_meanwhile(seed, monkeypatch):
    monkeypatch.setattr("twinlock.engines.jetstream_starts.PIECE_HEADS", 1_001)
    directory, space = FarDirectory(seed), new_space()
    starts = Starts(directory)
    await starts.write_checkpoint(space, Checkpoint(1, Seq(1), 1, 1, heads_at(1)), top)

    async def write(number):
        # Who loses again and again is told so, and tries again later.
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("twinlock.engines.jetstream_starts.TRIES", 50)
            await starts.write_checkpoint(space, Checkpoint(number, Seq(number), 1, 1, heads_at(number)), top)

    async def read():
        for _ in range(20):
            held = await starts.checkpoint_below(space, 100)
            assert held is not None
            assert [(head.device, head.counter) for head in held.heads] == [(each, held.number) for each in DEVICES]

    await asyncio.gather(*(write(number) for number in range(2, 6)), read(), read())

    held = await starts.checkpoint_below(space, 100)
    assert (held.number, len(held.heads)) == (5, len(DEVICES))
    assert len(await directory.list(f"heads/{space.hex()}/")) <= 2 * 4


async def test_pieces_that_are_gone_are_told():
    """Without them chains could be broken unseen."""
    directory, space = MemoryDirectory(), new_space()
    starts = Starts(directory)
    await starts.write_checkpoint(space, Checkpoint(5, Seq(5), 1, 1, heads_at(5)), top)
    assert await starts.checkpoint_below(space, 4) is None
    for key in await directory.list(f"heads/{space.hex()}/"):
        await directory.delete(key)
    with pytest.raises(StoreError):
        await starts.checkpoint_below(space, 5)
