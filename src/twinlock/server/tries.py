"""How often something may be tried by whoever asks: by address, name or account. Pure: the time is handed in."""

from __future__ import annotations

from collections.abc import Callable

from twinlock.errors import RateLimitedError
from twinlock.server.buckets import TryLimiter
from twinlock.server.shared_rates import SharedRates


class Tries:
    """Counts tries, and refuses those over so many a minute; 0 means no limit.

    With `rates` they are counted over all nodes, under a `kind` of their own.
    """

    __slots__ = ("_limiter", "_now_ms")

    def __init__(
        self, per_min: int, now_ms: Callable[[], int], rates: SharedRates | None = None, kind: str = ""
    ) -> None:
        self._limiter = TryLimiter(per_min, rates, kind)
        self._now_ms = now_ms

    def count(self, key: str) -> None:
        """Count a try of a name, an address or the like.

        Raises:
            RateLimitedError: there were too many.
        """
        retry_after_ms = self._limiter.take(key, self._now_ms())
        if retry_after_ms:
            raise RateLimitedError(retry_after_ms=retry_after_ms)
