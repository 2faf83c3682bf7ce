"""A load straight on the logs of a cluster's engine, without any server: what it loses, no server can give back."""

from __future__ import annotations

import asyncio
import os
import random
import time

from tests.server_kit import Chain
from twinlock.engines.jetstream import JetstreamEngine
from twinlock.errors import OverloadedError, StoreError
from twinlock.ids import Seq, SpaceId
from twinlock.protocol.envelope import parse
from twinlock.sealing.identity import DeviceKeys
from twinlock.testing.checker import check, explain
from twinlock.testing.history import Acked, Delivered, Disconnected, Finished, Joined, Pushed, Recorder, mark

FINISH_S_MAX = 90.0
PAGE_BYTES = 1 << 20
RETRY_S = 0.1


class _Client:
    """What a writer and a reader have in common: an engine of its own, as a node has it, and a place in a space."""

    def __init__(self, name: str, engine: JetstreamEngine, space: SpaceId, recorder: Recorder) -> None:
        self.name = name
        self.space = space
        self.cursor = 0
        self.retries = 0
        self.device = DeviceKeys.make(os.urandom)
        self.engine = engine
        self.recorder = recorder

    def joined(self) -> None:
        """Take down that reading begins at the cursor."""
        life, cursor = self.engine.log.incarnation.hex(), self.cursor
        self.recorder.note(
            Joined(
                time.monotonic(), self.name, self.space.hex(), mark(self.device.device), life, cursor, cursor, cursor, 0
            )
        )

    def delivered(self, entries) -> None:
        """Take down entries."""
        envelopes = [(entry.seq, parse(entry.envelope)) for entry in entries]
        seen = [(seq, mark(one.header.device), one.header.counter, mark(one.id)) for seq, one in envelopes]
        self.cursor = entries[-1].seq
        self.recorder.note(Delivered(time.monotonic(), self.name, self.space.hex(), seen))

    def failed(self, error: Exception) -> None:
        """Take down that the engine could not."""
        self.retries += 1
        self.recorder.note(Disconnected(time.monotonic(), self.name, f"{type(error).__name__}: {error}"))


