"""Tails that follow their spaces: live messages, what was lost on the way, and who is told.

Live messages are republished by a stream's leader at most once, so the truth is the chain of numbers that they carry:
each names the one before it. A broken chain is held for some milliseconds and then filled by a read. A lost message
that nothing follows breaks no chain. So tails are compared with their streams when a connection was lost, when a
stream has got another leader, and in turn all the time.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Coroutine
from functools import partial
from itertools import islice
from typing import Any

from twinlock.contracts.log import Follower, Foreign
from twinlock.engines.jetstream_api import PATIENCE_SECONDS, RETRY_AFTER_MS, Api
from twinlock.engines.jetstream_audit import AUDIT_SECONDS, Audit
from twinlock.engines.jetstream_format import (
    PLACES,
    UNREADABLE,
    LogMessage,
    MessageKind,
    Names,
    read_stored,
)
from twinlock.engines.jetstream_message import Message
from twinlock.engines.jetstream_reads import Reads
from twinlock.engines.jetstream_starts import Start, Starts
from twinlock.engines.jetstream_tail import Following, SpaceTail, foreign_of
from twinlock.engines.tails import Tail
from twinlock.errors import ClosedError, StoreError, TwinlockError
from twinlock.ids import Seq, SpaceId, short

logger = logging.getLogger(__name__)

TAILS_MAX = 50_000
"""Tails of spaces that nobody uses are forgotten past so many."""

HOLD_SECONDS = 0.01
CATCH_UPS_MAX = 64
CHECKPOINT_ENTRIES = 10_000
NODE_BYTES = 8


class Live:
    """The tails of all spaces that this node uses.

    Args:
        free: called with a tail on which something may now be appended.
        before_telling: called before followers are told anything, so that outcomes come in their order.
    """

    __slots__ = (
        "_api",
        "_auditor",
        "_before_telling",
        "_catch_ups",
        "_free",
        "_is_closed",
        "_names",
        "_number",
        "_tasks",
        "node",
        "reads",
        "starts",
        "tails",
    )

    def __init__(
        self,
        api: Api,
        names: Names,
        starts: Starts,
        free: Callable[[SpaceTail], None],
        before_telling: Callable[[], None],
    ) -> None:
        self._api = api
        self._names = names
        self._free = free
        self._before_telling = before_telling
        self._tasks: set[asyncio.Task[None]] = set()
        self._catch_ups = asyncio.Semaphore(CATCH_UPS_MAX)
        self._number = 0
        self._is_closed = False
        self.node = os.urandom(NODE_BYTES)
        self.reads = Reads(api, names)
        self.starts = starts
        self.tails: dict[SpaceId, SpaceTail] = {}
        api.connection.on_gap(self._on_gap)
        audit = Audit(api, names, self.tails, self._fill_later)
        self._auditor = asyncio.get_running_loop().create_task(audit.run())

    def next_origin(self) -> bytes:
        """Return what names this node's next message."""
        self._number += 1
        return self.node + self._number.to_bytes(6, "big")

    def spawn(self, work: Coroutine[Any, Any, None], tail: SpaceTail | None = None) -> None:
        """Run something beside; where it moves a tail and fails by an error of our own, that begins anew."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(partial(self._ended, tail))

    def tail_of(self, space: SpaceId) -> SpaceTail:
        """Return a space's tail, which may still be loading."""
        tail = self.tails.get(space)
        if tail is None:
            if len(self.tails) >= TAILS_MAX:
                self._forget_some()
            tail = self._make_tail(space)
            self._load_later(tail)
        elif not tail.is_loaded and tail.loading is None:
            self._load_later(tail)
        return tail

    def _make_tail(self, space: SpaceId) -> SpaceTail:
        now_s = asyncio.get_running_loop().time()
        tail = self.tails[space] = SpaceTail(space, self._names.log_subject(space), now_s)
        return tail

    def begin_anew(self, tail: SpaceTail, cause: BaseException | None) -> None:
        """Read a space anew after an error of our own: what waited is told, whoever follows goes on where it was."""
        logger.error("work on a log failed", exc_info=cause, extra={"space": short(tail.space)})
        if tail.flight is not None:
            tail.flight.is_unknown = True
        error = StoreError("an error of this node's own", retry_after_ms=RETRY_AFTER_MS)
        loading, tail.loading = tail.loading, None
        if loading is not None and not loading.done():
            loading.set_exception(error)
            loading.exception()
        is_current = self._is_current(tail)
        if is_current:
            del self.tails[tail.space]
        tail.refuse_all(error)
        if is_current and (tail.followings or tail.watchers):
            self._replace(tail)

    def _replace(self, tail: SpaceTail) -> None:
        fresh = self._make_tail(tail.space)
        fresh.refused = tail.refused
        fresh.followings, tail.followings = tail.followings, []
        fresh.watchers, tail.watchers = tail.watchers, set()
        for following in fresh.followings:
            following.is_joined = False
        for watcher in fresh.watchers:
            watcher.give_up()
        self.unlisten(tail)
        if tail.fill_timer is not None:
            tail.fill_timer.cancel()
        # What fails again and again shall not take all of the processor.
        failed_soon = fresh.began_s - tail.began_s < AUDIT_SECONDS
        self._load_later(fresh, AUDIT_SECONDS if failed_soon else 0)
        self.listen(fresh)

    async def loaded(self, space: SpaceId) -> tuple[SpaceTail, bool]:
        """Return a space's loaded tail, and whether it was compared with the leader by this very call.

        Raises:
            StoreError: the cluster does not answer.
        """
        while True:
            tail = self.tail_of(space)
            if tail.is_loaded:
                return tail, False
            assert tail.loading is not None
            await asyncio.shield(tail.loading)
            if tail.is_loaded and self.tails.get(space) is tail:
                return tail, True

    async def current(self, space: SpaceId) -> SpaceTail:
        """Return a space's tail after comparing it with the leader.

        Raises:
            StoreError: the cluster does not answer.
        """
        tail, is_current = await self.loaded(space)
        if not is_current:
            await self.catch_up(tail)
        return tail

    async def start_of(self, tail: SpaceTail) -> Start:
        """Return where a tail's space begins."""
        start = tail.start
        if start is None:
            start = tail.start = await self.starts.read(tail.space)
        return start

    async def catch_up(self, tail: SpaceTail, seconds: float = PATIENCE_SECONDS) -> None:
        """Move a tail over everything that the leader has now.

        Raises:
            StoreError: the cluster does not answer.
        """
        async with self._catch_ups:
            await self._read_to(tail, await self.reads.last(tail.space, seconds))

    # Moving.

    def arrive(self, tail: SpaceTail, number: int, message: LogMessage) -> None:
        """Move a tail over the message that comes next, and tell everybody."""
        by_flight = tail.flight is not None and tail.flight.origin == message.origin
        self._check_whole(tail, number, message)
        entries = tail.move(number, message, by_flight)
        if by_flight:
            for watcher in tail.watchers:
                watcher.put(entries)
            tail.answer_flight(number)
        else:
            self._tell_foreign(tail, number, message)
            if entries:
                for watcher in tail.watchers:
                    watcher.put(entries)
        if tail.count_all - tail.checkpoint_count >= CHECKPOINT_ENTRIES:
            tail.checkpoint_count = tail.count_all
            self.spawn(self._write_checkpoint(tail))

    def arrived(self, tail: SpaceTail) -> None:
        """Go on after one or several messages: those that came too early, then what waits."""
        while tail.held and (held := tail.held.pop(tail.last, None)) is not None:
            self.arrive(tail, *held)
        if tail.held:
            tail.held = {before: held for before, held in tail.held.items() if held[0] > tail.last}
        self._free(tail)

    def _tell_foreign(self, tail: SpaceTail, number: int, message: LogMessage) -> None:
        if message.kind == MessageKind.FENCE and message.origin[:NODE_BYTES] != self.node:
            tail.refuse_overtaken(is_in_order=True)
        if not any([following.is_joined for following in tail.followings]):
            return
        foreign = foreign_of(number, message)
        # What was answered before must be heard before.
        self._before_telling()
        for following in tuple(tail.followings):
            if following.is_joined and not following.has_ended:
                following.cursor = number
                following.follower(foreign)

    def _check_whole(self, tail: SpaceTail, number: int, message: LogMessage) -> None:
        if message is UNREADABLE:
            logger.error("a log holds what is no message", extra={"space": short(tail.space), "number": number})
        elif message.count_before != tail.count_all or message.bytes_before != tail.bytes_all:
            # The devices see it too, by their chains, and fill it by healing.
            logger.error(
                "messages of a log are missing",
                extra={"space": short(tail.space), "number": number, "missing": message.count_before - tail.count_all},
            )

    async def _read_to(self, tail: SpaceTail, target: int) -> None:
        tail.wanted = max(tail.wanted, target)
        while tail.last < target:
            for number, message in await self.reads.page_upto(tail.space, tail.last + 1, target):
                if number > tail.last:
                    self.arrive(tail, number, message)
        self.arrived(tail)

    # Loading.

    def _load_later(self, tail: SpaceTail, pause_s: float = 0) -> None:
        loading: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        tail.loading = loading
        self.spawn(self._load(tail, loading, pause_s), tail)

    async def _load(self, tail: SpaceTail, loading: asyncio.Future[None], pause_s: float) -> None:
        """Move a fresh tail from the last known heads to the end of its log."""
        try:
            if pause_s:
                await asyncio.sleep(pause_s)
            last = await self.reads.last(tail.space)
            if last:
                await self._replay(tail, last)
            tail.start = await self.starts.read(tail.space)
        except TwinlockError as error:
            self._failed_to_load(tail, error)
            if not loading.done():
                loading.set_exception(error)
                # There may be nobody who waits for it.
                loading.exception()
            return
        tail.is_loaded, tail.loading = True, None
        if not loading.done():
            loading.set_result(None)
        for following in tail.followings:
            self._join(tail, following)
        if tail.wanted > tail.last:
            self._fill_later(tail)
        self.arrived(tail)

    async def _replay(self, tail: SpaceTail, last: int) -> None:
        upto = last
        while (checkpoint := await self.starts.checkpoint_below(tail.space, upto)) is not None:
            # The directory of a second site may have been copied further than the log, which then went on otherwise.
            known = await self.reads.before(tail.space, Seq((checkpoint.number + 1) * PLACES - 1), last)
            if known == (checkpoint.bytes_all, checkpoint.count_all):
                tail.take_up(checkpoint)
                break
            upto = checkpoint.number - 1
        while tail.last < last:
            for number, message in await self.reads.page_upto(tail.space, tail.last + 1, last):
                if number > tail.last:
                    self._check_whole(tail, number, message)
                    tail.move(number, message, False)

    def _failed_to_load(self, tail: SpaceTail, error: TwinlockError) -> None:
        tail.loading = None
        tail.refuse_all(error)
        if not tail.followings and not tail.watchers:
            self.tails.pop(tail.space, None)
        elif not self._is_closed:
            # Somebody follows: try again, for ever.
            asyncio.get_running_loop().call_later(AUDIT_SECONDS, self._load_again, tail)

    def _load_again(self, tail: SpaceTail) -> None:
        if self.tails.get(tail.space) is tail and not self._is_closed:
            self.tail_of(tail.space)

    def _forget_some(self) -> None:
        idle = islice((space for space, tail in self.tails.items() if tail.is_idle), TAILS_MAX // 10)
        for space in list(idle):
            del self.tails[space]

    # Following.

    def follow(self, space: SpaceId, after: Seq, follower: Follower) -> Callable[[], None]:
        """Tell a follower of what others do after a seq; return what ends it."""
        tail = self.tail_of(space)
        number = max(after, 0) // PLACES
        # Only at the head is it certain that nothing of that message comes after it.
        cursor = number if tail.is_loaded and after >= tail.head else max(number - 1, 0)
        following = Following(after, cursor, follower)
        tail.followings.append(following)
        self.listen(tail)
        if tail.is_loaded:
            self._join(tail, following)

        def end() -> None:
            if not following.has_ended:
                following.has_ended = True
                # The space may have been read anew since.
                tail = self.tails[space]
                tail.followings.remove(following)
                self.unlisten(tail)
                self._free(tail)

        return end

    def listen(self, tail: SpaceTail) -> None:
        """Have a tail's live messages sent to this node."""
        if tail.stop_live is not None:
            return
        subject = self._names.live_subject(tail.space)
        tail.stop_live = self._api.connection.subscribe(subject, partial(self._on_live, tail))
        if tail.is_loaded:
            # What came since it was loaded, and before the subscription.
            self.spawn(self._catch_up_quietly(tail), tail)

    def unwatch(self, space: SpaceId, watcher: Tail) -> None:
        """End a watcher's queue."""
        tail = self.tails[space]
        tail.watchers.discard(watcher)
        self.unlisten(tail)

    def unlisten(self, tail: SpaceTail) -> None:
        """Have no live messages sent any more, if nobody needs them."""
        if tail.stop_live is not None and not tail.followings and not tail.watchers:
            tail.stop_live()
            tail.stop_live = None
            tail.held.clear()

    def _join(self, tail: SpaceTail, following: Following) -> None:
        if following.cursor >= tail.last:
            following.is_joined = True
        else:
            self.spawn(self._tell_earlier(tail, following), tail)

    async def _tell_earlier(self, tail: SpaceTail, following: Following) -> None:
        """Tell a follower what lies between its place and the tail's, until there is nothing left."""
        while not following.has_ended and following.cursor < tail.last and self._is_current(tail):
            try:
                messages = await self.reads.page_upto(tail.space, following.cursor + 1, tail.last)
            except TwinlockError as error:
                logger.warning("a log cannot be read", extra={"space": short(tail.space), "code": error.code})
                await asyncio.sleep(AUDIT_SECONDS)
                continue
            for number, message in messages:
                if number > tail.last or following.has_ended or not self._is_current(tail):
                    break
                following.cursor = number
                self._tell_one_earlier(tail, following, number, message)
        if self._is_current(tail):
            following.is_joined = True
            self._free(tail)

    def _is_current(self, tail: SpaceTail) -> bool:
        return self.tails.get(tail.space) is tail and not self._is_closed

    def _tell_one_earlier(self, tail: SpaceTail, following: Following, number: int, message: LogMessage) -> None:
        if message.origin[:NODE_BYTES] == self.node and message.origin not in tail.refused:
            return
        if message.kind == MessageKind.FENCE:
            tail.refuse_overtaken(is_in_order=False)
        foreign = foreign_of(number, message)
        entries = [entry for entry in foreign.entries if entry.seq > following.after]
        if entries or foreign.note is not None:
            following.follower(Foreign(entries, foreign.note))

    def _on_live(self, tail: SpaceTail, message: Message) -> None:
        try:
            self._take_live(tail, message)
        except TwinlockError as error:
            logger.warning("a live message cannot be read", extra={"space": short(tail.space), "code": error.code})
        except Exception as exc:
            self.begin_anew(tail, exc)

    def _take_live(self, tail: SpaceTail, message: Message) -> None:
        number = message.number("Nats-Sequence")
        if number <= tail.last and tail.is_loaded:
            return
        before = message.number("Nats-Last-Sequence")
        if tail.is_loaded and before == tail.last:
            self.arrive(tail, number, read_stored(message.payload))
            self.arrived(tail)
            return
        tail.hold(before, number, read_stored(message.payload))
        if tail.is_loaded:
            self._fill_later(tail)

    def _fill_later(self, tail: SpaceTail) -> None:
        if tail.fill_timer is None:
            tail.fill_timer = asyncio.get_running_loop().call_later(HOLD_SECONDS, self._fill, tail)

    def _fill(self, tail: SpaceTail) -> None:
        tail.fill_timer = None
        if tail.wanted > tail.last and not self._is_closed:
            self.spawn(self._fill_by_read(tail), tail)

    async def _fill_by_read(self, tail: SpaceTail) -> None:
        try:
            await self._read_to(tail, tail.wanted)
        except TwinlockError as error:
            logger.warning("a gap of a log cannot be read", extra={"space": short(tail.space), "code": error.code})

    async def _catch_up_quietly(self, tail: SpaceTail) -> None:
        try:
            await self.catch_up(tail)
        except TwinlockError as error:
            logger.warning("a log cannot be compared", extra={"space": short(tail.space), "code": error.code})

    # Looking after what may have been lost.

    def _on_gap(self) -> None:
        for tail in self.tails.values():
            if tail.stop_live is not None and tail.is_loaded:
                self.spawn(self._catch_up_quietly(tail), tail)

    # Heads.

    async def checkpoint(self, tail: SpaceTail, *, replace: bool = False) -> None:
        """Write a tail's heads to the directory, as they are now."""
        if tail.last == 0:
            return
        made, last = tail.checkpoint(), partial(self.reads.last, tail.space)
        tail.checkpoint_count = tail.count_all
        await self.starts.write_checkpoint(tail.space, made, last, replace=replace)

    async def _write_checkpoint(self, tail: SpaceTail) -> None:
        try:
            await self.checkpoint(tail)
        except TwinlockError as error:
            logger.warning("heads cannot be stored", extra={"space": short(tail.space), "code": error.code})

    async def close(self) -> None:
        """End every watch and everything that runs beside."""
        self._is_closed = True
        for tail in list(self.tails.values()):
            for watcher in tail.watchers:
                watcher.close()
            if tail.stop_live is not None:
                tail.stop_live()
                tail.stop_live = None
            tail.refuse_all(ClosedError())
        tasks = [self._auditor, *self._tasks]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _ended(self, tail: SpaceTail | None, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        error = None if task.cancelled() else task.exception()
        if error is None and (self._is_closed or not task.cancelled()):
            return
        if tail is None:
            logger.error("work on a log failed", exc_info=error)
        else:
            self.begin_anew(tail, error)
