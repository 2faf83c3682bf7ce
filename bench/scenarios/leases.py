"""What a lease costs the key service, within the server and as a process of its own, and a storm of them."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec

from bench.figure import Figure, quantile
from bench.key_service import serving_keys
from bench.machine import cpu_seconds
from bench.people import Person, admit, make_person
from bench.raw_client import now_ms
from bench.scale import Scale
from twinlock.contracts.keys import Asking, KeyService
from twinlock.ids import Epoch, Incarnation, LogId, SpaceId
from twinlock.keyservice.service import LocalKeyService
from twinlock.protocol import hpke, proofs
from twinlock.protocol.calls import CreatePending
from twinlock.protocol.frames import Lease
from twinlock.protocol.space_log import SpaceLogState
from twinlock.protocol.space_rules import replay_space
from twinlock.sealing.space_entries import epoch_entry, space_genesis
from twinlock.sealing.space_keys import make_epoch
from twinlock.sealing.suite import ServiceKey

APPENDS_AT_ONCE = 64
MEMBERS_AN_APPEND = 250
_FIRST = Epoch(1)
_HERE, _APART = "in the server's process", "in a process of its own"


class Crowd(msgspec.Struct, frozen=True):
    """A space whose members have a device each, and whose logs a key service has."""

    space: SpaceId
    people: Sequence[Person]
    incarnation: Incarnation

    def requests(self, count: int) -> list[tuple[Asking, Lease]]:
        """Sign as many requests, each of another device as long as there are some."""
        time_ms = now_ms()
        chosen = [self.people[index % len(self.people)] for index in range(count)]
        return [
            (person.asking(self.incarnation, time_ms), person.lease_request(self.space, time_ms)) for person in chosen
        ]


async def leases(folder: Path, scale: Scale) -> list[Figure]:
    """Measure leases asked one after the other, in both places, and a storm of 1,000 devices at once."""
    devices, singles = scale.count(1_000, 32), scale.count(300, 16)
    people = [make_person() for _ in range(devices)]
    local = LocalKeyService.open(folder / "local")
    try:
        crowd = await gather_crowd(local, people)
        figures = [_single(_HERE, await _one_by_one(local, crowd.requests(singles)))]
        requests, before_s = crowd.requests(devices), time.process_time()
        await asyncio.gather(*(local.lease(asking, request) for asking, request in requests))
        figures.append(_processor(_HERE, (time.process_time() - before_s) * 1000 / devices))
    finally:
        await local.close()
    (folder / "apart").mkdir()
    async with serving_keys(folder / "apart") as service:
        crowd = await gather_crowd(service.keys, people)
        figures.append(_single(_APART, await _one_by_one(service.keys, crowd.requests(singles))))
        figures += await _storm(service.keys, service.child.pid, crowd)
    return figures


def _single(where: str, taken_ms: list[float]) -> Figure:
    return Figure("leases", f"a lease, one after the other, {where}, p50", quantile(taken_ms, 0.5), "ms", "lower")


def _processor(where: str, each_ms: float) -> Figure:
    return Figure("leases", f"processor time of a lease, many at once, {where}", each_ms, "ms", "lower")


async def _one_by_one(keys: KeyService, requests: Sequence[tuple[Asking, Lease]]) -> list[float]:
    taken_ms = []
    for asking, request in requests:
        started = time.perf_counter()
        await keys.lease(asking, request)
        taken_ms.append((time.perf_counter() - started) * 1000)
    return taken_ms


async def _storm(keys: KeyService, pid: int, crowd: Crowd) -> list[Figure]:
    requests = crowd.requests(len(crowd.people))
    cpu_before_s, started = cpu_seconds(pid), time.perf_counter()
    await asyncio.gather(*(keys.lease(asking, request) for asking, request in requests))
    taken_s = time.perf_counter() - started
    cpu_ms = (cpu_seconds(pid) - cpu_before_s) * 1000 / len(requests)
    note = f"the last one after {taken_s:.2f} s; the ledger and the disk included"
    name = f"a storm: {len(requests):,} devices at once, {_APART}"
    return [
        Figure("leases", name, len(requests) / taken_s, "/s", "higher", note=note),
        _processor(_APART, cpu_ms),
    ]


async def gather_crowd(keys: KeyService, people: Sequence[Person]) -> Crowd:
    """Give a key service the logs of people and of a space that they are all in; the first one owns it."""
    for start in range(0, len(people), APPENDS_AT_ONCE):
        some = people[start : start + APPENDS_AT_ONCE]
        await asyncio.gather(*(keys.append_log(LogId(person.account.account), 0, person.entries) for person in some))
    crowd, log = await _begin(keys, people)
    for start in range(1, len(people), MEMBERS_AN_APPEND):
        before = log.seq
        entries, log = admit(people[0].account, log, people[start : start + MEMBERS_AN_APPEND])
        await keys.append_log(LogId(log.space), before, entries)
    return crowd


async def _begin(keys: KeyService, people: Sequence[Person]) -> tuple[Crowd, SpaceLogState]:
    owner, incarnation = people[0], Incarnation(os.urandom(16))
    genesis = space_genesis(owner.account, 0, os.urandom)
    log = replay_space([genesis])
    nonce, time_ms, device = os.urandom(32), now_ms(), owner.device
    message = proofs.pending_message(log.space, _FIRST, nonce, time_ms, owner.account.account, device.device)
    request = CreatePending(log.space, _FIRST, nonce, time_ms, device.sign.sign(message), genesis)
    pending = await keys.create_pending(owner.asking(incarnation, time_ms), request)
    info = proofs.lease_info(log.space, _FIRST, device.device, pending.grant.not_after_ms, incarnation, nonce)
    service_key = ServiceKey(hpke.open_sealed(device.kem, pending.grant.sealed, info))
    epoch = epoch_entry(owner.account, log, make_epoch(log.space, _FIRST, service_key, os.urandom), None, os.urandom)
    await keys.append_log(LogId(log.space), 0, [genesis, epoch])
    return Crowd(log.space, people, incarnation), replay_space([epoch], log)
