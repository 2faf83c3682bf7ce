"""Several nodes serve one space: what one takes, all deliver, in one order and once."""

import asyncio

import pytest

from tests.membership_kit import House
from tests.nodes_kit import metric
from tests.server_kit import make_world
from twinlock.protocol.calls import Cut, CutResult
from twinlock.protocol.frames import Ack, Attach, Goaway, Reject, Signal, Signals


@pytest.fixture
async def house(town, here):
    owner = await make_world(here)
    wire = await town.open(here, owner)
    await wire.attach(owner.space)
    return House(owner, wire)


async def test_what_one_node_takes_the_other_delivers(town, house, there):
    far = await town.open(there, house.owner)
    await far.attach(house.space)
    chain = house.owner.chain()
    sent = [chain.next() for _ in range(3)]

    await house.wire.push(house.space, *sent)
    pairs = await house.wire.acked(house.space, 3)
    entries = await far.entries(house.space, 3)

    assert [entry.envelope for entry in entries] == sent
    assert [entry.seq for entry in entries] == sorted(pairs.values())
    assert metric(there, "foreign_entries") == 3


async def test_writers_of_both_nodes_see_one_order(town, house, here, there):
    others = [await house.owner.add_device(house.wire) for _ in range(5)]
    wires, servers = [house.wire], [there, here, there, here, there]
    wires += [
        await town.open(server, house.owner, device=device) for server, device in zip(servers, others, strict=True)
    ]
    for wire in wires:
        await wire.attach(house.space)
    chains = [house.owner.chain(device) for device in (house.owner.device, *others)]
    total = 20 * len(wires)

    async def write(wire, chain):
        for _ in range(20):
            await wire.push(house.space, chain.next())
        await wire.acked(house.space, 20)

    await asyncio.gather(*(write(wire, chain) for wire, chain in zip(wires, chains, strict=True)))
    seen = [[entry.seq for entry in await wire.entries(house.space, total)] for wire in wires]

    assert all(len(seqs) == total and seqs == sorted(set(seqs)) for seqs in seen)
    assert all(seqs == seen[0] for seqs in seen)


async def test_readers_that_attach_amid_writing_miss_nothing_on_any_node(town, house, here, there):
    chain = house.owner.chain()

    async def write():
        for count in range(1, 121):
            await house.wire.push(house.space, chain.next())
            if not count % 20:
                await house.wire.acked(house.space, count)

    async def read(server, delay_s):
        await asyncio.sleep(delay_s)
        wire = await town.open(server, house.owner)
        await wire.attach(house.space)
        return [entry.envelope[40:48] for entry in await wire.entries(house.space, 120)]

    reads = [read(server, place / 100) for place, server in enumerate([here, there] * 6)]
    *found, _ = await asyncio.gather(*reads, write())

    assert all(counters == [count.to_bytes(8, "big") for count in range(1, 121)] for counters in found)


async def test_a_device_that_goes_to_another_node_pushes_again_and_nothing_is_doubled(town, house, there):
    chain = house.owner.chain()
    sent = [chain.next() for _ in range(4)]
    await house.wire.push(house.space, *sent)
    far = await town.open(there, house.owner)
    await far.send(Attach(house.space, b"", 0))
    await far.push(house.space, *sent, chain.next())

    pairs = {}
    while len(pairs) < 5:
        pairs.update((await far.next(Ack)).acked)
    entries = await far.entries(house.space, 5)

    assert sorted(pairs) == [1, 2, 3, 4, 5]
    assert {pairs[count] for count in pairs} == {entry.seq for entry in entries}
    state = await there._given_stores.log.state(house.space)
    assert state.heads[house.owner.device.device].counter == 5


async def test_attaching_tells_where_the_chain_stands_whichever_node_took_the_last_push(town, house, here, there):
    chain = house.owner.chain()
    servers = [there, here] * 8
    wire = house.wire
    for count, server in enumerate(servers, 1):
        await wire.push(house.space, chain.next())
        await wire.acked(house.space, count)
        wire = await town.open(server, house.owner)
        attached = await wire.attach(house.space, 1 << 40, house.owner.incarnation)
        assert (attached.own_counter, attached.own_id) == (count, chain.prev)


async def test_a_cursor_of_one_node_goes_on_at_the_other(town, house, there):
    chain = house.owner.chain()
    await house.wire.push(house.space, *[chain.next() for _ in range(3)])
    first = await house.wire.entries(house.space, 3)

    far = await town.open(there, house.owner)
    await far.attach(house.space, first[1].seq, house.owner.incarnation)
    rest = await far.entries(house.space, 1)
    await house.wire.push(house.space, chain.next())

    assert [entry.seq for entry in rest] == [first[2].seq]
    assert [entry.envelope[40:48] for entry in await far.entries(house.space, 1)] == [bytes(7) + b"\4"]


