"""The time at which envelopes are received: the server's clock, which never goes back while the process runs.

A device is told the time when it connects and goes on from there. Were the clock set back under it, what it writes
would seem to every reader to come from the future. See docs/internals/decisions/0031-receive-times-never-go-back.md.
"""

from __future__ import annotations

from collections.abc import Callable


class ReceiveClock:
    """Follows a clock forward; where it is set back, goes on from the later time at the pace of one that nobody sets.

    Args:
        now_ms: the clock, in ms since 1970.
        steady_s: seconds from any moment on, by a clock that nobody sets.
    """

    __slots__ = ("_began_ms", "_now_ms", "_steady_s")

    def __init__(self, now_ms: Callable[[], int], steady_s: Callable[[], float]) -> None:
        self._now_ms = now_ms
        self._steady_s = steady_s
        self._began_ms = now_ms() - int(steady_s() * 1000)

    def __call__(self) -> int:
        """Return the receive time of what comes now."""
        passed_ms = int(self._steady_s() * 1000)
        self._began_ms = max(self._began_ms, self._now_ms() - passed_ms)
        return self._began_ms + passed_ms
