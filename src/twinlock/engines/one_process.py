"""What engines of a single process share: its broker, and queues that wake those who watch."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable
from weakref import WeakSet

from twinlock.contracts.broker import Broker, Receiver, Subject
from twinlock.contracts.directory import Change
from twinlock.errors import OverloadedError

CHANGES_WAITING_MAX = 10_000
"""Changes that a directory watcher may leave unread; past it the watcher must list again."""


class OneProcessBroker(Broker):
    """The broker of a node that is alone: there is nobody to tell, and nobody who tells."""

    __slots__ = ()

    def publish(self, subject: Subject, message: bytes) -> None:
        """Tell nobody."""

    def subscribe(self, subject: Subject, receiver: Receiver) -> Callable[[], None]:
        """Hear nothing."""
        return _end

    def on_gap(self, callback: Callable[[], None]) -> None:
        """Miss nothing."""


def _end() -> None:
    """End what never began."""


class _ChangeQueue:
    __slots__ = ("__weakref__", "changes", "closed", "overrun", "prefix", "wake")

    def __init__(self, prefix: str) -> None:
        self.prefix = prefix
        self.changes: deque[Change] = deque()
        self.wake = asyncio.Event()
        self.overrun = False
        self.closed = False


class ChangeWatchers:
    """Hands directory changes to their watchers. Watching begins with the call of `watch`, not with the first read."""

    __slots__ = ("_queues",)

    def __init__(self) -> None:
        # Weak, because a watch that was never iterated gets no chance to sign itself off.
        self._queues: WeakSet[_ChangeQueue] = WeakSet()

    def watch(self, prefix: str) -> AsyncIterator[Change]:
        """Return an iterator over all later changes below a prefix."""
        queue = _ChangeQueue(prefix)
        self._queues.add(queue)
        return _drain(queue)

    def tell(self, change: Change) -> None:
        """Queue a change for everybody who watches its key."""
        for queue in self._queues:
            if not change.key.startswith(queue.prefix):
                continue
            if len(queue.changes) < CHANGES_WAITING_MAX:
                queue.changes.append(change)
            else:
                queue.overrun = True
            queue.wake.set()

    def overrun(self) -> None:
        """Have everybody who watches list again: changes may have been missed."""
        for queue in self._queues:
            queue.overrun = True
            queue.wake.set()

    def close(self) -> None:
        """End every watch after what is already queued."""
        for queue in self._queues:
            queue.closed = True
            queue.wake.set()


async def _drain(queue: _ChangeQueue) -> AsyncIterator[Change]:
    while True:
        while queue.changes:
            yield queue.changes.popleft()
        if queue.overrun:
            raise OverloadedError("a directory watcher fell behind and must list again")
        if queue.closed:
            return
        queue.wake.clear()
        await queue.wake.wait()
