"""Tasks that belong to the server: all in one group, none can fail unseen, none outlives it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import structlog

logger = structlog.get_logger(__name__)


class Tasks:
    """Spawns into one TaskGroup; a failure ends its own task only, is logged once, and is told to who asked."""

    __slots__ = ("_group",)

    def __init__(self, group: asyncio.TaskGroup) -> None:
        self._group = group

    def spawn(
        self, work: Coroutine[Any, Any, None], name: str, on_failure: Callable[[Exception], None] | None = None
    ) -> asyncio.Task[None]:
        """Run work beside the caller."""
        return self._group.create_task(_guard(work, name, on_failure))


async def _guard(work: Coroutine[Any, Any, None], name: str, on_failure: Callable[[Exception], None] | None) -> None:
    try:
        await work
    except Exception as exc:
        logger.exception("task failed", task=name, error=type(exc).__name__)
        if on_failure is not None:
            on_failure(exc)
