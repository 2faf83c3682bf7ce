"""Push, ack, delivery and catch-up over a real socket."""

import asyncio
import os

import msgspec
import pytest

from tests.server_kit import make_world, now_ms
from twinlock.engines.memory import MemoryLog
from twinlock.errors import StoreError
from twinlock.ids import Epoch
from twinlock.protocol import proofs
from twinlock.protocol.calls import Cut, CutResult
from twinlock.protocol.envelope import Kind
from twinlock.protocol.frames import Ack, Attach, Detach, Entries, Lease, Leases, Notice, Reject, Signal, Signals
from twinlock.protocol.limits import CONNECTION_SPACES_MAX, PUSH_ENVELOPES_MAX
from twinlock.server import Server, Settings
from twinlock.server.stores import open_stores


@pytest.fixture
async def server():
    running = Server(Settings(engine="memory:", port=0))
    await running.start()
    yield running
    await running.stop()


@pytest.fixture
async def world(server):
    return await make_world(server)


async def test_a_push_is_acknowledged_and_delivered_to_all_attached(world):
    writer, reader = await world.open(), await world.open()
    await writer.attach(world.space)
    await reader.attach(world.space)
    envelope = world.chain().next()

    await writer.push(world.space, envelope)

    acked = await writer.acked(world.space, 1)
    [entry] = await reader.entries(world.space, 1)
    assert entry.envelope == envelope
    assert acked == {1: entry.seq}
    assert (await writer.entries(world.space, 1))[0] == entry
    assert abs(entry.received_ms - now_ms()) < 10_000


async def test_pushes_need_no_attachment_and_are_pipelined(world):
    wire, chain = await world.open(), world.chain()
    for _ in range(50):
        await wire.push(world.space, chain.next())

    assert sorted(await wire.acked(world.space, 50))[-1] == 50


async def test_a_repeated_push_is_acknowledged_with_the_same_seq_and_stored_once(world):
    wire, chain = await world.open(), world.chain()
    first, second = chain.next(), chain.next()
    await wire.push(world.space, first, second)
    acked = await wire.acked(world.space, 2)

    await wire.push(world.space, first, second)
    await wire.push(world.space, first)

    assert await wire.acked(world.space, 2) == acked
    assert await wire.acked(world.space, 1) == {1: acked[1]}
    reader = await world.open()
    await reader.attach(world.space)
    assert [entry.envelope for entry in await reader.entries(world.space, 2)] == [first, second]


async def test_a_repeat_in_flight_is_acknowledged_too(world):
    wire, chain = await world.open(), world.chain()
    envelope = chain.next()

    await wire.push(world.space, envelope)
    await wire.push(world.space, envelope)

    first = await wire.next(Ack)
    assert (await wire.next(Ack)).acked == first.acked


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"device": b"x" * 16}, "foreign_envelope"),
        ({"epoch": Epoch(2)}, "stale_epoch"),
        ({"counter": 3}, "counter_gap"),
        ({"prev": b"x" * 32}, "prev_mismatch"),
        ({"kind": Kind.SIGNAL}, "role_forbids"),
    ],
)
async def test_a_wrong_envelope_is_refused_by_its_code_and_the_session_goes_on(world, changes, code):
    wire, chain = await world.open(), world.chain()
    first = chain.next()
    await wire.push(world.space, first)
    await wire.acked(world.space, 1)

    await wire.push(world.space, chain.make(**{"counter": 2, "prev": chain.prev, **changes}))

    reject = await wire.next(Reject)
    assert (reject.code, reject.own_counter, reject.own_id) == (code, 1, chain.prev)
    await wire.push(world.space, chain.next())
    assert 2 in await wire.acked(world.space, 2)


async def test_another_envelope_of_a_taken_counter_is_a_conflict_however_old(world):
    wire, chain = await world.open(), world.chain()
    await wire.push(world.space, chain.next(), chain.next(), chain.next())
    await wire.acked(world.space, 3)

    await wire.push(world.space, chain.make(1, bytes(32)))

    reject = await wire.next(Reject)
    assert (reject.code, reject.counter, reject.own_counter) == ("counter_conflict", 1, 3)


async def test_the_rejection_follows_the_acks_of_what_came_before_it_in_the_push(world):
    wire, chain = await world.open(), world.chain()

    await wire.push(world.space, chain.next(), chain.next(epoch=Epoch(7)))

    assert (await wire.next(Reject)).own_counter == 1
    assert isinstance(wire.waiting[0], Ack)


