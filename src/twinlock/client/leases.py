"""Asking for service keys when they are due, and not more often than that. See spec/sealing.md, section 7."""

from __future__ import annotations

import logging
from enum import Enum

from twinlock.client.connection import Connection
from twinlock.client.device_context import DeviceContext
from twinlock.client.space_runtime import SpaceRuntime
from twinlock.errors import LeaseRefusedError, TwinlockError
from twinlock.ids import Incarnation
from twinlock.protocol.frames import Leases

logger = logging.getLogger(__name__)

LEASE_RETRY_MS = 30_000


class LeaseNews(Enum):
    """What an answer of the key service brought."""

    KEYS = "keys"
    LOG_GROWN = "log grown"
    NOTHING = "nothing"


class LeaseKeeper:
    """Keeps the leases of all spaces alive."""

    __slots__ = ("_connection", "_context")

    def __init__(self, context: DeviceContext, connection: Connection) -> None:
        self._context = context
        self._connection = connection

    def renew(self, runtime: SpaceRuntime) -> None:
        """Ask for the keys that are missing or end soon, if it is time to."""
        session = self._connection.session
        now_ms = self._context.clock.now_ms()
        if session is None or runtime.lease_nonce or now_ms < runtime.lease_retry_ms:
            return
        wanted = runtime.keyring.wanted_epochs(now_ms)
        if wanted:
            runtime.lease_nonce = session.request_lease(runtime.space, wanted, now_ms)
            self._connection.output()

    def take(self, runtime: SpaceRuntime, frame: Leases, incarnation: Incarnation) -> LeaseNews:
        """Take in an answer; a refusal is asked about again later."""
        nonce, runtime.lease_nonce = runtime.lease_nonce, b""
        now_ms = self._context.clock.now_ms()
        try:
            has_grown = runtime.keyring.on_leases(frame, nonce, incarnation, now_ms)
        except TwinlockError as exc:
            logger.warning("no lease", extra={"space": runtime.space.hex(), "code": exc.code})
            self._connection.last_error = exc
            runtime.is_refused = isinstance(exc, LeaseRefusedError)
            runtime.lease_retry_ms = now_ms + max(exc.retry_after_ms, LEASE_RETRY_MS)
            return LeaseNews.NOTHING
        runtime.is_refused = False
        return LeaseNews.LOG_GROWN if has_grown or not runtime.keyring.has_member_key else LeaseNews.KEYS

    def forget_requests(self, runtime: SpaceRuntime) -> None:
        """The connection ended: what was asked is not answered any more."""
        runtime.lease_nonce = b""
        runtime.lease_retry_ms = 0
