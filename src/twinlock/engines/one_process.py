"""What engines of a single process share: its broker, and queues that wake those who watch."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable
from weakref import WeakSet

from twinlock.contracts.broker import Broker, Receiver
from twinlock.contracts.directory import Change
from twinlock.errors import OverloadedError

CHANGES_WAITING_MAX = 10_000
"""Changes that a directory watcher may leave unread; past it the watcher must list again."""


class OneProcessBroker(Broker):
    """Delivers within this process, in the event loop's next turn."""

    __slots__ = ("_receivers",)

    def __init__(self) -> None:
        self._receivers: dict[str, dict[object, Receiver]] = {}

    def publish(self, subject: str, message: bytes) -> None:
        """Hand a message to whoever is subscribed now."""
        tokens = self._receivers.get(subject)
        if not tokens:
            return
        loop = asyncio.get_running_loop()
        # One callback each, so that a receiver that raises does not keep the message from the others.
        for token in tuple(tokens):
            loop.call_soon(self._deliver, subject, token, message)

    def subscribe(self, subject: str, receiver: Receiver) -> Callable[[], None]:
        """Call `receiver` with every later message of a subject; return what ends it."""
        token = object()
        self._receivers.setdefault(subject, {})[token] = receiver

        def end() -> None:
            tokens = self._receivers.get(subject, {})
            tokens.pop(token, None)
            if not tokens:
                self._receivers.pop(subject, None)

        return end

    def _deliver(self, subject: str, token: object, message: bytes) -> None:
        receiver = self._receivers.get(subject, {}).get(token)
        if receiver is not None:
            receiver(message)


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
