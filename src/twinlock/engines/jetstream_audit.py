"""Tails compared with their streams in turn: a lost live message that nothing follows breaks no chain."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping

from twinlock.engines.jetstream_api import Api
from twinlock.engines.jetstream_format import Names, partition_of
from twinlock.engines.jetstream_tail import SpaceTail
from twinlock.errors import StoreError, TwinlockError
from twinlock.ids import SpaceId

logger = logging.getLogger(__name__)

AUDIT_SECONDS = 1.0
AUDIT_SPACES = 256


class Audit:
    """Looks after tails that follow their spaces.

    Args:
        found_behind: called with a tail whose stream has gone further; its `wanted` says how far.
    """

    __slots__ = ("_api", "_found_behind", "_leaders", "_names", "_place", "_tails")

    def __init__(
        self, api: Api, names: Names, tails: Mapping[SpaceId, SpaceTail], found_behind: Callable[[SpaceTail], None]
    ) -> None:
        self._api = api
        self._names = names
        self._tails = tails
        self._found_behind = found_behind
        self._leaders: dict[int, str] = {}
        self._place = 0

    async def run(self) -> None:
        """Look at some every second, until cancelled."""
        while True:
            await asyncio.sleep(AUDIT_SECONDS)
            try:
                await self._look()
            except TwinlockError as error:
                logger.info("the streams cannot be looked at", extra={"code": error.code})
            except Exception:
                logger.exception("looking at the streams failed")

    async def _look(self) -> None:
        followed = [tail for tail in self._tails.values() if tail.stop_live is not None and tail.is_loaded]
        by_partition: dict[int, list[SpaceTail]] = {}
        for tail in followed:
            by_partition.setdefault(partition_of(tail.space), []).append(tail)
        for partition, tails in by_partition.items():
            await self._look_at_leader(partition, tails)
        if followed:
            self._place %= len(followed)
            some = followed[self._place : self._place + AUDIT_SPACES]
            self._place += AUDIT_SPACES
            for partition in {partition_of(tail.space) for tail in some}:
                await self._compare(partition, [tail for tail in some if partition_of(tail.space) == partition])

    async def _look_at_leader(self, partition: int, tails: list[SpaceTail]) -> None:
        try:
            info = await self._api.call(f"STREAM.INFO.{self._names.log_stream(partition)}", {}, AUDIT_SECONDS)
        except StoreError as error:
            # No leader now, or no such partition: the others are looked at all the same.
            logger.info("a stream cannot be looked at", extra={"partition": partition, "detail": error.detail})
            return
        leader = (info.get("cluster") or {}).get("leader", "")
        if self._leaders.get(partition, leader) != leader:
            # The old one may have died between storing a message and telling of it.
            await self._compare(partition, tails)
        self._leaders[partition] = leader

    async def _compare(self, partition: int, tails: list[SpaceTail]) -> None:
        """Compare tails with what any replica has last."""
        for first in range(0, len(tails), AUDIT_SPACES):
            some = {self._names.log_subject(tail.space): tail for tail in tails[first : first + AUDIT_SPACES]}
            request = {"multi_last": list(some), "batch": AUDIT_SPACES}
            for message in await self._api.page(self._names.log_stream(partition), request):
                tail = some.get(message.headers.get("Nats-Subject", ""))
                number = message.number("Nats-Sequence")
                if tail is not None and number > tail.last:
                    tail.wanted = max(tail.wanted, number)
                    self._found_behind(tail)
