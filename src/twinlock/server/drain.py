"""The ends of connections that the server itself decides on: going down in good order, and revoked devices."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import structlog

from twinlock.errors import DeviceRevokedError, TokenError
from twinlock.ids import AccountId, DeviceId
from twinlock.protocol.server import NOBODY
from twinlock.server.heartbeat import Heartbeat
from twinlock.server.services import Services
from twinlock.server.websocket import SyncSocket

logger = structlog.get_logger(__name__)

POLL_S = 0.01
CLOSE_S = 1.0
RETRY_AFTER_MS_MIN = 200
RETRY_SPREAD_MS_MAX = 20_000


async def drain(sync: SyncSocket, services: Services) -> None:
    """Tell everybody when to come back, take no more frames, finish what is being committed, then close.

    The times to come back are spread at the rate of hellos that the next server admits.
    """
    sync.is_draining = True
    sync.dispatcher.stop_taking()
    connections = sync.heartbeat.connections
    spread_ms = min(RETRY_SPREAD_MS_MAX, 1000 * len(connections) // max(1, services.settings.hellos_per_s))
    for place, connection in enumerate(connections):
        connection.go_away(RETRY_AFTER_MS_MIN + spread_ms * place // len(connections))
    committed = await _wait_until(lambda: services.committer.in_flight == 0, services.settings.drain_ms / 1000)
    # The last acks leave at the end of their turn of the loop.
    await asyncio.sleep(0)
    for connection in sync.heartbeat.connections:
        connection.close_drained()
    closed = await _wait_until(lambda: len(sync.heartbeat) == 0, CLOSE_S)
    for connection in sync.heartbeat.connections:
        connection.abort()
    logger.info("drained", connections=len(connections), committed=committed, closed=closed)


def revoke_devices(heartbeat: Heartbeat, devices: frozenset[DeviceId]) -> None:
    """Cut off every connection of devices that their account has revoked."""
    for connection in heartbeat.connections:
        if connection.session.device in devices:
            connection.refuse(DeviceRevokedError())


def sign_out(heartbeat: Heartbeat, account: AccountId) -> None:
    """Take an account from the sessions without a device that proved a secret which holds no more."""
    for connection in heartbeat.connections:
        if connection.session.account == account and not connection.session.device:
            connection.session.account = NOBODY


def end_due_sessions(services: Services) -> None:
    """Close the sessions whose token has ended."""
    for peer in services.session_ends.take_due(services.now_ms()):
        peer.refuse(TokenError("the session's token has ended"))


async def _wait_until(is_done: Callable[[], bool], longest_s: float) -> bool:
    """Wait for something that has no event of its own, for a bounded time; tell whether it came."""
    end = asyncio.get_running_loop().time() + longest_s
    while not is_done():
        if asyncio.get_running_loop().time() >= end:
            return False
        await asyncio.sleep(POLL_S)
    return True
