"""Fixtures of all tests that need a server with an account, or several nodes on one store."""

import pytest

from tests.client_kit import World, make_template
from tests.nodes_kit import Town


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


@pytest.fixture
async def town(tmp_path):
    """A store with a key service, which nodes are started on."""
    town = Town(tmp_path)
    yield town
    await town.close()


@pytest.fixture
async def here(town):
    """A node of the town."""
    return await town.start()


@pytest.fixture
async def there(town, here):
    """Another one."""
    return await town.start()
