"""Appends on their way: one message in flight for each space, guarded by the number of the message before it.

A message whose answer does not come may be stored or not. Nothing else is sent for its space until the leader has told
which. It is then sent again with the same guard, which can be met only once, so that nothing is ever stored twice.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Sequence
from functools import partial

from twinlock.contracts.log import APPEND_BYTES_MAX, APPEND_ENVELOPES_MAX, Append, Done, Outcome
from twinlock.engines.jetstream_api import (
    GUARD,
    PATIENCE_SECONDS,
    RETRY_AFTER_MS,
    RETRY_SECONDS,
    WRONG_LAST,
    ApiFailure,
    read_answer,
)
from twinlock.engines.jetstream_connection import Connection
from twinlock.engines.jetstream_format import MessageKind, encode_message
from twinlock.engines.jetstream_live import Live
from twinlock.engines.jetstream_message import Message
from twinlock.engines.jetstream_tail import Flight, Reached, SpaceTail, Waiting
from twinlock.errors import LimitExceededError, OverloadedError, StoreError, TwinlockError
from twinlock.ids import SpaceId, short

logger = logging.getLogger(__name__)

ANSWER_SECONDS = 2.0
"""How long a message's answer is waited for before the leader is asked. A killed leader never answers."""

WAITING_BYTES_MAX = 64 << 20
"""Bytes that may wait for the cluster or be on their way; past it callers are told to come later."""

OVERLOAD_RETRY_MS = 200


class Batch:
    """The outcomes of one `append_many`, told as they come, at most once in a turn of the loop."""

    __slots__ = ("_appends", "_done", "outcomes")

    def __init__(self, appends: Appends, done: Done) -> None:
        self._appends = appends
        self._done = done
        self.outcomes: list[tuple[int, Outcome]] = []

    def add(self, place: int, outcome: Outcome) -> None:
        """Note what came of one append."""
        if not self.outcomes:
            self._appends.tell_later(self)
        self.outcomes.append((place, outcome))

    def tell(self) -> None:
        """Tell what has come."""
        outcomes, self.outcomes = self.outcomes, []
        self._done(outcomes)