class LogWriter(_Client):
    """Appends, and appends the same again when that failed, until it is acknowledged."""

    def __init__(self, name, engine, space, recorder, chance: random.Random, pace_s: float) -> None:
        super().__init__(name, engine, space, recorder)
        self.acked_count = 0
        self.acked_seq = 0
        self.may_write = True
        self.is_idle = True
        self._chance = chance
        self._pace_s = pace_s
        self._chain = Chain(space, self.device)

    async def run(self) -> None:
        while self.may_write:
            self.is_idle = False
            envelopes = [parse(self._chain.next()) for _ in range(self._chance.randint(1, 8))]
            await self._append(envelopes)
            self.is_idle = True
            await asyncio.sleep(self._pace_s * self._chance.uniform(0.5, 1.5))

    async def _append(self, envelopes) -> None:
        space, device = self.space.hex(), mark(self.device.device)
        while True:
            pairs = [(envelope.header.counter, mark(envelope.id)) for envelope in envelopes]
            self.recorder.note(Pushed(time.monotonic(), self.name, space, device, pairs))
            try:
                seqs = await self.engine.log.append(self.space, envelopes, time.time_ns() // 1_000_000)
            except (StoreError, OverloadedError) as error:
                self.failed(error)
                await asyncio.sleep(RETRY_S)
                continue
            acked = [(envelope.header.counter, seq) for envelope, seq in zip(envelopes, seqs, strict=True)]
            self.recorder.note(Acked(time.monotonic(), self.name, space, device, acked))
            self.acked_count += len(acked)
            self.acked_seq = seqs[-1]
            return


class LogReader(_Client):
    """Watches a space, and watches on from its cursor when that failed."""

    async def run(self) -> None:
        while True:
            self.joined()
            try:
                async for entries in self.engine.log.watch(self.space, Seq(self.cursor)):
                    if entries:
                        self.delivered(entries)
            except (StoreError, OverloadedError) as error:
                self.failed(error)
            await asyncio.sleep(RETRY_S)

    async def read_all(self) -> None:
        """Read from the beginning to the end, once."""
        self.joined()
        while entries := await self.engine.log.read(self.space, Seq(self.cursor), PAGE_BYTES):
            self.delivered(entries)


class LogLoad:
    """Some spaces, each with writers and readers that share the engines of some nodes."""

    def __init__(self, url: str, recorder: Recorder, chance: random.Random) -> None:
        self.recorder = recorder
        self.writers: list[LogWriter] = []
        self.readers: list[LogReader] = []
        self._url = url
        self._chance = chance
        self._engines: list[JetstreamEngine] = []
        self._tasks: list[asyncio.Task[None]] = []
        self._spaces: list[SpaceId] = []

    async def prepare(self, spaces: int = 4, nodes: int = 2, pace_s: float = 0.02) -> None:
        """Open the engines; every node has a writer and a reader in every space."""
        self._engines = [await JetstreamEngine.connect(self._url) for _ in range(nodes)]
        for number in range(spaces):
            space = SpaceId(number.to_bytes(2, "big") + os.urandom(14))
            self._spaces.append(space)
            for place, engine in enumerate(self._engines):
                chance = random.Random(self._chance.random())
                self.writers.append(LogWriter(f"w{number}.{place}", engine, space, self.recorder, chance, pace_s))
                self.readers.append(LogReader(f"r{number}.{place}", engine, space, self.recorder))

    async def __aenter__(self) -> LogLoad:
        self._tasks = [asyncio.create_task(one.run(), name=one.name) for one in [*self.writers, *self.readers]]
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for engine in self._engines:
            await engine.close()

    @property
    def acked_count(self) -> int:
        """How many changes were acknowledged so far."""
        return sum(writer.acked_count for writer in self.writers)

    def codes(self) -> dict[str, int]:
        """Return how often the engine could not."""
        return {"retries": sum(one.retries for one in [*self.writers, *self.readers])}

    async def acknowledges(self, seconds_max: float, each: int = 1) -> None:
        """Wait until every writer has got some more acknowledged than it has now."""
        before = {writer.name: writer.acked_count for writer in self.writers}
        await self._until(
            lambda: all(writer.acked_count >= before[writer.name] + each for writer in self.writers), seconds_max
        )

    async def rest(self, seconds: float) -> None:
        """Let the load go on for a while; fail at once if something happened that must not."""
        running = [task for task in self._tasks if not task.done()]
        for task in self._tasks:
            if task.done():
                task.result()
        if running:
            await asyncio.wait(running, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)

    async def finish(self) -> str:
        """Stop writing, have everybody read everything, and return what is wrong with all that happened."""
        for writer in self.writers:
            writer.may_write = False
        await self._until(lambda: all(writer.is_idle for writer in self.writers), FINISH_S_MAX)
        ends = {space: max(one.acked_seq for one in self.writers if one.space == space) for space in self._spaces}
        await self._until(lambda: all(one.cursor >= ends[one.space] for one in self.readers), FINISH_S_MAX)
        fresh = await JetstreamEngine.connect(self._url)
        finals = []
        for number, space in enumerate(self._spaces):
            final = LogReader(f"final{number}", fresh, space, self.recorder)
            await final.read_all()
            finals.append(final)
        await fresh.close()
        for one in [*self.readers, *finals]:
            self.recorder.note(Finished(time.monotonic(), one.name, one.space.hex()))
        return explain(check(self.recorder.events))

    def describe(self) -> str:
        """Return how each client stands."""
        return "\n".join(
            [f"{one.name}: {one.acked_count} acknowledged, retries {one.retries}" for one in self.writers]
            + [f"{one.name}: cursor {one.cursor}, retries {one.retries}" for one in self.readers]
        )

    async def _until(self, is_so, seconds_max: float) -> None:
        give_up_s = time.monotonic() + seconds_max
        while not is_so():
            assert time.monotonic() < give_up_s, self.describe()
            await self.rest(0.02)
