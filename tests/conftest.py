"""Fixtures of all tests that need a server with an account."""

import pytest

from tests.client_kit import World, make_template


@pytest.fixture(scope="session")
def account_template(tmp_path_factory):
    """A server with an account and two devices, made once."""
    return make_template(tmp_path_factory.mktemp("template"))


@pytest.fixture
async def account_world(tmp_path, account_template):
    """A server in this process with an account and the profiles "a" and "b"."""
    world = World(tmp_path, account_template)
    await world.start()
    yield world
    await world.close()
