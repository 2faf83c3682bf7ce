"""The JetStream engine keeps the contracts, on one real server."""

import secrets

import pytest

from twinlock.engines.jetstream import JetstreamEngine
from twinlock.engines.jetstream_cluster import FirstSettings
from twinlock.testing.contracts import BrokerContract, DirectoryContract, LogContract, LogNodesContract
from twinlock.testing.nats_process import NatsCluster

SMALL = FirstSettings(partitions=1, shards=2)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with NatsCluster(tmp_path_factory.mktemp("nats"), nodes=1) as cluster:
        yield cluster


@pytest.fixture
async def engines(server):
    """Two nodes of one fresh cluster."""
    name = secrets.token_hex(4)
    engines = [await JetstreamEngine.connect(server.url, name=name, first=SMALL) for _ in range(2)]
    yield engines
    for engine in engines:
        await engine.close()


class TestJetstreamLog(LogContract):
    @pytest.fixture
    async def log(self, engines, request):
        if "by_the_page" in request.node.name:
            await engines[0].open_partitions(1, 15)
        return engines[0].log


class TestJetstreamLogOfTwoNodes(LogNodesContract):
    @pytest.fixture
    def logs(self, engines):
        return engines[0].log, engines[1].log


class TestJetstreamDirectory(DirectoryContract):
    @pytest.fixture
    def directory(self, engines):
        return engines[0].directory


class TestJetstreamBroker(BrokerContract):
    @pytest.fixture
    def brokers(self, engines):
        return engines[0].broker, engines[1].broker
