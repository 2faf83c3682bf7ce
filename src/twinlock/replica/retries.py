"""When what was refused for now is tried again, whoever pushes."""

from __future__ import annotations

from typing import Final

from twinlock.errors import StaleEpochError, StaleLogHeadError
from twinlock.ids import Epoch
from twinlock.protocol.envelope import parse
from twinlock.protocol.space_log import SpaceLogState
from twinlock.replica.events import LeaseWanted, LogsWanted, ReplicaEvent

RETRY_MS_MIN: Final = 250
"""A refused push is not tried again sooner than this."""

ROLE_RETRY_MS: Final = 2_000
"""How long a push that the role forbids waits for a look at the signed log before its writes are refused."""


class StaleSeals:
    """What the signed log must say more of before this device seals again: the server knows entries that it lacks."""

    __slots__ = ("_epoch", "_head")

    def __init__(self) -> None:
        self._epoch = Epoch(0)
        self._head = b""

    def note(self, code: str, envelope: bytes) -> list[ReplicaEvent]:
        """Note a refused envelope; return what is wanted now."""
        match code:
            case StaleEpochError.code:
                self._epoch = parse(envelope).header.epoch
                return [LogsWanted(), LeaseWanted()]
            case StaleLogHeadError.code:
                self._head = parse(envelope).header.log_head
                return [LogsWanted()]
        return []

    def forget(self) -> None:
        """The log was read. If it says no more, the refusal was of what has been sealed again meanwhile."""
        self._epoch, self._head = Epoch(0), b""

    def are_over(self, log: SpaceLogState) -> bool:
        """Tell whether what is sealed now is sealed by more than what was refused."""
        return log.epoch > self._epoch and log.head_prefix != self._head