async def test_an_envelope_of_an_older_epoch_is_refused_after_a_rotation(world):
    wire, reader, chain = await world.open(), await world.open(), world.chain()
    await reader.attach(world.space)
    await world.rotate(wire)

    await wire.push(world.space, chain.make(1, bytes(32), epoch=Epoch(1)))
    assert (await wire.next(Reject)).code == "stale_epoch"
    await wire.push(world.space, chain.next(epoch=Epoch(2)))

    assert 1 in await wire.acked(world.space, 1)
    notice = await reader.next(Notice)
    assert (notice.code, notice.space) == ("log_grown", world.space)


async def test_an_attachment_tells_where_everything_stands(world):
    wire, chain = await world.open(), world.chain()
    await wire.push(world.space, chain.next(), chain.next())
    acked = await wire.acked(world.space, 2)

    attached = await wire.attach(world.space, acked[1], world.incarnation)

    assert (attached.head, attached.resume, attached.start) == (acked[2], acked[1], 1)
    assert (attached.own_counter, attached.own_id) == (2, chain.prev)
    assert (attached.log_seq, attached.log_head) == (world.log.seq, world.log.head)
    assert attached.log_bytes == 2 * (112 + 200 + 64)
    assert [entry.seq for entry in await wire.entries(world.space, 1)] == [acked[2]]


