"""The keys of `deploy/nats/permissions.conf` are enough for what each does, on a real server, over TLS."""

import asyncio
import time

import pytest

from tests.deploy.cluster_kit import ShippedCluster
from twinlock.contracts.log import Note
from twinlock.engines.jetstream import JetstreamEngine
from twinlock.engines.jetstream_cluster import FirstSettings
from twinlock.errors import StoreError
from twinlock.ids import Seq
from twinlock.server import Server, Settings
from twinlock.server.secrets_file import open_secrets
from twinlock.server.stores import IDENTITY_KEY
from twinlock.testing.contracts import BrokerContract, Chain, DirectoryContract, LogContract, LogNodesContract
from twinlock.testing.contracts.envelopes import new_space

SMALL = FirstSettings(partitions=16, shards=2)
LONG_AGO_MS = 1_700_000_000_000
ALL = 1 << 30


@pytest.fixture
async def cluster(tmp_path):
    with ShippedCluster(tmp_path, 1, nodes=("sync-1", "sync-2")) as cluster:
        yield cluster


async def dial(cluster, who, file="nats.nk", first=None):
    return await JetstreamEngine.connect("", cluster.options(cluster.seed_of(who, file)), first=first)


@pytest.fixture
async def nodes(cluster):
    """Two nodes, each with a key of its own, on a cluster that the admin has made."""
    await (await dial(cluster, "operator", "admin.nk", SMALL)).close()
    engines = [await dial(cluster, "sync-1"), await dial(cluster, "sync-2")]
    yield engines
    for engine in engines:
        await engine.close()


async def test_a_node_does_all_that_a_server_needs(nodes):
    one, other = nodes
    space = new_space()
    chain = Chain(space)
    fenced = asyncio.Event()
    end = other.log.follow(space, Seq(0), lambda told: told.note is Note.FENCE and fenced.set())
    first = await one.log.append(space, chain.take(5), LONG_AGO_MS)
    await one.log.fence(space)
    async with asyncio.timeout(5):
        await fenced.wait()
    end()
    heard = asyncio.Event()
    other.broker.subscribe("sig", lambda _: heard.set())
    async with asyncio.timeout(5):
        while not heard.is_set():
            one.broker.publish("sig", b"hello")
            await asyncio.sleep(0.01)
    await one.log.cut(space, first[1], LONG_AGO_MS)
    cleaned = await other.log.clean(time.time_ns() // 1_000_000)
    left = await other.log.read(space, Seq(0), ALL)
    await one.log.purge(space)
    revision = await one.directory.put("account/a", b"1", expect_revision=0)
    await other.directory.delete("account/a", revision)

    assert [entry.seq for entry in left] == first[2:]
    assert cleaned in (0, 2), "one message holds both what is cut and what is not"
    assert await other.log.read(space, Seq(0), ALL) == []
    assert await one.directory.list("account/") == {}


@pytest.mark.parametrize("is_first", [True, False])
async def test_a_server_whose_key_may_write_nothing_does_not_start(cluster, tmp_path, is_first):
    await (await dial(cluster, "operator", "admin.nk", SMALL)).close()
    settings = Settings(
        data=str(tmp_path / "data"),
        engine=cluster.url,
        nats_ca_file=str(cluster.authority),
        nats_nkey_file=str(cluster.seed_of("operator", "doctor.nk")),
        keyservice_url="http://127.0.0.1:9",
        keyservice_pk="ab" * 32,
        port=0,
    )
    if not is_first:
        node = await dial(cluster, "sync-1")
        await node.directory.put(IDENTITY_KEY, open_secrets(tmp_path / "data").server_id)
        await node.close()

    with pytest.raises(StoreError, match="nats_nkey_file"):
        await Server(settings).start()


@pytest.mark.slow
class TestLogWithANodesKey(LogContract):
    @pytest.fixture
    def log(self, nodes):
        return nodes[0].log


@pytest.mark.slow
class TestLogsWithNodesKeys(LogNodesContract):
    @pytest.fixture
    def logs(self, nodes):
        return nodes[0].log, nodes[1].log


@pytest.mark.slow
class TestDirectoryWithANodesKey(DirectoryContract):
    @pytest.fixture
    def directory(self, nodes):
        return nodes[0].directory


@pytest.mark.slow
class TestBrokerWithNodesKeys(BrokerContract):
    @pytest.fixture
    def brokers(self, nodes):
        return nodes[0].broker, nodes[1].broker
