"""The newest message of a subject, as true as the leader's own answer, also when very many are asked for at once.

A call of the leader for each costs the cluster most of a millisecond. So past a few at a time they are gathered: the
leader tells how far its stream is, and any replica that proves to be as far answers for all of them at once.
"""

from __future__ import annotations

import asyncio

from twinlock.engines.jetstream_api import PATIENCE_SECONDS, RETRY_AFTER_MS, Api, StoredMessage
from twinlock.engines.jetstream_message import Message
from twinlock.errors import StoreError, TwinlockError

ALONE_MAX = 4
"""So many calls of a stream are made one by one: that is the shortest way for each."""

GATHERED_MAX = 200
GATHERED_BYTES = 4 << 20
STALE_SECONDS = 0.003


class _Lane:
    """The calls of one stream."""

    __slots__ = ("alone", "runner", "waiting")

    def __init__(self) -> None:
        self.alone = 0
        self.runner: asyncio.Task[None] | None = None
        self.waiting: list[tuple[str, asyncio.Future[StoredMessage | None]]] = []


class Newest:
    """Reads of newest messages."""

    __slots__ = ("_api", "_lanes")

    def __init__(self, api: Api) -> None:
        self._api = api
        self._lanes: dict[str, _Lane] = {}

    async def last(self, stream: str, subject: str) -> StoredMessage | None:
        """Return the newest message of a subject: at least what the leader had when this was called.

        Raises:
            StoreError: no leader answers.
        """
        lane = self._lanes.get(stream)
        if lane is None:
            lane = self._lanes[stream] = _Lane()
        if lane.alone < ALONE_MAX:
            lane.alone += 1
            try:
                return await self._api.last(stream, subject)
            finally:
                lane.alone -= 1
        future: asyncio.Future[StoredMessage | None] = asyncio.get_running_loop().create_future()
        lane.waiting.append((subject, future))
        if lane.runner is None:
            lane.runner = asyncio.get_running_loop().create_task(self._run(stream, lane))
        return await future

    async def _run(self, stream: str, lane: _Lane) -> None:
        taken: list[tuple[str, asyncio.Future[StoredMessage | None]]] = []
        try:
            while lane.waiting:
                taken, lane.waiting = lane.waiting[:GATHERED_MAX], lane.waiting[GATHERED_MAX:]
                await self._answer(stream, taken)
        finally:
            lane.runner = None
            for _, future in (*taken, *lane.waiting):
                if not future.done():
                    future.set_exception(StoreError("reading was given up", retry_after_ms=RETRY_AFTER_MS))
            lane.waiting.clear()

    async def _answer(self, stream: str, taken: list[tuple[str, asyncio.Future[StoredMessage | None]]]) -> None:
        try:
            found = await self._gather(stream, sorted({subject for subject, _ in taken}))
        except TwinlockError as error:
            for _, future in taken:
                if not future.done():
                    future.set_exception(StoreError(error.detail, retry_after_ms=RETRY_AFTER_MS))
            return
        for subject, future in taken:
            if not future.done():
                future.set_result(found[subject])

    async def _gather(self, stream: str, subjects: list[str]) -> dict[str, StoredMessage | None]:
        info = await self._api.call(f"STREAM.INFO.{stream}", {})
        known = int(info["state"]["last_seq"])
        request = {"multi_last": subjects, "batch": GATHERED_MAX, "max_bytes": GATHERED_BYTES}
        ends = asyncio.get_running_loop().time() + PATIENCE_SECONDS
        while True:
            messages, end = await self._api.page_to_end(stream, request)
            found = dict([_stored(message) for message in messages])
            if not messages or end.number("Nats-Num-Pending") > 0:
                # A replica that finds nothing does not tell how far it is, and one that stops early not what is left.
                answers = await asyncio.gather(*(self._api.last(stream, subject) for subject in subjects))
                return dict(zip(subjects, answers, strict=True))
            if end.number("Nats-UpTo-Sequence") >= known:
                return {subject: found.get(subject) for subject in subjects}
            if asyncio.get_running_loop().time() > ends:
                raise StoreError("no replica is up to date", retry_after_ms=RETRY_AFTER_MS)
            await asyncio.sleep(STALE_SECONDS)


def _stored(message: Message) -> tuple[str, StoredMessage]:
    subject = message.headers.get("Nats-Subject", "")
    headers = "\r\n".join(f"{name}: {value}" for name, value in message.headers.items()).encode()
    return subject, StoredMessage(message.number("Nats-Sequence"), subject, headers, message.payload)
