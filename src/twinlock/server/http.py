"""HTTP beside the sync socket: is it alive, does it take clients, what does it count."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from litestar import Litestar, Response, get
from litestar.enums import MediaType

from twinlock.server.metrics import Metrics

METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"
IsReady = Callable[[], Awaitable[bool]]


def build_http(metrics: Metrics, is_ready: IsReady) -> Litestar:
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

    return Litestar([healthz, readyz, show_metrics], openapi_config=None, logging_config=None)
