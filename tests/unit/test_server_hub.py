"""Delivery without gap or overlap, whatever writing, slowness and coming and going do at the same time."""

import asyncio
import os
import random

import pytest

from tests.server_kit import Chain
from twinlock.contracts import SpaceState
from twinlock.engines.memory import MemoryLog
from twinlock.ids import Epoch, SpaceId
from twinlock.protocol.codec import decode_server
from twinlock.protocol.envelope import parse
from twinlock.protocol.frames import Attached, Entries
from twinlock.protocol.server import ServerSession
from twinlock.protocol.space_log import SpaceLogState
from twinlock.sealing.identity import DeviceKeys
from twinlock.server.buckets import Pace
from twinlock.server.framing import binary_message
from twinlock.server.hub import REST_READERS_MIN, Hub
from twinlock.server.metrics import Metrics
from twinlock.server.peer import Peer
from twinlock.server.served_space import Birth, ServedSpace
from twinlock.server.tasks import Tasks

SPACE = SpaceId(b"s" * 16)


class Reader(Peer):
    """A peer that keeps the seqs it was sent, and says when its buffer is full."""

    __slots__ = ("buffer_max", "hub", "seqs", "space", "unread")

    def __init__(self, hub, space, buffer_max=10**9):
        self.hub, self.space, self.buffer_max = hub, space, buffer_max
        self.paused, self.author, self.address = False, None, ""
        self.seqs, self.unread = [], 0

    def write(self, message):
        self.unread += len(message)
        while message:
            size = (
                message[1] if message[1] < 126 else int.from_bytes(message[2 : 4 if message[1] == 126 else 10], "big")
            )
            start = 2 if message[1] < 126 else 4 if message[1] == 126 else 10
            frame = decode_server(message[start : start + size])
            assert isinstance(frame, Entries)
            self.seqs += [entry.seq for entry in frame.entries]
            message = message[start + size :]
        if self.unread > self.buffer_max and not self.paused:
            self.paused = True
            self.hub.pause(self.space, self)

    def drain(self):
        self.unread = 0
        if self.paused:
            self.paused = False
            self.hub.resume(self.space, self)

    def send(self, frame):
        raise AssertionError(frame)

    def settle(self, pushed_bytes):
        raise AssertionError

    def refuse(self, error):
        raise AssertionError(error)


class SlowLog(MemoryLog):
    """A log whose reads take some turns of the loop, as a real one's do."""

    __slots__ = ("chance",)

    async def read(self, space, after, bytes_max):
        page = await super().read(space, after, 1_000)
        for _ in range(self.chance.randrange(6)):
            await asyncio.sleep(0)
        return page


def a_space() -> ServedSpace:
    rules = SpaceLogState(
        space=SPACE,
        partition=0,
        members={},
        epochs={},
        epoch=Epoch(1),
        title=None,
        lease_hours=24,
        head_prefixes={},
        seq=1,
        head=b"",
    )
    return ServedSpace(rules, SpaceState(1, 0, 0, {}), [Birth(b"i" * 16, 0)], Pace(0, 0, 0))


class Stage:
    """A space being written while readers come, go and lag."""

    def __init__(self, tasks, chance):
        self.log = SlowLog()
        self.log.chance = chance
        self.space = a_space()
        self.hub = Hub(self.log, tasks, Metrics(), reads_max=4)
        self.chain = Chain(SPACE, DeviceKeys.make(os.urandom))
        self.appended = []

    async def append(self, count):
        envelopes = [parse(self.chain.next()) for _ in range(count)]
        seqs = await self.log.append(SPACE, envelopes, 0)
        entries = [e for e in await MemoryLog.read(self.log, SPACE, seqs[0] - 1, 10**9) if e.seq in set(seqs)]
        # The answer of an engine comes some turns after its entries can be read.
        for _ in range(self.log.chance.randrange(3)):
            await asyncio.sleep(0)
        self.appended += seqs
        self.hub.deliver(self.space, entries)

    def disturb(self):
        if self.log.chance.random() < 0.02:
            self.hub.restart(self.space, self.appended[-1])
        if self.log.chance.random() < 0.1:
            self.space.rests_until_s = asyncio.get_running_loop().time() + 0.001


