"""Errors of envelopes, their chains and the server's log of them."""

from __future__ import annotations

from twinlock.errors.root import TwinlockError


class MalformedEnvelopeError(TwinlockError):
    """An envelope's bytes do not have the layout of version 1."""

    code, retry = "malformed_envelope", "no"
    fix = "Seal again with a client that follows spec/sealing.md, section 5."


class CounterGapError(TwinlockError):
    """An envelope's counter is not one above the last."""

    code, retry = "counter_gap", "reseal"
    fix = "Push from the counter that `attached` told."


class CounterConflictError(TwinlockError):
    """Another envelope of this device has that counter."""

    code, retry = "counter_conflict", "reseal"
    fix = "Adopt the server's head for the chain and seal what remains after it."


class ChainError(TwinlockError):
    """An envelope does not name its predecessor."""

    code, retry = "prev_mismatch", "reseal"
    fix = "Adopt the server's head for the chain and seal again."


class ForeignEnvelopeError(TwinlockError):
    """An envelope's space or device is not that of the push."""

    code, retry = "foreign_envelope", "no"
    fix = "Push only what this device has sealed for this space."


class StaleEpochError(TwinlockError):
    """An envelope is sealed under an epoch that has ended or is not known."""

    code, retry = "stale_epoch", "reseal"
    fix = "Fetch the space's log and seal again under its newest epoch, in order."


class StaleLogHeadError(TwinlockError):
    """An envelope was sealed before its author was granted writing, so that no reader would count it."""

    code, retry = "stale_log_head", "reseal"
    fix = "Read the space's signed log, then seal this change again; the SDK does it by itself."


class SignatureError(TwinlockError):
    """A signature does not verify."""

    code, retry = "signature_refused", "no"
    fix = "Seal again with the device's own key."


class QuotaExceededError(TwinlockError):
    """The account or the space is over its rate."""

    code, retry = "quota_exceeded", "later"
    fix = "Wait for `retry_after_ms`."


class SpaceFullError(TwinlockError):
    """The space or the account has reached its bytes."""

    code, retry = "space_full", "no"
    fix = "Delete data and compact, or ask the operator for more room."


class IncarnationError(TwinlockError):
    """The server's database was restored since this cursor was given."""

    code, retry = "incarnation_changed", "now"
    fix = "Go on from `resume`; clients of this project heal the server by themselves."


class CutRefusedError(TwinlockError):
    """A cut lies above the head, or below the start."""

    code, retry = "cut_refused", "no"
    fix = "Compute the cut again from the present state."


class AppendConflictError(TwinlockError):
    """Another node appended to this space first."""

    code, retry = "append_conflict", "now"
    fix = "Read what it appended and try again with the rest."


class RevisionError(TwinlockError):
    """A directory key changed since it was read."""

    code, retry = "revision_conflict", "now"
    fix = "Read it again and repeat the change."


class ClockSkewError(TwinlockError):
    """A time lies too far ahead."""

    code, retry = "clock_skew", "no"
    fix = "Set the device's clock; edits are kept and stamped with the corrected time."
