"""What a server does by itself, beside answering: its own affairs, and now and then the chores of all nodes."""

from __future__ import annotations

import asyncio

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
    services.tasks.spawn(_clean_for_ever(services), "clean")
    services.tasks.spawn(_end_sessions_for_ever(services), "end sessions")
    services.tasks.spawn(_note_visits_for_ever(services), "note visits")
    if services.is_shared:
        services.tasks.spawn(_beat_for_ever(services), "tell other nodes")


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


async def _clean_for_ever(services: Services) -> None:
    """Do the chores of all nodes while they are this one's, and have the key service do what it must."""
    interval_s = services.settings.clean_interval_s or 60.0
    # What an interrupted shredding has left is deleted as soon as there is a server.
    await _finish_shredding(services, interval_s)
    while True:
        await asyncio.sleep(interval_s)
        try:
            await _clean(services, interval_s)
        except TwinlockError as error:
            logger.warning("cleaning failed", code=error.code)
        try:
            await services.keys.tend(services.now_ms())
        except TwinlockError as error:
            logger.warning("the key service could not be tended", code=error.code)


async def _finish_shredding(services: Services, interval_s: float) -> None:
    try:
        if await services.chores.take(_chores_ms(interval_s)):
            await services.changes.finish_shredding()
    except TwinlockError as error:
        logger.warning("shredding could not be finished", code=error.code)


async def _clean(services: Services, interval_s: float) -> None:
    if not await services.chores.take(_chores_ms(interval_s)):
        return
    await services.pairings.clean()
    await services.changes.finish_shredding()
    await services.blobs.chores.clean()
    deleted = await services.log.clean(services.now_ms() - int(services.settings.grace_days * DAY_MS))
    services.metrics.cleaned.inc(deleted)


def _chores_ms(interval_s: float) -> int:
    return int(1000 * CHORES_INTERVALS * interval_s)


async def _end_sessions_for_ever(services: Services) -> None:
    """End the sessions whose token has ended."""
    while True:
        await asyncio.sleep(TEND_INTERVAL_S)
        end_due_sessions(services)


async def _note_visits_for_ever(services: Services) -> None:
    """Write down who was here, one after the other: a storm of devices is noted bit by bit."""
    while True:
        await asyncio.sleep(TEND_INTERVAL_S)
        await _write_visits(services)


async def _beat_for_ever(services: Services) -> None:
    """Tell the other nodes that this one is alive, and share with them what the engine and the key service can take."""
    while True:
        services.neighbours.beat()
        services.admission.share(services.neighbours.count, services.now_ms())
        await asyncio.sleep(BEAT_S)


async def _write_visits(services: Services) -> None:
    """Write down who was here lately; what is lost with a store that fails is told wrong by some minutes."""
    try:
        await services.pairings.forget_taken(await services.devices.write_visits())
    except TwinlockError as error:
        logger.warning("visits could not be noted", code=error.code)
