"""The end of a move from a cluster waits for every node, also for one that has not told of itself lately."""

import asyncio

import msgspec
import pytest

from twinlock.backup.cutover import Nodes
from twinlock.engines.memory_nodes import MemoryStore
from twinlock.errors import StoreError
from twinlock.server.neighbours import SUBJECT, Beat, Left


@pytest.fixture
def store():
    return MemoryStore()


async def test_a_node_that_is_silent_for_a_moment_is_not_taken_for_gone(store, monkeypatch):
    monkeypatch.setattr("twinlock.backup.cutover.MEET_S", 0.2)
    nodes, node = Nodes(store.node().broker), store.node().broker
    asyncio.get_running_loop().call_later(0.05, node.publish, SUBJECT, msgspec.msgpack.encode(Beat(b"a", [])))

    await nodes.met()

    with pytest.raises(StoreError, match="1 nodes of the cluster still serve"):
        await nodes.gone(0.0)
    node.publish(SUBJECT, msgspec.msgpack.encode(Left(b"a")))
    await nodes.gone(5.0)
