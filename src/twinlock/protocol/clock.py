"""The hybrid logical clock that orders edits: 48 bits of milliseconds, 16 of counter. See spec/documents.md."""

from __future__ import annotations

from typing import NewType

from twinlock.errors import ClockSkewError

Hlc = NewType("Hlc", int)
"""64 bits: `milliseconds << 16 | counter`. Compares as an integer; 0 is before every stamp."""

COUNTER_BITS = 16
_COUNTER_MASK = (1 << COUNTER_BITS) - 1
_MILLISECONDS_MAX = (1 << 48) - 1


def pack(milliseconds: int, counter: int = 0) -> Hlc:
    """Build a stamp from its two parts."""
    assert 0 <= milliseconds <= _MILLISECONDS_MAX
    assert 0 <= counter <= _COUNTER_MASK
    return Hlc(milliseconds << COUNTER_BITS | counter)


def milliseconds_of(stamp: Hlc) -> int:
    """Return the wall-clock part of a stamp, in ms since 1970 (UTC)."""
    return stamp >> COUNTER_BITS


class HybridClock:
    """Give out strictly growing stamps that never fall behind any stamp seen.

    Time comes in with every call, already corrected by the offset learnt at `welcome`.
    """

    __slots__ = ("_latest",)

    def __init__(self, latest: Hlc = Hlc(0)) -> None:
        self._latest = latest

    @property
    def latest(self) -> Hlc:
        """The newest stamp given out or seen; what must be kept to go on after a restart."""
        return self._latest

    def tick(self, now_ms: int) -> Hlc:
        """Return a new stamp, above every earlier one. A full counter borrows the next millisecond."""
        self._latest = Hlc(max(pack(now_ms), self._latest + 1))
        return self._latest

    def observe(self, stamp: Hlc, now_ms: int, skew_ms_max: int) -> None:
        """Take note of a stamp from elsewhere, so that later own stamps lie above it.

        Raises:
            ClockSkewError: the stamp lies more than `skew_ms_max` ahead of `now_ms`; the clock stays as it was.
        """
        ahead_ms = milliseconds_of(stamp) - now_ms
        if ahead_ms > skew_ms_max:
            raise ClockSkewError(f"a stamp lies {ahead_ms} ms ahead of this device's corrected clock")
        self._latest = max(self._latest, stamp)
