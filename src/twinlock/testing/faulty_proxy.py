"""A network that fails: a TCP proxy that cuts, stalls, delays, throttles and flaps what passes through it.

Everything stands on the side of whoever dials: a proxy has one target, so that each pair of machines gets one of its
own for each direction in which it dials, and a partition is a set of proxies that are cut.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Iterable

from twinlock.testing.traffic_tap import LOOPBACK

CHUNK_BYTES = 1 << 16
LATE_CHUNKS_MAX = 256
"""So many chunks of a direction may be on their way; then the sender has to wait, as for a full pipe."""


class FaultyProxy:
    """Listens on a port of its own and passes connections on to a target, as well as its state allows.

    Args:
        target_port: where connections go, on the loopback.
        port: where it listens; 0 for any free one, which `port` tells once it is open.
    """

    def __init__(self, target_port: int, port: int = 0) -> None:
        self.port = port
        self.delay_s = 0.0
        """By how much every chunk is late, in each direction."""

        self.bytes_per_s = 0
        """How much may pass in each direction of each connection; 0 for all there is."""

        self.passed_bytes = 0
        self._target_port = target_port
        self._listener: asyncio.Server | None = None
        self._is_cut = False
        self._to_target = asyncio.Event()
        self._to_dialler = asyncio.Event()
        self._open: set[asyncio.StreamWriter] = set()
        self._connections: set[asyncio.Task[None]] = set()

    def heal(self) -> None:
        """Let everything pass again, at full speed; what was stalled goes on where it stopped."""
        self._is_cut = False
        self.delay_s, self.bytes_per_s = 0.0, 0
        self._to_target.set()
        self._to_dialler.set()

    def cut(self) -> None:
        """Reset every connection, and every new one at once; what was on its way is lost."""
        self._is_cut = True
        for writer in list(self._open):
            writer.transport.abort()

    def stall(self) -> None:
        """Let connections stand open with nothing passing, as when packets are dropped: nobody is told."""
        self._to_target.clear()
        self._to_dialler.clear()

    def stall_answers(self) -> None:
        """Let connections stand half open: what is said arrives, and no answer comes back."""
        self._to_target.set()
        self._to_dialler.clear()

    async def __aenter__(self) -> FaultyProxy:
        self.heal()
        self._listener = await asyncio.start_server(self._pass_on, LOOPBACK, self.port)
        self.port = self._listener.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._listener is not None
        self._listener.close()
        self.cut()
        self.heal()
        for task in self._connections:
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        self._open.add(writer)
        try:
            if not self._is_cut:
                await self._connect(reader, writer)
        except (OSError, asyncio.CancelledError):
            # The target is away, or this proxy ends: to the dialler both are a reset.
            pass
        finally:
            writer.transport.abort()
            self._open.discard(writer)
            self._connections.discard(task)

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # One that stalls lets nothing through: not even the news that the target listens, beyond what TCP tells.
        await self._to_target.wait()
        target_reader, target_writer = await asyncio.open_connection(LOOPBACK, self._target_port)
        self._open.add(target_writer)
        try:
            if self._is_cut:
                return
            directions = [
                asyncio.create_task(self._pump(reader, target_writer, self._to_target)),
                asyncio.create_task(self._pump(target_reader, writer, self._to_dialler)),
            ]
            try:
                await asyncio.wait(directions, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for direction in directions:
                    direction.cancel()
                await asyncio.gather(*directions, return_exceptions=True)
        finally:
            target_writer.transport.abort()
            self._open.discard(target_writer)

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, gate: asyncio.Event) -> None:
        """Pass one direction on: taken in by one task and let out by another, so that a delay costs no throughput."""
        late: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(LATE_CHUNKS_MAX)
        letting_out = asyncio.create_task(self._let_out(late, writer, gate))
        loop = asyncio.get_running_loop()
        try:
            with contextlib.suppress(OSError):
                while data := await reader.read(CHUNK_BYTES):
                    await late.put((loop.time() + self.delay_s, data))
            await late.put((loop.time() + self.delay_s, b""))
            await letting_out
        finally:
            letting_out.cancel()
            await asyncio.gather(letting_out, return_exceptions=True)

    async def _let_out(
        self, late: asyncio.Queue[tuple[float, bytes]], writer: asyncio.StreamWriter, gate: asyncio.Event
    ) -> None:
        loop = asyncio.get_running_loop()
        with contextlib.suppress(OSError):
            while True:
                due_s, data = await late.get()
                if not data:
                    return
                if due_s > loop.time():
                    await asyncio.sleep(due_s - loop.time())
                if self.bytes_per_s:
                    await asyncio.sleep(len(data) / self.bytes_per_s)
                await gate.wait()
                self.passed_bytes += len(data)
                writer.write(data)
                await writer.drain()


async def flap(
    proxies: Iterable[FaultyProxy], chance: random.Random, seconds: float, up_s: tuple[float, float] = (0.1, 1.5)
) -> None:
    """Cut and heal some proxies together, over and over for a time; they are healed in the end.

    Args:
        proxies: what flaps.
        chance: how long each state lasts, and whether a cut resets or stalls.
        seconds: how long this goes on.
        up_s: the shortest and the longest time that a state lasts.
    """
    flapping = list(proxies)
    loop = asyncio.get_running_loop()
    end_s = loop.time() + seconds
    try:
        while loop.time() < end_s:
            is_reset = chance.random() < 0.5
            for proxy in flapping:
                if is_reset:
                    proxy.cut()
                else:
                    proxy.stall()
            await asyncio.sleep(chance.uniform(*up_s))
            for proxy in flapping:
                proxy.heal()
            await asyncio.sleep(chance.uniform(*up_s))
    finally:
        for proxy in flapping:
            proxy.heal()
