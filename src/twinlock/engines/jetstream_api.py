"""The calls of JetStream that the engine makes, each tried again while the cluster has no leader for it."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import msgspec

from twinlock.engines.jetstream_connection import Connection
from twinlock.engines.jetstream_message import STATUS_BATCH_END, STATUS_NO_RESPONDERS, STATUS_NOT_FOUND, Message
from twinlock.errors import StoreError

PATIENCE_SECONDS = 20.0
"""How long a call is tried: a leader that was killed is replaced after 5 to 7 s, a restarted cluster writes again
after about as long."""

TRY_SECONDS = 2.0
READ_TRY_SECONDS = 0.2
"""How long a replica's first word is waited for, the first time: one that is paused or cut off says nothing."""

RETRY_SECONDS = 0.1
CALLS_MAX = 256
"""Calls of one node under way at once. NATS drops all that wait when 10,000 of them do."""

RETRY_AFTER_MS = 1_000
NO_MESSAGE = 10037
NO_STREAM = 10059
NO_CLUSTER = 10074
"""Several copies are asked of a server that is in no cluster."""

NO_PEERS = 10005
"""Not enough servers are seen for so many copies."""

GUARD = "Nats-Expected-Last-Subject-Sequence"
"""The header that names the number of the last message of a subject that a node knows."""

WRONG_LAST = frozenset({10071, 10164})
_PASSING_CODE = 503


class ApiFailure(msgspec.Struct, frozen=True):
    """Why a call was refused."""

    code: int = 0
    err_code: int = 0
    description: str = ""

    @property
    def passes(self) -> bool:
        """Whether it may well be granted soon."""
        return self.code == _PASSING_CODE


class PublishAnswer(msgspec.Struct, frozen=True):
    """What came of a message that was to be stored."""

    seq: int = 0
    error: ApiFailure | None = None


class StoredMessage(msgspec.Struct, frozen=True):
    """A message as its stream has it."""

    seq: int
    subject: str = ""
    hdrs: bytes = b""
    data: bytes = b""


class _GetAnswer(msgspec.Struct, frozen=True):
    message: StoredMessage | None = None
    error: ApiFailure | None = None


_decode_answer = msgspec.json.Decoder(PublishAnswer)
_decode_get = msgspec.json.Decoder(_GetAnswer)
_encode = msgspec.json.Encoder()


class ApiError(StoreError):
    """A call that JetStream refused."""

    def __init__(self, what: str, failure: ApiFailure) -> None:
        super().__init__(f"{what}: {failure.description}", retry_after_ms=RETRY_AFTER_MS)
        self.failure = failure


class Api:
    """Calls of JetStream on one connection."""

    __slots__ = ("_room", "connection")

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self._room = asyncio.Semaphore(CALLS_MAX)

    async def call(self, what: str, request: dict[str, Any], seconds: float = PATIENCE_SECONDS) -> dict[str, Any]:
        """Make a call by its subject's end, such as `STREAM.INFO.TW_0000`; return its answer.

        Raises:
            ApiError: it was refused.
            StoreError: nobody answers.
        """
        answer: dict[str, Any] = msgspec.json.decode(await self._ask(what, request, seconds))
        if error := answer.get("error"):
            raise ApiError(what, msgspec.convert(error, ApiFailure))
        return answer

    async def last(self, stream: str, subject: str, seconds: float = PATIENCE_SECONDS) -> StoredMessage | None:
        """Return the newest message of a subject, as the stream's leader knows it; None too if there is no stream.

        Raises:
            StoreError: no leader answers.
        """
        what = f"STREAM.MSG.GET.{stream}"
        answer = _decode_get.decode(await self._ask(what, {"last_by_subj": subject}, seconds))
        if answer.error is None:
            return answer.message
        if answer.error.err_code in (NO_MESSAGE, NO_STREAM):
            return None
        raise ApiError(what, answer.error)

    async def page(self, stream: str, request: dict[str, Any]) -> list[Message]:
        """Return messages by one batched direct get, from whichever replica answers first; perhaps none.

        Raises:
            StoreError: nobody answers, or it was refused.
        """
        messages, end = await self.page_to_end(stream, request)
        if end.status not in (STATUS_NOT_FOUND, STATUS_BATCH_END):
            raise StoreError(f"reading was refused: {end.status}")
        return messages

    async def page_to_end(self, stream: str, request: dict[str, Any]) -> tuple[list[Message], Message]:
        """Return messages by one batched direct get, and the message that ends them.

        Raises:
            StoreError: nobody answers.
        """
        subject, payload = f"$JS.API.DIRECT.GET.{stream}", _encode.encode(request)
        ends, seconds = self._now() + PATIENCE_SECONDS, READ_TRY_SECONDS
        while True:
            answers = await self.connection.request_many(subject, payload, seconds, _is_batch_end)
            if answers and answers[-1].status != STATUS_NO_RESPONDERS:
                return answers[:-1], answers[-1]
            seconds = min(2 * seconds, TRY_SECONDS)
            await self._wait(ends, "reading")

    async def store(
        self, subject: str, payload: bytes, headers: Mapping[str, str], seconds: float
    ) -> PublishAnswer | None:
        """Have a message stored; None if it is not known what came of it."""
        message = await self.connection.request(subject, payload, seconds, headers)
        return None if message is None else read_answer(message)

    async def _ask(self, what: str, request: dict[str, Any], seconds: float) -> bytes:
        """Ask until there is an answer that lasts."""
        subject, payload = f"$JS.API.{what}", _encode.encode(request)
        ends = self._now() + seconds
        while True:
            async with self._room:
                answer = await self.connection.request(subject, payload, TRY_SECONDS)
            if answer is not None and answer.status == 0 and not _passes(answer.payload):
                return answer.payload
            await self._wait(ends, what)

    async def _wait(self, ends: float, what: str) -> None:
        """Wait before the next try, and until there is a connection.

        Raises:
            StoreError: that was the last one.
            ClosedError: the engine was closed.
        """
        self.connection.check_open()
        left = ends - self._now()
        if left <= 0 or not await self.connection.wait_up(left):
            self.connection.check_open()
            raise StoreError(f"the cluster does not answer: {what}", retry_after_ms=RETRY_AFTER_MS)
        await asyncio.sleep(RETRY_SECONDS)

    def _now(self) -> float:
        return asyncio.get_running_loop().time()


def read_answer(message: Message) -> PublishAnswer | None:
    """Read what came of a message that was to be stored; None if that is not known."""
    if message.status:
        return None
    try:
        return _decode_answer.decode(message.payload)
    except msgspec.MsgspecError:
        return None


def _passes(payload: bytes) -> bool:
    if b'"error"' not in payload[:400]:
        return False
    failure = msgspec.json.decode(payload).get("error") or {}
    return bool(failure.get("code") == _PASSING_CODE)


def _is_batch_end(message: Message) -> bool:
    return message.status != 0
