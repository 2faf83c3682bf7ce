"""What takes calls to the server and nobody waits for: done one after the other, beside the connection."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from twinlock.errors import TwinlockError

logger = logging.getLogger(__name__)

Chore = Callable[[], Awaitable[None]]


class Chores:
    """Named chores, each of which waits once at most; one that failed comes again with the next connection.

    Args:
        on_failure: told each failure.
        on_idle: called when everything that waited was done.
    """

    __slots__ = ("_is_busy", "_missed", "_on_failure", "_on_idle", "_ready", "_waiting")

    def __init__(self, on_failure: Callable[[TwinlockError], None], on_idle: Callable[[], None]) -> None:
        self._on_failure = on_failure
        self._on_idle = on_idle
        self._waiting: dict[str, Chore] = {}
        self._missed: dict[str, Chore] = {}
        self._ready = asyncio.Event()
        self._is_busy = False

    @property
    def is_idle(self) -> bool:
        """Whether nothing waits and nothing is being done."""
        return not (self._waiting or self._is_busy)

    def add(self, name: str, chore: Chore) -> None:
        """Do a chore soon, unless one of that name waits already."""
        self._waiting.setdefault(name, chore)
        self._ready.set()

    def add_missed(self) -> None:
        """Try again what failed."""
        missed, self._missed = self._missed, {}
        for name, chore in missed.items():
            self.add(name, chore)

    async def run(self) -> None:
        """Do what comes, for ever."""
        while True:
            await self._ready.wait()
            self._ready.clear()
            while self._waiting:
                name = next(iter(self._waiting))
                await self._do(name, self._waiting.pop(name))
            self._on_idle()

    async def _do(self, name: str, chore: Chore) -> None:
        self._is_busy = True
        try:
            await chore()
        except TwinlockError as exc:
            # It comes again with the next connection, or with the next sign that it is needed.
            if not name.startswith("cut "):
                self._missed[name] = chore
            logger.info("a chore failed", extra={"chore": name, "code": exc.code})
            self._on_failure(exc)
        finally:
            self._is_busy = False
