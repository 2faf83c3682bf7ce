"""Every error that a caller can meet; codes, causes and remedies are those of spec/errors.json."""

from __future__ import annotations

from typing import ClassVar


class TwinlockError(Exception):
    """The root of every error: a code, a sentence (the docstring), and what to do about it.

    Args:
        detail: what was special this time; without it the standing sentence says it all.
        retry_after_ms: when a retry makes sense, if the other side said so.
    """

    code: ClassVar[str] = "internal"
    fix: ClassVar[str] = ""
    retry: ClassVar[str] = "no"

    def __init__(self, detail: str = "", *, retry_after_ms: int = 0) -> None:
        super().__init__(detail)
        self.detail = detail
        self.retry_after_ms = retry_after_ms

    def __str__(self) -> str:
        cause = f" ({self.detail})" if self.detail else ""
        return f"{self.code}: {self.__doc__}{cause} {self.fix}".rstrip()


class MalformedFrameError(TwinlockError):
    """A message was not a valid frame."""

    code, retry = "malformed_frame", "no"
    fix = "Use a client that follows spec/protocol.md; this connection is closed."


class UnexpectedFrameError(TwinlockError):
    """A frame came in a state that does not allow it."""

    code, retry = "unexpected_frame", "no"
    fix = "Follow the session states of spec/protocol.md, section 3; this connection is closed."


class MalformedEnvelopeError(TwinlockError):
    """An envelope's bytes do not have the layout of version 1."""

    code, retry = "malformed_envelope", "no"
    fix = "Seal again with a client that follows spec/sealing.md, section 5."


class LimitExceededError(TwinlockError):
    """A message is over one of the limits told at welcome."""

    code, retry = "limit_exceeded", "no"
    fix = "Split the work into smaller messages; see spec/protocol.md, section 8."


class HelloTimeoutError(TwinlockError):
    """No hello came in time after the challenge."""

    code, retry = "hello_timeout", "later"
    fix = "Connect again."


class ChallengeError(TwinlockError):
    """The answer does not belong to a challenge that is open (replayed, or older than 30 s)."""

    code, retry = "challenge_refused", "later"
    fix = "Connect again and answer the new challenge."


class ProofError(TwinlockError):
    """The signature of the hello does not verify."""

    code, retry = "proof_refused", "no"
    fix = "Check that the device's keys belong to this account and that the address is the server's own."


class UnknownDeviceError(TwinlockError):
    """The account has no such device."""

    code, retry = "unknown_device", "no"
    fix = "Enrol this device with the recovery kit, or approve it from another device."


class DeviceRevokedError(TwinlockError):
    """This device was revoked by its account."""

    code, retry = "device_revoked", "no"
    fix = "Enrol it again from a trusted device."


class WrongServerError(TwinlockError):
    """The server's key or signature is not that of the server this profile belongs to."""

    code, retry = "wrong_server", "no"
    fix = "Check the address; if the server really changed its key, sign up or recover against it anew."


class CredentialsError(TwinlockError):
    """The name, the password or the recovery kit is wrong."""

    code, retry = "wrong_credentials", "no"
    fix = "Check the name and the secret; tries are limited."


class RecoveryKitError(TwinlockError):
    """The recovery kit's letters do not check out."""

    code, retry = "recovery_kit_malformed", "no"
    fix = "Type the 28 characters again; a single mistyped letter is noticed."


class NameTakenError(TwinlockError):
    """An account of that name exists."""

    code, retry = "name_taken", "no"
    fix = "Choose another name, or recover the account with its kit."


class NameInvalidError(TwinlockError):
    """A name has characters or a length that are not allowed."""

    code, retry = "name_invalid", "no"
    fix = "Account names use a-z 0-9 . _ @ + - and at most 128 characters."


class PasswordError(TwinlockError):
    """The password is too short."""

    code, retry = "password_refused", "no"
    fix = "Use at least 8 characters (14 where it also opens data)."


