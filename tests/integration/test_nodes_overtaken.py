"""Appends that another node's fence overtakes are pushed again, and no reader is disturbed for that."""

import asyncio

from tests.nodes_kit import metric
from tests.server_kit import make_world
from twinlock.protocol.frames import Ack, Reject


async def test_what_a_fence_overtakes_comes_again_and_no_reader_starts_over(town, here):
    owner = await make_world(here)
    wire, reader = await town.open(here, owner), await town.open(here, owner)
    await wire.attach(owner.space)
    await reader.attach(owner.space)
    chain, other, sent = owner.chain(), town.store.node(), []

    async with asyncio.timeout(20):
        while not metric(here, "append_overtaken"):
            sent.append(chain.next())
            await wire.push(owner.space, sent[-1])
            # The fences meet the append at its different stages.
            for _ in range(len(sent) % 5):
                await asyncio.sleep(0)
            await other.log.fence(owner.space)
            while isinstance(await wire.next((Ack, Reject)), Reject):
                await asyncio.sleep(0.02)
                await wire.push(owner.space, sent[-1])

    assert metric(here, "append_failures") == 0
    entries = await reader.entries(owner.space, len(sent))
    assert [entry.envelope for entry in entries] == sent
