"""The parameters and results of every call, one pair of structs each. See spec/protocol.md, section 6.

They travel as MessagePack maps, so that a field can be added without breaking an older peer.
"""

from __future__ import annotations

import msgspec

from twinlock.ids import AccountId, Epoch, Incarnation, Seq, SpaceId
from twinlock.protocol.frames import Grant


class SignedEntry(msgspec.Struct, frozen=True, array_like=True):
    """One entry of a signed log: the exact body bytes and their signature. See spec/sealing.md, section 4."""

    body: bytes
    sig: bytes


class Unlocker(msgspec.Struct, frozen=True):
    """How a secret signs in and, if `wrapped` is set, opens the account's keys. See spec/sealing.md, section 2.

    `auth_key` goes to the server once, at creation; the server keeps only its keyed hash.
    """

    kind: str
    kdf: str
    salt: bytes
    iterations: int
    auth_key: bytes
    wrapped: bytes = b""

    def __repr__(self) -> str:
        return f"Unlocker({self.kind!r}, hidden)"


class CreateAccount(msgspec.Struct, frozen=True):
    """`account.create` (anonymous): a new account with its log (genesis and first device) and unlockers.

    Its `token`, of the application's own issuer, leads to the account from then on; a server may ask for one.
    `signature` is the account's, over `sign_up_message`: others may know its log, but bring it no unlockers.
    """

    name: str
    entries: list[SignedEntry]
    unlockers: list[Unlocker]
    token: str = ""
    signature: bytes = b""

    def __repr__(self) -> str:
        return f"CreateAccount({self.name!r}, hidden)"


class UnlockerParams(msgspec.Struct, frozen=True):
    """`unlocker.params` (anonymous): how to derive the keys of an unlocker. Unknown names get a steady fake."""

    name: str
    kind: str


class UnlockerParamsResult(msgspec.Struct, frozen=True):
    """The public parameters of an unlocker."""

    kdf: str
    salt: bytes
    iterations: int


class OpenUnlocker(msgspec.Struct, frozen=True):
    """`unlocker.open` (anonymous): prove an unlocker's secret; the session may then add a device to the account."""

    name: str
    kind: str
    auth_key: bytes

    def __repr__(self) -> str:
        return f"OpenUnlocker({self.kind!r}, hidden)"


class OpenUnlockerResult(msgspec.Struct, frozen=True):
    """The account, its keys wrapped by the unlocker (empty where it only signs in), and its log."""

    account: AccountId
    wrapped: bytes
    entries: list[SignedEntry]


class PutUnlocker(msgspec.Struct, frozen=True):
    """`unlocker.put`: replace the account's unlocker of that kind (a new password, a new kit).

    `signature` is the account's, over `unlocker_put_message`: a device alone, perhaps a stolen one, replaces nothing.
    `time_ms` is newer than that of the unlocker it replaces, so that an older request cannot be repeated.
    """

    unlocker: Unlocker
    time_ms: int
    signature: bytes


class KeyringRow(msgspec.Struct, frozen=True, array_like=True):
    """A member's newest A, wrapped to the account. See spec/sealing.md, section 3."""

    account: AccountId
    epoch: Epoch
    wrapped: bytes


class AppendLog(msgspec.Struct, frozen=True):
    """`account.append` and `space.append`: grow a signed log that has `expect_seq` entries.

    `keyring` (spaces only) holds the wrapped member keys that belong to the new entries, all of the newest epoch: one
    for everybody who gets a key to read by them, that is all key holders where they open an epoch, otherwise new
    readers, new invites that read, and an account whose `kem` key changes. Rows of others are for owners and admins.

    Entries are signed by the caller's own account. `is_lost` gives a restored server back what it lost: entries of
    anybody, without rows. Appending what is already there is fine.
    """

    log: bytes
    expect_seq: int
    entries: list[SignedEntry]
    keyring: list[KeyringRow] = []
    is_lost: bool = False


class LogHead(msgspec.Struct, frozen=True):
    """The number of entries of a signed log, and the hash of the newest."""

    seq: int
    head: bytes


class ReadLog(msgspec.Struct, frozen=True):
    """`account.log` and `space.log`: entries after `after_seq`, at most LOG_PAGE_ENTRIES_MAX.

    A former member reads a space's log up to the entry that ended its membership; applicants read it whole.
    """

    log: bytes
    after_seq: int = 0


class ReadLogResult(msgspec.Struct, frozen=True):
    """A page of a signed log, and the number of entries that the caller may read in all."""

    entries: list[SignedEntry]
    seq: int


class Spaces(msgspec.Struct, frozen=True):
    """`account.spaces`: the spaces of which the session's account is, or was, a member."""


class SpacesResult(msgspec.Struct, frozen=True):
    """The ids of the account's spaces, and of those it is no longer in: it left, was removed, or they were shredded.

    Only a space's signed log proves either. After a crash `spaces` may name one that the account is out of already
    (`removed`, `shredded`).
    """

    spaces: list[SpaceId]
    former: list[SpaceId] = []


class CreatePending(msgspec.Struct, frozen=True):
    """`space.pending`: have the key service make the service key of a coming epoch. Signed by the device.

    For a space that does not exist yet `genesis` is its first entry; otherwise it is absent.
    """

    space: SpaceId
    epoch: Epoch
    nonce: bytes
    time_ms: int
    signature: bytes
    genesis: SignedEntry | None = None


class CreatePendingResult(msgspec.Struct, frozen=True):
    """The pending key, sealed to the device that asked, and its public commitment."""

    b_commit: bytes
    grant: Grant


class CreateSpace(msgspec.Struct, frozen=True):
    """`space.create`: a new space: its log (genesis, epoch 1, and more if wished) and the owner's Keyring row."""

    space: SpaceId
    entries: list[SignedEntry]
    keyring: list[KeyringRow]


class ReadPartitions(msgspec.Struct, frozen=True):
    """`space.partitions`: where new spaces go."""


class PartitionsResult(msgspec.Struct, frozen=True):
    """The partitions that take new spaces now, sorted; none while the operator lets no new ones in."""

    open: list[int]


class ReadKeyring(msgspec.Struct, frozen=True):
    """`space.keyring`: the session account's own row, of the newest epoch that the space's log has."""

    space: SpaceId


class PutKeyring(msgspec.Struct, frozen=True):
    """`space.keyring_put`: store the session account's own row again (healing of a restored server)."""

    space: SpaceId
    row: KeyringRow


class Cut(msgspec.Struct, frozen=True):
    """`space.cut`: deliver from `upto + 1` on. `space.uncut`, of the same form, moves the start back."""

    space: SpaceId
    incarnation: Incarnation
    upto: Seq


class CutResult(msgspec.Struct, frozen=True):
    """The start that now holds and the bytes of the log from there on."""

    start: Seq
    log_bytes: int


class Nothing(msgspec.Struct, frozen=True):
    """The result of calls that only succeed or fail."""
