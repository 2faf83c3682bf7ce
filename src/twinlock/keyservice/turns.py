"""Whose turn it is to change a signed log: who began later wins, so that a stalled node commits nothing late.

Kept in memory alone. After a restart no turn holds that was given before, and whoever had one begins again.
"""

from __future__ import annotations

import secrets

from twinlock.errors import LogConflictError
from twinlock.ids import LogId

TURNS_KEPT_MAX = 100_000
_FIRST_BITS = 40


class Turns:
    """The latest turn of each log that was lately changed."""

    __slots__ = ("_latest", "_next")

    def __init__(self) -> None:
        self._latest: dict[LogId, int] = {}
        # Above 0, and no number that the process before this one is likely to have given.
        self._next = 1 + secrets.randbits(_FIRST_BITS)

    def take(self, log: LogId) -> int:
        """Return a new turn; every earlier one of this log has ended."""
        turn, self._next = self._next, self._next + 1
        self._latest.pop(log, None)
        if len(self._latest) >= TURNS_KEPT_MAX:
            del self._latest[next(iter(self._latest))]
        self._latest[log] = turn
        return turn

    def check(self, log: LogId, turn: int) -> None:
        """Check that a turn is the latest of its log; 0 stands for an append that needs none.

        Raises:
            LogConflictError: another turn was taken since, or this one is not known any more.
        """
        if turn and self._latest.get(log) != turn:
            raise LogConflictError("another node has begun to change the log since")
