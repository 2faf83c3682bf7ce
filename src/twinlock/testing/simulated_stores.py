"""What simulated nodes store in and ask: slow, out of reach at times, and stalling."""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path
from typing import TypeVar

from twinlock.contracts import Asking, Directory, KeyService
from twinlock.contracts.directory import Change, Record
from twinlock.errors import KeyServiceError
from twinlock.ids import LogId
from twinlock.keyservice.service import LocalKeyService
from twinlock.keyservice.settings import KeyServiceSettings
from twinlock.protocol.calls import CreatePending, CreatePendingResult, LogHead, SignedEntry
from twinlock.protocol.frames import Lease, Leases

T = TypeVar("T")
DELAYS_S = (0.0, 0.0005, 0.002, 0.02)
LATENCIES_S = (0.001, 0.005, 0.05)


class Delays:
    """Draws how long things take."""

    __slots__ = ("_chance", "_stalls_until_s")

    def __init__(self, chance: random.Random) -> None:
        self._chance = chance
        self._stalls_until_s = 0.0

    async def pause(self) -> None:
        """Take a moment, in which everything else may happen."""
        await asyncio.sleep(self.pause_s())
        await self.stalled()

    def pause_s(self) -> float:
        """Return how long a moment is."""
        return self._chance.choice(DELAYS_S)

    def stall(self, seconds: float) -> None:
        """Let nothing that pauses go on for some time."""
        self._stalls_until_s = asyncio.get_running_loop().time() + seconds

    async def stalled(self) -> None:
        """Wait until a stall is over."""
        rest_s = self._stalls_until_s - asyncio.get_running_loop().time()
        if rest_s > 0:
            await asyncio.sleep(rest_s)

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


class KeysOfNode(KeyService):
    """One node's way to the key service: what the node is about to ask waits while it stalls."""

    def __init__(self, inner: KeyService, delays: Delays) -> None:
        self._inner = inner
        self._delays = delays

    async def take_turn(self, log: LogId) -> int:
        """Begin to change a signed log."""
        await self._delays.stalled()
        return await self._inner.take_turn(log)

    async def append_log(self, log: LogId, expect_seq: int, entries: Sequence[SignedEntry], turn: int = 0) -> LogHead:
        """Check and store entries of a signed log."""
        await self._delays.stalled()
        return await self._inner.append_log(log, expect_seq, entries, turn)

    async def read_log(self, log: LogId, after_seq: int) -> list[SignedEntry]:
        """Return the entries of a log after the first `after_seq`."""
        await self._delays.stalled()
        return await self._inner.read_log(log, after_seq)

    async def create_pending(self, asking: Asking, request: CreatePending) -> CreatePendingResult:
        """Make the service key of a coming epoch."""
        return await self._inner.create_pending(asking, request)

    async def lease(self, asking: Asking, request: Lease) -> Leases:
        """Release service keys to a device."""
        return await self._inner.lease(asking, request)

    async def tend(self, now_ms: int) -> None:
        """Do what must be done from time to time."""
        await self._inner.tend(now_ms)

    async def close(self) -> None:
        """Nothing: the service outlives the node."""
