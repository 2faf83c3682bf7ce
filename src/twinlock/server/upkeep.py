"""What a server does by itself, beside answering: its own affairs, and now and then the chores of all nodes."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import structlog

from twinlock.errors import TwinlockError
from twinlock.server.drain import end_due_sessions
from twinlock.server.neighbours import BEAT_S
from twinlock.server.services import Services

logger = structlog.get_logger(__name__)

TEND_INTERVAL_S = 1.0
LAST_VISITS_S = 1.0
"""How long a server that stops goes on noting who was here."""

CHORES_INTERVALS = 3
"""For how many intervals a node keeps the chores that it does."""

DAY_MS = 86_400_000


def spawn_upkeep(services: Services) -> None:
    """Begin what a server does by itself."""
    spawn, clean_interval_s = services.tasks.spawn, _clean_interval_s(services)
    # What an interrupted shredding has left is deleted as soon as there is a server.
    spawn(_finish_shredding(services), "finish shredding")
    spawn(_for_ever(services, clean_interval_s, _clean), "clean")
    spawn(_for_ever(services, clean_interval_s, _tend_keys), "tend the key service")
    spawn(_for_ever(services, TEND_INTERVAL_S, _end_sessions), "end sessions")
    # One after the other: a storm of devices is noted bit by bit.
    spawn(_for_ever(services, TEND_INTERVAL_S, _write_visits), "note visits")
    if services.is_shared:
        services.neighbours.beat()
        spawn(_for_ever(services, BEAT_S, _beat), "tell other nodes")


async def end_upkeep(services: Services) -> None:
    """Note who was here to the end, and leave to the other nodes what this one did for all."""
    services.neighbours.leave()
    last = services.tasks.spawn(_leave(services), "note the last visits")
    await asyncio.wait({last}, timeout=LAST_VISITS_S)


async def _leave(services: Services) -> None:
    await _write_visits(services)
    try:
        await services.chores.leave()
    except TwinlockError as error:
        logger.warning("chores could not be left", code=error.code)


async def _for_ever(services: Services, interval_s: float, work: Callable[[Services], Awaitable[None]]) -> None:
    """Do something again and again; a time that fails, be it by an error of our own, ends no later one."""
    while True:
        await asyncio.sleep(interval_s)
        try:
            await work(services)
        except TwinlockError as error:
            logger.warning("upkeep failed", work=work.__name__, code=error.code)
        except Exception as exc:
            logger.exception("upkeep failed", work=work.__name__, error=type(exc).__name__)


async def _finish_shredding(services: Services) -> None:
    try:
        if await services.chores.take(_chores_ms(services)):
            await services.changes.finish_shredding()
    except TwinlockError as error:
        logger.warning("shredding could not be finished", code=error.code)


async def _tend_keys(services: Services) -> None:
    """Have the key service do what it must."""
    await services.keys.tend(services.now_ms())


async def _clean(services: Services) -> None:
    """Do the chores of all nodes while they are this one's."""
    if not await services.chores.take(_chores_ms(services)):
        return
    await services.pairings.clean()
    await services.changes.finish_shredding()
    await services.blobs.chores.clean()
    deleted = await services.log.clean(services.now_ms() - int(services.settings.grace_days * DAY_MS))
    services.metrics.cleaned.inc(deleted)


def _clean_interval_s(services: Services) -> float:
    return services.settings.clean_interval_s or 60.0


def _chores_ms(services: Services) -> int:
    return int(1000 * CHORES_INTERVALS * _clean_interval_s(services))


async def _end_sessions(services: Services) -> None:
    """End the sessions whose token has ended."""
    end_due_sessions(services)


async def _beat(services: Services) -> None:
    """Tell the other nodes that this one is alive, and share with them what the engine and the key service can take."""
    services.neighbours.beat()
    services.admission.share(services.neighbours.count, services.now_ms())


async def _write_visits(services: Services) -> None:
    """Write down who was here lately; what is lost with a store that fails is told wrong by some minutes."""
    try:
        await services.pairings.forget_taken(await services.devices.write_visits())
    except TwinlockError as error:
        logger.warning("visits could not be noted", code=error.code)
