"""The whole server put together: stores, services, sync socket and HTTP on one port."""

from __future__ import annotations

import asyncio
import gc
import os
import socket
import ssl
import sys
import time
from collections.abc import Callable
from functools import partial

import msgspec
import structlog
import uvloop

from twinlock.errors import TwinlockError
from twinlock.ids import SpaceId
from twinlock.process import Life, configure_logs, listen, serve_until_signalled, tls_context, web_server
from twinlock.protocol.frames import LOG_GROWN, Notice
from twinlock.server.admission import Admission, Tickets
from twinlock.server.authorize import Authority
from twinlock.server.blob_services import build_blobs
from twinlock.server.buckets import Quotas
from twinlock.server.chores import Chores
from twinlock.server.commit import Committer
from twinlock.server.confirmations import Confirmations
from twinlock.server.drain import drain, revoke_devices
from twinlock.server.heartbeat import Heartbeat
from twinlock.server.http import build_http
from twinlock.server.hub import Hub
from twinlock.server.keyrings import Keyrings
from twinlock.server.memberships import Memberships
from twinlock.server.metrics import Metrics
from twinlock.server.neighbours import Neighbours, SpaceGrown
from twinlock.server.new_rules import Telling
from twinlock.server.other_nodes import OtherNodes
from twinlock.server.partitions import Partitions
from twinlock.server.people import build_people
from twinlock.server.receive_clock import ReceiveClock
from twinlock.server.registry import SpaceRegistry
from twinlock.server.services import Services
from twinlock.server.session import Dispatcher
from twinlock.server.settings import Settings
from twinlock.server.shared_rates import SharedRates
from twinlock.server.signed_logs import SignedLogs
from twinlock.server.space_changes import SpaceChanges
from twinlock.server.spaces import Spaces
from twinlock.server.stores import PROBE_KEY, Stores, open_stores
from twinlock.server.tasks import Tasks
from twinlock.server.tries import Tries
from twinlock.server.upkeep import end_upkeep, spawn_upkeep
from twinlock.server.websocket import SyncSocket

logger = structlog.get_logger(__name__)

PROBE_TIMEOUT_S = 2.0
NODE_BYTES = 8
SWITCH_INTERVAL_S = 0.001
GC_OBJECTS = 20_000


class Server:
    """A server that can be started and stopped inside a running event loop.

    `port` is the port in use once `start` has returned (useful with `port = 0`).

    Args:
        settings: what the operator chose.
        stores: open stores to use in place of those that the settings name; closed with the server.
    """

    def __init__(self, settings: Settings, stores: Stores | None = None) -> None:
        self.settings = settings.check()
        self.port = settings.port
        self.metrics = Metrics()
        self._given_stores = stores
        self._life = Life("twinlock server", self._serve)
        self._is_serving = False

    @property
    def url(self) -> str:
        """Return the address that clients dial."""
        host = f"[{self.settings.host}]" if ":" in self.settings.host else self.settings.host
        return f"{'wss' if self.settings.uses_tls else 'ws'}://{host}:{self.port}"

    async def start(self) -> None:
        """Open the stores and listen; on return the server answers.

        Raises:
            SettingsError: the address cannot be listened on, or the certificate files are none.
            StoreError: a store cannot be opened.
        """
        await self._life.begin()

    async def stop(self) -> None:
        """Drain: tell every client to come back later, finish commits, close the stores. May be called twice."""
        await self._life.end()

    async def wait_stopped(self) -> None:
        """Return when the server has stopped; raises what ended it if that was an error."""
        await self._life.ended()

    def ask_to_stop(self) -> None:
        """Begin to stop, and return at once: for signal handlers."""
        self._life.ask_to_end()

    async def _serve(self, started: asyncio.Future[None]) -> None:
        tls = tls_context(self.settings.tls_certificate, self.settings.tls_key)
        listener = listen(self.settings.host, self.settings.port)
        try:
            self.port = listener.getsockname()[1]
            stores = self._given_stores or await open_stores(self.settings)
            try:
                await self._serve_stores(stores, listener, tls, started)
            finally:
                await stores.close()
        finally:
            listener.close()

    async def _serve_stores(
        self, stores: Stores, listener: socket.socket, tls: ssl.SSLContext | None, started: asyncio.Future[None]
    ) -> None:
        heartbeat = Heartbeat(self.metrics)
        try:
            async with asyncio.TaskGroup() as group:
                services = build_services(self.settings, stores, Tasks(group), self.metrics, heartbeat)
                origins = self.settings.origins_at(self.port)
                dispatcher = Dispatcher(services, origins)
                sync = SyncSocket(self.settings, origins, dispatcher, heartbeat, self.metrics, wall_clock_ms)
                blob_http = services.blobs.make_http(services.quotas, sync.browser_origins, lambda: self._is_serving)
                http = build_http(self.metrics, lambda: self._is_ready(stores), blob_http)
                web = web_server(http, tls, sync)
                await web.startup(sockets=[listener])
                turning = group.create_task(web.main_loop())
                spawn_upkeep(services)
                self._is_serving = True
                logger.info("listening", port=self.port, tls=self.settings.uses_tls)
                started.set_result(None)
                await self._life.asked_to_end()
                self._is_serving = False
                for server in web.servers:
                    server.close()
                await drain(sync, services)
                await end_upkeep(services)
                web.should_exit = True
                await turning
                await web.shutdown(sockets=[listener])
                raise _Stopped
        except* _Stopped:
            logger.info("stopped")
        finally:
            heartbeat.stop()

    async def _is_ready(self, stores: Stores) -> bool:
        """Tell whether clients are taken and the engine still writes durably."""
        if not self._is_serving:
            return False
        try:
            async with asyncio.timeout(PROBE_TIMEOUT_S):
                await stores.directory.put(PROBE_KEY, b"")
        except (TwinlockError, TimeoutError):
            return False
        return True


