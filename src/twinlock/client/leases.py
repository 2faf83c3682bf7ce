"""Asking for service keys when they are due, and not more often than that. See spec/sealing.md, section 7."""

from __future__ import annotations

import logging
from enum import Enum

from twinlock.client.connection import Connection
from twinlock.client.device_context import DeviceContext
from twinlock.client.space_runtime import SpaceRuntime
from twinlock.errors import (
    LeaseRefusedError,
    LogForkError,
    RemovedError,
    ShreddedError,
    TwinlockError,
    UnknownSpaceError,
)
from twinlock.ids import Incarnation
from twinlock.protocol.frames import Leases

logger = logging.getLogger(__name__)

RETRY_MS_FIRST = 5_000
RETRY_MS_MAX = 10 * 60_000
"""A lease that was refused, or that nobody could give, is asked for again after half of this at least, at most all."""

REFUSALS = (LeaseRefusedError, RemovedError, ShreddedError, UnknownSpaceError)


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
        if runtime.is_sender:
            return
        if session is None or runtime.end is not None or runtime.lease_nonce or self._is_early(runtime, now_ms):
            return
        wanted = runtime.keyring.wanted_epochs(now_ms)
        if wanted:
            runtime.keyring.note_asked()
            runtime.lease_nonce = session.request_lease(runtime.space, wanted, now_ms)
            self._connection.output()

    @staticmethod
    def _is_early(runtime: SpaceRuntime, now_ms: int) -> bool:
        # A clock that was ahead and has been corrected must not make anybody wait for days.
        return now_ms < runtime.lease_retry_ms <= now_ms + 2 * RETRY_MS_MAX

    def take(self, runtime: SpaceRuntime, frame: Leases, incarnation: Incarnation) -> LeaseNews:
        """Take in an answer; a refusal is asked about again later."""
        nonce, runtime.lease_nonce = runtime.lease_nonce, b""
        now_ms = self._context.clock.now_ms()
        try:
            outcome = runtime.keyring.on_leases(frame, nonce, incarnation, now_ms)
        except TwinlockError as exc:
            logger.warning("no lease", extra={"space": runtime.space.hex(), "code": exc.code})
            self._connection.last_error = exc
            runtime.is_refused = isinstance(exc, REFUSALS)
            told_ms = min(exc.retry_after_ms, RETRY_MS_MAX)
            runtime.lease_retry_ms = now_ms + told_ms + self._delay_ms(runtime.lease_failures)
            runtime.lease_failures += 1
            return LeaseNews.NOTHING
        self.ask_anew(runtime)
        if outcome.is_stale:
            # The keys are good. But others may get keys whom a signed log has shut out since.
            logger.error("the key service stands on older logs", extra={"space": runtime.space.hex()})
            self._connection.last_error = LogForkError("the key service stands on older logs than this device")
        return LeaseNews.LOG_GROWN if outcome.has_grown or not runtime.keyring.has_member_key else LeaseNews.KEYS

    def forget_requests(self, runtime: SpaceRuntime) -> None:
        """The connection ended: what was asked is not answered any more.

        The delay stands: when a key service comes back, or a server before it, all devices must not ask at once.
        """
        runtime.lease_nonce = b""

    def ask_anew(self, runtime: SpaceRuntime) -> None:
        """Something has changed for the better: ask without a delay when a key is missing."""
        runtime.is_refused = False
        runtime.lease_failures = 0
        runtime.lease_retry_ms = 0

    def _delay_ms(self, failures: int) -> int:
        delay_ms_max = min(RETRY_MS_FIRST << min(failures, 16), RETRY_MS_MAX)
        # Who was refused together does not come back together.
        return delay_ms_max // 2 + (int.from_bytes(self._context.entropy(4), "big") * delay_ms_max >> 33)
