"""Holds a space still on all nodes while one of them changes its signed log. See docs/internals/server.md.

Whoever changes it leaves `changing/<space>` in the directory, then a fence in the space's own log. A node that is told
of a fence holds everybody's pushes and looks at the directory: as long as the record is there it waits for the next
fence; once it is gone it takes the log over as it has become. A node that stalls in between is waited for some seconds,
then its change is ended in its place, by a turn at the key service: it commits nothing when it wakes up.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress

import msgspec
import structlog

from twinlock.contracts import SpaceState
from twinlock.errors import OverloadedError, RevisionError, TwinlockError
from twinlock.ids import LogId, SpaceId, short
from twinlock.server.commit import Committer
from twinlock.server.new_rules import install
from twinlock.server.registry import changing_key
from twinlock.server.replaying import replay_in_pieces
from twinlock.server.served_space import ServedSpace
from twinlock.server.signed_logs import SignedLogs
from twinlock.server.stores import Stores
from twinlock.server.tasks import Tasks

logger = structlog.get_logger(__name__)

PATIENCE_S = 5.0
"""How long a node may take between its two fences before another ends its change for it."""

LOOK_INTERVAL_S = 1.0
"""How often at most the log is looked at because a device names a place of it that is not known here."""

RETRY_S = 1.0
CLEAR_S = 10.0
"""How long a change here waits for one of another node."""

Settle = Callable[[ServedSpace], Awaitable[None]]


class Fence(msgspec.Struct, frozen=True):
    """A change that this node has begun: the space's state at its place, and the revision of its record."""

    state: SpaceState
    revision: int


class Fences:
    """Begins and ends changes over all nodes, and follows those of others.

    Args:
        settle: ends, by a turn of its own, whatever change a node has left.
    """

    __slots__ = (
        "_committer",
        "_directory",
        "_glances",
        "_is_shared",
        "_log",
        "_logs",
        "_metrics",
        "_node",
        "_settle",
        "_tasks",
    )

    def __init__(self, stores: Stores, logs: SignedLogs, committer: Committer, tasks: Tasks, settle: Settle) -> None:
        self._log = stores.log
        self._directory = stores.directory
        self._is_shared = stores.is_shared
        self._node = stores.node
        self._logs = logs
        self._committer = committer
        self._tasks = tasks
        self._metrics = committer.metrics
        self._settle = settle
        self._glances: dict[SpaceId, asyncio.Event] = {}

    async def begin(self, space: ServedSpace) -> Fence:
        """Have every other node hold pushes, and return where the space stands once they do.

        Raises:
            StoreError, OverloadedError: it was not said, or not to all; it ends by itself after some seconds.
        """
        revision = await self._directory.put(changing_key(space.id), self._node) if self._is_shared else 0
        return Fence(await self._log.fence(space.id), revision)

    async def end(self, space: ServedSpace, revision: int) -> None:
        """Let the other nodes go on with what the signed log says now.

        Raises:
            StoreError, OverloadedError: they were not all told; they find out by themselves after some seconds.
        """
        if not self._is_shared:
            return
        key = changing_key(space.id)
        # Otherwise another node has begun a change of its own, or has ended this one.
        with suppress(RevisionError):
            await self._directory.delete(key, expect_revision=revision)
        await self._log.fence(space.id)
        if await self._directory.get(key) is not None:
            # Nodes do not hear their own fences.
            self.heard(space)
        else:
            # Nor does whoever looks here, because a turn was lost, hear of this one.
            space.fence_moved()

    async def left_by(self, space: ServedSpace) -> int:
        """Return the revision of the change that is under way; 0 if there is none."""
        record = await self._directory.get(changing_key(space.id)) if self._is_shared else None
        return record.revision if record is not None else 0

    async def clear(self, space: ServedSpace) -> None:
        """Wait until no other node is changing the space.

        Raises:
            OverloadedError: it takes too long.
        """
        loop = asyncio.get_running_loop()
        ends_s = loop.time() + CLEAR_S
        while space.sequencer.is_fenced:
            await _moved(space, ends_s - loop.time())
            if loop.time() >= ends_s:
                raise OverloadedError("another node is changing the space", retry_after_ms=int(1000 * RETRY_S))

    async def catch_up(self, space: ServedSpace) -> None:
        """Take over what other nodes have added to the signed log: one look at the directory where that is nothing.

        Raises:
            OverloadedError: another node takes long to change it.
            StoreError, KeyServiceError: what came cannot be read.
        """
        if not await self._logs.has_grown(LogId(space.id), space.sequencer.rules.seq):
            return
        if await self.left_by(space):
            self.heard(space)
            await self.clear(space)
        else:
            install(self._committer.hub, space, await replay_in_pieces(await self._logs.read(LogId(space.id))))

    def glance(self, space: ServedSpace) -> asyncio.Event | None:
        """Look whether the log has grown without holding anybody, unless that was done within the last second.

        Returns what is set when that is known; None if it was looked at just now.
        """
        glance = self._glances.get(space.id)
        if glance is None and asyncio.get_running_loop().time() - space.looked_s >= LOOK_INTERVAL_S:
            glance = self._glances[space.id] = asyncio.Event()
            self._tasks.spawn(self._glance(space, glance), "glance at a log")
        return glance

    async def _glance(self, space: ServedSpace, glance: asyncio.Event) -> None:
        try:
            await self.catch_up(space)
        except TwinlockError as error:
            logger.warning("a log cannot be looked at", space=short(space.id), code=error.code)
        finally:
            space.looked_s = asyncio.get_running_loop().time()
            del self._glances[space.id]
            glance.set()

    def heard(self, space: ServedSpace) -> None:
        """Hold everybody's pushes and look what another node is doing; called at each of its fences."""
        self._metrics.fences.inc()
        space.sequencer.fence(True)
        space.fences_count += 1
        space.fence_moved()
        self._committer.withdraw(space)
        if not space.is_looking:
            space.is_looking = True
            self._tasks.spawn(self._look(space), "look at a change")

    async def _look(self, space: ServedSpace) -> None:
        loop = asyncio.get_running_loop()
        revision, since_s = 0, loop.time()
        try:
            while space.sequencer.is_fenced:
                count = space.fences_count
                try:
                    found = await self.left_by(space)
                    if not found:
                        await self._take_over_rules(space, count)
                        continue
                    if found != revision:
                        revision, since_s = found, loop.time()
                    elif loop.time() - since_s >= PATIENCE_S:
                        self._metrics.take_overs.inc()
                        await self._settle(space)
                        continue
                except TwinlockError as error:
                    logger.warning("a change cannot be looked at", space=short(space.id), code=error.code)
                    await asyncio.sleep(RETRY_S)
                    continue
                if space.fences_count == count:
                    await _moved(space, since_s + PATIENCE_S - loop.time())
        finally:
            space.is_looking = False

    async def _take_over_rules(self, space: ServedSpace, count: int) -> None:
        """Go on with what the signed log says, unless there was another fence since it was read."""
        rules = await replay_in_pieces(await self._logs.read(LogId(space.id)))
        if space.fences_count == count:
            install(self._committer.hub, space, rules)
            space.sequencer.fence(False)
            space.fence_moved()


async def _moved(space: ServedSpace, longest_s: float) -> None:
    """Wait for the next fence, or the end of all, for a bounded time."""
    moved = asyncio.Event()
    space.fence_waiters.append(moved.set)
    try:
        await asyncio.wait_for(moved.wait(), max(longest_s, 0.0))
    except TimeoutError:
        return
