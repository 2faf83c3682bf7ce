"""A directory that was copied from a lost site further than a log tells of heads that this log never had."""

import msgspec
import pytest

from twinlock.engines.jetstream_format import PLACES
from twinlock.engines.jetstream_starts import Checkpoint, StoredHead
from twinlock.testing.contracts.envelopes import Chain, new_space

NOW_MS = 1_700_000_000_000


async def store_lost_heads(engine, chain, messages):
    """Store what a node of another site wrote when the log went on by so many messages, of which none was copied."""
    state = await engine.log.state(chain.space)
    last = chain.take(messages)[-1]
    number = state.head // PLACES + messages
    head = StoredHead(last.header.device, last.header.counter, last.id, number * PLACES)
    made = Checkpoint(number, number * PLACES, state.log_bytes + messages * len(last.data), 1 + messages, [head])
    await engine.directory.put(f"heads/{chain.space.hex()}", msgspec.msgpack.encode([made]))


async def test_heads_of_a_lost_life_are_not_taken_up_once_the_log_has_grown_past_them(connect):
    lost = Chain(new_space())
    first = await connect()
    await first.log.append(lost.space, [lost.next()], NOW_MS)
    await store_lost_heads(first, lost, 2)
    writer = Chain(lost.space)
    for _ in range(3):
        await first.log.append(lost.space, writer.take(2), NOW_MS)
    grown = await first.log.state(lost.space)

    state = await (await connect()).log.state(lost.space)

    assert state.heads[lost.device].counter == 1
    assert state == grown


@pytest.mark.parametrize("ahead", [1_000, 3])
async def test_heads_are_stored_before_a_purge_although_a_lost_life_went_further(connect, ahead):
    """Or just as far: what they tell is not of this log."""
    lost = Chain(new_space())
    first = await connect()
    await first.log.append(lost.space, [lost.next()], NOW_MS)
    await store_lost_heads(first, lost, ahead)
    writer = Chain(lost.space)
    for _ in range(3):
        await first.log.append(lost.space, writer.take(2), NOW_MS)
    before = await first.log.state(lost.space)
    await first.log.purge(lost.space)

    state = await (await connect()).log.state(lost.space)

    assert dict(state.heads) == dict(before.heads)
