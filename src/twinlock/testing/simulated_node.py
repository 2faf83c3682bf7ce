"""A whole server for simulations: the real services over stores that survive it, killed between any two steps.

Directory and key service answer late, so that a kill finds handlers anywhere between two writes. Time is virtual, see
`virtual_time`; the key service is the real one, in a thread of its own while the simulation stands still.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from pathlib import Path

from twinlock.client.transport import Address, Dial, Transport
from twinlock.engines.blobs_memory import MemoryBlobs
from twinlock.engines.memory import MemoryBroker
from twinlock.engines.memory_nodes import Fault, MemoryStore, NodeBroker
from twinlock.errors import OfflineError, TwinlockError
from twinlock.protocol.codec import decode_client, encode
from twinlock.protocol.frames import Goaway, Notice, ServerFrame
from twinlock.protocol.server import ServerSession
from twinlock.server.app import build_services
from twinlock.server.heartbeat import Beating, Heartbeat
from twinlock.server.metrics import Metrics
from twinlock.server.secrets_file import ServerSecrets, make_secrets
from twinlock.server.services import Services
from twinlock.server.session import Dispatcher
from twinlock.server.settings import Settings
from twinlock.server.stores import Stores
from twinlock.server.tasks import Tasks
from twinlock.server.upkeep import spawn_upkeep
from twinlock.testing.simulated_stores import LATENCIES_S, Delays, DistantKeyService, KeysOfNode, SlowDirectory


class SimulatedConnection(Beating):
    """The server's end of a connection without a socket; its client's end is a `SimulatedTransport`."""

    def __init__(self, node: Node, nonce: bytes, address: str) -> None:
        self._node = node
        self.session = ServerSession(nonce, node.now_ms())
        self.author = None
        self.address = address
        self.paused = False
        # Chance of its own: who is sent to first must not change what happens to others.
        self.far_end = SimulatedTransport(self, Delays(random.Random(nonce)))  # noqa: S311
        self.is_open = True

    def receive(self, payload: bytes) -> None:
        """Act on a message of the client."""
        if not self.is_open or not self._node.is_serving:
            # A node that is being killed takes nothing more, though its connections end only after it.
            return
        try:
            self._node.dispatcher.handle(self, decode_client(payload))
        except TwinlockError as error:
            self.refuse(error)

    def write(self, message: bytes) -> None:
        """Send WebSocket messages that were built already."""
        for payload in _payloads_of(message):
            self.far_end.arrive(payload)

    def send(self, frame: ServerFrame) -> None:
        """Send one frame."""
        self.far_end.arrive(encode(frame))

    def settle(self, pushed_bytes: int) -> None:
        """Note that a push was answered in full."""
        self.session.settle_push()

    def refuse(self, error: TwinlockError) -> None:
        """Tell why, and close."""
        self.send(Notice(error.code, b"", error.detail, error.retry_after_ms))
        self.close()

    def close(self) -> None:
        """End the connection after what was sent."""
        if self.is_open:
            self.is_open = False
            self._node.forget(self)
            self.far_end.end()

    def beat(self) -> None:
        """Nothing: this wire tells of its end."""

    def hello_is_late(self) -> None:
        """Nothing: simulated clients always say hello, or their connection ends."""

    def go_away(self, retry_after_ms: int) -> None:
        """Say that the server is going down."""
        self.send(Goaway(retry_after_ms))

    def close_drained(self) -> None:
        """Close after everything was answered."""
        self.close()

    def abort(self) -> None:
        """End the connection at once."""
        self.close()


class SimulatedTransport(Transport):
    """The client's end. Messages take their time, and keep their order."""

    def __init__(self, near_end: SimulatedConnection, delays: Delays) -> None:
        self._near_end = near_end
        self._delays = delays
        self._loop = asyncio.get_running_loop()
        self._arrived: asyncio.Queue[bytes | None] = asyncio.Queue()
        # Timers of the same moment go off in any order, so each takes whatever is the next message by then.
        self._up: deque[bytes] = deque()
        self._down: deque[bytes | None] = deque()
        self._up_s = self._down_s = 0.0
        self._is_over = False

    async def send(self, message: bytes) -> None:
        """Send one message."""
        if not self.send_now(message):
            raise OfflineError("the connection ended")

    def send_now(self, message: bytes) -> bool:
        """Send one message."""
        if self._is_over:
            return False
        self._up_s = max(self._up_s, self._loop.time() + self._delays.latency_s())
        self._up.append(message)
        self._loop.call_at(self._up_s, lambda: self._near_end.receive(self._up.popleft()))
        return True

    async def receive(self) -> bytes:
        """Return the next message."""
        message = await self._arrived.get()
        if message is None:
            self._arrived.put_nowait(None)
            raise OfflineError("the connection ended")
        return message

    def arrive(self, message: bytes) -> None:
        """Bring a message of the server on its way."""
        if not self._is_over:
            self._bring(message)

    def end(self) -> None:
        """Tell that nothing more will come, after what is under way."""
        if not self._is_over:
            self._is_over = True
            self._bring(None)

    def _bring(self, message: bytes | None) -> None:
        self._down_s = max(self._down_s, self._loop.time() + self._delays.latency_s())
        self._down.append(message)
        self._loop.call_at(self._down_s, lambda: self._arrived.put_nowait(self._down.popleft()))


