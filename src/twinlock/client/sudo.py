"""The signing key of the account, for 15 minutes after its person gave the password. See spec/sealing.md, section 2."""

from __future__ import annotations

from collections.abc import Callable

from twinlock.errors import SudoNeededError
from twinlock.sealing.identity import AccountKeys

SUDO_MS = 15 * 60_000


class Sudo:
    """Holds the account's keys until the time is up.

    Args:
        now_ms: the corrected time.
    """

    __slots__ = ("_keys", "_now_ms", "_until_ms")

    def __init__(self, now_ms: Callable[[], int]) -> None:
        self._now_ms = now_ms
        self._keys: AccountKeys | None = None
        self._until_ms = 0

    def grant(self, keys: AccountKeys) -> None:
        """Hold the keys from now on."""
        self._keys = keys
        self._until_ms = self._now_ms() + SUDO_MS

    def keys(self) -> AccountKeys:
        """Return the keys.

        Raises:
            SudoNeededError: the time is up, or the password was never given.
        """
        if self._now_ms() >= self._until_ms:
            self._keys = None
        if self._keys is None:
            raise SudoNeededError
        return self._keys

    def drop(self) -> None:
        """Forget the keys."""
        self._keys = None
