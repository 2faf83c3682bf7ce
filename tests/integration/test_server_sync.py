"""Push, ack, delivery and catch-up over a real socket."""


import pytest

from tests.server_kit import make_world
from twinlock.server import Server, Settings


@pytest.fixture
async def server():
    running = Server(Settings(engine="memory:", port=0))
    await running.start()
    yield running
    await running.stop()


async def test_a_push_is_acknowledged_and_delivered_to_all_attached(server):
    world = await make_world(server)
    writer, reader = await world.open(), await world.open()
    await writer.attach(world.space)
    await reader.attach(world.space)
    envelope = world.chain().next()

    await writer.push(world.space, envelope)

    acked = await writer.acked(world.space, 1)
    [entry] = await reader.entries(world.space, 1)
    assert entry.envelope == envelope
    assert acked == {1: entry.seq}
    assert (await writer.entries(world.space, 1))[0] == entry
