"""What is backed up, restored or moved: the log, the directory and the blobs of one server or cluster."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable
from typing import Any, NamedTuple

import msgspec

from twinlock.contracts import BlobStore, Broker, Directory, Log
from twinlock.ids import Seq, SpaceId

PLACES_PAGE = 256
STATES_AT_ONCE = 32
SPACES_AT_ONCE = 32
"""Spaces that are copied at the same time: what a cluster stores waits for its disks, not for one another."""


class Place(NamedTuple):
    """Where a space's log begins and ends."""

    space: SpaceId
    start: Seq
    head: Seq


Places = Callable[[SpaceId, int], Awaitable[list[tuple[SpaceId, Seq, Seq]]]]
"""Returns start and head of the spaces above an id, sorted: what an engine may know for many at once."""


class Holdings(msgspec.Struct, frozen=True):
    """An open engine and the blobs that belong to it. `places` is given where the engine has a quick way."""

    log: Log
    directory: Directory
    broker: Broker
    blobs: BlobStore
    places: Places | None = None

    async def all_places(self) -> AsyncIterator[Place]:
        """Yield every space that anything was ever appended to, sorted."""
        after = SpaceId(b"")
        while page := await (self.places or self._asked_places)(after, PLACES_PAGE):
            for space, start, head in page:
                yield Place(space, start, head)
            after = page[-1][0]

    async def _asked_places(self, after: SpaceId, count_max: int) -> list[tuple[SpaceId, Seq, Seq]]:
        found: list[tuple[SpaceId, Seq, Seq]] = []
        spaces = await self.log.spaces(after, count_max)
        for first in range(0, len(spaces), STATES_AT_ONCE):
            group = spaces[first : first + STATES_AT_ONCE]
            states = await asyncio.gather(*(self.log.state(space) for space in group))
            found += [(space, state.start, state.head) for space, state in zip(group, states, strict=True)]
        return found


async def all_of(works: Iterable[Coroutine[Any, Any, None]]) -> None:
    """Do some things at the same time; raise the first error once all of them have ended, so that none goes on."""
    for outcome in await asyncio.gather(*works, return_exceptions=True):
        if isinstance(outcome, BaseException):
            raise outcome