class Node:
    """A server's process: `start` and `kill` it as often as you like; stores and key service stay.

    Args:
        folder: where the key service keeps its files.
        chance: what happens to this node.
        now_ms: the clock.
        beside: another node, to share stores and key service with.
        is_shared: whether there are, or will be, other nodes.
    """

    def __init__(
        self,
        folder: Path,
        chance: random.Random,
        now_ms: Callable[[], int],
        beside: Node | None = None,
        *,
        is_shared: bool = False,
    ) -> None:
        self._chance = chance
        self.now_ms = now_ms
        self.delays = Delays(chance)
        self.is_shared = is_shared
        self.store: MemoryStore = MemoryStore() if beside is None else beside.store
        self.log = self.store.log
        self.directory = self.store.directory
        self.keys: DistantKeyService
        self.keys = DistantKeyService(folder / "keyservice", self.delays, now_ms) if beside is None else beside.keys
        self.secrets: ServerSecrets = make_secrets() if beside is None else beside.secrets
        self.cut_off: set[str] = set() if beside is None else beside.cut_off
        self.services: Services
        self.dispatcher: Dispatcher
        self.broker: NodeBroker | None = None
        self._connections: set[SimulatedConnection] = set()
        self._life: asyncio.Task[None] | None = None
        self._lives_count = 0
        self._is_serving = False
        self._heartbeat: Heartbeat

    @property
    def is_serving(self) -> bool:
        """Tell whether devices are taken."""
        return self._is_serving

    async def start(self) -> None:
        """Begin a life."""
        started: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._lives_count += 1
        self._life = asyncio.create_task(self._live(started), name="node")
        await started
        self._is_serving = True

    async def restart(self) -> None:
        """Begin a life unless there is one."""
        if self._life is None:
            await self.start()

    async def kill(self) -> None:
        """End this life wherever it stands; nothing is said to anybody."""
        life, self._life = self._life, None
        self._is_serving = False
        if life is None:
            return
        life.cancel()
        with suppress(asyncio.CancelledError):
            await life
        for connection in list(self._connections):
            connection.close()

    def dial_for(self, name: str) -> Dial:
        """Return the way in which a device dials this node."""

        chance = random.Random(self._chance.random())  # noqa: S311

        @asynccontextmanager
        async def dial(address: Address) -> AsyncIterator[Transport]:
            await asyncio.sleep(chance.choice(LATENCIES_S))
            if not self._is_serving or name in self.cut_off:
                raise OfflineError("nobody answers")
            connection = SimulatedConnection(self, chance.randbytes(32), name)
            self._connections.add(connection)
            self._heartbeat.opened(connection)
            connection.send(self.dispatcher.challenge(connection.session.challenge_nonce))
            try:
                yield connection.far_end
            finally:
                connection.close()

        return dial

    def part(self, name: str) -> None:
        """Cut a device off from this node."""
        self.cut_off.add(name)
        for connection in [each for each in self._connections if each.address == name]:
            connection.close()

    def forget(self, connection: SimulatedConnection) -> None:
        """Note that a connection has ended."""
        self._connections.discard(connection)
        self._heartbeat.closed(connection)
        if self._is_serving:
            self.dispatcher.gone(connection)

    async def _live(self, started: asyncio.Future[None]) -> None:
        metrics = Metrics()
        self._heartbeat = Heartbeat(metrics)
        stores, end_stores = self._stores()
        settings = Settings(engine="memory:", calls_per_s=0, sign_ups_per_min=0, unlocker_tries_per_min=0)
        try:
            async with asyncio.TaskGroup() as group:
                time_s = asyncio.get_running_loop().time
                services = build_services(settings, stores, Tasks(group), metrics, self._heartbeat, self.now_ms, time_s)
                self.services = services
                self.dispatcher = Dispatcher(services, frozenset({ORIGIN}))
                spawn_upkeep(services)
                started.set_result(None)
                await asyncio.get_running_loop().create_future()
        finally:
            self._heartbeat.stop()
            await end_stores()

    def _stores(self) -> tuple[Stores, Callable[[], Awaitable[None]]]:
        """Return what this life stores in, and what ends it."""
        directory, close = SlowDirectory(self.directory, self.delays), self.keys.close
        if not self.is_shared:
            return Stores(self.log, directory, MemoryBroker(), MemoryBlobs(), self.keys, self.secrets, close), close
        node = self.store.node(self.delays.pause_s, self._fault)
        self.broker = node.broker
        stores = Stores(
            node.log,
            directory,
            node.broker,
            MemoryBlobs(),
            KeysOfNode(self.keys, self.delays),
            self.secrets,
            close,
            is_shared=True,
            # A node of this name never lived before.
            node=self._chance.randbytes(8),
        )
        return stores, node.close

    def _fault(self) -> Fault:
        return self._chance.choices(("", "lost", "unanswered"), (50, 1, 1))[0]


class Crowd:
    """Several nodes behind one address: each time a device dials it is given one of them."""

    def __init__(self, nodes: Sequence[Node], chance: random.Random) -> None:
        self.nodes = nodes
        self._chance = chance

    def dial_for(self, name: str) -> Dial:
        """Return the way in which a device dials."""
        chance = random.Random(self._chance.random())  # noqa: S311
        dials = [node.dial_for(name) for node in self.nodes]

        def dial(address: Address) -> AbstractAsyncContextManager[Transport]:
            return chance.choice(dials)(address)

        return dial

    def part(self, name: str) -> None:
        """Cut a device off from all nodes."""
        for node in self.nodes:
            node.part(name)


ORIGIN = "ws://simulated:80"
"""The address of every simulated node."""


def _payloads_of(message: bytes) -> list[bytes]:
    """Return the payloads of unmasked binary messages that stand one after the other."""
    payloads = []
    at = 0
    while at < len(message):
        size, begin = message[at + 1], at + 2
        if size >= 126:
            wide = 2 if size == 126 else 8
            size, begin = int.from_bytes(message[begin : begin + wide], "big"), begin + wide
        payloads.append(message[begin : begin + size])
        at = begin + size
    return payloads
