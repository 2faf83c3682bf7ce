"""What a request for a part is answered with: statuses, headers, and errors as the sync socket names them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any

import msgspec

from twinlock.errors import (
    ApprovalPendingError,
    BearerError,
    BlobConflictError,
    DeviceRevokedError,
    DrainingError,
    InternalError,
    InvalidCallError,
    LimitExceededError,
    NotFoundError,
    OverloadedError,
    QuotaExceededError,
    RemovedError,
    RoleError,
    ShreddedError,
    TwinlockError,
    UnknownDeviceError,
    UnknownSpaceError,
)

STATUSES: Mapping[type[TwinlockError], int] = {
    InvalidCallError: 400,
    BearerError: 401,
    ApprovalPendingError: 403,
    DeviceRevokedError: 403,
    RemovedError: 403,
    RoleError: 403,
    ShreddedError: 403,
    UnknownDeviceError: 403,
    NotFoundError: 404,
    UnknownSpaceError: 404,
    BlobConflictError: 409,
    LimitExceededError: 413,
    QuotaExceededError: 429,
    InternalError: 500,
    OverloadedError: 503,
    DrainingError: 503,
}
"""Every other error is one of the server's stores: 503."""

RETRY_AFTER_MS = 1_000
MAX_AGE_S = 600
_ALWAYS = {"cache-control": "no-store", "x-content-type-options": "nosniff"}
_PREFLIGHT = {
    "access-control-allow-methods": "GET, HEAD, PUT",
    "access-control-allow-headers": "authorization, content-type, range",
    "access-control-max-age": str(MAX_AGE_S),
}


Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


class ClientGone(Exception):
    """The client has closed the connection."""


class HttpRefusal(Exception):
    """A refusal with a status of its own."""

    def __init__(self, status: int, error: TwinlockError, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(error.code)
        self.status = status
        self.error = error
        self.headers = headers or {}


def refusal_of_error(error: TwinlockError) -> HttpRefusal:
    """Return how an error is told over HTTP."""
    status = STATUSES.get(type(error), 503)
    return HttpRefusal(status, error, {"www-authenticate": "Bearer"} if status == 401 else {})


class Answer:
    """The answer to one request, as it is sent.

    Args:
        send: the ASGI server's.
        origin: the page that asks, if a browser says so.
        origins: whose pages may.
    """

    __slots__ = ("_has_started", "_headers", "_send")

    def __init__(
        self, send: Callable[[MutableMapping[str, Any]], Awaitable[None]], origin: str, origins: frozenset[str]
    ) -> None:
        self._send = send
        self._headers = dict(_ALWAYS)
        self._has_started = False
        if origin in origins:
            self._headers["access-control-allow-origin"] = origin
            self._headers["access-control-expose-headers"] = "accept-ranges, content-range, retry-after"
        if origins:
            self._headers["vary"] = "Origin"

    async def preflight(self) -> None:
        """Tell a browser what its page may ask for; a page of another origin may ask for nothing."""
        is_allowed = "access-control-allow-origin" in self._headers
        await self.start(204 if is_allowed else 403, _PREFLIGHT if is_allowed else {"content-length": "0"})
        await self.end()

    async def start(self, status: int, headers: Mapping[str, str]) -> None:
        """Send the status and the headers."""
        self._has_started = True
        told = [(name.encode(), value.encode()) for name, value in {**self._headers, **headers}.items()]
        await self._send({"type": "http.response.start", "status": status, "headers": told})

    async def piece(self, data: bytes) -> None:
        """Send a piece of the body; returns when there is room for another."""
        await self._send({"type": "http.response.body", "body": data, "more_body": True})

    async def end(self) -> None:
        """Send the end of the body."""
        await self._send({"type": "http.response.body", "body": b""})

    async def refuse(self, refusal: HttpRefusal, closes: bool) -> None:
        """Tell why a request is refused; where its answer is under way already, it is broken off.

        Args:
            refusal: why.
            closes: whether the connection is closed, because the request has a body that is too long to be skipped.
        """
        if self._has_started:
            # The server sees an answer without its end, and closes the connection: the client sees that it is cut.
            return
        error, headers = refusal.error, dict(refusal.headers)
        retry_after_ms = error.retry_after_ms or (RETRY_AFTER_MS if refusal.status == 503 else 0)
        body = msgspec.json.encode({"code": error.code, "detail": error.detail, "retry_after_ms": retry_after_ms})
        headers |= {"content-type": "application/json", "content-length": str(len(body))}
        if retry_after_ms:
            headers["retry-after"] = str(-(-retry_after_ms // 1000))
        if closes:
            headers["connection"] = "close"
        await self.start(refusal.status, headers)
        await self._send({"type": "http.response.body", "body": body})
