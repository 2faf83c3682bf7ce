"""A NATS server for a module's tests, on which each test has a cluster of its own."""

import secrets

import pytest

from twinlock.engines.jetstream import JetstreamEngine
from twinlock.engines.jetstream_cluster import FirstSettings
from twinlock.testing.nats_process import NatsCluster

SMALL = FirstSettings(partitions=1, shards=2)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with NatsCluster(tmp_path_factory.mktemp("nats"), nodes=1) as cluster:
        yield cluster


@pytest.fixture
async def connect(server):
    """Returns one more node of a fresh cluster each time."""
    name = secrets.token_hex(4)
    engines = []

    async def connect():
        engines.append(await JetstreamEngine.connect(server.url, name=name, first=SMALL))
        return engines[-1]

    yield connect
    for engine in engines:
        await engine.close()
