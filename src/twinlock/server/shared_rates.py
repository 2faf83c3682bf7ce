"""Rates that hold over all nodes, roughly: each node tells the others what was used with it. Pure.

Whoever spreads over the nodes is so bounded as if there were one, but for what is used between two tellings, and for
amounts too small to be told by themselves, which are told with what comes after them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import inf

import msgspec

TOLD_SHARE = 0.005
"""The share of a bucket's burst from which on its use is told."""

SPENT_TOLD_MAX = 10_000
"""Buckets told of at once; the others wait for the next time."""


class Spent(msgspec.Struct, frozen=True, array_like=True):
    """How much of one rate was used: whose it is, by its kind and key."""

    kind: str
    key: bytes
    amount: float


class TokenBucket:
    """Grants `rate_per_s` on average and `burst` at once; a rate of 0 grants everything.

    A piece larger than the burst passes when the bucket is full; its debt is waited for by the next.
    """

    __slots__ = ("_burst", "_rate_per_ms", "_tokens", "_updated_ms")

    def __init__(self, rate_per_s: float, burst: float, now_ms: int) -> None:
        self._rate_per_ms = rate_per_s / 1000
        self._burst = burst
        self._tokens = burst
        self._updated_ms = now_ms

    def take(self, amount: float, now_ms: int, reserve: float = 0.0) -> int:
        """Take and return 0, or take nothing and return after how many ms to come back."""
        if not self._rate_per_ms:
            return 0
        self._earn(now_ms)
        needed = reserve + min(amount, self._burst - reserve)
        if self._tokens >= needed:
            self._tokens -= amount
            return 0
        return 1 + int((needed - self._tokens) / self._rate_per_ms)

    def charge(self, amount: float, now_ms: int) -> None:
        """Take what was used elsewhere; the debt is at most one burst."""
        if self._rate_per_ms:
            self._earn(now_ms)
            self._tokens = max(self._tokens - amount, -self._burst)

    def _earn(self, now_ms: int) -> None:
        # A clock that was set back grants nothing by that; from there on the rate holds as before.
        earned = max(now_ms - self._updated_ms, 0) * self._rate_per_ms
        self._tokens = min(self._burst, self._tokens + earned)
        self._updated_ms = now_ms


class SharedBucket(TokenBucket):
    """A bucket whose use is told to other nodes."""

    __slots__ = ("_key", "_kind", "_rates", "_spent")

    def __init__(self, rates: SharedRates, kind: str, key: bytes, rate_per_s: float, burst: float, now_ms: int) -> None:
        super().__init__(rate_per_s, burst, now_ms)
        self._rates = rates
        self._kind = kind
        self._key = key
        self._spent = 0.0

    def take(self, amount: float, now_ms: int, reserve: float = 0.0) -> int:
        """Take and return 0, or take nothing and return after how many ms to come back."""
        retry_after_ms = super().take(amount, now_ms, reserve)
        if not retry_after_ms and self._rates.is_told:
            self._spent += amount
            if self._spent >= self._burst * TOLD_SHARE:
                self._rates.due[(self._kind, self._key)] = self
        return retry_after_ms

    def take_spent(self) -> Spent:
        """Return what was used since the last time."""
        spent, self._spent = self._spent, 0.0
        return Spent(self._kind, self._key, spent)


Find = Callable[[bytes, int], TokenBucket | None]
"""Returns the bucket of a key at a time."""


class SharedRates:
    """The rates that nodes tell one another of.

    Args:
        now_ms: the clock.
        is_told: whether there can be other nodes.
    """

    __slots__ = ("_finders", "due", "is_told", "now_ms")

    def __init__(self, now_ms: Callable[[], int] = lambda: 0, *, is_told: bool = False) -> None:
        self.now_ms = now_ms
        self._finders: dict[str, Find] = {}
        self.is_told = is_told
        self.due: dict[tuple[str, bytes], SharedBucket] = {}
        """The buckets of which there is enough to tell."""

    def bucket(self, kind: str, key: bytes, rate_per_s: float, burst: float, now_ms: int) -> TokenBucket:
        """Make a bucket, full."""
        return SharedBucket(self, kind, key, rate_per_s, burst, now_ms)

    def on(self, kind: str, find: Find) -> None:
        """Have buckets of a kind found by `find` when other nodes tell of them."""
        self._finders[kind] = find

    def take_spent(self) -> list[Spent]:
        """Return what is to be told, once."""
        names = list(self.due)[:SPENT_TOLD_MAX]
        return [self.due.pop(name).take_spent() for name in names]

    def charge(self, told: Sequence[Spent]) -> None:
        """Take what another node told into account."""
        now_ms = self.now_ms()
        for spent in told:
            # An amount that takes nothing would give something back, or spoil the bucket.
            find = self._finders.get(spent.kind) if 0 < spent.amount < inf else None
            bucket = find(spent.key, now_ms) if find is not None else None
            if bucket is not None:
                bucket.charge(spent.amount, now_ms)
