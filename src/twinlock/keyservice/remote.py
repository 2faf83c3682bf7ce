"""A key service in another process, as the server sees it. See docs/reference/keyservice.md.

Whatever is asked within one turn of the loop goes out as one signed request, and few of them are under way at a time,
so that a storm of devices is a few large requests here. While the service is down every call fails at once with the
time to come back; devices work on their leases meanwhile.
"""

from __future__ import annotations

import asyncio
import ssl
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import httpx
import msgspec
import structlog

from twinlock.contracts.keys import Asking, KeyService
from twinlock.errors import (
    ChallengeError,
    ClosedError,
    KeyServiceError,
    LimitExceededError,
    NodeRefusedError,
    OverloadedError,
    SignatureError,
    StoreError,
    TwinlockError,
    error_from_code,
)
from twinlock.ids import ID_BYTES, LogId
from twinlock.keyservice.calls import (
    ANSWER_BYTES_MAX,
    BATCH_CALLS_MAX,
    REQUEST_BYTES_MAX,
    Answer,
    AppendCall,
    LeaseCall,
    NodeCall,
    Outcome,
    PendingCall,
    ReadCall,
    TurnCall,
)
from twinlock.keyservice.logs import SEQ_MAX, LogPage
from twinlock.keyservice.node_auth import ANSWER_HEADER, NO_LIFE, REQUEST_HEADER, NodeIdentity
from twinlock.protocol.calls import CreatePending, CreatePendingResult, LogHead, SignedEntry
from twinlock.protocol.frames import Lease, Leases

logger = structlog.get_logger(__name__)

IN_FLIGHT_MAX = 4
WAITING_MAX = 10_000
"""Calls that may wait here; past it callers are told to come later."""

WAITING_BYTES_MAX = 64 << 20
CONNECT_TIMEOUT_S = 2.0
ANSWER_TIMEOUT_S = 10.0
REST_MS_MIN = 500
REST_MS_MAX = 15_000
"""How long nothing is tried after a failure: it doubles from the first to the second while failures go on."""

_OVERLOAD_RETRY_MS = 1_000
_HEADERS = {"content-type": "application/msgpack", "accept-encoding": "identity"}
_BATCH_BYTES_MAX = REQUEST_BYTES_MAX - 16
_decode_answer = msgspec.msgpack.Decoder(Answer).decode
_encode = msgspec.msgpack.encode

Result = TypeVar("Result")


class _Waiting:
    __slots__ = ("call", "future")

    def __init__(self, call: bytes) -> None:
        self.call = call
        self.future: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()