async def test_a_counter_that_another_node_gave_away_is_a_conflict(town, house, there):
    rival = house.owner.chain()
    await house.wire.push(house.space, house.owner.chain().next())
    await house.wire.acked(house.space, 1)
    far = await town.open(there, house.owner)

    await far.push(house.space, rival.next())
    reject = await far.next(Reject)

    assert (reject.code, reject.own_counter) == ("counter_conflict", 1)


async def test_one_writer_s_move_does_not_make_others_wait(town, house, here, there):
    """What is in one append with an envelope that another node has already is appended all the same."""
    other = await house.owner.add_device(house.wire)
    mover, stayer = house.owner.chain(), house.owner.chain(other)
    near = await town.open(here, house.owner, device=other)
    for _ in range(20):
        envelope = mover.next()
        far = await town.open(there, house.owner)
        await asyncio.gather(
            house.wire.push(house.space, envelope),
            far.push(house.space, envelope),
            near.push(house.space, stayer.next()),
        )
        await house.wire.acked(house.space, mover.counter)
        await far.acked(house.space, mover.counter)
        await near.acked(house.space, stayer.counter)
        await far.close()

    assert not [frame for frame in near.waiting if isinstance(frame, Reject)]


async def test_signals_reach_the_devices_of_other_nodes_once(town, house, here, there):
    near, far = await town.open(here, house.owner), await town.open(there, house.owner)
    for wire in (near, far):
        await wire.attach(house.space)

    await house.wire.send(Signal(house.space, b"typing"))
    heard = [await wire.next(Signals) for wire in (near, far)]
    await far.send(Signal(house.space, b"done"))
    back = await house.wire.next(Signals)

    assert [frame.sealed for frame in heard] == [[b"typing"]] * 2
    assert back.sealed == [b"done"]


async def test_a_cut_takes_effect_on_all_nodes(town, house, there):
    far = await town.open(there, house.owner)
    await far.attach(house.space)
    chain = house.owner.chain()
    await house.wire.push(house.space, *[chain.next() for _ in range(4)])
    seqs = sorted((await house.wire.acked(house.space, 4)).values())
    await far.entries(house.space, 4)

    cut = Cut(house.space, house.owner.incarnation, seqs[1])
    await house.wire.call("space.cut", cut, CutResult)
    async with asyncio.timeout(10):
        while True:
            late = await town.open(there, house.owner)
            attached = await late.attach(house.space)
            if attached.start == seqs[1] + 1:
                break
            await late.close()

    assert [entry.seq for entry in await late.entries(house.space, 2)] == seqs[2:]
    assert attached.log_bytes == 2 * 376


async def test_a_node_that_goes_down_hands_its_devices_over(town, house, here, there):
    chain = house.owner.chain()
    await house.wire.push(house.space, chain.next())
    stopping = asyncio.create_task(here.stop())
    await house.wire.next(Goaway)
    await house.wire.closed()
    await stopping

    far = await town.open(there, house.owner)
    attached = await far.attach(house.space)
    await far.push(house.space, chain.next())
    await far.acked(house.space, 2)

    assert attached.own_counter == 1
    assert metric(there, "nodes_alive") == 1


async def test_what_waits_too_long_for_the_engine_is_refused_with_a_time_to_come_back(town, here, house, monkeypatch):
    monkeypatch.setattr("twinlock.server.commit.WAITING_S_MAX", 0.05)
    chain = house.owner.chain()
    town.chance.choice = lambda pauses: 0.3
    await house.wire.push(house.space, chain.next())
    await asyncio.sleep(0.1)
    assert (metric(here, "waiting_pushes"), metric(here, "waiting_bytes")) == (1, 376)
    await house.wire.push(house.space, chain.next())
    reject = await house.wire.next(Reject)

    assert (reject.code, reject.counter) == ("overloaded", 2)
    assert reject.retry_after_ms > 0
    assert await house.wire.acked(house.space, 1)


class Faulty:
    """A node's log with an error of our own in it."""

    def __init__(self, inner):
        self.inner = inner
        self.is_faulty = False

    def __getattr__(self, name):
        return getattr(self.inner, name)

    async def state(self, space):
        if self.is_faulty:
            raise ZeroDivisionError
        return await self.inner.state(space)


async def test_who_attaches_is_answered_also_when_the_node_has_an_error_of_its_own(town, house):
    log = Faulty(town.store.node().log)
    faulty = await town.start(log=log)
    await (await town.open(faulty, house.owner)).attach(house.space)
    wire = await town.open(faulty, house.owner)

    log.is_faulty = True
    await wire.send(Attach(house.space, b"", 0))

    assert await wire.refused() == "internal"
