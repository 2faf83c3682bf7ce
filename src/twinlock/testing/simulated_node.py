"""A whole server for simulations: the real services over stores that survive it, killed between any two steps.

Directory and key service answer late, so that a kill finds handlers anywhere between two writes. Time is virtual, see
`virtual_time`; the key service is the real one, in a thread of its own while the simulation stands still.
"""

from __future__ import annotations

import asyncio
import random
import threading
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import TypeVar

from twinlock.client.transport import Address, Dial, Transport
from twinlock.contracts import Asking, Directory, KeyService
from twinlock.contracts.directory import Change, Record
from twinlock.engines.blobs_memory import MemoryBlobs
from twinlock.engines.memory import MemoryBroker, MemoryDirectory, MemoryLog
from twinlock.errors import KeyServiceError, OfflineError, TwinlockError
from twinlock.ids import LogId
from twinlock.keyservice.service import LocalKeyService
from twinlock.keyservice.settings import KeyServiceSettings
from twinlock.protocol.calls import CreatePending, CreatePendingResult, LogHead, SignedEntry
from twinlock.protocol.codec import decode_client, encode
from twinlock.protocol.frames import Goaway, Lease, Leases, Notice, ServerFrame
from twinlock.protocol.server import ServerSession
from twinlock.server.app import build_services
from twinlock.server.heartbeat import Beating, Heartbeat
from twinlock.server.metrics import Metrics
from twinlock.server.secrets_file import make_secrets
from twinlock.server.services import Services
from twinlock.server.session import Dispatcher
from twinlock.server.settings import Settings
from twinlock.server.stores import Stores
from twinlock.server.tasks import Tasks
from twinlock.server.upkeep import spawn_upkeep

T = TypeVar("T")
DELAYS_S = (0.0, 0.0005, 0.002, 0.02)
LATENCIES_S = (0.001, 0.005, 0.05)


class Delays:
    """Draws how long things take."""

    __slots__ = ("_chance",)

    def __init__(self, chance: random.Random) -> None:
        self._chance = chance

    async def pause(self) -> None:
        """Take a moment, in which everything else may happen."""
        await asyncio.sleep(self._chance.choice(DELAYS_S))

    def latency_s(self) -> float:
        """Return how long a message is under way."""
        return self._chance.choice(LATENCIES_S)


class SlowDirectory(Directory):
    """A directory that takes a moment before and after each step."""

    def __init__(self, inner: Directory, delays: Delays) -> None:
        self._inner = inner
        self._delays = delays

    async def get(self, key: str) -> Record | None:
        """Return the newest record of a key."""
        return await self._slowly(lambda: self._inner.get(key))

    async def put(self, key: str, value: bytes, expect_revision: int | None = None) -> int:
        """Store and return the new revision."""
        return await self._slowly(lambda: self._inner.put(key, value, expect_revision))

    async def delete(self, key: str, expect_revision: int | None = None) -> None:
        """Delete a key."""
        await self._slowly(lambda: self._inner.delete(key, expect_revision))

    async def list(self, prefix: str) -> dict[str, Record]:
        """Return every key that begins with a prefix, sorted by key."""
        return await self._slowly(lambda: self._inner.list(prefix))

    def scan(self) -> AsyncIterator[tuple[str, Record]]:
        """Yield every record there is."""
        return self._inner.scan()

    def watch(self, prefix: str) -> AsyncIterator[Change]:
        """Yield every later change below a prefix."""
        return self._inner.watch(prefix)

    async def _slowly(self, step: Callable[[], Awaitable[T]]) -> T:
        await self._delays.pause()
        result = await step()
        await self._delays.pause()
        return result


