"""What the security tests share: servers on real sockets and files, and the sources of the package."""

import ast
import asyncio
import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.client_kit import World
from tests.security.attackers import make_household
from tests.security.dishonest import write_all
from twinlock.server.app import Server
from twinlock.server.settings import Settings

ROOT = Path(__file__).parents[2]

# A test must not put keys into the keyring of whoever runs it: the StoreKey goes to a file, the weakest custody.
os.environ["PYTHON_KEYRING_BACKEND"] = "keyring.backends.fail.Keyring"


@pytest.fixture(scope="session")
def package_trees():
    """The syntax trees of the package that is shipped, by name."""
    return [
        (path.relative_to(ROOT).as_posix(), ast.parse(path.read_text(encoding="utf-8")))
        for path in sorted((ROOT / "src").rglob("*.py"))
    ]


@pytest.fixture
def serving():
    """Serve a data folder on a port of its own while a block lasts: the whole server, in this process."""
    return run_server


@asynccontextmanager
async def run_server(folder: Path, **settings: object):
    """Run a server; limits on rates are off unless given."""
    origins = settings.pop("origins", None)
    rates = {"sign_ups_per_min": 0, "unlocker_tries_per_min": 0}
    port = settings.pop("port", 0)
    if origins is not None and not port:
        from twinlock.testing.traffic_tap import free_port

        port = free_port()
        origins = [f"ws://127.0.0.1:{port}", *origins]
    chosen = {**rates, "data": str(folder / "data"), "port": port, "origins": origins or [], **settings}
    server = Server(Settings(**chosen))
    await server.start()
    try:
        yield server
    finally:
        await server.stop()


@pytest.fixture(scope="session")
def written_template(tmp_path_factory, account_template):
    """Two devices wrote: "a" three times, "c" once in between; made once, in a thread that has a loop of its own."""
    folder = tmp_path_factory.mktemp("written")
    with ThreadPoolExecutor(1) as thread:
        thread.submit(asyncio.run, write_all(World(folder, account_template))).result()
    return folder


@pytest.fixture
async def world(tmp_path, written_template):
    """What was written, in the hands of whoever has the server's files; the server does not run yet."""
    world = World(tmp_path, written_template)
    yield world
    await world.close()


@pytest.fixture(scope="session")
def household_template(tmp_path_factory, account_template):
    """A space of three accounts, made once."""
    folder = tmp_path_factory.mktemp("household")
    with ThreadPoolExecutor(1) as thread:
        thread.submit(asyncio.run, make_household(World(folder, account_template))).result()
    return folder


@pytest.fixture
async def household(tmp_path, household_template):
    """A running server with a space of ann, ben (editor) and cleo (reader), whose devices are closed."""
    world = World(tmp_path / "world", household_template)
    await world.start()
    yield world
    await world.close()