class WeakParametersError(TwinlockError):
    """The server offered password parameters below this client's minimum."""

    code, retry = "weak_parameters", "no"
    fix = "Do not sign in to this server; its operator must raise them."


class ApprovalNeededError(TwinlockError):
    """The password signs this device in but does not open data."""

    code, retry = "approval_needed", "no"
    fix = "Give the recovery kit, or approve this device from another one."


class SudoNeededError(TwinlockError):
    """Changing devices, members or keys needs the account's password."""

    code, retry = "sudo_needed", "no"
    fix = "Call `db.unlock(password)` and try again within 15 minutes."


class NotSignedInError(TwinlockError):
    """This call needs a signed-in device."""

    code, retry = "not_signed_in", "no"
    fix = "Sign up, sign in or recover first."


class RateLimitedError(TwinlockError):
    """Too many requests in a short time."""

    code, retry = "rate_limited", "later"
    fix = "Wait for `retry_after_ms` and try again."


class OverloadedError(TwinlockError):
    """The server takes on no more work just now."""

    code, retry = "overloaded", "later"
    fix = "Wait for `retry_after_ms`; clients of this project do so by themselves."


class DrainingError(TwinlockError):
    """The server is going down in good order."""

    code, retry = "draining", "later"
    fix = "Connect again after `retry_after_ms`."


class UnknownMethodError(TwinlockError):
    """There is no call of that name."""

    code, retry = "unknown_method", "no"
    fix = "Use a method listed in spec/protocol.md, section 6."


class InvalidCallError(TwinlockError):
    """A call's parameters are not of the method's form."""

    code, retry = "invalid_call", "no"
    fix = "Send the parameters listed in spec/protocol.md, section 6."


class UnknownSpaceError(TwinlockError):
    """There is no such space, or this account is not a member of it."""

    code, retry = "unknown_space", "no"
    fix = "Check the id or the name, or ask a member for an invitation."


class RoleError(TwinlockError):
    """The account's role in this space does not allow this."""

    code, retry = "role_forbids", "no"
    fix = "Ask an owner or admin of the space for another role."


class LogConflictError(TwinlockError):
    """Another entry was appended to the signed log first."""

    code, retry = "log_conflict", "now"
    fix = "Fetch the log, look at what came, and append again on top."


class LogInvalidError(TwinlockError):
    """A signed log breaks a rule of spec/sealing.md, section 4."""

    code, retry = "log_invalid", "no"
    fix = "Do not trust it; report it together with the output of `twinlock inspect`."


class LogForkError(TwinlockError):
    """A signed log is shorter than, or different from, what this device has seen."""

    code, retry = "log_fork", "no"
    fix = "The server shows different people different logs: do not trust it, compare safety codes."


class UpdateNeededError(TwinlockError):
    """Something was written by a newer version that this one must not guess at."""

    code, retry = "update_needed", "no"
    fix = "Update Twinlock on this device; nothing is lost meanwhile."


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


class LeaseRefusedError(TwinlockError):
    """The key service refuses the key to this device."""

    code, retry = "lease_refused", "no"
    fix = "The device was revoked, removed, or the space was shredded; ask an owner."


class LeaseExpiredError(TwinlockError):
    """The lease of this space's service key has ended; reading is locked, writing goes on."""

    code, retry = "lease_expired", "later"
    fix = "Connect to the server, so that the lease is renewed."


class KeyServiceError(TwinlockError):
    """The key service does not answer."""

    code, retry = "key_service_unavailable", "later"
    fix = "Devices keep working on their leases; try again later."


class ClockSkewError(TwinlockError):
    """A time lies too far ahead."""

    code, retry = "clock_skew", "no"
    fix = "Set the device's clock; edits are kept and stamped with the corrected time."


class OpenError(TwinlockError):
    """An envelope could not be opened and is in quarantine."""

    code, retry = "open_failed", "no"
    fix = "See `twinlock inspect`; the rest of the space is not affected."