class DistantKeyService(KeyService):
    """The real key service behind a cable: it may be out of reach, and answers may be lost after the work was done."""

    def __init__(self, folder: Path, delays: Delays, now_ms: Callable[[], int]) -> None:
        self._folder = folder
        self._delays = delays
        self._now_ms = now_ms
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="simulated key service", daemon=True)
        self._thread.start()
        self.is_reachable = True
        self.inner = self._open()

    def restart(self) -> None:
        """End the service and begin it again on its folder."""
        self._wait(lambda: self.inner.close())
        self.inner = self._open()

    async def take_turn(self, log: LogId) -> int:
        """Begin to change a log."""
        return await self._ask(lambda: self.inner.take_turn(log))

    async def append_log(self, log: LogId, expect_seq: int, entries: Sequence[SignedEntry], turn: int = 0) -> LogHead:
        """Check and store entries of a signed log."""
        return await self._ask(lambda: self.inner.append_log(log, expect_seq, entries, turn))

    async def read_log(self, log: LogId, after_seq: int) -> list[SignedEntry]:
        """Return the entries of a log after the first `after_seq`."""
        return await self._ask(lambda: self.inner.read_log(log, after_seq))

    async def create_pending(self, asking: Asking, request: CreatePending) -> CreatePendingResult:
        """Make the service key of a coming epoch."""
        return await self._ask(lambda: self.inner.create_pending(asking, request))

    async def lease(self, asking: Asking, request: Lease) -> Leases:
        """Release service keys to a device."""
        return await self._ask(lambda: self.inner.lease(asking, request))

    async def tend(self, now_ms: int) -> None:
        """Do what must be done from time to time."""
        await self._ask(lambda: self.inner.tend(now_ms))

    async def close(self) -> None:
        """Nothing: the service outlives the node; `end` ends it."""

    def end(self) -> None:
        """End the service and its thread."""
        self._wait(lambda: self.inner.close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def now(self, step: Callable[[], Awaitable[T]]) -> T:
        """Do something at once, past the cable: for checks."""
        return self._wait(step)

    async def _ask(self, step: Callable[[], Awaitable[T]]) -> T:
        await self._delays.pause()
        self._check_reachable()
        result = self._wait(step)
        await self._delays.pause()
        # The work is done, but nobody is told.
        self._check_reachable()
        return result

    def _check_reachable(self) -> None:
        if not self.is_reachable:
            raise KeyServiceError("out of reach")

    def _open(self) -> LocalKeyService:
        async def opened() -> LocalKeyService:
            settings = KeyServiceSettings(requests_burst=100_000)
            return LocalKeyService.open(self._folder, settings, now_ms=self._now_ms)

        return self._wait(opened)

    def _wait(self, step: Callable[[], Awaitable[T]]) -> T:
        async def waited() -> T:
            return await step()

        return asyncio.run_coroutine_threadsafe(waited(), self._loop).result()


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
        if not self.is_open:
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
    """A server's process: `start` and `kill` it as often as you like; stores and key service stay."""

    def __init__(self, folder: Path, chance: random.Random, now_ms: Callable[[], int]) -> None:
        self._chance = chance
        self.now_ms = now_ms
        self.delays = Delays(chance)
        self.log = MemoryLog()
        self.directory = MemoryDirectory()
        self.keys = DistantKeyService(folder / "keyservice", self.delays, now_ms)
        self.secrets = make_secrets()
        self.cut_off: set[str] = set()
        self.services: Services
        self.dispatcher: Dispatcher
        self._connections: set[SimulatedConnection] = set()
        self._life: asyncio.Task[None] | None = None
        self._is_serving = False
        self._heartbeat: Heartbeat

    async def start(self) -> None:
        """Begin a life."""
        started: asyncio.Future[None] = asyncio.get_running_loop().create_future()
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
        directory = SlowDirectory(self.directory, self.delays)
        stores = Stores(self.log, directory, MemoryBroker(), MemoryBlobs(), self.keys, self.secrets, self.keys.close)
        settings = Settings(engine="memory:", calls_per_s=0, sign_ups_per_min=0, unlocker_tries_per_min=0)
        try:
            async with asyncio.TaskGroup() as group:
                services = build_services(settings, stores, Tasks(group), metrics, self._heartbeat, self.now_ms)
                self.services = services
                self.dispatcher = Dispatcher(services, frozenset({ORIGIN}))
                spawn_upkeep(services)
                started.set_result(None)
                await asyncio.get_running_loop().create_future()
        finally:
            self._heartbeat.stop()


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