async def test_attaching_under_continuous_writing_leaves_no_gap_and_no_overlap(world):
    writer, chain = await world.open(), world.chain()
    total, readers = 1_500, []

    async def read():
        wire = await world.open()
        await wire.attach(world.space)
        readers.append([entry.envelope for entry in await wire.entries(world.space, total)])

    async with asyncio.TaskGroup() as group:
        for place in range(total // 10):
            if place % 15 == 0:
                group.create_task(read())
            await writer.push(world.space, *(chain.next() for _ in range(10)))
            await writer.acked(world.space, chain.counter)

    assert len(readers) == 10
    assert all(reader == readers[0] for reader in readers)
    assert len(set(readers[0])) == total


async def test_a_slow_reader_catches_up_and_holds_nobody_back(server, world):
    writer, quick, slow = await world.open(), await world.open(), await world.open()
    chain = world.chain()
    await quick.attach(world.space)
    await slow.attach(world.space)
    # The slow one stops reading; its buffers here and in the kernel fill, then those of the server.
    slow.socket.transport.pause_reading()
    sent = []
    for _ in range(40):
        sent.append(chain.next(512 << 10))
        await writer.push(world.space, sent[-1])
        await writer.acked(world.space, chain.counter)
        await quick.entries(world.space, 1)

    assert server.metrics.slow_readers.value == 1
    slow.socket.transport.resume_reading()
    assert [entry.envelope for entry in await slow.entries(world.space, 40)] == sent
    await writer.push(world.space, chain.next())
    assert len(await slow.entries(world.space, 1)) == 1


async def test_a_detached_space_is_silent_while_others_go_on(world):
    wire, chain = await world.open(), world.chain()
    await wire.attach(world.space)
    await wire.send(Detach(world.space))
    await wire.push(world.space, chain.next())
    await wire.acked(world.space, 1)

    await wire.attach(world.space, 0)

    assert len(await wire.entries(world.space, 1)) == 1
    assert not any(isinstance(frame, Entries) for frame in wire.waiting)


async def test_a_space_of_others_does_not_exist_for_a_stranger(server, world):
    stranger = await make_world(server)
    wire = await stranger.open()

    for space in (world.space, b"\0\0" + os.urandom(14)):
        await wire.send(Attach(space, b"", 0))
        assert (await wire.next(Notice)).code == "unknown_space"
        await wire.push(space, stranger.chain().make(1, bytes(32), space=space))
        assert (await wire.next(Reject)).code in ("unknown_space", "role_forbids")


async def test_spaces_attached_are_bounded(world):
    wire = await world.open()
    for number in range(CONNECTION_SPACES_MAX):
        # These do not exist, but while they are looked up they count.
        await wire.send(Attach(number.to_bytes(16, "big"), b"", 0))
    await wire.send(Attach(b"\xff" * 16, b"", 0))

    assert await wire.refused() == "limit_exceeded"


@pytest.mark.parametrize(("count", "is_taken"), [(PUSH_ENVELOPES_MAX, True), (PUSH_ENVELOPES_MAX + 1, False)])
async def test_a_push_is_taken_up_to_its_limit(world, count, is_taken):
    wire, chain = await world.open(), world.chain()

    await wire.push(world.space, *(chain.next() for _ in range(count)))

    if is_taken:
        assert len(await wire.acked(world.space, count)) == count
    else:
        assert await wire.refused() == "limit_exceeded"


async def test_signals_reach_the_others_and_are_not_stored(world):
    wires = [await world.open() for _ in range(3)]
    for wire in wires:
        await wire.attach(world.space)

    await wires[0].send(Signal(world.space, b"here I am"))

    assert (await wires[1].next(Signals)).sealed == [b"here I am"]
    assert (await wires[2].next(Signals)).sealed == [b"here I am"]
    assert (await wires[0].attach(world.space)).head == 0
    assert not any(isinstance(frame, Signals) for frame in wires[0].waiting)


async def test_a_lease_is_granted_to_a_member_and_refused_to_a_stranger(server, world):
    stranger = await make_world(server)

    for who, is_granted in ((world, True), (stranger, False)):
        wire = await who.open()
        nonce, time_ms = os.urandom(32), now_ms()
        account, device = who.account.account, who.device.device
        message = proofs.lease_message(world.space, [Epoch(1)], nonce, time_ms, account, device)
        await wire.send(Lease(world.space, [Epoch(1)], nonce, time_ms, who.device.sign.sign(message)))
        leases = await wire.next(Leases)
        assert leases.nonce == nonce
        assert [grant.epoch for grant in leases.grants] == ([1] if is_granted else [])
        assert leases.code == ("" if is_granted else "unknown_space")


async def test_a_cut_moves_the_start_for_new_readers_and_can_be_taken_back(world):
    wire, chain = await world.open(), world.chain()
    await wire.push(world.space, *(chain.next() for _ in range(5)))
    acked = await wire.acked(world.space, 5)

    cut = await wire.call("space.cut", Cut(world.space, world.incarnation, acked[3]), CutResult)

    assert cut == CutResult(acked[3] + 1, 2 * 376)
    attached = await wire.attach(world.space)
    assert attached.start == acked[3] + 1
    assert [entry.seq for entry in await wire.entries(world.space, 2)] == [acked[4], acked[5]]
    uncut = await wire.call("space.uncut", Cut(world.space, world.incarnation, acked[1]), CutResult)
    assert uncut.log_bytes == 4 * 376


@pytest.mark.parametrize(
    ("incarnation", "upto", "code"),
    [(b"x" * 16, 1, "incarnation_changed"), (None, 10**6, "cut_refused"), (None, -1, "cut_refused")],
)
async def test_a_cut_of_another_life_or_above_the_head_is_refused(world, incarnation, upto, code):
    wire = await world.open()

    with pytest.raises(Exception, match=code):
        await wire.call("space.cut", Cut(world.space, incarnation or world.incarnation, upto))


async def test_a_cursor_above_the_head_goes_back_to_it(world):
    wire, chain = await world.open(), world.chain()
    await wire.push(world.space, chain.next())
    acked = await wire.acked(world.space, 1)

    attached = await wire.attach(world.space, 10**6, world.incarnation)

    assert attached.resume == acked[1]


class FailingLog(MemoryLog):
    """A log whose disk fails when told to, before or after the entry is stored."""

    __slots__ = ("fails_after", "fails_before")

    def __init__(self, incarnation):
        super().__init__(incarnation)
        self.fails_before = self.fails_after = False

    def append_many(self, appends, done):
        loop = asyncio.get_running_loop()
        if self.fails_before:
            loop.call_soon(done, [(place, StoreError("no space left")) for place in range(len(appends))])
        elif self.fails_after:
            lost = [(place, StoreError("the answer was lost")) for place in range(len(appends))]
            super().append_many(appends, lambda _: done(lost))
        else:
            super().append_many(appends, done)


@pytest.mark.parametrize("moment", ["fails_before", "fails_after"])
async def test_a_failed_append_acknowledges_nothing_and_the_same_bytes_pass_later(moment, failing_server):
    server, log = failing_server
    world = await make_world(server)
    wire, reader, chain = await world.open(), await world.open(), world.chain()
    await reader.attach(world.space)
    first, second = chain.next(), chain.next()
    setattr(log, moment, True)

    await wire.push(world.space, first)
    reject = await wire.next(Reject)
    setattr(log, moment, False)
    await wire.push(world.space, first, second)

    assert (reject.code, reject.counter) == ("store_failed", 1)
    assert reject.retry_after_ms > 0
    await wire.acked(world.space, 2)
    assert [entry.envelope for entry in await reader.entries(world.space, 2)] == [first, second]
    assert not any(isinstance(frame, Entries) for frame in reader.waiting)


@pytest.fixture
async def failing_server():
    stores = await open_stores(Settings(engine="memory:"))
    log = FailingLog(stores.log.incarnation)
    running = Server(Settings(engine="memory:", port=0), msgspec.structs.replace(stores, log=log))
    await running.start()
    yield running, log
    await running.stop()
