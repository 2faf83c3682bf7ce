"""The signing key of the account, for 15 minutes after its person gave the password. See spec/sealing.md, section 2."""

from __future__ import annotations

from collections.abc import Callable

from twinlock.client.device_state import AccountKem
from twinlock.errors import SudoNeededError
from twinlock.sealing.identity import AccountKeys

SUDO_MS = 15 * 60_000
CLOCK_BACK_MS_MAX = 60_000
"""How far the clock may be corrected backwards; whoever sets it back further does not gain time by it."""


class Sudo:
    """Holds the account's keys until the time is up; those of a service account are held for good.

    Args:
        now_ms: the corrected time.
        account_kem: the newest half of the keys, which may have been replaced since the other was sealed.
    """

    __slots__ = ("_account_kem", "_is_lasting", "_keys", "_newest_ms", "_now_ms", "_until_ms")

    def __init__(self, now_ms: Callable[[], int], account_kem: AccountKem) -> None:
        self._now_ms = now_ms
        self._account_kem = account_kem
        self._keys: AccountKeys | None = None
        self._until_ms = 0
        self._newest_ms = 0
        self._is_lasting = False

    def grant(self, keys: AccountKeys, *, is_lasting: bool = False) -> None:
        """Hold the keys from now on."""
        self._keys = keys
        self._newest_ms = self._now_ms()
        self._until_ms = self._newest_ms + SUDO_MS
        self._is_lasting = self._is_lasting or is_lasting

    @property
    def is_granted(self) -> bool:
        """Whether the keys are at hand now."""
        self.tend(self._now_ms())
        return self._keys is not None

    def tend(self, now_ms: int) -> None:
        """Forget the keys once their time is up, also if nobody asks for them any more."""
        if self._keys is None or self._is_lasting:
            return
        if now_ms >= self._until_ms or now_ms < self._newest_ms - CLOCK_BACK_MS_MAX:
            self._keys = None
        self._newest_ms = max(self._newest_ms, now_ms)

    def keys(self) -> AccountKeys:
        """Return the keys.

        Raises:
            SudoNeededError: the time is up, or the password was never given.
        """
        if not self.is_granted or self._keys is None:
            raise SudoNeededError
        if self._keys.kem_pk != self._account_kem.kem_pk:
            self._keys = self._keys.with_kem(self._account_kem.kem)
        return self._keys

    def drop(self) -> None:
        """Forget the keys."""
        self._keys = None
