"""HTTP of a key service in a process of its own: one address for nodes, and what an operator looks at."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

import msgspec
import structlog
from litestar import Litestar, Request, Response, get, post
from litestar.datastructures import State
from litestar.enums import MediaType

from twinlock.errors import (
    ChallengeError,
    InvalidCallError,
    LimitExceededError,
    NodeRefusedError,
    OverloadedError,
    TwinlockError,
)
from twinlock.keyservice.calls import REQUEST_BYTES_MAX, Answer, decode_batch
from twinlock.keyservice.dispatch import BatchDispatcher, refusal_of
from twinlock.keyservice.metrics import KeyServiceMetrics
from twinlock.keyservice.node_auth import ANSWER_HEADER, REQUEST_HEADER, NodeGate, RequestProof, check_body, read_proof

logger = structlog.get_logger(__name__)

BODY_TIMEOUT_S = 10.0
RETRY_AFTER_MS = 500
REFUSALS_LOGGED_EVERY_S = 1.0
_METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_STATUS = {
    NodeRefusedError.code: 403,
    ChallengeError.code: 409,
    LimitExceededError.code: 413,
    OverloadedError.code: 503,
}
_REFUSED = 400
_DONE = 200

Asked = Request[object, object, State]


class NodeDoor:
    """Takes requests of nodes: the header is checked before the body is read, and everything before it is done."""

    __slots__ = ("_dispatcher", "_gate", "_in_flight", "_in_flight_max", "_metrics", "_quiet_until_s")

    def __init__(
        self, gate: NodeGate, dispatcher: BatchDispatcher, metrics: KeyServiceMetrics, in_flight_max: int
    ) -> None:
        self._gate = gate
        self._dispatcher = dispatcher
        self._metrics = metrics
        self._in_flight = 0
        self._in_flight_max = in_flight_max
        self._quiet_until_s = 0.0

    @property
    def in_flight(self) -> int:
        """How many requests are read or worked on."""
        return self._in_flight

    async def answer(self, request: Asked) -> Response[bytes]:
        """Answer a request; also a refusal is signed where it is plain what it refuses."""
        header = request.headers.get(REQUEST_HEADER, "")
        try:
            proof = self._gate.check(header)
            outcomes = await self._work(request, proof)
        except TwinlockError as error:
            self._note_refusal(error)
            status = _STATUS.get(error.code, _REFUSED)
            return self._signed(read_proof(header), status, Answer(self._gate.life, [], refusal_of(error)))
        return self._signed(proof, _DONE, outcomes)

    def _note_refusal(self, error: TwinlockError) -> None:
        self._metrics.refused.labels(error.code).inc()
        if isinstance(error, ChallengeError):
            # How every node learns of this service's present life.
            return
        now_s = time.monotonic()
        # Anybody can be refused as often as they like: the log tells of one now and then, the metrics count them all.
        if now_s >= self._quiet_until_s:
            self._quiet_until_s = now_s + REFUSALS_LOGGED_EVERY_S
            logger.warning("request refused", code=error.code, detail=error.detail)

    async def _work(self, request: Asked, proof: RequestProof) -> Answer:
        # Before anything is refused under the service's signature: what a node believes to be refused is never done.
        # And before the body is waited for, so that a header which somebody captured takes up no room.
        self._gate.take(proof)
        if self._in_flight >= self._in_flight_max:
            raise OverloadedError("too many requests of nodes", retry_after_ms=RETRY_AFTER_MS)
        self._in_flight += 1
        self._metrics.in_flight.set(self._in_flight)
        try:
            body = await _read_body(request)
            check_body(proof, body)
            return Answer(self._gate.life, await self._dispatcher.run(decode_batch(body)))
        finally:
            self._in_flight -= 1
            self._metrics.in_flight.set(self._in_flight)

    def _signed(self, proof: RequestProof | None, status: int, answer: Answer) -> Response[bytes]:
        body = msgspec.msgpack.encode(answer)
        headers = {} if proof is None else {ANSWER_HEADER: self._gate.sign_answer(proof, status, body)}
        return Response(body, status_code=status, media_type="application/msgpack", headers=headers)


async def _read_body(request: Asked) -> bytes:
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_TIMEOUT_S):
            async for chunk in request.stream():
                body += chunk
                if len(body) > REQUEST_BYTES_MAX:
                    raise LimitExceededError(f"a request of more than {REQUEST_BYTES_MAX} bytes")
    except TimeoutError as exc:
        raise InvalidCallError("the body did not come in time") from exc
    return bytes(body)


def build_http(door: NodeDoor, metrics: KeyServiceMetrics, is_ready: Callable[[], Awaitable[bool]]) -> Litestar:
    """Make the HTTP application."""

    @post("/calls", status_code=_DONE)
    async def calls(request: Asked) -> Response[bytes]:
        """Do what a node asks for."""
        return await door.answer(request)

    @get("/healthz", media_type=MediaType.TEXT, sync_to_thread=False)
    def healthz() -> str:
        """Answer as long as the process turns."""
        return "ok\n"

    @get("/readyz", media_type=MediaType.TEXT)
    async def readyz() -> Response[str]:
        """Answer 200 if nodes are served and the store answers, else 503."""
        ready = await is_ready()
        return Response("ready\n" if ready else "not ready\n", status_code=200 if ready else 503)

    @get("/metrics", sync_to_thread=False)
    def show_metrics() -> Response[bytes]:
        """Return the counters."""
        return Response(metrics.render(), media_type=_METRICS_TYPE)

    return Litestar(
        [calls, healthz, readyz, show_metrics],
        openapi_config=None,
        logging_config=None,
        # Counted as it comes: a request over it gets a signed answer.
        request_max_body_size=None,
    )