@pytest.mark.parametrize("seed", range(25))
async def test_every_reader_gets_every_entry_once_and_in_order(seed):
    chance = random.Random(seed)
    async with asyncio.TaskGroup() as group:
        stage = Stage(Tasks(group), chance)
        readers = []
        for _ in range(150):
            await stage.append(chance.randrange(1, 4))
            if len(readers) < 8 and chance.random() < 0.1:
                after = chance.choice([0, stage.space.delivered, chance.choice(stage.appended)])
                reader = Reader(stage.hub, stage.space, chance.choice([10**9, 3_000]))
                readers.append((reader, after))
                stage.hub.attach(stage.space, reader, after)
            for reader, _ in readers:
                if chance.random() < 0.3:
                    reader.drain()
            stage.disturb()
            for _ in range(chance.randrange(3)):
                await asyncio.sleep(0)
        await asyncio.sleep(0.002)
        for _ in range(10_000):
            for reader, _ in readers:
                reader.drain()
            if not stage.space.lagging and not stage.space.turn:
                break
            await asyncio.sleep(0)

    assert readers
    for reader, after in readers:
        assert reader.seqs == [seq for seq in stage.appended if seq > after]
    assert not stage.space.lagging
    assert not stage.space.recent


async def test_a_reader_that_lags_is_told_what_was_cut_before_it_read_it():
    class Told(Reader):
        __slots__ = ("starts",)

        def send(self, frame):
            assert isinstance(frame, Attached)
            self.starts.append((frame.start, frame.resume, len(self.seqs)))

    async with asyncio.TaskGroup() as group:
        stage = Stage(Tasks(group), random.Random(1))
        slow, quick, fresh = (Told(stage.hub, stage.space) for _ in range(3))
        for reader in (slow, quick, fresh):
            reader.starts, reader.session = [], ServerSession(b"", 0)
        stage.hub.attach(stage.space, slow, 0)
        stage.hub.attach(stage.space, quick, 0)
        await stage.append(3)
        await asyncio.sleep(0)
        slow.paused = True
        stage.hub.pause(stage.space, slow)
        await stage.append(10)
        await asyncio.sleep(0)
        stage.space.start = (await stage.log.cut(SPACE, stage.appended[7], 0)).start
        slow.drain()
        stage.hub.attach(stage.space, fresh, 0)
        for _ in range(40):
            await asyncio.sleep(0)

    assert slow.starts == [(stage.appended[8], stage.appended[2], 3)]
    assert slow.seqs == stage.appended[:3] + stage.appended[8:]
    assert quick.starts == []
    assert quick.seqs == stage.appended
    # This one has been told where delivery begins when it attached.
    assert fresh.starts == []
    assert fresh.seqs == stage.appended[8:]


async def test_a_cut_whose_answer_is_still_on_its_way_is_told_as_well():
    class Told(Reader):
        __slots__ = ("starts",)

        def send(self, frame):
            self.starts.append(frame.start)

    async with asyncio.TaskGroup() as group:
        stage = Stage(Tasks(group), random.Random(1))
        reader = Told(stage.hub, stage.space)
        reader.starts, reader.session = [], ServerSession(b"", 0)
        await stage.append(9)
        stage.space.cuts_under_way = 1
        await stage.log.cut(SPACE, stage.appended[4], 0)
        stage.hub.attach(stage.space, reader, 0)
        for _ in range(40):
            await asyncio.sleep(0)

    assert reader.starts == [stage.appended[5]]
    assert reader.seqs == stage.appended[5:]


async def test_a_reader_that_left_gets_nothing_more():
    async with asyncio.TaskGroup() as group:
        stage = Stage(Tasks(group), random.Random(1))
        reader = Reader(stage.hub, stage.space)
        stage.hub.attach(stage.space, reader, 0)
        await stage.append(1)
        await asyncio.sleep(0)
        stage.hub.detach(stage.space, reader)
        await stage.append(1)
        await asyncio.sleep(0)

    assert len(reader.seqs) == 1


async def test_live_readers_are_sent_the_very_same_bytes():
    class Keeper(Reader):
        __slots__ = ("messages",)

        def write(self, message):
            self.messages.append(message)

    async with asyncio.TaskGroup() as group:
        stage = Stage(Tasks(group), random.Random(1))
        keepers = [Keeper(stage.hub, stage.space) for _ in range(3)]
        for keeper in keepers:
            keeper.messages = []
            stage.hub.attach(stage.space, keeper, 0)
        await stage.append(5)
        await asyncio.sleep(0)

    assert len({id(keeper.messages[0]) for keeper in keepers}) == 1


