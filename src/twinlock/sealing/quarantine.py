"""Why an envelope was not opened. See spec/sealing.md, section 5."""

from __future__ import annotations

from enum import StrEnum

import msgspec

from twinlock.protocol.frames import Entry


class QuarantineReason(StrEnum):
    """The check that failed, in the order in which a reader makes them."""

    LAYOUT = "layout"
    VERSION = "version"
    SPACE = "space"
    KIND = "kind"
    EPOCH = "epoch"
    DEVICE = "device"
    LOG_HEAD = "log_head"
    CUTOFF = "cutoff"
    ROLE = "role"
    REPLAY = "replay"
    GAP = "gap"
    PREV = "prev"
    SIGNATURE = "signature"
    KEY = "key"
    AEAD = "aead"
    PADDING = "padding"
    LIMIT = "limit"
    DECODING = "decoding"
    TIMESTAMP = "timestamp"

    @property
    def may_differ(self) -> bool:
        """Whether another reader may open what this one could not: such an entry holds compaction back."""
        return self in _MAY_DIFFER

    @property
    def is_worth_a_retry(self) -> bool:
        """Whether a newer log, key, version or clock, or what was missing, can still open it."""
        return self not in _FINAL


_MAY_DIFFER = frozenset(
    {
        QuarantineReason.VERSION,
        QuarantineReason.EPOCH,
        QuarantineReason.DEVICE,
        QuarantineReason.LOG_HEAD,
        QuarantineReason.GAP,
        QuarantineReason.PREV,
        QuarantineReason.KEY,
    }
)
_FINAL = frozenset(
    {
        QuarantineReason.LAYOUT,
        QuarantineReason.SPACE,
        QuarantineReason.KIND,
        QuarantineReason.CUTOFF,
        QuarantineReason.ROLE,
        QuarantineReason.REPLAY,
    }
)


class Quarantined(msgspec.Struct, frozen=True):
    """An entry that was not opened, kept with its reason.

    `admitted` tells that its chain has moved over it: the signature holds, and only opening it failed.
    """

    entry: Entry
    reason: QuarantineReason
    admitted: bool = False
