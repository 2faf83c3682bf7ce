"""The life of something that serves: begun once, ended when asked, by a caller or by a signal."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

Serve = Callable[[asyncio.Future[None]], Coroutine[Any, Any, None]]
"""Serves until it is asked to stop; sets the future once it answers."""


class Life:
    """One task that serves. It belongs to no group, so that any task may end it.

    Args:
        name: what the task is called.
        serve: what it does.
    """

    __slots__ = ("_asked", "_name", "_serve", "_task")

    def __init__(self, name: str, serve: Serve) -> None:
        self._name = name
        self._serve = serve
        self._asked = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def begin(self) -> None:
        """Return once it serves; raises what kept it from serving."""
        assert self._task is None
        started: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._task = asyncio.create_task(self._serve(started), name=self._name)
        await asyncio.wait({started, self._task}, return_when=asyncio.FIRST_COMPLETED)
        if not started.done():
            await self._task

    async def asked_to_end(self) -> None:
        """Wait until the end is asked for: for what serves."""
        await self._asked.wait()

    def ask_to_end(self) -> None:
        """Ask for the end, and return at once: for signal handlers."""
        self._asked.set()

    async def ended(self) -> None:
        """Return when it has ended; raises what ended it if that was an error."""
        if self._task is not None:
            await asyncio.shield(self._task)

    async def end(self) -> None:
        """Ask for the end and wait for it. May be called twice."""
        self._asked.set()
        await self.ended()


async def serve_until_signalled(
    start: Callable[[], Awaitable[None]], stop: Callable[[], None], wait_stopped: Callable[[], Awaitable[None]]
) -> None:
    """Start something and serve until SIGINT or SIGTERM."""
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop)
    await start()
    await wait_stopped()
