"""HTTP beside the sync socket: is it alive, does it take clients, what does it count; and parts of blobs."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, cast

from litestar import Litestar, Response, asgi, get
from litestar.enums import MediaType
from litestar.types import Receive, Scope, Send

from twinlock.server.blob_http import BLOBS_PATH, BlobHttp
from twinlock.server.metrics import Metrics

METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"
IsReady = Callable[[], Awaitable[bool]]


def build_http(metrics: Metrics, is_ready: IsReady, blob_http: BlobHttp) -> Litestar:
    """Make the HTTP application."""

    @get("/healthz", media_type=MediaType.TEXT, sync_to_thread=False)
    def healthz() -> str:
        """Answer as long as the process turns."""
        return "ok\n"

    @get("/readyz", media_type=MediaType.TEXT)
    async def readyz() -> Response[str]:
        """Answer 200 if the engine writes and clients are taken, else 503."""
        is_ready_now = await is_ready()
        metrics.ready.set(is_ready_now)
        return Response("ready\n" if is_ready_now else "not ready\n", status_code=200 if is_ready_now else 503)

    @get("/metrics", sync_to_thread=False)
    def show_metrics() -> Response[bytes]:
        """Return the counters."""
        return Response(metrics.render(), media_type=METRICS_TYPE)

    @asgi(BLOBS_PATH, is_mount=True, copy_scope=False)
    async def blobs(scope: Scope, receive: Receive, send: Send) -> None:
        """Put and get parts of blobs."""
        await blob_http(scope, cast(Any, receive), cast(Any, send))

    return Litestar([healthz, readyz, show_metrics, blobs], openapi_config=None, logging_config=None)
