"""Several nodes on one store in memory keep the contracts, however late each of them hears of the others."""

import random

import pytest

from twinlock.engines.memory_nodes import MemoryStore
from twinlock.testing.contracts import BrokerContract, DirectoryContract, LogContract, LogNodesContract

PAUSES_S = (0.0, 0.0, 0.0005, 0.002)


def uneven(seed):
    """Return pauses of which no two need be alike."""
    chance = random.Random(seed)
    return lambda: chance.choice(PAUSES_S)


@pytest.fixture(params=["quick", 1, 2, 3])
def nodes(request):
    store = MemoryStore()
    return tuple(store.node(None if request.param == "quick" else uneven(f"{request.param} {node}")) for node in "ab")


class TestNodesOfOneStore(LogNodesContract):
    @pytest.fixture
    def logs(self, nodes):
        return tuple(node.log for node in nodes)


class TestOneOfTwoNodes(LogContract):
    @pytest.fixture
    def log(self):
        store = MemoryStore()
        store.node()
        return store.node().log


class TestBrokersOfOneStore(BrokerContract):
    @pytest.fixture
    def brokers(self, nodes):
        return tuple(node.broker for node in nodes)


class TestDirectoryOfTwoNodes(DirectoryContract):
    @pytest.fixture
    def directory(self):
        store = MemoryStore()
        store.node()
        return store.node().directory


async def test_a_broker_that_was_cut_off_tells_of_the_gap(nodes):
    here, there = nodes
    heard, gaps = [], []
    there.broker.subscribe("tw.account", heard.append)
    there.broker.on_gap(lambda: gaps.append(True))

    there.broker.cut_off()
    here.broker.publish("tw.account", b"missed")
    there.broker.mend()
    here.broker.publish("tw.account", b"heard")
    while not (heard and gaps):
        await here.log.state(b"s" * 16)

    assert (heard, gaps) == ([b"heard"], [True])
