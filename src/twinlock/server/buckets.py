"""Rates: token buckets, and quotas of accounts built from them. Pure: the time is handed in."""

from __future__ import annotations

from twinlock.ids import AccountId
from twinlock.server.settings import Settings

ACCOUNTS_KEPT_MAX = 50_000
ADDRESSES_KEPT_MAX = 50_000


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
        if now_ms > self._updated_ms:
            earned = (now_ms - self._updated_ms) * self._rate_per_ms
            self._tokens = min(self._burst, self._tokens + earned)
            self._updated_ms = now_ms
        needed = reserve + min(amount, self._burst - reserve)
        if self._tokens >= needed:
            self._tokens -= amount
            return 0
        return 1 + int((needed - self._tokens) / self._rate_per_ms)


class Pace:
    """The two rates of whoever pushes: changes and bytes, each with two seconds' worth at once."""

    __slots__ = ("_bytes", "_changes")

    def __init__(self, changes_per_s: int, bytes_per_s: int, now_ms: int) -> None:
        self._changes = TokenBucket(changes_per_s, 2 * changes_per_s, now_ms)
        self._bytes = TokenBucket(bytes_per_s, 2 * bytes_per_s, now_ms)

    def take(self, changes: int, size: int, now_ms: int) -> int:
        """Take a push into account and return 0, or return after how many ms to come back."""
        return self._changes.take(changes, now_ms) or self._bytes.take(size, now_ms)


class AccountQuota:
    """The rates of one account, over all its connections."""

    __slots__ = ("blobs", "calls", "entries", "pace", "signals")

    def __init__(self, settings: Settings, now_ms: int) -> None:
        self.pace = Pace(settings.account_changes_per_s, settings.account_bytes_per_s, now_ms)
        # Apart from the pushes: whoever uploads a film goes on writing.
        self.blobs = Pace(settings.calls_per_s, settings.account_blob_bytes_per_s, now_ms)
        self.calls = TokenBucket(settings.calls_per_s, 10 * settings.calls_per_s, now_ms)
        per_hour = settings.log_entries_per_hour
        # Everybody who reads a log has to replay it, and it is never cut.
        self.entries = TokenBucket(per_hour / 3600, per_hour, now_ms)
        self.signals = TokenBucket(settings.signals_per_s, 2 * settings.signals_per_s, now_ms)


class Quotas:
    """The rates of all accounts that were lately here."""

    __slots__ = ("_accounts", "_settings")

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._accounts: dict[AccountId, AccountQuota] = {}

    def of(self, account: AccountId, now_ms: int) -> AccountQuota:
        """Return the rates of an account."""
        quota = self._accounts.get(account)
        if quota is None:
            if len(self._accounts) >= ACCOUNTS_KEPT_MAX:
                # The oldest goes; should it come back it starts with full buckets, which costs little.
                del self._accounts[next(iter(self._accounts))]
            quota = self._accounts[account] = AccountQuota(self._settings, now_ms)
        return quota


class TryLimiter:
    """Bounds tries by a key, such as a name or an address: `per_min` a minute and as many at once."""

    __slots__ = ("_buckets", "_per_min")

    def __init__(self, per_min: int) -> None:
        self._per_min = per_min
        self._buckets: dict[str, TokenBucket] = {}

    def take(self, key: str, now_ms: int) -> int:
        """Count a try and return 0, or return after how many ms to come back."""
        if not self._per_min:
            return 0
        bucket = self._buckets.get(key)
        if bucket is None:
            if len(self._buckets) >= ADDRESSES_KEPT_MAX:
                del self._buckets[next(iter(self._buckets))]
            bucket = self._buckets[key] = TokenBucket(self._per_min / 60, self._per_min, now_ms)
        return bucket.take(1, now_ms)
