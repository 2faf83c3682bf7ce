"""What a replica tells its shell, in order; taken with `Replica.take_events`."""

from __future__ import annotations

import msgspec

from twinlock.ids import Epoch, Seq
from twinlock.protocol.calls import Cut


class WritesConfirmed(msgspec.Struct, frozen=True):
    """The server has these writes durably."""

    tokens: tuple[int, ...]


class WritesRefused(msgspec.Struct, frozen=True):
    """The server refused these writes for good; they lie in the durable list of refused writes."""

    tokens: tuple[int, ...]
    code: str
    detail: str


class EnvelopeQuarantined(msgspec.Struct, frozen=True):
    """An entry could not be merged; the others go on."""

    seq: Seq
    reason: str


class LogsWanted(msgspec.Struct, frozen=True):
    """The space's signed log, or its members' account logs, must be fetched again: something newer was seen."""


class LeaseWanted(msgspec.Struct, frozen=True):
    """An epoch's service key is missing: ask for a lease now (see `Keyring.wanted_epochs`)."""


class CutWanted(msgspec.Struct, frozen=True):
    """Compaction has packed enough: call `space.cut`, and hand the result to `Replica.on_cut`."""

    params: Cut


class KeyringRowsWanted(msgspec.Struct, frozen=True):
    """The server was restored: put this account's own Keyring row again."""


class PushHeld(msgspec.Struct, frozen=True):
    """The server takes no more for a while; `Replica.outgoing` gives nothing before `until_ms`."""

    until_ms: int
    code: str


class RotationWanted(msgspec.Struct, frozen=True):
    """This device's key of an epoch has borne half of what it may; if it `is_worn_out`, writes wait for a new epoch."""

    epoch: Epoch
    is_worn_out: bool


class CaughtUp(msgspec.Struct, frozen=True):
    """The head that `attached` told has been reached."""


ReplicaEvent = (
    WritesConfirmed
    | WritesRefused
    | EnvelopeQuarantined
    | LogsWanted
    | LeaseWanted
    | CutWanted
    | KeyringRowsWanted
    | PushHeld
    | RotationWanted
    | CaughtUp
)
