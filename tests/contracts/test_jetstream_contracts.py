"""The JetStream engine keeps the contracts, on one real server."""

import pytest

from twinlock.testing.contracts import BrokerContract, DirectoryContract, LogContract, LogNodesContract


@pytest.fixture
async def engines(connect):
    """Two nodes of one fresh cluster."""
    return [await connect(), await connect()]


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
