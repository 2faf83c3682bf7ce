"""What is done to the NATS servers of a cluster, round by round, while a load goes on."""

from __future__ import annotations

import asyncio
import random

from twinlock.testing.history import Recorder
from twinlock.testing.nats_process import NatsCluster

RECOVERY_S_MAX = 60.0
"""After this long every writer must have been acknowledged something again, or the test fails."""

PAUSE_S = (6.0, 14.0)
"""Longer than a leader's lease and than the engine waits for an answer."""


class NatsFaults:
    """Faults of the servers below; each returns once the load is acknowledged again and the cluster whole.

    Args:
        nats: the servers.
        load: what must be acknowledged again: a `Load` or a `LogLoad`.
        recorder: takes the faults down.
        chance: which server, and when.
    """

    def __init__(self, nats: NatsCluster, load, recorder: Recorder, chance: random.Random) -> None:
        self.nats = nats
        self._load = load
        self._recorder = recorder
        self._chance = chance

    async def quiet(self, shortest_s: float = 0.2, longest_s: float = 1.0) -> None:
        """Let the load go on undisturbed for a while."""
        await self._load.rest(self._chance.uniform(shortest_s, longest_s))

    async def kill_one(self) -> None:
        """SIGKILL one server, and start it again once the others have taken over."""
        kind, place = "SIGKILL of one NATS server", self._any()
        name = self.nats.nodes[place].name
        self._recorder.fault(kind, name)
        self.nats.kill(place)
        await self._load.acknowledges(RECOVERY_S_MAX)
        await asyncio.to_thread(self.nats.start, place)
        self._recorder.fault(kind, name, is_over=True)
        await self._load.acknowledges(RECOVERY_S_MAX)

    async def cut_power(self) -> None:
        """SIGKILL all servers at once, and start them all."""
        kind = "SIGKILL of all NATS servers at once"
        self._recorder.fault(kind, "all")
        self.nats.kill_all()
        await asyncio.to_thread(self.nats.start_all)
        self._recorder.fault(kind, "all", is_over=True)
        await self._load.acknowledges(RECOVERY_S_MAX)

    async def pause_one(self) -> None:
        """SIGSTOP one server for longer than anybody waits for it, then let it go on."""
        kind, place = "SIGSTOP of one NATS server", self._any()
        name = self.nats.nodes[place].name
        self._recorder.fault(kind, name)
        self.nats.pause(place)
        try:
            await self._load.rest(self._chance.uniform(*PAUSE_S))
        finally:
            self.nats.resume(place)
        self._recorder.fault(kind, name, is_over=True)
        await self._load.acknowledges(RECOVERY_S_MAX)

    async def pause_two(self) -> None:
        """SIGSTOP two servers: no majority is left, nothing may be acknowledged but by those that are durable."""
        kind = "SIGSTOP of two NATS servers"
        first = self._any()
        second = (first + 1) % len(self.nats.nodes)
        self._recorder.fault(kind, f"{first} and {second}")
        self.nats.pause(first)
        self.nats.pause(second)
        try:
            await self._load.rest(self._chance.uniform(*PAUSE_S))
        finally:
            self.nats.resume(first)
            self.nats.resume(second)
        self._recorder.fault(kind, f"{first} and {second}", is_over=True)
        await self._load.acknowledges(RECOVERY_S_MAX)

    def _any(self) -> int:
        return self._chance.randrange(len(self.nats.nodes))
