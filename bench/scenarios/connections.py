"""Many connections: how fast they are let in with authentication, and how much memory an idle one holds."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path

from bench.figure import Figure
from bench.lean_socket import LeanSocket, shake_hands
from bench.machine import resident_bytes
from bench.scale import Scale
from bench.server_process import serving
from bench.world import World, make_world
from twinlock.protocol import codec, proofs
from twinlock.protocol.client import NONCE_BYTES
from twinlock.protocol.frames import Challenge, Hello, Welcome

AT_ONCE = 64
WARM_UP = 200


async def connections(folder: Path, scale: Scale) -> list[Figure]:
    """Open connections, each with its handshake and signatures, and hold them while nothing happens."""
    counts = (50,) if scale.quick else (50, 500, 5_000)
    figures = []
    with serving(folder) as server:
        await server.ready()
        world = await make_world(server.port)
        # What the server sets up once for its first connections is not what one more costs.
        _close(await _open(world, scale.count(WARM_UP, 10)))
        for count in counts:
            before = resident_bytes(server.child.pid)
            started = time.perf_counter()
            sockets = await _open(world, count)
            rate = count / (time.perf_counter() - started)
            await asyncio.sleep(0.5)
            each_kib = (resident_bytes(server.child.pid) - before) / count / 1024
            held = sum(not socket.closed.done() for socket in sockets)
            figures += _figures(count, counts, rate, each_kib, held)
            _close(sockets)
            await asyncio.sleep(0.5)
    return figures


def _figures(count: int, counts: tuple[int, ...], rate: float, each_kib: float, held: int) -> list[Figure]:
    is_full = count == 5_000
    growth = count / counts[0]
    name = "connections let in, each with both signatures (50, 500, 5,000)"
    figures = [Figure("connections", name, rate, "/s", "higher", 3_000 if is_full else None, growth=growth)]
    if is_full or len(counts) == 1:
        memory = "server memory of an idle connection"
        figures.append(Figure("connections", memory, each_kib, "KiB", "lower", 15))
        target = 5_000 if is_full else None
        figures.append(Figure("connections", "idle connections held", held, "", "higher", target))
    return figures


async def _open(world: World, count: int) -> list[LeanSocket]:
    sockets: list[LeanSocket] = []

    async def open_some(number: int) -> None:
        for _ in range(number):
            sockets.append(await _greet(world))

    shares = [count // AT_ONCE + (share < count % AT_ONCE) for share in range(AT_ONCE)]
    async with asyncio.TaskGroup() as group:
        for share in shares:
            group.create_task(open_some(share))
    return sockets


async def _greet(world: World) -> LeanSocket:
    """Connect and say hello; the server's own signature is taken on trust, to spare the load's core."""
    welcomed: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def receive(frame: memoryview) -> None:
        decoded = codec.decode_server(bytes(frame))
        if isinstance(decoded, Challenge):
            socket.send(codec.encode(_hello(world, decoded)))
        elif isinstance(decoded, Welcome):
            welcomed.set_result(None)
        elif not welcomed.done():
            welcomed.set_exception(ConnectionError(f"the server answered the hello with {decoded}"))

    socket = LeanSocket(receive)
    await shake_hands(socket, world.port)
    waiting: set[asyncio.Future[None]] = {welcomed, socket.closed}
    await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
    if not welcomed.done():
        raise ConnectionError("the server closed the connection before its welcome")
    await welcomed
    return socket


def _hello(world: World, challenge: Challenge) -> Hello:
    who = world.identity()
    nonce, origin = os.urandom(NONCE_BYTES), f"ws://127.0.0.1:{world.port}"
    server_id = proofs.server_id_of(challenge.server_pk)
    message = proofs.hello_message(
        server_id, origin, challenge.incarnation, who.account, who.device, challenge.nonce, nonce
    )
    assert who.sign is not None
    return Hello(nonce, origin, who.account, who.device, who.sign(message))


def _close(sockets: list[LeanSocket]) -> None:
    for socket in sockets:
        socket.close()
