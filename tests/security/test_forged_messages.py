"""Somebody who can publish on the cluster's subjects: news, signals and log messages that no node ever sent."""

import asyncio
import math
import os
import secrets

import msgspec
import nats
import pytest

from tests.nodes_kit import Town, metric
from tests.server_kit import make_world
from twinlock.engines.jetstream import JetstreamEngine
from twinlock.engines.jetstream_cluster import FirstSettings
from twinlock.engines.jetstream_format import PLACES, LogMessage, Names, encode_message
from twinlock.errors import RemovedError
from twinlock.ids import AccountId, SpaceId
from twinlock.protocol.frames import LOG_GROWN, Notice, Signal, Signals
from twinlock.protocol.limits import SIGNAL_BYTES_MAX
from twinlock.server.buckets import Quotas
from twinlock.server.neighbours import NODES_MAX, SUBJECT, AccountGrown, Beat, SpaceGrown
from twinlock.server.new_rules import Telling
from twinlock.server.settings import Settings
from twinlock.server.shared_rates import SharedRates, Spent
from twinlock.testing.contracts.envelopes import Chain
from twinlock.testing.nats_process import NatsCluster

NOW_MS = 1_700_000_000_000
encode = msgspec.msgpack.encode
GARBLED = {
    "nothing": b"",
    "no MessagePack": os.urandom(500),
    "cut short": encode([1, b"node", [["calls", b"x" * 16, 1.0]]])[:-4],
    "another kind": encode([99, b"node"]),
    "wrong types": encode([1, "node", "spent"]),
    "as deep as a well": b"\x91" * 200_000,
    "deep where nobody looks": encode([1, b"node", []])[:-1].replace(b"\x93", b"\x94") + b"\x90" + b"\x91" * 200_000,
    "large": os.urandom(4 << 20),
}


@pytest.fixture
async def town(tmp_path):
    town = Town(tmp_path)
    yield town
    await town.close()


@pytest.fixture
async def served(town):
    return await town.start()


@pytest.fixture
async def world(served):
    return await make_world(served)


@pytest.fixture
def forger(town, served):
    return town.store.node(lambda: 0.0).broker


async def news_are_read(town, server, forger):
    """Wait until a node has read everything that was told so far."""
    before = metric(server, "news_refused")
    forger.publish(SUBJECT, b"")
    async with asyncio.timeout(10):
        while metric(server, "news_refused") <= before:  # noqa: ASYNC110 - it has no event of its own
            await asyncio.sleep(0.002)


async def test_garbled_news_are_counted_and_harm_nobody(town, served, world, forger):
    wire = await town.open(served, world)
    await wire.attach(world.space)

    for message in GARBLED.values():
        forger.publish(SUBJECT, message)
    await news_are_read(town, served, forger)
    await wire.push(world.space, world.chain().next())
    await wire.acked(world.space, 1)

    assert metric(served, "news_refused") >= len(GARBLED)


async def test_made_up_nodes_fill_no_memory(town, served, forger):
    for _ in range(NODES_MAX + 500):
        forger.publish(SUBJECT, encode(Beat(os.urandom(8), [])))
    forger.publish(SUBJECT, encode(Beat(os.urandom(1 << 20), [])))
    await news_are_read(town, served, forger)
    async with asyncio.timeout(10):
        while metric(served, "nodes_alive") <= NODES_MAX:  # noqa: ASYNC110
            await asyncio.sleep(0.02)

    assert metric(served, "nodes_alive") == NODES_MAX + 1
    assert metric(served, "news_refused") >= 501


@pytest.mark.parametrize("amount", [-1e12, -math.inf, math.nan, math.inf, 0.0])
def test_told_amounts_that_take_nothing_give_nothing_back(amount):
    rates = SharedRates(lambda: NOW_MS, is_told=True)
    quotas = Quotas(Settings(engine="memory:", calls_per_s=10), rates)
    account = AccountId(os.urandom(16))
    calls = quotas.of(account, NOW_MS).calls
    while not calls.take(1, NOW_MS):
        pass

    rates.charge([Spent("calls", account, amount), Spent("calls", bytes(1_000), 1.0), Spent("?", account, 1.0)])

    assert calls.take(1, NOW_MS) == 101