class Appends:
    """Sends what waits on the tails, and finds out what came of it."""

    __slots__ = ("_connection", "_drained", "_loop", "_ready", "live", "waiting_bytes")

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._loop = asyncio.get_running_loop()
        self._ready: list[Batch] = []
        self._drained: asyncio.Event | None = None
        self.waiting_bytes = 0
        self.live: Live

    def put_many(self, appends: Sequence[Append], done: Done) -> None:
        """Take new envelopes of many spaces."""
        batch = Batch(self, done)
        tail_of, live_tails = self.live.tail_of, self.live.tails
        for place, append in enumerate(appends):
            size = sum([len(envelope.data) for envelope in append.envelopes])
            if size > APPEND_BYTES_MAX or len(append.envelopes) > APPEND_ENVELOPES_MAX:
                # A seq has room for so many places: what lies beyond would bear the seqs of the next message.
                batch.add(place, _too_large(len(append.envelopes), size))
                continue
            if self.waiting_bytes + size > WAITING_BYTES_MAX and self.waiting_bytes:
                batch.add(place, _overloaded())
                continue
            self.waiting_bytes += size
            tail = live_tails.get(append.space) or tail_of(append.space)
            waiting = Waiting(MessageKind.ENTRIES, append.received_ms, partial(self._answer, batch, place, size))
            waiting.envelopes, waiting.bytes = append.envelopes, size
            tail.waiting.append(waiting)
            self.go(tail)

    def put(self, space: SpaceId, waiting: Waiting) -> None:
        """Take one append or note.

        Raises:
            OverloadedError: too much waits already.
        """
        if self.waiting_bytes + waiting.bytes > WAITING_BYTES_MAX and self.waiting_bytes:
            raise _overloaded()
        self.waiting_bytes += waiting.bytes
        told, size = waiting.tell, waiting.bytes

        def tell(outcome: Reached) -> None:
            self._left(size)
            told(outcome)

        waiting.tell = tell
        tail = self.live.tail_of(space)
        tail.waiting.append(waiting)
        self.go(tail)

    def go(self, tail: SpaceTail) -> None:
        """Send what waits on a tail, if it is free."""
        if not tail.waiting or not tail.is_free:
            return
        try:
            self._go(tail)
        except Exception as exc:
            self.live.begin_anew(tail, exc)

    def _go(self, tail: SpaceTail) -> None:
        flight = tail.next_flight(self.live.next_origin, self._loop.time())
        if flight is not None:
            self._send(tail, flight)
        if tail.is_verifying:
            self.live.spawn(self._verify(tail), tail)

    def _send(self, tail: SpaceTail, flight: Flight) -> None:
        flight.end = self._connection.ask(
            tail.subject,
            encode_message(flight.message),
            partial(self._answered, tail, flight),
            seconds=ANSWER_SECONDS,
            headers={GUARD: str(flight.guard)},
        )

    def _answered(self, tail: SpaceTail, flight: Flight, message: Message | None) -> bool:
        """Take the answer to a message: it is stored, its place was taken, or nobody knows."""
        if tail.flight is flight:
            try:
                self._take_answer(tail, flight, message)
            except Exception as exc:
                self.live.begin_anew(tail, exc)
        return True

    def _take_answer(self, tail: SpaceTail, flight: Flight, message: Message | None) -> None:
        answer = None if message is None else read_answer(message)
        if answer is None:
            flight.is_unknown = True
            self.live.spawn(self._settle(tail, flight, RETRY_SECONDS), tail)
        elif answer.error is None and tail.last == flight.guard:
            self.live.arrive(tail, answer.seq, flight.message)
            self.live.arrived(tail)
        elif answer.error is not None and answer.error.err_code in WRONG_LAST and tail.last > flight.guard:
            tail.put_back()
            self.go(tail)
        else:
            self._refused(tail, flight, answer.error)

    def _refused(self, tail: SpaceTail, flight: Flight, failure: ApiFailure | None) -> None:
        if failure is None or failure.err_code in WRONG_LAST:
            self.live.spawn(self._settle(tail, flight, 0), tail)
        elif failure.passes or flight.is_unknown:
            self.live.spawn(self._settle(tail, flight, RETRY_SECONDS), tail)
        else:
            tail.refuse_flight(StoreError(f"not stored: {failure.description}", retry_after_ms=RETRY_AFTER_MS))
            self.go(tail)

    async def _settle(self, tail: SpaceTail, flight: Flight, pause_s: float) -> None:
        """Find out from the leader whether a message is stored, and send it again if it is not."""
        try:
            if pause_s:
                await asyncio.sleep(pause_s)
            left = flight.began_s + PATIENCE_SECONDS - self._loop.time()
            await self.live.catch_up(tail, max(left, 0.0))
        except TwinlockError as error:
            self._give_up(tail, flight, error)
            return
        if tail.flight is not flight:
            return
        if tail.last != flight.guard:
            # Its guard can never be met again: what waits is fitted anew.
            tail.put_back()
            self.go(tail)
        elif self._loop.time() - flight.began_s > PATIENCE_SECONDS:
            self._give_up(tail, flight, StoreError("the cluster does not store", retry_after_ms=RETRY_AFTER_MS))
        else:
            self._send(tail, flight)

    def _give_up(self, tail: SpaceTail, flight: Flight, error: TwinlockError) -> None:
        if tail.flight is flight:
            logger.warning("an append is given up", extra={"space": short(tail.space), "code": error.code})
            tail.refuse_flight(StoreError(error.detail, retry_after_ms=RETRY_AFTER_MS))
            self.go(tail)

    async def _verify(self, tail: SpaceTail) -> None:
        """Catch up before appends are refused that do not fit to what this node knows."""
        try:
            await self.live.catch_up(tail)
        except TwinlockError as error:
            tail.is_verifying = False
            tail.refuse_all(error)
            return
        for waiting in tail.waiting:
            waiting.is_verified = True
        tail.is_verifying = False
        self.go(tail)

    async def drain(self, seconds: float) -> None:
        """Wait until everything is answered, but not for longer than some time."""
        if self.waiting_bytes:
            self._drained = asyncio.Event()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._drained.wait(), seconds)

    # Answers.

    def _left(self, size: int) -> None:
        self.waiting_bytes -= size
        if self._drained is not None and not self.waiting_bytes:
            self._drained.set()

    def tell_later(self, batch: Batch) -> None:
        """Have a batch told once in this turn of the loop."""
        if not self._ready:
            self._loop.call_soon(self.tell_ready)
        self._ready.append(batch)

    def tell_ready(self) -> None:
        """Tell every outcome that has come."""
        if self._ready:
            ready, self._ready = self._ready, []
            for batch in ready:
                batch.tell()

    def _answer(self, batch: Batch, place: int, size: int, outcome: Reached) -> None:
        self._left(size)
        assert isinstance(outcome, (list, TwinlockError)), "new envelopes get seqs or an error"
        batch.add(place, outcome)


def future_told() -> tuple[asyncio.Future[Reached], Callable[[Reached], None]]:
    """Return a future and what sets it, also when its waiter has gone."""
    future: asyncio.Future[Reached] = asyncio.get_running_loop().create_future()

    def tell(outcome: Reached) -> None:
        if future.done():
            return
        if isinstance(outcome, TwinlockError):
            future.set_exception(outcome)
        else:
            future.set_result(outcome)

    return future, tell


def _too_large(count: int, size: int) -> LimitExceededError:
    return LimitExceededError(f"an append of {count} envelopes and {size} bytes")


def _overloaded() -> OverloadedError:
    return OverloadedError("too much waits for the cluster", retry_after_ms=OVERLOAD_RETRY_MS)
