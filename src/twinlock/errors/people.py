"""Errors of accounts, their devices, and the members of spaces."""

from __future__ import annotations

from twinlock.errors.root import TwinlockError


class UnknownDeviceError(TwinlockError):
    """The account has no such device."""

    code, retry = "unknown_device", "no"
    fix = (
        "Name a device by its id; one that is in no account is added by the recovery kit or another device's approval."
    )


class DeviceRevokedError(TwinlockError):
    """This device was revoked by its account."""

    code, retry = "device_revoked", "no"
    fix = "If it is yours, add it anew: by `twinlock pair` and another device's approval, or by the recovery kit."


class ApprovalNeededError(TwinlockError):
    """The password signs this device in but does not open data."""

    code, retry = "approval_needed", "no"
    fix = "Give the recovery kit, or approve this device from another one."


class SudoNeededError(TwinlockError):
    """Changing devices, members or keys needs the account's password."""

    code, retry = "sudo_needed", "no"
    fix = "Call `db.unlock(password)` and try again within 15 minutes."


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


class PairingUnknownError(TwinlockError):
    """No device waits to be approved under this code."""

    code, retry = "pairing_unknown", "no"
    fix = "Begin again on the new device; a code holds for 10 minutes."


class PairingRefusedError(TwinlockError):
    """The approval does not fit to this device."""

    code, retry = "pairing_refused", "no"
    fix = "Begin again on the new device, and compare the digits on both screens."


class InviteError(TwinlockError):
    """The invite link does not open the space any more, or never did."""

    code, retry = "invite_refused", "no"
    fix = "Ask for a new link: it may have expired, been used up or withdrawn."


class ApprovalPendingError(TwinlockError):
    """The space has been joined, and waits for the approval of an owner or admin."""

    code, retry = "approval_pending", "later"
    fix = "Ask them to confirm it; the space opens by itself then."


class RemovedError(TwinlockError):
    """This account is no longer a member of the space."""

    code, retry = "removed", "no"
    fix = "Ask an owner or admin for a new invite."


class LastOwnerError(TwinlockError):
    """A space keeps at least one owner."""

    code, retry = "last_owner", "no"
    fix = "Make another member an owner first, or shred the space."


class CutoffConflictError(TwinlockError):
    """The cutoff does not name the present heads of the devices."""

    code, retry = "cutoff_conflict", "now"
    fix = "Read the heads again and sign anew."


class SafetyCodeError(TwinlockError):
    """The safety code is another one than that of this member."""

    code, retry = "safety_code_mismatch", "no"
    fix = "Somebody else's key may stand in for the member's: do not share anything before it is cleared up."


class KeyFileError(TwinlockError):
    """The key file of a service account cannot be used."""

    code, retry = "key_file_refused", "no"
    fix = "Give the file that `create_service_account` wrote, with mode 0600."
