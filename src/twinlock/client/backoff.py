"""How long to wait before the next connection: exponential with full jitter. See spec/protocol.md, section 7."""

from __future__ import annotations

from collections.abc import Callable

from twinlock.protocol.limits import RECONNECT_DELAY_MS_MAX, RECONNECT_STABLE_MS

FIRST_DELAY_MS_MAX = 250


class Backoff:
    """Delays that double in their bound up to 30 s, and start over after a minute of a stable connection.

    Args:
        chance: returns a number from 0 up to, not including, 1.
    """

    __slots__ = ("_chance", "_connected_ms", "_delay_ms_max")

    def __init__(self, chance: Callable[[], float]) -> None:
        self._chance = chance
        self._delay_ms_max = FIRST_DELAY_MS_MAX
        self._connected_ms: int | None = None

    def connected(self, monotonic_ms: int) -> None:
        """Note that a connection stands from now on."""
        self._connected_ms = monotonic_ms

    def next_delay_ms(self, monotonic_ms: int, retry_after_ms: int = 0) -> int:
        """Return how long to wait after a connection failed or ended.

        What the server asked for is a floor: the jitter comes on top, so that those who were sent away together do
        not come back together.
        """
        if self._connected_ms is not None and monotonic_ms - self._connected_ms >= RECONNECT_STABLE_MS:
            self._delay_ms_max = FIRST_DELAY_MS_MAX
        self._connected_ms = None
        delay_ms = int(self._delay_ms_max * self._chance())
        self._delay_ms_max = min(self._delay_ms_max * 2, RECONNECT_DELAY_MS_MAX)
        return retry_after_ms + delay_ms