class _Stopped(Exception):
    """Ends the group of tasks of a server that has drained."""


def run(settings: Settings) -> None:
    """Serve until SIGINT or SIGTERM."""
    configure_logs(settings.log_level)
    # The store's thread hands a commit back while the loop is busy: it must not wait long for its turn.
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    # What was imported lives as long as the process, and what serving makes is mostly freed by its reference counts.
    gc.freeze()
    gc.set_threshold(GC_OBJECTS, 20, 50)
    uvloop.run(_run(settings))


async def _run(settings: Settings) -> None:
    server = Server(settings)
    await serve_until_signalled(server.start, server.ask_to_stop, server.wait_stopped)


def wall_clock_ms() -> int:
    """Return the wall clock, in ms since 1970 (UTC)."""
    return time.time_ns() // 1_000_000


def build_services(
    settings: Settings,
    stores: Stores,
    tasks: Tasks,
    metrics: Metrics,
    heartbeat: Heartbeat,
    now_ms: Callable[[], int] = wall_clock_ms,
    steady_s: Callable[[], float] = time.monotonic,
) -> Services:
    """Put the parts together that stand behind the sync socket."""
    node, is_shared = stores.node or os.urandom(NODE_BYTES), stores.is_shared
    stores = msgspec.structs.replace(stores, node=node)
    rates = SharedRates(now_ms, is_told=is_shared)
    neighbours = Neighbours(stores.broker, node, rates, metrics, is_shared=is_shared)
    logs = SignedLogs(stores.directory, stores.keys, node, neighbours.is_alive, is_shared=is_shared)
    hub = Hub(stores.log, tasks, metrics, settings.catch_up_reads_max, lambda: heartbeat.connections)
    authority = _build_authority(logs, hub, heartbeat)
    registry = SpaceRegistry(stores, logs, tasks, metrics, settings, rates)
    people = build_people(settings, stores, tasks, heartbeat, authority, registry, neighbours)
    committer = Committer(stores.log, hub, tasks, metrics, ReceiveClock(now_ms, steady_s))
    changes = SpaceChanges(stores, logs, authority, registry, committer, tasks, partial(_tell_grown, neighbours))
    keyrings = Keyrings(stores.directory, is_shared=is_shared)
    blobs = build_blobs(settings, stores, authority, registry, people.session_ends, metrics, now_ms)
    changes.purge_more = blobs.chores.purge
    partitions = Partitions(stores.open_partitions)
    spaces = Spaces(stores, logs, keyrings, registry, changes, partitions, now_ms)
    invite_tries = Tries(10 * settings.unlocker_tries_per_min, now_ms, rates, "invites")
    members = Memberships(logs, keyrings, registry, changes, stores.secrets.server_id, invite_tries, now_ms)
    OtherNodes(stores, neighbours, authority, registry, changes, tasks, heartbeat).listen()
    return Services(
        settings=settings,
        secrets=stores.secrets,
        log=stores.log,
        keys=stores.keys,
        authority=authority,
        registry=registry,
        hub=hub,
        committer=committer,
        confirmations=Confirmations(stores.log, tasks),
        changes=changes,
        admission=Admission(settings, now_ms()),
        tickets=Tickets(stores.secrets.ticket_key),
        quotas=Quotas(settings, rates),
        neighbours=neighbours,
        chores=Chores(stores.directory, node, now_ms),
        is_shared=is_shared,
        sign_in=people.sign_in,
        session_ends=people.session_ends,
        presence=people.presence,
        devices=people.devices,
        pairings=people.pairings,
        methods={**people.methods, **partitions.methods(), **spaces.methods(), **members.methods(), **blobs.methods},
        blobs=blobs,
        tasks=tasks,
        metrics=metrics,
        now_ms=now_ms,
    )


def _tell_grown(neighbours: Neighbours, space: SpaceId, seq: int, tellings: list[Telling]) -> None:
    """Tell other nodes that a space's signed log has grown, and what to tell whom."""
    neighbours.tell(SpaceGrown(space, seq, list(tellings)))


def _build_authority(logs: SignedLogs, hub: Hub, heartbeat: Heartbeat) -> Authority:
    """Make what knows the accounts, and tells of each that has changed."""
    return Authority(
        logs,
        on_grown=lambda account: hub.tell_accounts((account,), Notice(LOG_GROWN, account)),
        on_revoked=lambda devices: revoke_devices(heartbeat, devices),
    )
