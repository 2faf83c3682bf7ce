"""`twinlock cluster watch`: look at the cluster again and again, and show Prometheus what is seen."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from twinlock.cli.cluster_facts import ClusterFacts, read_servers, read_streams
from twinlock.cli.doctor_cluster import connected, operators_options
from twinlock.cli.doctor_stores import newest_backup_ms
from twinlock.cli.output import need_server_parts, run
from twinlock.errors import StoreError, TwinlockError

if TYPE_CHECKING:
    from twinlock.cli.cluster_metrics import ClusterMetrics

REQUEST_BYTES_MAX = 8192
REQUEST_SECONDS = 5.0
DEFAULT_PORT = 8767


def watch(
    url: Annotated[str, typer.Argument(help="The cluster: tls://HOST:PORT,HOST:PORT,HOST:PORT.")],
    operator: Annotated[
        Path,
        typer.Option(help="The folder `operator` that `twinlock cluster keys` made.", exists=True, file_okay=False),
    ],
    host: Annotated[str, typer.Option(help="The address to listen on for Prometheus.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="The port; 0 takes a free one.")] = DEFAULT_PORT,
    interval_s: Annotated[float, typer.Option(help="How often to look.", min=0.1)] = 10.0,
    backup: Annotated[str | None, typer.Option(help="Show how old the newest backup in this place is.")] = None,
) -> None:
    """Show servers, streams and mirrors of a cluster to Prometheus at [bold]/metrics[/], until interrupted.

    It changes nothing: its keys may only look.
    """
    need_server_parts()
    run(_watch(url, operator, backup, (host, port), interval_s))


async def _watch(url: str, operator: Path, backup: str | None, address: tuple[str, int], interval_s: float) -> None:
    watcher = Watcher(url, operator, backup)
    server = await asyncio.start_server(watcher.answer, *address, limit=REQUEST_BYTES_MAX)
    async with server:
        bound = server.sockets[0].getsockname()[1]
        print(f"http://{address[0]}:{bound}/metrics", file=sys.stderr, flush=True)
        while True:
            await watcher.look()
            await asyncio.sleep(interval_s)


class Watcher:
    """Looks at a cluster, and at the newest backup in a place if one is named, and remembers what it saw."""

    __slots__ = ("_backup", "_doctor", "_monitor", "_now_s", "metrics")

    def __init__(
        self, url: str, operator: Path, backup: str | None = None, now_s: Callable[[], float] = time.time
    ) -> None:
        from twinlock.cli.cluster_metrics import ClusterMetrics

        self._backup = backup
        self._doctor, self._monitor = operators_options(url, operator)
        self._now_s = now_s
        self.metrics: ClusterMetrics = ClusterMetrics()

    async def look(self) -> None:
        """Look once; what cannot be seen is shown as absent, and the time of the last full look stays."""
        servers = None
        try:
            async with connected(self._monitor) as connection:
                servers = await read_servers(connection)
            async with connected(self._doctor) as connection:
                streams = await read_streams(connection)
        except StoreError as exc:
            print(f"the cluster cannot be seen: {exc.detail}", file=sys.stderr, flush=True)
            self.metrics.facts = ClusterFacts(servers, [])
        else:
            self.metrics.facts = ClusterFacts(servers, streams)
            self.metrics.seen_s = self._now_s()
        await self._look_for_backup()

    async def _look_for_backup(self) -> None:
        if self._backup is None:
            return
        try:
            self.metrics.backup_s = await newest_backup_ms(self._backup) / 1000
        except TwinlockError as exc:
            # What was seen before goes on growing older, which is what the alert is about.
            print(f"the backup cannot be seen: {exc.detail}", file=sys.stderr, flush=True)

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer one request of Prometheus."""
        try:
            async with asyncio.timeout(REQUEST_SECONDS):
                head = await reader.readuntil(b"\r\n\r\n")
                found = head.split(b" ")[1:2] == [b"/metrics"]
                status, body = (b"200 OK", self.metrics.render()) if found else (b"404 Not Found", b"")
                lines = b"HTTP/1.1 %b\r\nContent-Type: text/plain; version=0.0.4\r\nContent-Length: %d\r\n"
                writer.write(lines % (status, len(body)) + b"Connection: close\r\n\r\n" + body)
                await writer.drain()
        except (TimeoutError, OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            # Whoever asked went away, or never ended its question.
            pass
        finally:
            writer.close()
