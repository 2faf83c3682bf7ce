"""A load of writers and readers over several nodes that lasts through faults; in the end everybody reads everything."""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections.abc import Sequence
from types import SimpleNamespace

from tests.faults.load_client import LoadClient
from tests.server_kit import Chain, World
from twinlock.ids import Epoch, SpaceId
from twinlock.protocol.calls import CreateSpace
from twinlock.protocol.client import ClientIdentity
from twinlock.protocol.space_rules import replay_space
from twinlock.sealing.identity import DeviceKeys
from twinlock.sealing.space_entries import epoch_entry, space_genesis
from twinlock.sealing.space_keys import make_epoch
from twinlock.testing.checker import check, explain
from twinlock.testing.history import Finished, Recorder, Rejected, mark

FINISH_S_MAX = 180.0
RESEALS = ("counter_gap",)
"""Rejects that say where to go on from, and not when."""


class Load:
    """Some spaces in different partitions, each with writers and readers, every one a device of its own.

    Args:
        ports: the nodes that clients dial.
        recorder: takes down what happens.
        chance: all that is left to chance.
    """

    def __init__(self, ports: Sequence[int], recorder: Recorder, chance: random.Random) -> None:
        self.recorder = recorder
        self.writers: list[LoadClient] = []
        self.readers: list[LoadClient] = []
        self._ports = list(ports)
        self._chance = chance
        self._world = World(SimpleNamespace(port=self._ports[0]))
        self._tasks: list[asyncio.Task[None]] = []
        self.spaces = []
        self._verify_pks: dict[str, bytes] = {}

    async def prepare(self, spaces: int = 4, writers: int = 2, readers: int = 1, pace_s: float = 0.05) -> None:
        """Sign up, certify the devices and create the spaces."""
        await self._world.sign_up()
        wire = await self._world.open()
        for number in range(spaces):
            space = await self._create_space(wire, number)
            self.spaces.append(space)
            for place in range(writers):
                device = await self._world.add_device(wire)
                writer = self._client(f"w{number}.{place}", device, space, Chain(space, device))
                writer.pace_s = pace_s
                self.writers.append(writer)
            for place in range(readers):
                device = await self._world.add_device(wire)
                self.readers.append(self._client(f"r{number}.{place}", device, space))
        await wire.close()

    async def __aenter__(self) -> Load:
        self._start([*self.writers, *self.readers])
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    @property
    def acked_count(self) -> int:
        """How many changes were acknowledged so far."""
        return sum(writer.acked_count for writer in self.writers)

    async def acknowledges(self, seconds_max: float, each: int = 1) -> None:
        """Wait until every writer has got some more acknowledged than it has now.

        Raises:
            AssertionError: it takes longer than that, with what each waits for.
        """
        before = {writer.name: writer.acked_count for writer in self.writers}
        await self._until(
            lambda: all(writer.acked_count >= before[writer.name] + each for writer in self.writers), seconds_max
        )

    async def identities(self, count: int) -> list[ClientIdentity]:
        """Certify as many more devices; return how they say hello."""
        wire, account = await self._world.open(), self._world.account.account
        devices = [await self._world.add_device(wire) for _ in range(count)]
        await wire.close()
        return [ClientIdentity(account, device.device, device.sign.sign) for device in devices]

    async def quiet_space(self) -> SpaceId:
        """Create one more space, which nobody writes to."""
        wire = await self._world.open()
        space = await self._create_space(wire, 0)
        await wire.close()
        return space

    def set_pace(self, pace_s: float) -> None:
        """Let every writer rest so long between its pushes, about."""
        for writer in self.writers:
            writer.pace_s = pace_s

    async def stand_still(self) -> None:
        """Write nothing new, and wait until all is acknowledged."""
        for writer in self.writers:
            writer.may_write = False
        await self.drained(FINISH_S_MAX)

    def go_on(self) -> None:
        """Write again after standing still."""
        for writer in self.writers:
            writer.may_write = True

    async def drained(self, seconds_max: float) -> None:
        """Wait until everything that was pushed is acknowledged."""
        await self._until(lambda: not any(writer.unacked_count for writer in self.writers), seconds_max)

    def refusals_without_time(self) -> list[str]:
        """Return the rejects of a retryable kind that did not say when to come again."""
        rejects = (event for event in self.recorder.events if isinstance(event, Rejected))
        return [event.code for event in rejects if not event.retry_after_ms and event.code not in RESEALS]

    async def rest(self, seconds: float) -> None:
        """Let the load go on for a while; fail at once if a client saw what must not be."""
        done, _ = await asyncio.wait(self._tasks, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()

    async def finish(self) -> str:
        """Stop writing, have everybody read everything, and return what is wrong with all that happened."""
        await self.stand_still()
        wire = await self._world.open()
        finals = []
        for number, space in enumerate(self.spaces):
            for port in self._ports:
                device = await self._world.add_device(wire)
                final = self._client(f"final{number}.{port}", device, space)
                final.ports = [port]
                final.verify_pks = self._verify_pks
                finals.append(final)
        await wire.close()
        self._start(finals)
        everybody = [*self.writers, *self.readers, *finals]
        ends = {space: self._end_of(space) for space in self.spaces}
        await self._until(lambda: all(client.cursor >= ends[client.space] for client in everybody), FINISH_S_MAX)
        for client in everybody:
            self.recorder.note(Finished(time.monotonic(), client.name, client.space.hex()))
        return explain(check(self.recorder.events))

    def _end_of(self, space) -> int:
        return max(writer.acked_seq for writer in self.writers if writer.space == space)

    async def _until(self, is_so, seconds_max: float) -> None:
        give_up_s = time.monotonic() + seconds_max
        while not is_so():
            assert time.monotonic() < give_up_s, self.describe()
            await self.rest(0.02)

    def describe(self) -> str:
        """Return how each client stands, for the message of a failed test."""
        return "\n".join(
            f"{client.name}: {client.acked_count} acknowledged, {client.unacked_count} not, cursor {client.cursor}, "
            f"head {client.head}, {client.codes}"
            for client in [*self.writers, *self.readers]
        )

    def codes(self) -> dict[str, int]:
        """Return how often each refusal and each end of a connection was met."""
        told: dict[str, int] = {}
        for client in [*self.writers, *self.readers]:
            for code, count in client.codes.items():
                told[code] = told.get(code, 0) + count
        return told

    def _client(self, name: str, device: DeviceKeys, space, chain: Chain | None = None) -> LoadClient:
        identity = ClientIdentity(self._world.account.account, device.device, device.sign.sign)
        chance = random.Random(self._chance.random())
        self._verify_pks[mark(device.device)] = device.sign_pk
        return LoadClient(name, identity, space, self._ports, self.recorder, chance, chain)

    def _start(self, clients: list[LoadClient]) -> None:
        self._tasks += [asyncio.create_task(client.run(), name=client.name) for client in clients]

    async def _create_space(self, wire, partition: int):
        world = self._world
        genesis = space_genesis(world.account, partition, os.urandom)
        state = replay_space([genesis])
        service_key = await world.pending(wire, state.space, 1, genesis)
        world.keys = make_epoch(state.space, Epoch(1), service_key, os.urandom)
        entries = [genesis, epoch_entry(world.account, state, world.keys, None, os.urandom)]
        await wire.call("space.create", CreateSpace(state.space, entries, [world._row()]))
        return state.space
