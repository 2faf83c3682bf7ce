"""What was just appended, for those who watch a space: as long as they keep up they need not read it from disk."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

from twinlock.ids import Seq, SpaceId
from twinlock.protocol.envelope import Envelope
from twinlock.protocol.frames import Entry

TAIL_BYTES_MAX = 4 << 20
"""Bytes that a watcher may leave unread in memory; past it they are dropped and the watcher reads the log again."""


class Tail:
    """One watcher's queue. It is opened before the watcher reads, so what is in neither of the two does not exist."""

    __slots__ = ("_bytes", "_entries", "_wake", "closed", "overrun")

    def __init__(self) -> None:
        self._entries: deque[Entry] = deque()
        self._bytes = 0
        self._wake = asyncio.Event()
        self.overrun = False
        self.closed = False

    def put(self, entries: Sequence[Entry]) -> None:
        """Queue entries, or give up queueing until the watcher has read the log again."""
        if not self.overrun:
            self._bytes += sum([len(entry.envelope) for entry in entries])
            self._entries.extend(entries)
            if self._bytes > TAIL_BYTES_MAX:
                self.give_up()
        self._wake.set()

    def give_up(self) -> None:
        """Queue no more until the watcher has read the log again."""
        self.reset()
        self.overrun = True
        self._wake.set()

    def take(self, after: Seq) -> list[Entry]:
        """Return what is queued after a seq."""
        entries = [entry for entry in self._entries if entry.seq > after]
        self._entries.clear()
        self._bytes = 0
        return entries

    def reset(self) -> None:
        """Begin queueing anew; the watcher reads the log after this."""
        self._entries.clear()
        self._bytes = 0
        self.overrun = False

    def close(self) -> None:
        """End the watch."""
        self.closed = True
        self._wake.set()

    async def wait(self) -> None:
        """Return when there may be something to do."""
        self._wake.clear()
        if not (self._entries or self.overrun or self.closed):
            await self._wake.wait()


class Tails:
    """The open tails of all spaces. Used in the event loop only."""

    __slots__ = ("_by_space",)

    def __init__(self) -> None:
        self._by_space: dict[SpaceId, set[Tail]] = {}

    def __len__(self) -> int:
        return len(self._by_space)

    def open(self, space: SpaceId) -> Tail:
        """Queue what is appended to a space from now on."""
        tail = Tail()
        self._by_space.setdefault(space, set()).add(tail)
        return tail

    def discard(self, space: SpaceId, tail: Tail) -> None:
        """Queue nothing more."""
        tails = self._by_space.get(space, set())
        tails.discard(tail)
        if not tails:
            self._by_space.pop(space, None)

    def tell(self, space: SpaceId, received_ms: int, seqs: Sequence[Seq], envelopes: Sequence[Envelope]) -> None:
        """Queue what an append has made durable; called in the order of the log."""
        tails = self._by_space.get(space)
        if tails:
            pairs = zip(seqs, envelopes, strict=True)
            entries = [Entry(seq, received_ms, envelope.data) for seq, envelope in pairs]
            for tail in tails:
                tail.put(entries)

    def close(self) -> None:
        """End every watch."""
        for tails in self._by_space.values():
            for tail in tails:
                tail.close()


async def watched(tail: Tail, after: Seq, read: Callable[[Seq], Awaitable[list[Entry]]]) -> AsyncIterator[list[Entry]]:
    """Yield all entries after a seq, each once: what `read` finds, then what the open tail is told, until it is closed.

    After an overrun the tail begins anew before the log is read, so that nothing lies between the two.
    """
    while not tail.closed:
        if tail.overrun:
            tail.reset()
        page = await read(after)
        if not page:
            # All that was durable when the tail was opened (or reset) has been read; the rest is in the tail.
            page = tail.take(after)
        while not (page or tail.overrun or tail.closed):
            await tail.wait()
            page = tail.take(after)
        if page:
            after = page[-1].seq
            yield page
