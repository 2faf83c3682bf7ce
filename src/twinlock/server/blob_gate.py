"""How much of the parts of blobs is taken on: bytes per second of an account, and memory over all connections. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from twinlock.errors import OverloadedError, QuotaExceededError
from twinlock.ids import AccountId
from twinlock.server.buckets import Quotas

ACCOUNT_SHARE = 0.5
"""The share of the memory that one account may take, so that it cannot shut the others out."""

RETRY_AFTER_MS = 1_000


class BlobGate:
    """Lets requests for parts in.

    Args:
        quotas: the rates of accounts.
        bytes_max: the memory that all requests together may take; 0 means no limit.
        on_change: is told how much they take.
    """

    __slots__ = ("_accounts", "_bytes_max", "_on_change", "_quotas", "_taken_bytes")

    def __init__(self, quotas: Quotas, bytes_max: int, on_change: Callable[[float], None]) -> None:
        self._quotas = quotas
        self._bytes_max = bytes_max
        self._on_change = on_change
        self._accounts: dict[AccountId, int] = {}
        self._taken_bytes = 0

    def count_request(self, account: AccountId, now_ms: int) -> None:
        """Take a request into account, whatever comes of it: what is refused costs looking up too.

        Raises:
            QuotaExceededError: the account is over its rate.
        """
        self._take(self._quotas.of(account, now_ms).blobs.changes.take(1, now_ms))

    def count(self, account: AccountId, size: int, now_ms: int) -> None:
        """Take the bytes of a request into account.

        Raises:
            QuotaExceededError: the account is over its rate.
        """
        self._take(self._quotas.of(account, now_ms).blobs.sizes.take(size, now_ms))

    def _take(self, retry_after_ms: int) -> None:
        if retry_after_ms:
            raise QuotaExceededError(retry_after_ms=retry_after_ms)

    @contextmanager
    def lend(self, account: AccountId, size: int) -> Iterator[None]:
        """Lend memory to a request.

        Raises:
            OverloadedError: too much is lent already, to all or to this account. Alone a request is always served.
        """
        own = self._accounts.get(account, 0)
        if self._bytes_max:
            is_full = self._taken_bytes and self._taken_bytes + size > self._bytes_max
            if is_full or (own and own + size > self._bytes_max * ACCOUNT_SHARE):
                raise OverloadedError("many parts are on their way", retry_after_ms=RETRY_AFTER_MS)
        self._change(account, size)
        try:
            yield
        finally:
            self._change(account, -size)

    def _change(self, account: AccountId, size: int) -> None:
        self._taken_bytes += size
        own = self._accounts.get(account, 0) + size
        if own:
            self._accounts[account] = own
        else:
            self._accounts.pop(account, None)
        self._on_change(self._taken_bytes)
