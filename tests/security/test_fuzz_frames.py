"""Malformed and hostile bytes at a real socket close their own connection, are counted, and harm nobody else."""

import asyncio
import contextlib
import os
import random

import msgspec
import pytest
from websockets.exceptions import ConnectionClosed

from tests.server_kit import Wire, hello_to, make_world, open_anonymous, open_wire
from twinlock.protocol import codec
from twinlock.protocol.frames import Attach, Call, Challenge, Detach, Lease, Push, Signal, Welcome
from twinlock.protocol.limits import FRAME_BYTES_MAX
from twinlock.server import Server, Settings

CLOSES_PER_SEED = 8


@pytest.fixture
async def server():
    running = Server(Settings(engine="memory:", port=0, calls_per_s=0, sign_ups_per_min=0, unlocker_tries_per_min=0))
    await running.start()
    yield running
    await running.stop()


class Bystander:
    """A device that works on while others misbehave."""

    def __init__(self, world, wire: Wire):
        self.world, self.wire, self.chain = world, wire, world.chain()

    async def still_works(self):
        await self.wire.push(self.world.space, self.chain.next())
        await self.wire.acked(self.world.space, self.chain.counter)
        await self.wire.entries(self.world.space, 1)


@pytest.fixture
async def bystander(server):
    world = await make_world(server)
    wire = await world.open()
    await wire.attach(world.space)
    return Bystander(world, wire)


def closes(server: Server) -> float:
    """Return how many connections the server has closed for a cause."""
    [family] = [family for family in server.metrics.registry.collect() if family.name == "twinlock_closes"]
    return sum(sample.value for sample in family.samples if sample.name.endswith("_total"))


def hostile_value(chance: random.Random, depth: int = 0):
    """Return some MessagePack value, often of a kind, size or depth that nobody expects."""
    choices = [
        lambda: None,
        lambda: chance.choice([True, False]),
        lambda: chance.choice([0, -1, 1, 2**31, 2**63, -(2**63), 2**64 - 1]),
        lambda: chance.random(),
        lambda: chance.randbytes(chance.choice([0, 1, 16, 32, 300])),
        lambda: "x" * chance.choice([0, 1, 50, 5_000]),
    ]
    if depth < 4:
        choices.append(lambda: [hostile_value(chance, depth + 1) for _ in range(chance.randrange(12))])
        choices.append(lambda: {str(place): hostile_value(chance, depth + 1) for place in range(chance.randrange(4))})
    return chance.choice(choices)()


def well_formed(world, chance: random.Random) -> bytes:
    """Return a frame that is right, to be spoilt."""
    space = chance.choice([world.space, chance.randbytes(16), b"", chance.randbytes(3)])
    envelope = world.chain().make(chance.choice([0, 1, 5, 2**64 - 1]), chance.randbytes(32))
    params = msgspec.Raw(msgspec.msgpack.encode(hostile_value(chance)))
    methods = ["space.log", "space.cut", "space.create", "account.append", "account.create", "unlocker.open", "x" * 300]
    frame = chance.choice(
        [
            Attach(space, chance.randbytes(16), chance.choice([0, -5, 2**62])),
            Detach(space),
            Push(space, [envelope] * chance.choice([1, 3])),
            Push(space, [chance.randbytes(chance.choice([0, 191, 192, 500]))]),
            Lease(space, [chance.choice([0, 1, 2**40])], chance.randbytes(32), 0, chance.randbytes(64)),
            Signal(space, chance.randbytes(20)),
            Call(chance.choice([0, -1, 2**40]), chance.choice(methods), params),
        ]
    )
    return codec.encode(frame)


def hostile_message(world, chance: random.Random) -> bytes:
    """Return a message: noise, a wild array, or a good frame with some bytes changed, lost or added."""
    kind = chance.randrange(4)
    if kind == 0:
        return chance.randbytes(chance.choice([0, 1, 10, 1_000]))
    if kind == 1:
        return msgspec.msgpack.encode([chance.randrange(-2, 24), *(hostile_value(chance) for _ in range(8))])
    data = bytearray(well_formed(world, chance))
    if kind == 2:
        for _ in range(chance.randrange(1, 6)):
            data[chance.randrange(len(data))] = chance.randrange(256)
        if chance.random() < 0.3:
            del data[chance.randrange(len(data)) :]
    return bytes(data)