class Writer(Reader):
    """A reader that writes as well, and keeps what it is sent as it is sent."""

    __slots__ = ("pieces",)

    def __init__(self, hub, space):
        super().__init__(hub, space)
        self.pieces = []

    def write(self, message):
        self.pieces.append(message)


ACK = binary_message(b"ack")


async def test_an_ack_and_the_entries_that_it_is_about_leave_in_one_piece():
    async with asyncio.TaskGroup() as group:
        stage = Stage(Tasks(group), random.Random(1))
        writer, other, stranger = (Writer(stage.hub, stage.space) for _ in range(3))
        stage.hub.attach(stage.space, writer, 0)
        stage.hub.attach(stage.space, other, 0)
        stage.hub.acknowledge(stage.space, writer, ACK)
        stage.hub.acknowledge(stage.space, stranger, ACK)
        assert stranger.pieces == [ACK]
        await stage.append(1)
        await asyncio.sleep(0)

    (entries,) = other.pieces
    assert writer.pieces == [ACK + entries]
    assert stranger.pieces == [ACK]


async def test_what_comes_while_a_busy_space_rests_is_joined_and_acks_do_not_wait():
    async with asyncio.TaskGroup() as group:
        stage = Stage(Tasks(group), random.Random(1))
        writer, other = (Writer(stage.hub, stage.space) for _ in range(2))
        stage.hub.attach(stage.space, writer, 0)
        stage.hub.attach(stage.space, other, 0)
        stage.space.rests_until_s = asyncio.get_running_loop().time() + 0.02
        for _ in range(3):
            stage.hub.acknowledge(stage.space, writer, ACK)
            await stage.append(1)
            await asyncio.sleep(0)
        assert writer.pieces == [ACK, ACK, ACK]
        assert not other.pieces
        await asyncio.sleep(0.03)

    (joined,) = other.pieces
    assert writer.pieces == [ACK, ACK, ACK, joined]
    assert stage.space.delivered == stage.appended[-1]


@pytest.mark.parametrize("count", [REST_READERS_MIN - 1, REST_READERS_MIN])
async def test_only_a_space_of_many_readers_rests(count):
    async with asyncio.TaskGroup() as group:
        stage = Stage(Tasks(group), random.Random(1))
        for _ in range(count):
            stage.hub.attach(stage.space, Writer(stage.hub, stage.space), 0)
        await stage.append(1)
        await asyncio.sleep(0)

    assert (stage.space.rests_until_s > 0) == (count >= REST_READERS_MIN)


@pytest.mark.parametrize("event", ["restart", "detach", "reject"])
async def test_an_ack_is_sent_whatever_becomes_of_its_entries(event):
    async with asyncio.TaskGroup() as group:
        stage = Stage(Tasks(group), random.Random(1))
        writer = Writer(stage.hub, stage.space)
        stage.hub.attach(stage.space, writer, 0)
        await stage.append(1)
        await asyncio.sleep(0)
        writer.pieces.clear()
        await stage.append(1)
        stage.hub.acknowledge(stage.space, writer, ACK)
        match event:
            case "restart":
                stage.hub.restart(stage.space, stage.appended[-1])
            case "detach":
                stage.hub.detach(stage.space, writer)
            case "reject":
                stage.hub.release_ack(stage.space, writer)
        for _ in range(20):
            await asyncio.sleep(0)

    assert writer.pieces[0] == ACK
    assert len(writer.pieces) == (1 if event == "detach" else 2)


@pytest.mark.parametrize(
    ("births", "incarnation", "cursor", "resume"),
    [
        ([("A", 0)], b"", 0, 0),
        ([("A", 0)], b"A", 70, 70),
        ([("A", 0), ("B", 50)], b"A", 70, 50),
        ([("A", 0), ("B", 50)], b"A", 20, 20),
        ([("A", 0), ("B", 50), ("C", 30)], b"A", 70, 30),
        ([("A", 0), ("B", 50), ("C", 60)], b"B", 70, 60),
        ([("A", 0), ("B", 50)], b"B", 70, 70),
        ([("A", 0), ("B", 50)], b"lost", 70, 0),
        ([("A", 0)], b"A", 170, 100),
    ],
)
def test_a_reader_goes_on_where_both_lives_of_the_database_agree(births, incarnation, cursor, resume):
    space = a_space()
    space.births = [Birth(name.encode(), head) for name, head in births]

    assert space.resume_for(incarnation, cursor, 100) == resume
