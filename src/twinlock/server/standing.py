"""How an account stands to a space, and what it hears for it: member, applicant, former member, stranger."""

from __future__ import annotations

from twinlock.errors import ApprovalPendingError, RemovedError, ShreddedError, TwinlockError, UnknownSpaceError
from twinlock.ids import AccountId
from twinlock.protocol.space_log import SpaceLogState

PRESENT = b""
COMING = b"coming"
"""What the index of an account's spaces says while an entry that brings it in is on its way: the log tells."""

FORMER = b"former"
"""What the index of an account's spaces says of one that the account is no longer in."""


def refusal_of(rules: SpaceLogState, account: AccountId) -> TwinlockError | None:
    """Return why an account may do nothing in a space; None for a member. For a stranger the space does not exist."""
    if account in rules.members:
        return ShreddedError() if rules.is_shredded else None
    if account in rules.applicants:
        return ShreddedError() if rules.is_shredded else ApprovalPendingError()
    return RemovedError() if account in rules.former else UnknownSpaceError()


def check_member(rules: SpaceLogState, account: AccountId) -> None:
    """Check that an account is a member of a space that lives.

    Raises:
        UnknownSpaceError, RemovedError, ApprovalPendingError, ShreddedError: as `refusal_of` tells.
    """
    refusal = refusal_of(rules, account)
    if refusal is not None:
        raise refusal


def index_value(rules: SpaceLogState, account: AccountId) -> bytes | None:
    """Return what the index of an account's spaces says of a space; None for a stranger."""
    if account in rules.members or account in rules.applicants:
        return FORMER if rules.is_shredded else PRESENT
    return FORMER if account in rules.former else None


def readable_seq(rules: SpaceLogState, account: AccountId) -> int:
    """Return up to which entry an account reads a space's log; 0 for a stranger.

    A former member reads the entry that ended its membership, so that its devices can verify it, and none after that.
    """
    if account in rules.members or account in rules.applicants:
        return rules.seq
    former = rules.former.get(account)
    return former.granted[-1][0] if former is not None else 0
