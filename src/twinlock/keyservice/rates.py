"""How often a device may ask: a token bucket each."""

from __future__ import annotations

from twinlock.errors import RateLimitedError
from twinlock.ids import DeviceId

DEVICES_KEPT_MAX = 50_000
"""Buckets in memory; the longest untouched are dropped, and have long been full again by then."""


class RateLimit:
    """`burst` requests at once, then `per_second`."""

    __slots__ = ("_buckets", "_burst", "_per_second")

    def __init__(self, burst: int, per_second: float) -> None:
        self._burst = burst
        self._per_second = per_second
        self._buckets: dict[DeviceId, tuple[float, int]] = {}

    def take(self, device: DeviceId, now_ms: int) -> None:
        """Count a request.

        Raises:
            RateLimitedError: there were too many; nothing was counted.
        """
        tokens, since_ms = self._buckets.pop(device, (float(self._burst), now_ms))
        tokens = min(self._burst, tokens + max(0, now_ms - since_ms) * self._per_second / 1000)
        allowed = tokens >= 1
        self._buckets[device] = (tokens - 1 if allowed else tokens, now_ms)
        if len(self._buckets) > DEVICES_KEPT_MAX:
            del self._buckets[next(iter(self._buckets))]
        if not allowed:
            raise RateLimitedError(retry_after_ms=int((1 - tokens) / self._per_second * 1000) + 1)
