"""What every test of a key service asks it: to know an account, to open a space, for leases."""

from __future__ import annotations

from twinlock.contracts.keys import KeyService
from twinlock.ids import SpaceId
from twinlock.protocol.frames import Leases
from twinlock.testing.contracts.members import NOW_MS, OwnedSpace, Person


async def registered(keys: KeyService) -> Person:
    """Return a new account that the key service knows."""
    person = Person()
    await person.register(keys)
    return person


async def opened(keys: KeyService, epochs: int = 1, now_ms: int = NOW_MS) -> OwnedSpace:
    """Return a new space with some epochs."""
    space = OwnedSpace(await registered(keys), now_ms)
    for _ in range(epochs):
        await space.open_epoch(keys)
    return space


async def lease(keys: KeyService, person: Person, space: SpaceId, *epochs: int, now_ms: int = NOW_MS) -> Leases:
    """Ask for leases at a time and get them at once."""
    request = person.lease_request(space, *epochs, time_ms=now_ms)
    return await keys.lease(person.asking(now_ms), request)
