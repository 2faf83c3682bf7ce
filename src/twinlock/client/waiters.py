"""Those who wait for something that has no event of its own, and look again whenever something has happened."""

from __future__ import annotations

import asyncio
from collections.abc import Callable


class Waiters:
    """All of one database."""

    __slots__ = ("_waiting",)

    def __init__(self) -> None:
        self._waiting: list[asyncio.Future[None]] = []

    async def until(self, holds: Callable[[], bool]) -> None:
        """Wait until a condition holds, which is looked at after every `check`."""
        while not holds():
            waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting.append(waiter)
            await waiter

    def check(self) -> None:
        """Have all conditions looked at again."""
        waiting, self._waiting = self._waiting, []
        for waiter in waiting:
            if not waiter.done():
                waiter.set_result(None)

    def fail(self, error: Exception) -> None:
        """End all waiting: what is waited for will not come."""
        waiting, self._waiting = self._waiting, []
        for waiter in waiting:
            if not waiter.done():
                waiter.set_exception(error)
