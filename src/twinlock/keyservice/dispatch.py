"""Does what a batch of a node asks for, each call for itself, and turns what comes of it into outcomes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import assert_never

import msgspec
import structlog

from twinlock.contracts.keys import Asking
from twinlock.errors import InternalError, TwinlockError
from twinlock.keyservice.calls import (
    LOG_PAGE_BYTES_MAX,
    AppendCall,
    LeaseCall,
    NodeCall,
    Outcome,
    PendingCall,
    ReadCall,
    TurnCall,
)
from twinlock.keyservice.metrics import KeyServiceMetrics
from twinlock.keyservice.service import LocalKeyService

logger = structlog.get_logger(__name__)


class BatchDispatcher:
    """Hands calls to the key service under this process's own clock."""

    __slots__ = ("_keys", "_metrics", "_now_ms")

    def __init__(self, keys: LocalKeyService, metrics: KeyServiceMetrics, now_ms: Callable[[], int]) -> None:
        self._keys = keys
        self._metrics = metrics
        self._now_ms = now_ms

    async def run(self, calls: Sequence[NodeCall]) -> list[Outcome]:
        """Return the outcomes in order; what fails, fails alone."""
        # They reach the service's one thread in this order and share its sync of the disk.
        return list(await asyncio.gather(*map(self._outcome, calls)))

    async def _outcome(self, call: NodeCall) -> Outcome:
        try:
            result = await self._result(call)
        except TwinlockError as error:
            self._metrics.called(call, error.code)
            return refusal_of(error)
        except Exception as exc:
            # The top frame of a call: the others of its batch are answered all the same.
            logger.exception("call failed", call=type(call).__name__, error=type(exc).__name__)
            self._metrics.called(call, InternalError.code)
            return refusal_of(InternalError())
        self._metrics.called(call, "ok")
        return Outcome(msgspec.Raw(msgspec.msgpack.encode(result)))

    async def _result(self, call: NodeCall) -> object:
        match call:
            case AppendCall():
                return await self._keys.append_log(call.log, call.expect_seq, call.entries, call.turn)
            case TurnCall():
                return await self._keys.take_turn(call.log)
            case ReadCall():
                return await self._keys.read_log_page(call.log, call.after_seq, LOG_PAGE_BYTES_MAX)
            case PendingCall():
                return await self._keys.create_pending(self._asking(call), call.request)
            case LeaseCall():
                return await self._keys.lease(self._asking(call), call.request)
            case _:
                assert_never(call)

    def _asking(self, call: PendingCall | LeaseCall) -> Asking:
        # The node's word on the time would let it prolong leases.
        return Asking(call.account, call.device, call.incarnation, self._now_ms())


def refusal_of(error: TwinlockError) -> Outcome:
    """Return an error as it travels."""
    return Outcome(code=error.code, detail=error.detail, retry_after_ms=error.retry_after_ms)
