"""Parts of blobs over HTTP. See spec/protocol.md, section 9.

    PUT /blobs/<space>/<blob>/<part>
    GET /blobs/<space>/<blob>/<part>    also HEAD, and one range of bytes

Spoken to the ASGI server itself: a part is read and sent piece by piece, and what is refused is refused before its
bytes are read.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Mapping
from typing import Any

import structlog

from twinlock.errors import (
    DrainingError,
    InternalError,
    InvalidCallError,
    LimitExceededError,
    NotFoundError,
    OverloadedError,
    TwinlockError,
)
from twinlock.ids import AccountId, BlobId, DeviceId, SpaceId
from twinlock.protocol.limits import BLOB_CHUNK_BYTES, BLOB_CHUNK_TAG_BYTES, BLOB_PART_BYTES
from twinlock.server.bearer import Bearers
from twinlock.server.blob_answers import Answer, ClientGone, HttpRefusal, Receive, Send, refusal_of_error
from twinlock.server.blob_gate import BlobGate
from twinlock.server.blobs import Blobs, Part
from twinlock.server.metrics import Metrics

logger = structlog.get_logger(__name__)

BLOBS_PATH = "/blobs"
ALLOWED = "GET, HEAD, PUT, OPTIONS"
PIECE_BYTES = BLOB_CHUNK_BYTES + BLOB_CHUNK_TAG_BYTES
IDLE_S_MAX = 30.0
"""How long a client may send or take nothing in the middle of a part."""

PART_S_MAX = 600.0
DRAINING_RETRY_MS = 2_000
_ALWAYS_TOLD = {"accept-ranges": "bytes", "content-type": "application/octet-stream"}
_PATH = re.compile(rb"/blobs/([0-9a-f]{32})/([0-9a-f]{32})/(0|[1-9][0-9]{0,7})")
_RANGE = re.compile(r"bytes=(?:([0-9]{1,18})-([0-9]{0,18})|-([0-9]{1,18}))")
_LENGTH = re.compile(r"[0-9]{1,18}")

Headers = Mapping[str, str]
Scope = Mapping[str, Any]
Name = tuple[SpaceId, BlobId, int]


class BlobHttp:
    """Answers the requests for parts; an ASGI application.

    Args:
        origins: whose pages may ask from a browser.
        is_taking: whether the server takes clients.
    """

    __slots__ = ("_bearers", "_blobs", "_gate", "_is_taking", "_metrics", "_now_ms", "_origins")

    def __init__(
        self,
        blobs: Blobs,
        bearers: Bearers,
        gate: BlobGate,
        metrics: Metrics,
        now_ms: Callable[[], int],
        origins: frozenset[str],
        is_taking: Callable[[], bool],
    ) -> None:
        self._blobs = blobs
        self._bearers = bearers
        self._gate = gate
        self._metrics = metrics
        self._now_ms = now_ms
        self._origins = origins
        self._is_taking = is_taking

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        method = scope["method"]
        answer = Answer(send, headers.get("origin", ""), self._origins)
        try:
            match method:
                case "PUT":
                    await self._put(scope, headers, receive, answer)
                case "GET" | "HEAD":
                    await self._get(scope, headers, method == "HEAD", answer)
                case "OPTIONS":
                    await answer.preflight()
                    return
                case _:
                    raise HttpRefusal(405, InvalidCallError("a part is put or got"), {"allow": ALLOWED})
        except (TwinlockError, HttpRefusal) as error:
            refusal = error if isinstance(error, HttpRefusal) else refusal_of_error(error)
            self._metrics.blob_requested(_counted(method), refusal.error.code)
            await answer.refuse(refusal, _has_long_body(headers))
        except ClientGone:
            self._metrics.blob_requested(_counted(method), "gone")
        except Exception as exc:
            logger.exception("a request for a blob failed", error=type(exc).__name__)
            self._metrics.blob_requested(_counted(method), InternalError.code)
            await answer.refuse(refusal_of_error(InternalError()), _has_long_body(headers))
        else:
            self._metrics.blob_requested(method, "ok")

    async def _put(self, scope: Scope, headers: Headers, receive: Receive, answer: Answer) -> None:
        account, device, name = self._asked(scope, headers)
        declared = _declared_bytes(headers)
        part = await self._blobs.to_put(account, device, *name)
        if declared > part.part_bytes:
            raise LimitExceededError(f"this part has {part.part_bytes} bytes")
        if declared < part.part_bytes:
            raise InvalidCallError(f"this part has {part.part_bytes} bytes")
        self._gate.count(account, declared, self._now_ms())
        # Its pieces and the whole that is made of them are there together for a moment.
        with self._gate.lend(account, 2 * declared):
            await self._blobs.put(part, await _read(receive, declared))
        self._metrics.blob_bytes_in.inc(declared)
        await answer.start(204, {})
        await answer.end()

    async def _get(self, scope: Scope, headers: Headers, is_head: bool, answer: Answer) -> None:
        account, device, name = self._asked(scope, headers)
        part = await self._blobs.to_get(account, device, *name)
        first, end = _range(headers.get("range", ""), part.part_bytes)
        is_whole = end - first == part.part_bytes
        told = {"content-length": str(end - first), **_ALWAYS_TOLD}
        if not is_whole:
            told["content-range"] = f"bytes {first}-{end - 1}/{part.part_bytes}"
        self._gate.count(account, 0 if is_head else end - first, self._now_ms())
        with self._gate.lend(account, 0 if is_head else 2 * PIECE_BYTES):
            size = 0 if is_head else min(PIECE_BYTES, end - first)
            piece = await self._blobs.get(part, first, size)
            await answer.start(200 if is_whole else 206, told)
            if not is_head:
                await self._send(part, first, end, piece, answer)
        await answer.end()

    async def _send(self, part: Part, first: int, end: int, piece: bytes, answer: Answer) -> None:
        """Send a range piece by piece, after the first one that shows that it is there."""
        while True:
            try:
                async with asyncio.timeout(IDLE_S_MAX):
                    await answer.piece(piece)
            except TimeoutError as exc:
                raise ClientGone from exc
            self._metrics.blob_bytes_out.inc(len(piece))
            first += len(piece)
            if first == end:
                return
            piece = await self._blobs.get(part, first, min(PIECE_BYTES, end - first))

    def _asked(self, scope: Scope, headers: Headers) -> tuple[AccountId, DeviceId, Name]:
        """Return who asks, and for which part; nothing else is looked at before the token."""
        account, device = self._bearers.holder(headers.get("authorization", ""), self._now_ms())
        if not self._is_taking():
            raise DrainingError(retry_after_ms=DRAINING_RETRY_MS)
        self._gate.count_request(account, self._now_ms())
        path = _PATH.fullmatch(scope["raw_path"].partition(b"?")[0])
        if path is None:
            raise NotFoundError("the path is /blobs/<space>/<blob>/<part>, ids in 32 hex digits")
        space, blob, number = (part.decode() for part in path.groups())
        return account, device, (SpaceId(bytes.fromhex(space)), BlobId(bytes.fromhex(blob)), int(number))


async def _read(receive: Receive, size: int) -> bytes:
    """Read a body of just so many bytes.

    Raises:
        ClientGone: the connection ended before.
        HttpRefusal: it is too slow.
        LimitExceededError, InvalidCallError: it has more or fewer bytes than were declared.
    """
    loop, pieces, got = asyncio.get_running_loop(), [], 0
    end_s = loop.time() + PART_S_MAX
    try:
        async with asyncio.timeout(None) as limit:
            is_more = True
            while is_more:
                limit.reschedule(min(end_s, loop.time() + IDLE_S_MAX))
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise ClientGone
                piece = message.get("body", b"")
                got += len(piece)
                if got > size:
                    raise LimitExceededError(f"this part has {size} bytes")
                pieces.append(piece)
                is_more = message.get("more_body", False)
    except TimeoutError as exc:
        raise HttpRefusal(408, OverloadedError("the part came too slowly"), {"connection": "close"}) from exc
    if got < size:
        raise InvalidCallError(f"this part has {size} bytes")
    return b"".join(pieces)


def _declared_bytes(headers: Headers) -> int:
    """Return how long a body says it is.

    Raises:
        HttpRefusal: it does not say.
        LimitExceededError: no part is that long.
    """
    text = headers.get("content-length", "")
    if not _LENGTH.fullmatch(text):
        raise HttpRefusal(411, InvalidCallError("a part needs a Content-Length"))
    if int(text) > BLOB_PART_BYTES:
        raise LimitExceededError(f"a part has at most {BLOB_PART_BYTES} bytes")
    return int(text)


def _has_long_body(headers: Headers) -> bool:
    """Tell whether a request has a body that is not worth skipping."""
    text = headers.get("content-length", "0")
    is_short = _LENGTH.fullmatch(text) is not None and int(text) <= 2 * BLOB_PART_BYTES
    return "transfer-encoding" in headers or not is_short


def _range(header: str, size: int) -> tuple[int, int]:
    """Return the first byte and the one after the last; what is no single range of bytes means all (RFC 9110, 14.2).

    Raises:
        HttpRefusal: the range lies beyond the end.
    """
    found = _RANGE.fullmatch(header.replace(" ", ""))
    if found is None:
        return 0, size
    first_text, last_text, suffix = found.groups()
    if suffix is not None:
        first, end = max(0, size - int(suffix)), size
    else:
        first, end = int(first_text), min(size, int(last_text) + 1) if last_text else size
        if last_text and int(last_text) < first:
            return 0, size
    if first >= end:
        error = InvalidCallError(f"the part has {size} bytes")
        raise HttpRefusal(416, error, {"content-range": f"bytes */{size}"})
    return first, end


def _counted(method: str) -> str:
    """Return a method as it is counted: whoever asks must not make names of metrics."""
    return method if method in ("PUT", "GET", "HEAD") else "other"
