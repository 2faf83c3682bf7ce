"""Two nodes on a real cluster of three NATS servers: one order, nothing lost, nothing doubled, whatever dies."""

import asyncio
import secrets
import time

import pytest

from twinlock.contracts.log import Append, Foreign
from twinlock.engines.jetstream import JetstreamEngine
from twinlock.engines.jetstream_cluster import FirstSettings
from twinlock.errors import RevisionError, TwinlockError
from twinlock.ids import Seq
from twinlock.testing.contracts.envelopes import Chain, new_space
from twinlock.testing.nats_process import NatsCluster

NOW_MS = 1_700_000_000_000
SMALL = FirstSettings(partitions=1, shards=1)


@pytest.fixture(scope="module")
def servers(tmp_path_factory):
    with NatsCluster(tmp_path_factory.mktemp("nats"), nodes=3) as cluster:
        yield cluster


@pytest.fixture
def whole(servers):
    """The servers, all of them running again afterwards."""
    yield servers
    for place, node in enumerate(servers.nodes):
        if node.is_running:
            servers.resume(place)
    servers.start_all()


@pytest.fixture
async def engines(servers):
    name = secrets.token_hex(4)
    engines = [await JetstreamEngine.connect(servers.url, name=name, first=SMALL) for _ in range(2)]
    yield engines
    for engine in engines:
        await engine.close()


class Node:
    """One node's view of a space: own outcomes and what it is told, as they come."""

    def __init__(self, engine, space):
        self.log = engine.log
        self.space = space
        self.seen = []
        self.news = asyncio.Event()
        self.end = self.log.follow(space, Seq(0), self.hear)

    def hear(self, foreign: Foreign):
        self.seen += [(entry.seq, entry.envelope) for entry in foreign.entries]
        self.news.set()

    async def append(self, envelopes):
        """Append as a server does, again and again until it is known to be stored; return the longest wait."""
        while True:
            done = asyncio.get_running_loop().create_future()
            started = time.monotonic()

            def note(outcomes, done=done):
                ((_, outcome),) = outcomes
                if isinstance(outcome, list):
                    self.seen += zip(outcome, (envelope.data for envelope in envelopes), strict=True)
                done.set_result(outcome)

            self.log.append_many([Append(self.space, envelopes, NOW_MS)], note)
            outcome = await done
            if isinstance(outcome, list):
                self.news.set()
                return time.monotonic() - started
            assert isinstance(outcome, TwinlockError)

    async def until_count(self, count):
        while len(self.seen) < count:
            self.news.clear()
            async with asyncio.timeout(30):
                await self.news.wait()


async def read_all(log, space):
    entries = []
    while page := await log.read(space, entries[-1].seq if entries else Seq(0), 1 << 20):
        entries += page
    return [(entry.seq, entry.envelope) for entry in entries]


async def check(nodes, sent):
    """Every reader has the same, in the same order: everything that was sent, once."""
    stored = await read_all(nodes[0].log, nodes[0].space)
    for node in nodes:
        await node.until_count(len(stored))
    assert sorted(data for _, data in stored) == sorted(sent)
    assert [node.seen for node in nodes] == [stored, stored]
    assert await read_all(nodes[1].log, nodes[0].space) == stored


async def test_hundreds_of_appends_from_two_nodes_get_one_order(engines):
    space = new_space()
    nodes = [Node(engine, space) for engine in engines]
    sent = []

    async def write(node, chain):
        for count in range(40):
            envelopes = chain.take(count % 3 + 1)
            sent.extend(envelope.data for envelope in envelopes)
            await node.append(envelopes)

    await asyncio.gather(*(write(node, Chain(space)) for node in nodes for _ in range(8)))

    await check(nodes, sent)


async def test_what_one_node_appended_the_other_reads_at_once(engines):
    here, there = (engine.log for engine in engines)
    chain = Chain(new_space())
    for _ in range(50):
        (seq,) = await here.append(chain.space, chain.take(1), NOW_MS)
        assert (await there.read(chain.space, Seq(seq - 1), 1))[0].seq == seq
        assert (await there.state(chain.space)).head == seq


async def test_records_are_the_same_at_both_nodes_at_once(engines):
    here, there = (engine.directory for engine in engines)
    for count in range(30):
        revision = await here.put("a/b/c", b"%d" % count)
        assert (await there.get("a/b/c")).revision == revision
        assert (await there.list("a/b/"))["a/b/c"].revision == revision
    await here.delete("a/b/c")
    assert await there.list("a/") == {}
    with pytest.raises(RevisionError):
        await there.put("a/b/c", b"", expect_revision=revision)


async def test_the_cluster_tells_how_it_is(engines):
    status = await engines[0].status()
    assert status.is_healthy
    assert status.settings.replicas == 3
    assert status.syncs_always is None
    assert [len(stream.replicas) for stream in status.streams] == [2, 2]


async def test_partitions_are_opened_and_closed(engines):
    await engines[0].open_partitions(5, 2)
    await engines[0].close_partitions(0, 1)
    settings = await engines[1].refresh_settings()
    assert (settings.partitions, settings.open) == ([0, 5, 6], [5, 6])
    chain = Chain(new_space(6))
    assert await engines[1].log.append(chain.space, chain.take(1), NOW_MS)


async def under_load(engines, servers, disturb, seconds):
    """Append from both nodes to a few spaces while something happens; return the longest wait of an append."""
    spaces = [new_space() for _ in range(4)]
    nodes = {space: [Node(engine, space) for engine in engines] for space in spaces}
    sent = {space: [] for space in spaces}
    waits = []
    ends = time.monotonic() + seconds

    async def write(node, chain):
        while time.monotonic() < ends:
            envelopes = chain.take(2)
            sent[node.space].extend(envelope.data for envelope in envelopes)
            waits.append(await node.append(envelopes))

    async def disturb_later():
        await asyncio.sleep(1)
        await asyncio.to_thread(disturb)

    writers = [write(node, Chain(space)) for space in spaces for node in nodes[space]]
    await asyncio.gather(disturb_later(), *writers)
    for space in spaces:
        await check(nodes[space], sent[space])
    return max(waits), len(waits)


@pytest.mark.slow
@pytest.mark.parametrize("end", ["kill", "stop", "pause"])
async def test_a_leader_that_ends_loses_and_doubles_nothing(engines, whole, end, record_property):
    stream = f"{engines[0].log._names.streams}_0000"

    def disturb():
        leader = whole.leader_of(stream)
        assert leader is not None
        getattr(whole, end)(leader)

    longest, count = await under_load(engines, whole, disturb, 12)

    record_property("longest_wait_s", longest)
    print(f"{end}: the longest of {count} appends took {longest:.1f} s")
    assert longest < 20


@pytest.mark.slow
async def test_a_power_cut_of_all_servers_loses_and_doubles_nothing(engines, whole):
    def disturb():
        whole.kill_all()
        whole.start_all()

    longest, count = await under_load(engines, whole, disturb, 15)

    print(f"power cut: the longest of {count} appends took {longest:.1f} s")
    assert longest < 25
