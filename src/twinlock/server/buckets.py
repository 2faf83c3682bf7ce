"""Rates: quotas of accounts and limits of tries, built from token buckets. Pure: the time is handed in."""

from __future__ import annotations

from functools import partial

from twinlock.ids import AccountId
from twinlock.server.settings import Settings
from twinlock.server.shared_rates import SharedRates, TokenBucket

ACCOUNTS_KEPT_MAX = 50_000
KEY_BYTES_MAX = 64
"""An account, and what may stand before it."""

ADDRESSES_KEPT_MAX = 50_000


class Pace:
    """The two rates of whoever pushes: changes and bytes, each with two seconds' worth at once."""

    __slots__ = ("changes", "sizes")

    def __init__(
        self,
        changes_per_s: int,
        bytes_per_s: int,
        now_ms: int,
        rates: SharedRates | None = None,
        kind: str = "",
        key: bytes = b"",
    ) -> None:
        rates = rates or SharedRates()
        self.changes = rates.bucket(f"{kind} changes", key, changes_per_s, 2 * changes_per_s, now_ms)
        self.sizes = rates.bucket(f"{kind} bytes", key, bytes_per_s, 2 * bytes_per_s, now_ms)

    def take(self, changes: int, size: int, now_ms: int) -> int:
        """Take a push into account and return 0, or return after how many ms to come back."""
        return self.changes.take(changes, now_ms) or self.sizes.take(size, now_ms)


class AccountQuota:
    """The rates of one account, over all its connections."""

    __slots__ = ("blobs", "calls", "entries", "pace", "signals")

    def __init__(self, settings: Settings, now_ms: int, rates: SharedRates | None = None, key: bytes = b"") -> None:
        rates = rates or SharedRates()
        changes, sizes = settings.account_changes_per_s, settings.account_bytes_per_s
        self.pace = Pace(changes, sizes, now_ms, rates, "account", key)
        # Apart from the pushes: whoever uploads a film goes on writing.
        self.blobs = Pace(settings.calls_per_s, settings.account_blob_bytes_per_s, now_ms, rates, "blob", key)
        self.calls = rates.bucket("calls", key, settings.calls_per_s, 10 * settings.calls_per_s, now_ms)
        per_hour = settings.log_entries_per_hour
        # Everybody who reads a log has to replay it, and it is never cut.
        self.entries = rates.bucket("entries", key, per_hour / 3600, per_hour, now_ms)
        self.signals = rates.bucket("signals", key, settings.signals_per_s, 2 * settings.signals_per_s, now_ms)

    def buckets(self) -> dict[str, TokenBucket]:
        """Return every bucket by its kind."""
        return {
            "account changes": self.pace.changes,
            "account bytes": self.pace.sizes,
            "blob changes": self.blobs.changes,
            "blob bytes": self.blobs.sizes,
            "calls": self.calls,
            "entries": self.entries,
            "signals": self.signals,
        }


class Quotas:
    """The rates of all accounts that were lately here, or elsewhere and heavy."""

    __slots__ = ("_accounts", "_rates", "_settings")

    def __init__(self, settings: Settings, rates: SharedRates | None = None) -> None:
        self._settings = settings
        self._rates = rates
        self._accounts: dict[AccountId, AccountQuota] = {}
        if rates is not None:
            for kind in AccountQuota(settings, 0).buckets():
                rates.on(kind, partial(self._bucket, kind))

    def _bucket(self, kind: str, key: bytes, now_ms: int) -> TokenBucket | None:
        if len(key) > KEY_BYTES_MAX:
            return None
        return self.of(AccountId(key), now_ms).buckets()[kind]

    def of(self, account: AccountId, now_ms: int) -> AccountQuota:
        """Return the rates of an account."""
        quota = self._accounts.get(account)
        if quota is None:
            if len(self._accounts) >= ACCOUNTS_KEPT_MAX:
                # The oldest goes; should it come back it starts with full buckets, which costs little.
                del self._accounts[next(iter(self._accounts))]
            quota = self._accounts[account] = AccountQuota(self._settings, now_ms, self._rates, account)
        return quota


class TryLimiter:
    """Bounds tries by a key, such as a name or an address: `per_min` a minute and as many at once."""

    __slots__ = ("_buckets", "_kind", "_per_min", "_rates")

    def __init__(self, per_min: int, rates: SharedRates | None = None, kind: str = "") -> None:
        self._per_min = per_min
        self._rates = rates or SharedRates()
        self._kind = kind
        self._buckets: dict[str, TokenBucket] = {}
        self._rates.on(kind, lambda key, now_ms: self._bucket(key.decode(errors="replace"), now_ms))

    def take(self, key: str, now_ms: int) -> int:
        """Count a try and return 0, or return after how many ms to come back."""
        return self._bucket(key, now_ms).take(1, now_ms) if self._per_min else 0

    def _bucket(self, key: str, now_ms: int) -> TokenBucket:
        bucket = self._buckets.get(key)
        if bucket is None:
            if len(self._buckets) >= ADDRESSES_KEPT_MAX:
                del self._buckets[next(iter(self._buckets))]
            rate, name = self._per_min / 60, key.encode()
            bucket = self._buckets[key] = self._rates.bucket(self._kind, name, rate, self._per_min, now_ms)
        return bucket
