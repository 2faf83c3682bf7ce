"""This device's time: its own clock, corrected by what the server tells, and never believed when it runs backwards."""

from __future__ import annotations

from collections.abc import Callable

SET_BACK_MS_MAX = 60_000
"""How far a clock may lie behind the newest trusted time before it counts as set back."""


class DeviceClock:
    """Corrected time, and the newest time that this device knows to have passed.

    Args:
        wall_ms: the device's own clock, in ms since 1970.
        offset_ms: what the last session found to be missing from that clock.
        trusted_ms: the newest trusted time that was kept.
    """

    __slots__ = ("_offset_ms", "_trusted_ms", "_wall_ms")

    def __init__(self, wall_ms: Callable[[], int], offset_ms: int = 0, trusted_ms: int = 0) -> None:
        self._wall_ms = wall_ms
        self._offset_ms = offset_ms
        self._trusted_ms = trusted_ms

    @property
    def offset_ms(self) -> int:
        """What is added to the device's own clock."""
        return self._offset_ms

    @property
    def trusted_ms(self) -> int:
        """The newest time that is known to have passed; what must be kept to notice a clock set back."""
        return self._trusted_ms

    @property
    def is_set_back(self) -> bool:
        """Tell whether the clock shows a time that has long passed, so that no lease can be trusted by it."""
        return self.now_ms() < self._trusted_ms - SET_BACK_MS_MAX

    def wall_ms(self) -> int:
        """Return the device's own clock, uncorrected."""
        return self._wall_ms()

    def now_ms(self) -> int:
        """Return the corrected time."""
        return self._wall_ms() + self._offset_ms

    def correct(self, offset_ms: int) -> None:
        """Take the offset that a server proved by its signed welcome; its time is the trusted one from now on."""
        self._offset_ms = offset_ms
        self._trusted_ms = self.now_ms()

    def observe(self) -> int:
        """Return the corrected time and remember that it has passed."""
        now_ms = self.now_ms()
        self._trusted_ms = max(self._trusted_ms, now_ms)
        return now_ms
