"""The key service in a process of its own: folder, clock and HTTP put together."""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
from collections.abc import Callable
from pathlib import Path

import structlog
import uvloop

from twinlock.errors import TwinlockError
from twinlock.ids import ID_BYTES, LogId
from twinlock.keyservice.dispatch import BatchDispatcher
from twinlock.keyservice.http import NodeDoor, build_http
from twinlock.keyservice.key_files import SERVICE_KEY_NAME, open_signing_key
from twinlock.keyservice.metrics import KeyServiceMetrics
from twinlock.keyservice.node_auth import LIFE_BYTES, NodeGate
from twinlock.keyservice.service import LocalKeyService, wall_clock_ms
from twinlock.keyservice.settings import ProcessSettings
from twinlock.keyservice.wrapper import KeyWrapper
from twinlock.process import Life, configure_logs, listen, serve_until_signalled, tls_context, web_server

logger = structlog.get_logger(__name__)

PROBE_TIMEOUT_S = 2.0


class KeyServiceProcess:
    """A key service that listens; it can be started and stopped inside a running event loop.

    `port` is the port in use and `service_pk` its public key once `start` has returned.

    Args:
        settings: what the operator chose.
        now_ms: the clock of leases, requests and records.
        wrapper: what wraps service keys, in place of what the settings name.
    """

    def __init__(
        self,
        settings: ProcessSettings,
        now_ms: Callable[[], int] = wall_clock_ms,
        wrapper: KeyWrapper | None = None,
    ) -> None:
        self.settings = settings.check()
        self.port = settings.port
        self.service_pk = b""
        self._now_ms = now_ms
        self._wrapper = wrapper
        self._metrics = KeyServiceMetrics()
        self._life = Life("twinlock key service", self._serve)
        self._is_serving = False
        self._door: NodeDoor | None = None

    @property
    def url(self) -> str:
        """Return the address that nodes call."""
        host = f"[{self.settings.host}]" if ":" in self.settings.host else self.settings.host
        return f"{'https' if self.settings.tls_certificate else 'http'}://{host}:{self.port}"

    @property
    def in_flight(self) -> int:
        """How many requests of nodes are read or worked on."""
        return self._door.in_flight if self._door else 0

    async def start(self) -> None:
        """Open the folder and listen; on return nodes are answered.

        Raises:
            SettingsError: the address cannot be listened on, or the certificate files are none.
            StoreError, UpdateNeededError, KeyServiceError: as `LocalKeyService.open`.
        """
        await self._life.begin()

    async def stop(self) -> None:
        """Answer what was asked, then close the folder. May be called twice."""
        await self._life.end()

    async def wait_stopped(self) -> None:
        """Return when it has stopped; raises what ended it if that was an error."""
        await self._life.ended()

    def ask_to_stop(self) -> None:
        """Begin to stop, and return at once: for signal handlers."""
        self._life.ask_to_end()

    async def _serve(self, started: asyncio.Future[None]) -> None:
        settings = self.settings
        tls = tls_context(settings.tls_certificate, settings.tls_key)
        listener = listen(settings.host, settings.port)
        try:
            self.port = listener.getsockname()[1]
            folder = Path(settings.data)
            key = open_signing_key(folder / SERVICE_KEY_NAME)
            keys = LocalKeyService.open(folder, settings.custody, self._wrapper, self._now_ms)
            try:
                gate = NodeGate(key, settings.node_keys, os.urandom(LIFE_BYTES), self._now_ms)
                await self._serve_keys(keys, gate, listener, tls, started)
            finally:
                await keys.close()
        finally:
            listener.close()

    async def _serve_keys(
        self,
        keys: LocalKeyService,
        gate: NodeGate,
        listener: socket.socket,
        tls: ssl.SSLContext | None,
        started: asyncio.Future[None],
    ) -> None:
        self.service_pk = gate.service_pk
        self._metrics.watch_waiting(lambda: keys.waiting_count)
        dispatcher = BatchDispatcher(keys, self._metrics, self._now_ms)
        self._door = door = NodeDoor(gate, dispatcher, self._metrics, self.settings.in_flight_max)
        web = web_server(build_http(door, self._metrics, lambda: self._is_ready(keys)), tls)
        try:
            async with asyncio.TaskGroup() as group:
                await web.startup(sockets=[listener])
                turning = group.create_task(web.main_loop())
                group.create_task(self._tend_for_ever(keys))
                self._is_serving = True
                logger.info("listening", port=self.port, tls=tls is not None, public_key=gate.service_pk.hex())
                started.set_result(None)
                await self._life.asked_to_end()
                self._is_serving = False
                web.should_exit = True
                await turning
                await web.shutdown(sockets=[listener])
                raise _Stopped
        except* _Stopped:
            logger.info("stopped")

    async def _is_ready(self, keys: LocalKeyService) -> bool:
        if not self._is_serving:
            return False
        try:
            async with asyncio.timeout(PROBE_TIMEOUT_S):
                await keys.read_log_page(LogId(bytes(ID_BYTES)), 0, 1)
        except (TwinlockError, TimeoutError):
            return False
        return True

    async def _tend_for_ever(self, keys: LocalKeyService) -> None:
        while True:
            try:
                await keys.tend(self._now_ms())
            except TwinlockError as error:
                logger.warning("tending failed", code=error.code, detail=error.detail)
            await asyncio.sleep(self.settings.tend_interval_s)


class _Stopped(Exception):
    """Ends the group of tasks of a service that has stopped."""


def run(settings: ProcessSettings) -> None:
    """Serve until SIGINT or SIGTERM."""
    configure_logs(settings.log_level)
    uvloop.run(_run(settings))


async def _run(settings: ProcessSettings) -> None:
    service = KeyServiceProcess(settings)
    await serve_until_signalled(service.start, service.ask_to_stop, service.wait_stopped)