class RemoteKeyService(KeyService):
    """Speaks for one node, from one event loop, to the one service whose public key is pinned."""

    __slots__ = (
        "_came",
        "_client",
        "_is_closed",
        "_life",
        "_node",
        "_now_ms",
        "_rest_ms",
        "_rest_until",
        "_root",
        "_waiting",
        "_waiting_bytes",
    )

    def __init__(self, client: httpx.AsyncClient, node: NodeIdentity, now_ms: Callable[[], int]) -> None:
        """Begin to send; `close` ends it. `connect` makes one from settings."""
        self._client = client
        self._node = node
        self._now_ms = now_ms
        self._life = NO_LIFE
        self._waiting: deque[_Waiting] = deque()
        self._waiting_bytes = 0
        self._came = asyncio.Event()
        self._rest_ms = REST_MS_MIN
        self._rest_until = 0.0
        self._is_closed = False
        # The one task that belongs to no group: it owns the group of the senders.
        self._root = asyncio.create_task(self._send_all(), name="twinlock remote key service")

    @classmethod
    def connect(cls, url: str, node: NodeIdentity, now_ms: Callable[[], int], ca_file: str = "") -> RemoteKeyService:
        """Make one for a service at a URL; nothing is sent yet.

        Raises:
            StoreError: the file of certificates cannot be read.
        """
        client = httpx.AsyncClient(
            base_url=url,
            verify=_tls_context(ca_file) if url.startswith("https:") else ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT),
            timeout=httpx.Timeout(ANSWER_TIMEOUT_S, connect=CONNECT_TIMEOUT_S),
            limits=httpx.Limits(max_connections=IN_FLIGHT_MAX, max_keepalive_connections=IN_FLIGHT_MAX),
            follow_redirects=False,
            trust_env=False,
        )
        return cls(client, node, now_ms)

    async def probe(self) -> None:
        """Ask for nothing in particular, to see whether the service takes this node.

        Raises:
            NodeRefusedError: it does not.
            KeyServiceError: it does not answer.
        """
        await self._exchange([_encode(ReadCall(LogId(bytes(ID_BYTES)), 0))])

    async def take_turn(self, log: LogId) -> int:
        """Begin to change a log; who began earlier and has not appended yet is refused."""
        return await self._call(TurnCall(log), int)

    async def append_log(self, log: LogId, expect_seq: int, entries: Sequence[SignedEntry], turn: int = 0) -> LogHead:
        """Check entries by the rules of their log, store them durably, and return the new head."""
        return await self._call(AppendCall(log, expect_seq, list(entries), turn), LogHead)

    async def read_log(self, log: LogId, after_seq: int) -> list[SignedEntry]:
        """Return the entries of a log after the first `after_seq`; a long one comes in pages."""
        after_seq, entries, has_more = max(0, min(after_seq, SEQ_MAX)), list[SignedEntry](), True
        while has_more:
            page = await self._call(ReadCall(log, after_seq + len(entries)), LogPage)
            entries += page.entries
            has_more = page.has_more and bool(page.entries)
        return entries

    async def create_pending(self, asking: Asking, request: CreatePending) -> CreatePendingResult:
        """Make a fresh service key for a coming epoch, store it durably, and seal it to the device that asked."""
        call = PendingCall(asking.account, asking.device, asking.incarnation, request)
        return await self._call(call, CreatePendingResult)

    async def lease(self, asking: Asking, request: Lease) -> Leases:
        """Release service keys, sealed to the device; every grant is in the ledger before it is returned."""
        return await self._call(LeaseCall(asking.account, asking.device, asking.incarnation, request), Leases)

    async def tend(self, now_ms: int) -> None:
        """Do nothing: the service tends itself."""

    async def close(self) -> None:
        """Fail what waits, and close the connections."""
        self._is_closed = True
        self._root.cancel()
        await asyncio.wait({self._root})
        self._fail_waiting(ClosedError())
        await self._client.aclose()

    async def _call(self, call: NodeCall, kind: type[Result]) -> Result:
        if self._is_closed:
            raise ClosedError
        if self._root.done():
            raise KeyServiceError("nothing is sent any more; the server must be started again")
        resting_ms = self._resting_ms()
        if resting_ms:
            raise KeyServiceError("it did not answer a moment ago", retry_after_ms=resting_ms)
        try:
            waiting = _Waiting(_encode(call))
        except (OverflowError, msgspec.MsgspecError) as exc:
            raise LimitExceededError("a number that is out of range") from exc
        self._wait(waiting)
        outcome = await waiting.future
        if outcome.code:
            raise error_from_code(outcome.code, outcome.detail, outcome.retry_after_ms)
        try:
            return msgspec.msgpack.decode(outcome.result, type=kind)
        except msgspec.MsgspecError as exc:
            raise KeyServiceError("its answer has no proper form") from exc

    def _wait(self, waiting: _Waiting) -> None:
        size = len(waiting.call)
        if size > _BATCH_BYTES_MAX:
            raise LimitExceededError(f"a call of {size} bytes, {_BATCH_BYTES_MAX} at most")
        if len(self._waiting) >= WAITING_MAX or self._waiting_bytes + size > WAITING_BYTES_MAX:
            raise OverloadedError("too many wait for the key service", retry_after_ms=_OVERLOAD_RETRY_MS)
        self._waiting.append(waiting)
        self._waiting_bytes += size
        self._came.set()

    def _resting_ms(self) -> int:
        return max(0, int(1000 * (self._rest_until - asyncio.get_running_loop().time())))

    # Sending

    async def _send_all(self) -> None:
        async with asyncio.TaskGroup() as senders:
            for _ in range(IN_FLIGHT_MAX):
                senders.create_task(self._send_for_ever())

    async def _send_for_ever(self) -> None:
        while True:
            while not self._waiting:
                self._came.clear()
                await self._came.wait()
            # The rest of this turn of the loop may have more to ask.
            await asyncio.sleep(0)
            batch = self._take_batch()
            if batch:
                await self._send(batch)

    def _take_batch(self) -> list[_Waiting]:
        batch: list[_Waiting] = []
        size = 0
        while self._waiting and len(batch) < BATCH_CALLS_MAX and size + len(self._waiting[0].call) <= _BATCH_BYTES_MAX:
            waiting = self._waiting.popleft()
            self._waiting_bytes -= len(waiting.call)
            # Whoever asked may have gone meanwhile.
            if not waiting.future.done():
                batch.append(waiting)
                size += len(waiting.call)
        return batch

    async def _send(self, batch: Sequence[_Waiting]) -> None:
        try:
            outcomes = await self._exchange([waiting.call for waiting in batch])
        except NodeRefusedError as error:
            # For devices the service is down; what to mend is told where the operator looks.
            logger.error("the key service refuses this node", detail=error.detail, node=self._node.node_pk.hex())
            self._rest(batch, KeyServiceError("it does not take requests of this node"))
        except KeyServiceError as error:
            logger.warning("the key service does not answer", detail=error.detail)
            self._rest(batch, error)
        except TwinlockError as error:
            _fail(batch, error)
        except Exception as exc:
            # The top frame of a sender: an error of our own must not leave callers waiting, nor end the others.
            logger.exception("a request to the key service failed", error=type(exc).__name__)
            _fail(batch, KeyServiceError("the request failed on this side"))
        else:
            self._rest_ms = REST_MS_MIN
            for waiting, outcome in zip(batch, outcomes, strict=True):
                if not waiting.future.done():
                    waiting.future.set_result(outcome)
        finally:
            # Cut off by `close`: whether it was done is not known.
            _fail(batch, KeyServiceError("this side closed before the answer"))

    def _rest(self, batch: Sequence[_Waiting], error: TwinlockError) -> None:
        """Try nothing for a while, and tell everybody who waits when to come back."""
        if not self._resting_ms():
            self._rest_until = asyncio.get_running_loop().time() + self._rest_ms / 1000
            self._rest_ms = min(2 * self._rest_ms, REST_MS_MAX)
        told = KeyServiceError(error.detail, retry_after_ms=self._resting_ms())
        _fail(batch, told)
        self._fail_waiting(told)

    def _fail_waiting(self, error: TwinlockError) -> None:
        _fail(self._waiting, error)
        self._waiting.clear()
        self._waiting_bytes = 0

    async def _exchange(self, calls: Sequence[bytes]) -> list[Outcome]:
        """Send calls and return their outcomes."""
        body = _encode([msgspec.Raw(call) for call in calls])
        answer = await self._post(body)
        if answer.refusal is not None and answer.refusal.code == ChallengeError.code:
            # The service has begun a new life since; nothing was done, and the same is asked of the new one.
            self._life = answer.life
            answer = await self._post(body)
        if answer.refusal is not None:
            refusal = answer.refusal
            error = error_from_code(refusal.code, refusal.detail, refusal.retry_after_ms)
            if isinstance(error, NodeRefusedError | OverloadedError | LimitExceededError):
                raise error
            raise KeyServiceError(f"{refusal.code}: {refusal.detail}")
        if len(answer.outcomes) != len(calls):
            raise KeyServiceError("its answer has another number of outcomes than there were calls")
        return answer.outcomes

    async def _post(self, body: bytes) -> Answer:
        request = self._node.sign(body, self._life, self._now_ms())
        headers = {REQUEST_HEADER: request.header, **_HEADERS}
        try:
            async with self._client.stream("POST", "/calls", content=body, headers=headers) as response:
                data = await _read(response)
                self._node.check_answer(request, response.status_code, response.headers.get(ANSWER_HEADER, ""), data)
            return _decode_answer(data)
        except (httpx.HTTPError, httpx.InvalidURL, OSError) as exc:
            raise KeyServiceError(f"{type(exc).__name__}: {exc}") from exc
        except SignatureError as exc:
            raise KeyServiceError("its answer is not signed by the key that is pinned") from exc
        except msgspec.MsgspecError as exc:
            raise KeyServiceError("its answer has no proper form") from exc


async def _read(response: httpx.Response) -> bytes:
    data = bytearray()
    async for chunk in response.aiter_raw():
        data += chunk
        if len(data) > ANSWER_BYTES_MAX:
            raise KeyServiceError("its answer is too long")
    return bytes(data)


def _fail(waiting: Any, error: TwinlockError) -> None:
    for each in waiting:
        if not each.future.done():
            # One error each: a traceback grows on whoever raises it.
            each.future.set_exception(type(error)(error.detail, retry_after_ms=error.retry_after_ms))


def _tls_context(ca_file: str) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=ca_file or None)
    except OSError as exc:
        raise StoreError(f"{ca_file} holds no certificates: {exc.strerror or exc}") from exc
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    return context
