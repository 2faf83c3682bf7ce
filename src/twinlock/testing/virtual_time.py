"""An event loop for simulations: its clock jumps to the next timer when nothing is ready, so a day takes no time."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Callable, Coroutine
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

T = TypeVar("T")


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """Runs callbacks as asyncio does. Nothing in it may wait for another thread or for a socket."""

    def __init__(self) -> None:
        self._now_s = 0.0
        super().__init__(_JumpingSelector(self._advance))
        self.set_default_executor(_InlineExecutor())

    def time(self) -> float:
        """Return the virtual time, in s since the loop was made."""
        return self._now_s

    def _advance(self, seconds: float) -> None:
        self._now_s += seconds


class _JumpingSelector(selectors.SelectSelector):
    """Never waits: what asyncio would wait for passes at once."""

    def __init__(self, advance: Callable[[float], None]) -> None:
        super().__init__()
        self._advance = advance

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """Let the time pass that asyncio wants to wait.

        Raises:
            RuntimeError: no timer is set, so that nothing would ever happen again.
        """
        ready = super().select(0)
        if ready or timeout == 0:
            return ready
        if timeout is None:
            raise RuntimeError("everything waits, and nothing is left that could happen")
        self._advance(max(timeout, 0.0))
        return []


class _InlineExecutor(ThreadPoolExecutor):
    """Does at once what was meant for a thread, of which it starts none."""

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        """Run a function and return its outcome."""
        future: Future[T] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as exc:
            future.set_exception(exc)
        return future


def run_in_virtual_time(main: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine to its end in a loop of its own."""
    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        return runner.run(main)
