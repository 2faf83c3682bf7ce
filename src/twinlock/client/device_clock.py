"""This device's time: its own clock, corrected by what the server proves at `welcome`."""

from __future__ import annotations

from collections.abc import Callable


class DeviceClock:
    """The corrected time.

    Args:
        wall_ms: the device's own clock, in ms since 1970.
        offset_ms: what the last session found to be missing from that clock.
    """

    __slots__ = ("_wall_ms", "offset_ms")

    def __init__(self, wall_ms: Callable[[], int], offset_ms: int = 0) -> None:
        self._wall_ms = wall_ms
        self.offset_ms = offset_ms

    def wall_ms(self) -> int:
        """Return the device's own clock, uncorrected."""
        return self._wall_ms()

    def now_ms(self) -> int:
        """Return the corrected time."""
        return self._wall_ms() + self.offset_ms
