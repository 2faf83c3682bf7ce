"""Errors of the two keys, and the service that holds one of them."""

from __future__ import annotations

from twinlock.errors.root import TwinlockError


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


class OpenError(TwinlockError):
    """An envelope could not be opened and is in quarantine."""

    code, retry = "open_failed", "no"
    fix = "See `twinlock inspect`; the rest of the space is not affected."


class KeyMismatchError(TwinlockError):
    """A key does not fit the commitment in the signed log."""

    code, retry = "key_mismatch", "no"
    fix = "The key service or the server gave a wrong key; nothing was sealed or opened with it."


class ShreddedError(TwinlockError):
    """The space was shredded: its keys are destroyed."""

    code, retry = "shredded", "no"
    fix = "Nothing brings it back; make a new space."


class KeyWornOutError(TwinlockError):
    """A device's key of this epoch has sealed as much as it may."""

    code, retry = "key_worn_out", "later"
    fix = "Ask an owner or admin to rotate the space: `await space.rotate()`."


class NodeRefusedError(TwinlockError):
    """The key service does not take requests of this node."""

    code, retry = "node_refused", "no"
    fix = "Name the node's public key in the key service's settings, and check both clocks."


class SheetError(TwinlockError):
    """The backup sheets do not bring the root key back."""

    code, retry = "sheets_refused", "no"
    fix = "Check each sheet's words, and give as many sheets of one set as it needs."


class LedgerBrokenError(TwinlockError):
    """The ledger was altered, cut short or put back."""

    code, retry = "ledger_broken", "no"
    fix = "Compare it with the newest head that was noted elsewhere, and with the backups."
