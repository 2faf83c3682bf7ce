"""New spaces go where the engine lets them in, and only there; spaces that exist stay where they are."""

import asyncio
import os

import msgspec
import pytest

import twinlock
from tests.server_kit import CallFailed, make_world
from twinlock.errors import PartitionClosedError
from twinlock.protocol.calls import PartitionsResult, ReadPartitions
from twinlock.protocol.space_log import partition_of
from twinlock.server import Server, Settings
from twinlock.server.stores import open_stores


class Doors:
    """The partitions that are open, as an operator changes them."""

    def __init__(self, *numbers: int) -> None:
        self.numbers = list(numbers)
        self.asked = 0

    async def read(self) -> list[int]:
        self.asked += 1
        return self.numbers


@pytest.fixture
def doors():
    return Doors(3, 700)


@pytest.fixture
async def server(doors):
    """A running server whose partitions the test opens and closes."""
    stores = await open_stores(Settings(engine="memory:"))
    running = Server(Settings(engine="memory:", port=0), msgspec.structs.replace(stores, open_partitions=doors.read))
    await running.start()
    yield running
    await running.stop()


async def test_a_single_machine_opens_the_first_sixteen():
    running = Server(Settings(engine="memory:", port=0))
    await running.start()
    try:
        world = await make_world(running)
        answer = await (await world.open()).call("space.partitions", ReadPartitions(), PartitionsResult)
    finally:
        await running.stop()

    assert answer.open == list(range(16))


async def test_a_space_is_refused_where_none_is_let_in_and_made_once_it_is(server, doors):
    doors.numbers = [0]
    world = await make_world(server)
    wire = await world.open()
    doors.numbers = [1]

    answer = await wire.call("space.partitions", ReadPartitions(), PartitionsResult)
    with pytest.raises(CallFailed, match="partition_closed"):
        await world.create_space(wire)
    doors.numbers = [0, 1]
    await world.create_space(wire)

    assert answer.open == [1]
    assert partition_of(world.space) == 0


async def test_a_space_of_a_partition_that_was_closed_goes_on(server, doors):
    doors.numbers = [0]
    world = await make_world(server)
    doors.numbers = []

    wire, chain = await world.open(), world.chain()
    await wire.push(world.space, chain.next())

    assert await wire.acked(world.space, 1)


async def test_the_sdk_spreads_new_spaces_and_follows_when_partitions_change(server, doors, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHON_KEYRING_BACKEND", "keyring.backends.fail.Keyring")
    async with await twinlock.sign_up(server.url, "ada", os.urandom(12).hex(), profile=tmp_path / "ada") as db:
        asked = doors.asked
        made = [await db.create_space(f"space {number}") for number in range(8)]
        before = [int(space.id[:4], 16) for space in made]
        doors.numbers = [9]
        after = await db.create_space("elsewhere")
        doors.numbers = []
        with pytest.raises(PartitionClosedError):
            await db.create_space("nowhere")
        async with asyncio.timeout(10):
            await (await after.collection("notes").doc("one").set({"n": 1})).durable()

    assert set(before) <= {3, 700}
    assert int(after.id[:4], 16) == 9
    assert doors.asked > asked
