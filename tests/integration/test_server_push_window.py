"""The window of pushes in flight, as the client counts it and as the server does."""

import asyncio

import pytest

from tests.server_kit import make_world
from twinlock.contracts import APPEND_ENVELOPES_MAX
from twinlock.engines.memory import MemoryLog
from twinlock.errors import StoreError
from twinlock.protocol.calls import ReadPartitions
from twinlock.protocol.frames import Reject
from twinlock.protocol.limits import CONNECTION_PUSHES_IN_FLIGHT_MAX, PUSH_ENVELOPES_MAX
from twinlock.server import Server, Settings
from twinlock.server.stores import open_stores


class HeldLog(MemoryLog):
    """A log whose appends wait until they are let go, one by one."""

    def __init__(self):
        super().__init__()
        self.held = None
        self.is_holding = asyncio.Event()

    def append_many(self, appends, done):
        if self.held is None:
            super().append_many(appends, done)
        else:
            self.held.append((appends, done))
            self.is_holding.set()

    def let_one_go(self):
        super().append_many(*self.held.pop(0))

    def let_one_fail(self):
        appends, done = self.held.pop(0)
        done([(place, StoreError("the disk is gone")) for place in range(len(appends))])


@pytest.fixture
async def held():
    """A running server on such a log."""
    stores, log = await open_stores(Settings(engine="memory:")), HeldLog()
    stores = type(stores)(**{**{name: getattr(stores, name) for name in stores.__struct_fields__}, "log": log})
    server = Server(Settings(engine="memory:", port=0), stores)
    await server.start()
    yield server, log
    await server.stop()


async def test_a_device_that_was_refused_may_push_a_full_window_again_at_once(held):
    server, log = held
    world = await make_world(server)
    wire = await world.open()
    other_device = await world.add_device(wire)
    other = await world.open(other_device)
    await wire.attach(world.space)
    await other.attach(world.space)
    chain = world.chain()
    first, gap = chain.next(), chain.make(9, chain.prev)
    log.held = []
    await wire.push(world.space, first, gap)
    await log.is_holding.wait()
    for counter in range(10, 9 + CONNECTION_PUSHES_IN_FLIGHT_MAX):
        await wire.push(world.space, chain.make(counter, chain.prev))
    await other.push(world.space, world.chain(other_device).next())
    await wire.call("space.partitions", ReadPartitions())
    await other.call("space.partitions", ReadPartitions())

    log.let_one_go()
    await wire.next(Reject)
    for _ in range(CONNECTION_PUSHES_IN_FLIGHT_MAX):
        await wire.push(world.space, chain.next())
    await wire.call("space.partitions", ReadPartitions())
    while log.held:
        log.let_one_go()
        await wire.call("space.partitions", ReadPartitions())

    assert CONNECTION_PUSHES_IN_FLIGHT_MAX + 1 in await wire.acked(world.space, CONNECTION_PUSHES_IN_FLIGHT_MAX + 1)


async def test_what_waits_goes_to_the_log_in_appends_that_are_not_too_large(held):
    server, log = held
    world = await make_world(server)
    wire = await world.open()
    devices = [world.device, await world.add_device(wire)]
    wires = [wire, await world.open(devices[1])]
    log.held = []
    for device, each in zip(devices, wires, strict=True):
        chain = world.chain(device)
        for _ in range(CONNECTION_PUSHES_IN_FLIGHT_MAX):
            await each.push(world.space, *[chain.next(16) for _ in range(PUSH_ENVELOPES_MAX)])
        await each.call("space.partitions", ReadPartitions())

    sizes = []
    while sum(sizes) < 2 * CONNECTION_PUSHES_IN_FLIGHT_MAX * PUSH_ENVELOPES_MAX:
        await log.is_holding.wait()
        log.is_holding.clear()
        sizes.append(len(log.held[0][0][0].envelopes))
        log.let_one_go()

    assert max(sizes) <= APPEND_ENVELOPES_MAX


async def test_what_was_refused_is_told_although_the_append_before_it_fails(held):
    server, log = held
    world = await make_world(server)
    wire = await world.open()
    other_device = await world.add_device(wire)
    other = await world.open(other_device)
    await wire.attach(world.space)
    await other.attach(world.space)
    log.held = []
    await wire.push(world.space, world.chain().next())
    await log.is_holding.wait()
    await other.push(world.space, world.chain(other_device).next(epoch=9))
    await other.call("space.partitions", ReadPartitions())

    log.let_one_fail()
    failed, refused = await wire.next(Reject), await other.next(Reject)

    assert (failed.code, failed.counter) == ("store_failed", 1)
    assert (refused.code, refused.counter) == ("stale_epoch", 1)
