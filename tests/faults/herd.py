"""Ten thousand clients that come back at once: sockets that say hello, attach, and do as they are told."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import time
from collections import Counter

from bench.lean_socket import LeanSocket, shake_hands
from twinlock.errors import TwinlockError, error_from_code
from twinlock.ids import Seq, SpaceId
from twinlock.protocol.client import ClientIdentity, ClientSession, Welcomed
from twinlock.protocol.frames import LOG_GROWN, Attached, Goaway, Notice

TRY_S_MAX = 20.0
BACKOFF_S_MAX = 4.0
SHAKING_HANDS_MAX = 1_000
"""So many at a time: all of them are one process here, which must answer each challenge within ten seconds."""


class Member:
    """One of them: reads a space from its head on, over one connection after the other."""

    __slots__ = ("_herd", "_identity", "_seen", "_session", "_space", "_ticket", "attached_s", "heard", "socket")

    def __init__(self, herd: Herd, identity: ClientIdentity, space: SpaceId) -> None:
        self._herd = herd
        self._identity = identity
        self._space = space
        self._ticket = b""
        self._session: ClientSession | None = None
        self._seen: asyncio.Future[None] | None = None
        self.socket: LeanSocket | None = None
        self.attached_s = 0.0
        self.heard = b""
        """The incarnation that it was given; with it the cursor means something."""

    async def run(self, ports: list[int]) -> None:
        """Come back until cancelled: at once after a connection that stood, with full jitter after one that did not."""
        tries = 0
        while True:
            port = random.choice(ports)
            wait_s = 0.0
            try:
                async with self._herd.shaking_hands:
                    await self._come(port)
                tries = 0
                await self.socket.closed
            except TwinlockError as error:
                self._herd.refused(error)
                wait_s = error.retry_after_ms / 1000
            except (OSError, TimeoutError) as exc:
                self._herd.ends[type(exc).__name__] += 1
            finally:
                self._leave()
            if tries or wait_s:
                await asyncio.sleep(wait_s or random.uniform(0, min(BACKOFF_S_MAX, 0.1 * 2**tries)))
            tries += 1

    async def _come(self, port: int) -> None:
        self._session = ClientSession(self._identity, f"ws://127.0.0.1:{port}", None, os.urandom, self._ticket)
        self._seen = asyncio.get_running_loop().create_future()
        self._seen.add_done_callback(lambda seen: seen.cancelled() or seen.exception())
        self.socket = socket = LeanSocket(self._receive)
        # A handshake that is given up still ends some time; nobody waits for that.
        socket.opened.add_done_callback(lambda opened: opened.cancelled() or opened.exception())
        async with asyncio.timeout(TRY_S_MAX):
            await shake_hands(socket, port)
            socket.closed.add_done_callback(self._lost)
            await self._seen
        self.attached_s = time.monotonic()

    def _leave(self) -> None:
        self.attached_s = 0.0
        if self.socket is not None:
            self.socket.close()

    def _lost(self, _: asyncio.Future[None]) -> None:
        self.attached_s = 0.0
        if not self._seen.done():
            self._seen.set_exception(ConnectionResetError())

    def _receive(self, frame: memoryview) -> None:
        if self._seen.done():
            return  # Entries and notices: only that the connection stands is of interest.
        try:
            event = self._session.receive(bytes(frame), time.time_ns() // 1_000_000)
            match event:
                case Welcomed():
                    self._ticket = event.ticket
                    self._session.attach(self._space, self.heard, Seq(0))
                case Attached():
                    self.heard = event.incarnation
                    self._seen.set_result(None)
                case Goaway():
                    raise error_from_code("draining", "", event.retry_after_ms)
                case Notice() if event.code != LOG_GROWN:
                    raise error_from_code(event.code, event.detail, event.retry_after_ms)
        except TwinlockError as error:
            self._seen.set_exception(error)
        for message in self._session.take_output():
            self.socket.send(message)


class Herd:
    """All of them, in this process.

    Args:
        ports: the nodes, on the loopback.
        identities: the devices that they are; several connections may be of one.
        space: where they attach.
        count: how many connections.
    """

    def __init__(self, ports: list[int], identities: list[ClientIdentity], space: SpaceId, count: int) -> None:
        self.ports = ports
        self.shaking_hands = asyncio.Semaphore(SHAKING_HANDS_MAX)
        self.ends: Counter[str] = Counter()
        self.told: Counter[tuple[str, bool]] = Counter()
        """Codes of refusals, and whether they said when to come again."""

        self.members = [Member(self, identities[number % len(identities)], space) for number in range(count)]
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def attached_count(self) -> int:
        """How many are attached now."""
        return sum(member.attached_s > 0 for member in self.members)

    def refused(self, error: TwinlockError) -> None:
        """Count a refusal; a client that was too slow to say hello was not refused."""
        if error.code == "hello_timeout":
            self.ends[error.code] += 1
        else:
            self.told[error.code, error.retry_after_ms > 0] += 1

    async def __aenter__(self) -> Herd:
        self._tasks = [asyncio.create_task(member.run(self.ports)) for member in self.members]
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        with contextlib.suppress(OSError):
            for member in self.members:
                member._leave()
        # The transports close in the loop's next turns; nothing may be left to the collector.
        await asyncio.sleep(0.1)

    async def all_attached(self, seconds_max: float) -> float:
        """Wait until everybody is attached; return how long that took.

        Raises:
            AssertionError: it takes longer than that, with what they met.
        """
        began_s = time.monotonic()
        while self.attached_count < len(self.members):
            assert time.monotonic() < began_s + seconds_max, (self.attached_count, self.ends, self.told)
            ended = [task for task in self._tasks if task.done()]
            assert not ended, ended[0]
            await asyncio.sleep(0.05)
        return time.monotonic() - began_s
