"""The calls about the members of a space: heads, invites, joining. See spec/sealing.md, section 4.

Entries that change members travel by `space.append` (`AppendLog` of `twinlock.protocol.calls`), except `join`. Who is
no longer a member is answered with `removed`, or `shredded`, by every call and frame but `space.log`; an applicant with
`approval_pending`; a stranger with `unknown_space`.
"""

from __future__ import annotations

import msgspec

from twinlock.ids import AccountId, Counter, DeviceId, SpaceId
from twinlock.protocol.calls import KeyringRow, SignedEntry


class ReadHeads(msgspec.Struct, frozen=True):
    """`space.heads`: where the chains of an account's devices stand, for a cutoff. The account itself, owner, admin.

    Entries with a cutoff are taken only if it names just these counters when they are appended: `cutoff_conflict`
    otherwise, so read again and sign anew.
    """

    space: SpaceId
    account: AccountId


class ReadHeadsResult(msgspec.Struct, frozen=True):
    """The last counter of every device of the account that has written; the others stand at 0."""

    counters: dict[DeviceId, Counter]


class OpenInvite(msgspec.Struct, frozen=True):
    """`invite.open`: the space's log and the wrapped A, for whoever holds an invite's secret.

    `proof` is the invite key's signature over `invite_open_message`. What is withdrawn, used up, expired by the
    server's clock or unknown is answered with `invite_refused`, and so is an account that was removed after the
    invite was made.
    """

    space: SpaceId
    invite: bytes
    proof: bytes
    after_seq: int = 0


class OpenInviteResult(msgspec.Struct, frozen=True):
    """A page of the space's log, the number of its entries, and the invite's Keyring row (none for a sender,
    or where approval is needed: then A is wrapped once somebody has let the account in).
    """

    entries: list[SignedEntry]
    seq: int
    row: KeyringRow | None


class Join(msgspec.Struct, frozen=True):
    """`space.join`: append the own `join` entry, with A wrapped to the own account (no row where the invite had none).

    Answered with the log's head (`LogHead`). Repeating it after a lost reply is fine.
    """

    space: SpaceId
    expect_seq: int
    entry: SignedEntry
    row: KeyringRow | None


class Names(msgspec.Struct, frozen=True):
    """`account.names`: what the server calls some accounts that share a space with the caller."""

    space: SpaceId


class NamesResult(msgspec.Struct, frozen=True):
    """Names by account. Nothing proves them: only safety codes tell who somebody is."""

    names: dict[AccountId, str]
