"""A server in memory and the accounts around it, for the tests that speak to it frame by frame."""

import pytest

from tests.membership_kit import House, make_person
from tests.server_kit import make_world
from twinlock.server import Server, Settings
from twinlock.server.stores import open_stores


@pytest.fixture
async def stores():
    """The server's stores, to look into."""
    return await open_stores(Settings(engine="memory:"))


@pytest.fixture
async def server(stores):
    """A running server that limits no tries."""
    running = Server(Settings(engine="memory:", port=0, unlocker_tries_per_min=0), stores)
    await running.start()
    yield running
    await running.stop()


@pytest.fixture
async def house(server):
    """A space with its owner, who is attached."""
    owner = await make_world(server)
    wire = await owner.open()
    await wire.attach(owner.space)
    return House(owner, wire)


@pytest.fixture
async def ben(server):
    """Another account."""
    return await make_person(server)
