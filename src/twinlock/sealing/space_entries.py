"""The entries of a space's log, as a member's device makes them. See spec/sealing.md, section 4."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from twinlock.errors import LimitExceededError, OpenError
from twinlock.ids import AccountId, Counter, DeviceId
from twinlock.protocol.account_log import GENESIS_NONCE_BYTES
from twinlock.protocol.calls import SignedEntry
from twinlock.protocol.labels import label, u32
from twinlock.protocol.limits import SPACE_TITLE_BYTES_MAX
from twinlock.protocol.signed_log import NO_LOG, FieldValue, LogPosition, encode_body
from twinlock.protocol.space_log import Role, SpaceLogState
from twinlock.sealing.boxes import open_box, seal_box
from twinlock.sealing.derive import kdf, store_mac
from twinlock.sealing.identity import AccountKeys, sign_entry
from twinlock.sealing.padding import pad, unpad
from twinlock.sealing.space_keys import EpochKeys, make_link
from twinlock.sealing.suite import Entropy, MemberKey, StoreKey

Counters = Mapping[DeviceId, Counter]
"""Where the chains of an account's devices stand; a device that never wrote is left out."""


class NextEpoch(NamedTuple):
    """The keys of the epoch to be opened, the member key of the one before, and the chance to seal the link with."""

    keys: EpochKeys
    earlier: MemberKey
    entropy: Entropy


def space_genesis(owner: AccountKeys, partition: int, entropy: Entropy) -> SignedEntry:
    """Make the first entry of a space's log; `replay_space` of it tells the space's id."""
    fields: dict[str, FieldValue] = {
        "by": owner.account,
        "nonce": entropy(GENESIS_NONCE_BYTES),
        "partition": partition,
        "sign": owner.sign_pk,
        "kem": owner.kem_pk,
    }
    return sign_entry(owner, NO_LOG, LogPosition(), encode_body("genesis", fields))


def epoch_entry(
    signer: AccountKeys, state: SpaceLogState, keys: EpochKeys, earlier: MemberKey | None, entropy: Entropy
) -> SignedEntry:
    """Open the next epoch. `earlier` is the member key of the epoch before, absent for the first."""
    return _space_entry(signer, state, "epoch", _epoch_fields(state, keys, earlier, entropy))


def member_entry(
    signer: AccountKeys, state: SpaceLogState, sign_pk: bytes, kem_pk: bytes, account: AccountId, role: Role
) -> SignedEntry:
    """Add a member, confirm an applicant, or raise a member's role."""
    return _space_entry(signer, state, "member", _member_fields(account, sign_pk, kem_pk, role))


def lower_entry(
    signer: AccountKeys, state: SpaceLogState, account: AccountId, role: Role, cutoff: Counters
) -> SignedEntry:
    """Lower a member's role. `cutoff` holds the heads of all the account's devices at this moment."""
    member = state.members[account]
    fields = _member_fields(account, member.sign_pk, member.kem_pk, role)
    return _space_entry(signer, state, "member", {**fields, "cutoff": cutoff})


def remove_entry(
    signer: AccountKeys, state: SpaceLogState, account: AccountId, cutoff: Counters, epoch: NextEpoch
) -> SignedEntry:
    """Remove a member, or turn an applicant away, and open the next epoch in the same breath."""
    fields = _epoch_fields(state, epoch.keys, epoch.earlier, epoch.entropy)
    return _space_entry(signer, state, "remove", {"account": account, "cutoff": cutoff, "epoch": fields})


def leave_entry(signer: AccountKeys, state: SpaceLogState, cutoff: Counters) -> SignedEntry:
    """Leave the space."""
    return _space_entry(signer, state, "leave", {"cutoff": cutoff})


def cutoff_entry(signer: AccountKeys, state: SpaceLogState, account: AccountId, counters: Counters) -> SignedEntry:
    """End the chains of some devices of an account, which it has revoked."""
    return _space_entry(signer, state, "cutoff", {"account": account, "counters": counters})


def member_kem_entry(signer: AccountKeys, state: SpaceLogState) -> SignedEntry:
    """Have member keys wrapped to the signer's present `kem` key from now on."""
    return _space_entry(signer, state, "rekem", {"kem": signer.kem_pk})


def shred_entry(signer: AccountKeys, state: SpaceLogState) -> SignedEntry:
    """Have the service keys of the space destroyed, for good."""
    return _space_entry(signer, state, "shred", {})


def config_title_entry(
    signer: AccountKeys, state: SpaceLogState, keys: EpochKeys, title: str, entropy: Entropy
) -> SignedEntry:
    """Name the space. The name is sealed: reading it takes both keys."""
    data = title.encode()
    if len(data) > SPACE_TITLE_BYTES_MAX:
        raise LimitExceededError(f"a title of {len(data)} bytes, {SPACE_TITLE_BYTES_MAX} at most")
    sealed = seal_box(_title_key(keys), pad(data), _title_aad(keys), entropy)
    return _space_entry(signer, state, "config", {"title": sealed, "epoch": keys.epoch})


def config_lease_entry(signer: AccountKeys, state: SpaceLogState, lease_hours: int) -> SignedEntry:
    """Say how long leases of this space last; 0 forbids to store them."""
    return _space_entry(signer, state, "config", {"lease_hours": lease_hours})


def config_offline_entry(signer: AccountKeys, state: SpaceLogState, offline_needs: str) -> SignedEntry:
    """Say what a device's store must offer before leases are kept in it (empty: nothing)."""
    return _space_entry(signer, state, "config", {"offline_needs": offline_needs})


def open_title(sealed: bytes, keys: EpochKeys) -> str:
    """Return the space's name, with the keys of the epoch that it was sealed under.

    Raises:
        OpenError: it does not open, or is no text.
    """
    data = unpad(open_box(_title_key(keys), sealed, _title_aad(keys)))
    try:
        return data.decode()
    except UnicodeDecodeError as exc:
        raise OpenError from exc


def title_index(store_key: StoreKey, title: str) -> bytes:
    """Return what this device files a name under, so that it finds the space while the name itself is locked."""
    return store_mac(store_key, "title-index", title.encode())


def _space_entry(signer: AccountKeys, state: SpaceLogState, kind: str, fields: Mapping[str, FieldValue]) -> SignedEntry:
    return sign_entry(signer, state.space, state.position, encode_body(kind, {**fields, "by": signer.account}))


def _member_fields(account: AccountId, sign_pk: bytes, kem_pk: bytes, role: Role) -> dict[str, FieldValue]:
    return {"account": account, "sign": sign_pk, "kem": kem_pk, "role": str(role)}


def _epoch_fields(
    state: SpaceLogState, keys: EpochKeys, earlier: MemberKey | None, entropy: Entropy
) -> dict[str, FieldValue]:
    assert keys.epoch == state.epoch + 1
    assert (earlier is None) == (keys.epoch == 1)
    return {
        "n": keys.epoch,
        "b_commit": keys.b_commit,
        "dk_commit": keys.dk_commit,
        "drop_pk": keys.drop_pk,
        "link": make_link(keys, earlier, entropy) if earlier else b"",
    }


def _title_key(keys: EpochKeys) -> bytes:
    return kdf(keys.data_key.expose(), keys.space, "title", u32(keys.epoch))


def _title_aad(keys: EpochKeys) -> bytes:
    return label("title", keys.space + u32(keys.epoch))