async def pelt(wire: Wire, messages: list[bytes]) -> None:
    """Send messages until the other side has had enough."""
    with contextlib.suppress(ConnectionClosed):
        for message in messages:
            await wire.socket.send(message)


@pytest.mark.parametrize("seed", range(12))
async def test_hostile_frames_of_a_signed_in_device_harm_nobody_else(server, bystander, seed):
    chance = random.Random(seed)
    before = closes(server)

    for _ in range(CLOSES_PER_SEED):
        wire = await bystander.world.open()
        await pelt(wire, [hostile_message(bystander.world, chance) for _ in range(30)])
        await pelt(wire, [b"\xc1"])
        await wire.closed()
        await bystander.still_works()

    assert closes(server) == before + CLOSES_PER_SEED


@pytest.mark.parametrize("seed", range(6))
async def test_hostile_frames_before_the_welcome_harm_nobody_else(server, bystander, seed):
    chance = random.Random(100 + seed)

    for _ in range(CLOSES_PER_SEED):
        wire = await open_wire(server.port) if chance.random() < 0.5 else (await open_anonymous(server.port))[0]
        await pelt(wire, [hostile_message(bystander.world, chance) for _ in range(10)])
        await pelt(wire, [b"\xc1"])
        await wire.closed()

    await bystander.still_works()


@pytest.mark.parametrize("seed", range(10))
async def test_hostile_bytes_below_the_frames_harm_nobody_else(server, bystander, seed):
    chance = random.Random(200 + seed)

    for _ in range(CLOSES_PER_SEED):
        wire = await bystander.world.open()
        noise = chance.randbytes(chance.choice([2, 14, 1_000, 100_000]))
        header = chance.choice([b"", b"\x82\xfe", b"\x82\xff\x7f", b"\x02\x80\0\0\0\0", b"\x80\x80\0\0\0\0", b"\x81"])
        wire.socket.transport.write(header + noise)
        wire.socket.transport.write_eof()
        await wire.closed()

    await bystander.still_works()


@pytest.mark.parametrize(
    ("message", "code", "reason"),
    [
        (b"\xc1", 1008, "malformed_frame"),
        (b"", 1008, "malformed_frame"),
        (msgspec.msgpack.encode([99]), 1008, "malformed_frame"),
        (msgspec.msgpack.encode([4, b"s" * 16]), 1008, "malformed_frame"),
        (msgspec.msgpack.encode([1, b"n", b"k", b"i", 0]), 1008, "malformed_frame"),
        ("text", 1003, "malformed_frame"),
        (bytes(FRAME_BYTES_MAX + 1), 1009, "exceeds limit"),
    ],
    ids=["no MessagePack", "nothing", "unknown tag", "field missing", "a server's frame", "text", "too long"],
)
async def test_a_malformed_message_closes_with_its_code(server, bystander, message, code, reason):
    wire = await bystander.world.open()
    before = closes(server)

    await wire.socket.send(message)

    closed_with = await wire.closed()

    assert closed_with[0] == code
    assert reason in closed_with[1]
    assert closes(server) == before + 1
    await bystander.still_works()


async def test_deeply_nested_parameters_are_refused(server, bystander):
    wire = await bystander.world.open()
    deep = b"\x91" * 100_000 + b"\xc0"

    await wire.socket.send(b"\x94\x0f\x01" + msgspec.msgpack.encode("space.log") + deep)
    await wire.closed()

    await bystander.still_works()


async def test_half_a_hello_then_silence_holds_nothing_up(server, bystander):
    wires = [await open_wire(server.port) for _ in range(20)]
    for wire in wires:
        wire.socket.transport.write(b"\x82\xff" + FRAME_BYTES_MAX.to_bytes(8, "big") + os.urandom(500))

    await bystander.still_works()
    world = bystander.world
    newcomer = await open_wire(server.port)
    await newcomer.send(hello_to(await newcomer.next(Challenge), server.port, world.account, world.device))
    await newcomer.next(Welcome)
    for wire in wires:
        wire.socket.transport.abort()


async def test_a_storm_of_aborted_connections_leaves_none_behind(server, bystander):
    wires = await asyncio.gather(*(open_wire(server.port) for _ in range(50)))
    for wire in wires:
        wire.socket.transport.abort()

    await bystander.still_works()
    await asyncio.gather(*(wire.closed() for wire in wires))
    await bystander.still_works()