async def test_a_device_that_was_not_revoked_stays_whatever_is_told(town, served, world, forger):
    wire = await town.open(served, world)
    await wire.attach(world.space)

    forger.publish(SUBJECT, encode(AccountGrown(world.account.account, [world.device.device])))
    forger.publish(SUBJECT, encode(AccountGrown(AccountId(os.urandom(16)), [world.device.device])))
    forger.publish(SUBJECT, encode(AccountGrown(AccountId(b"short"), [world.device.device])))
    await news_are_read(town, served, forger)
    await wire.next(Notice, lambda notice: notice.code == LOG_GROWN)
    await wire.push(world.space, world.chain().next())
    await wire.acked(world.space, 1)


async def test_only_notices_that_nodes_send_are_passed_on(town, served, world, forger):
    wire = await town.open(served, world)
    odd = [
        Notice("update_needed", world.space),
        Notice(LOG_GROWN, world.space, "x" * 1_000_000),
        Notice(RemovedError.code, os.urandom(16)),
    ]
    for notice in odd:
        telling = Telling([world.account.account], [notice])
        forger.publish(SUBJECT, encode(SpaceGrown(world.space, 0, [telling])))
    await news_are_read(town, served, forger)
    # Whoever is told believes the signed log, in which they still are.
    told = Notice(RemovedError.code, world.space)
    forger.publish(SUBJECT, encode(SpaceGrown(world.space, 0, [Telling([world.account.account], [told])])))

    assert await wire.next(Notice) == told
    assert not [frame for frame in wire.waiting if isinstance(frame, Notice)]


async def test_a_signal_that_no_device_could_have_sent_is_not_passed_on(town, served, world, forger):
    near, far = await town.open(served, world), await town.open(served, world)
    for wire in (near, far):
        await wire.attach(world.space)

    forger.publish(f"sig.{world.space.hex()}", bytes(SIGNAL_BYTES_MAX + 1))
    await news_are_read(town, served, forger)
    await near.send(Signal(world.space, b"typing"))
    heard = await far.next(Signals)

    assert heard.sealed == [b"typing"]


# Log messages that no node wrote.


@pytest.fixture
async def engines(tmp_path_factory):
    with NatsCluster(tmp_path_factory.mktemp("nats"), nodes=1) as cluster:
        opened = []

        async def connect():
            first = FirstSettings(partitions=1, shards=2)
            opened.append(await JetstreamEngine.connect(cluster.url, first=first))
            return opened[-1]

        raw = await nats.connect(cluster.url)
        yield connect, raw
        await raw.close()
        for engine in opened:
            await engine.close()


def logs_of(chain):
    """Return messages of a log as somebody writes them who wants to do harm."""
    good, origin = Chain(chain.space).next().data, b"somebody"

    def message(*envelopes, kind=0, count=5):
        return encode_message(LogMessage(1, kind, NOW_MS, 0, list(envelopes), count, origin))

    return {
        "nothing": b"",
        "no MessagePack": os.urandom(300),
        "deep": b"\x91" * 100_000,
        "large": os.urandom(4 << 20),
        "short envelope": message(b"x" * 20),
        "no envelope at all": message(os.urandom(500)),
        "one of two": message(good, good[:-1]),
        "another version": message(b"\x02" + good[1:]),
        "another kind of envelope": message(good[:1] + b"\x09" + good[2:]),
        "another size": message(good[:111] + bytes([good[111] ^ 1]) + good[112:]),
        "another kind of message": message(good, kind=9),
        "more than a message has places for": message(*[good] * (PLACES + 1)),
    }


async def test_what_is_no_message_of_a_log_is_passed_over_by_every_node(engines):
    """Loading, following and reading give what is good before it and after it, and nothing else."""
    connect, raw = engines
    node, other, chain = await connect(), await connect(), Chain(SpaceId(bytes(2) + secrets.token_bytes(14)))
    names, told = Names(), []
    end = other.log.follow(chain.space, 0, lambda foreign: told.extend(foreign.entries))
    expected = []
    for data in logs_of(chain).values():
        await raw.publish(names.log_subject(chain.space), data)
        await raw.publish(names.live_subject(chain.space), data, headers={"Nats-Sequence": "none"})
        await raw.flush()
        expected += await node.log.append(chain.space, [chain.next()], NOW_MS)
    async with asyncio.timeout(10):
        while len(told) < len(expected):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    third = await connect()
    read = []
    while page := await third.log.read(chain.space, read[-1].seq if read else 0, 1 << 24):
        read += page
    state = await third.log.state(chain.space)
    end()

    assert [entry.seq for entry in told] == expected
    assert [entry.seq for entry in read] == expected
    assert state.head == expected[-1]
    assert state.log_bytes == sum(len(entry.envelope) for entry in told)