class KeyMismatchError(TwinlockError):
    """A key does not fit the commitment in the signed log."""

    code, retry = "key_mismatch", "no"
    fix = "The key service or the server gave a wrong key; nothing was sealed or opened with it."


class ProfileInUseError(TwinlockError):
    """This profile is open already, in this process or in another one."""

    code, retry = "profile_in_use", "later"
    fix = "Close it there, or use a profile of its own."


class ProfileMissingError(TwinlockError):
    """There is no profile here."""

    code, retry = "profile_missing", "no"
    fix = "Start `twinlock dev`, or sign up or recover with `profile=...`."


class ProfileExistsError(TwinlockError):
    """There is a profile here already."""

    code, retry = "profile_exists", "no"
    fix = "Choose another folder, or remove the profile if it is not needed."


class StoreDamagedError(TwinlockError):
    """A file of this device's store was altered or is damaged."""

    code, retry = "store_damaged", "no"
    fix = "Remove the replica file and connect: the data comes back from the server; unsent writes in it are lost."


class StoreKeyError(TwinlockError):
    """The key of this device's store is not to be had."""

    code, retry = "store_key_unavailable", "no"
    fix = "Unlock the system's keyring, or give the passphrase."


class StoreError(TwinlockError):
    """The disk or the store refused to work."""

    code, retry = "store_failed", "later"
    fix = "Look at the disk's room and health; nothing unacknowledged was promised."


class AppendConflictError(TwinlockError):
    """Another node appended to this space first."""

    code, retry = "append_conflict", "now"
    fix = "Read what it appended and try again with the rest."


class RevisionError(TwinlockError):
    """A directory key changed since it was read."""

    code, retry = "revision_conflict", "now"
    fix = "Read it again and repeat the change."


class OfflineError(TwinlockError):
    """This call needs the server, and there is no connection."""

    code, retry = "offline", "later"
    fix = "Check the address and that the server runs; an open database connects by itself (`db.status`)."


class ClosedError(TwinlockError):
    """The database was closed."""

    code, retry = "closed", "no"
    fix = "Open it again with `twinlock.connect`."


class NotFoundError(TwinlockError):
    """What was asked for is not there."""

    code, retry = "not_found", "no"
    fix = "Check the id; `set` creates a document, `update` needs one."


class InvalidDataError(TwinlockError):
    """A value cannot be stored."""

    code, retry = "invalid_data", "no"
    fix = (
        "Use null, bool, int of 64 bits, float, str, bytes, datetime, list and dict with string keys, at most 32 deep."
    )


class InvalidQueryError(TwinlockError):
    """A query is not of a form that can be answered."""

    code, retry = "invalid_query", "no"
    fix = "Use the operators of docs/reference/queries.md."


class DocumentTooLargeError(TwinlockError):
    """A document or batch is over the limit of 1 MiB sealed."""

    code, retry = "document_too_large", "no"
    fix = "Split it, or keep large content in a file."


class SchemaError(TwinlockError):
    """A value does not fit the collection's type."""

    code, retry = "schema_mismatch", "no"
    fix = "Correct the value, or the type; reads hand over the raw value with this error."


class InternalError(TwinlockError):
    """The server met an error of its own."""

    code, retry = "internal", "later"
    fix = "Try again; report it if it stays."


_BY_CODE: dict[str, type[TwinlockError]] = {error.code: error for error in TwinlockError.__subclasses__()}


def error_from_code(code: str, detail: str = "", retry_after_ms: int = 0) -> TwinlockError:
    """Return the error that another side named by its code; an unknown code becomes an `InternalError` that says it."""
    known = _BY_CODE.get(code)
    if known is None:
        return InternalError(f"{code}: {detail}", retry_after_ms=retry_after_ms)
    return known(detail, retry_after_ms=retry_after_ms)
