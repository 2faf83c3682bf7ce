"""A space of 1,000 members: what a rotation and a removal cost the device that does it, and joining who comes last."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec

import twinlock
from bench.figure import Figure
from bench.people import Person, admit, make_person, sign_up
from bench.raw_client import open_client
from bench.scale import Scale
from bench.scenarios.devices import SPACE, first_device, settled
from bench.server_process import RunningServer, serving
from twinlock.client.epochs import wrapped_for, wrapped_row
from twinlock.client.log_writer import Draft
from twinlock.client.space_runtime import SpaceRuntime
from twinlock.ids import Epoch
from twinlock.protocol.client import ClientIdentity
from twinlock.protocol.space_log import SpaceLogState
from twinlock.protocol.space_rules import replay_space
from twinlock.sealing.identity import AccountKeys
from twinlock.sealing.space_entries import epoch_entry
from twinlock.sealing.space_keys import make_epoch
from twinlock.sealing.suite import ServiceKey

MEMBERS_AN_APPEND = 100
CALLS_AT_ONCE = 32
TARGET_S = 2.0


class Cost(msgspec.Struct, frozen=True):
    """What some work took: of this process, which is the client, and on the clock."""

    cpu_s: float
    wall_s: float


async def large_space(folder: Path, scale: Scale) -> list[Figure]:
    """Measure rotation, removal and joining with 100 and 1,000 members; the client's work and its parts."""
    figures: list[Figure] = []
    for count in (20,) if scale.quick else (100, 1_000):
        place = folder / str(count)
        place.mkdir()
        with serving(place) as server:
            async with first_device(server, place) as (db, _, _):
                people = await _people(server, count - 1)
                await fill(db, people)
                figures += await _owner(db, people[0], count)
                link = await db.space(SPACE).invite("reader")
            figures += await _newcomer(server, place / "newcomer", link, count)
    return figures


def _figure(
    count: int, name: str, value: float, unit: str = "s", target: float | None = None, note: str = ""
) -> Figure:
    is_full = count == 1_000
    return Figure("members", name, value, unit, "lower", target if is_full else None, growth=count / 100, note=note)


async def _owner(db: Any, leaver: Person, count: int) -> list[Figure]:
    runtime: SpaceRuntime = db.space(SPACE)._runtime
    space, log = db.space(SPACE), runtime.keyring.log
    parts = await _parts(db, runtime)
    rotated = await _cost(space.rotate)
    removed = await _cost(lambda: space.remove(leaver.account.account.hex()))
    assert runtime.keyring.log.epoch == log.epoch + 2
    figures = []
    for what, cost in (("a rotation", rotated), ("a removal", removed)):
        note = f"{cost.wall_s:.2f} s on the clock, the server's part included"
        name = f"{what} among members (100, 1,000), work of the client"
        figures.append(_figure(count, name, cost.cpu_s, target=TARGET_S, note=note))
    return figures + [_figure(count, name, value, "ms") for name, value in parts.items()]


async def _cost(work: Callable[[], Awaitable[Any]]) -> Cost:
    cpu_s, wall_s = time.process_time(), time.perf_counter()
    await work()
    return Cost(time.process_time() - cpu_s, time.perf_counter() - wall_s)


async def _parts(db: Any, runtime: SpaceRuntime) -> dict[str, float]:
    """Measure what a rotation consists of, with the true log, by keys that are thrown away."""
    keys, log = db._sudo.keys(), runtime.keyring.log
    earlier = runtime.keyring.member_key(log.epoch)
    made = make_epoch(log.space, Epoch(log.epoch + 1), ServiceKey(os.urandom(32)), os.urandom)
    wraps = await _cost(lambda: wrapped_for(made, log.key_holders))
    started = time.process_time()
    entry = epoch_entry(keys, log, made, earlier, os.urandom)
    signed = time.process_time()
    replay_space([entry], log)
    checked = time.process_time()
    replay_space(runtime.entries)
    replayed = time.process_time()
    return {
        "of a rotation: the member key wrapped to each (HPKE)": wraps.cpu_s * 1000,
        "of a rotation: the epoch's entry, made and signed": (signed - started) * 1000,
        "of a rotation: that entry checked, as by every reader": (checked - signed) * 1000,
        "of joining: the space's whole log replayed": (replayed - checked) * 1000,
    }


async def _newcomer(server: RunningServer, profile: Path, link: str, count: int) -> list[Figure]:
    name = f"bench-{os.urandom(4).hex()}"
    async with await twinlock.sign_up(server.url, name, os.urandom(12).hex(), profile=profile) as db:
        joined = await _cost(lambda: db.join(link))
    note = f"{joined.wall_s:.2f} s on the clock; the log replayed, the logs of all members fetched and replayed"
    return [_figure(count, "joining members by a link (100, 1,000), work of the newcomer", joined.cpu_s, note=note)]


# The making of the space


async def _people(server: RunningServer, count: int) -> list[Person]:
    """Sign up as many accounts, each with a device."""
    people = [make_person() for _ in range(count)]
    client = await open_client(server.port, ClientIdentity())
    server_id = (await client.welcomed).server_id
    for start in range(0, count, CALLS_AT_ONCE):
        some = people[start : start + CALLS_AT_ONCE]
        await asyncio.gather(*(sign_up(client, person, server_id) for person in some))
    client.close()
    return people


async def fill(db: Any, people: Sequence[Person]) -> None:
    """Make people readers of the space, as its owner, and wait until the owner's device knows all of them."""
    runtime: SpaceRuntime = db.space(SPACE)._runtime
    writer = db._sharing.members._writer
    for start in range(0, len(people), MEMBERS_AN_APPEND):
        some = people[start : start + MEMBERS_AN_APPEND]

        async def prepare(owner: AccountKeys, log: SpaceLogState, some: Sequence[Person] = some) -> Draft:
            holders = [person.account for person in some]
            rows = [wrapped_row(runtime, log, each.account, each.kem_pk) for each in holders]
            return Draft(admit(owner, log, some)[0], rows)

        await writer.write(runtime, prepare)

    async def is_known() -> bool:
        return len(runtime.keyring.accounts) == len(people) + 1

    await settled(is_known)
