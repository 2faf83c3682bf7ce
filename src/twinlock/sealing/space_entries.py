"""The entries of a space's log, as a member's device makes them. See spec/sealing.md, section 4."""

from __future__ import annotations

from twinlock.errors import LimitExceededError, OpenError
from twinlock.ids import AccountId
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
    assert keys.epoch == state.epoch + 1
    assert (earlier is None) == (keys.epoch == 1)
    fields: dict[str, FieldValue] = {
        "n": keys.epoch,
        "b_commit": keys.b_commit,
        "dk_commit": keys.dk_commit,
        "drop_pk": keys.drop_pk,
        "link": make_link(keys, earlier, entropy) if earlier else b"",
    }
    return _space_entry(signer, state, "epoch", fields)


def member_entry(
    signer: AccountKeys, state: SpaceLogState, sign_pk: bytes, kem_pk: bytes, account: AccountId, role: Role
) -> SignedEntry:
    """Add a member, or raise a member's role."""
    fields: dict[str, FieldValue] = {"account": account, "sign": sign_pk, "kem": kem_pk, "role": str(role)}
    return _space_entry(signer, state, "member", fields)


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


def _space_entry(signer: AccountKeys, state: SpaceLogState, kind: str, fields: dict[str, FieldValue]) -> SignedEntry:
    return sign_entry(signer, state.space, state.position, encode_body(kind, {**fields, "by": signer.account}))


def _title_key(keys: EpochKeys) -> bytes:
    return kdf(keys.data_key.expose(), keys.space, "title", u32(keys.epoch))


def _title_aad(keys: EpochKeys) -> bytes:
    return label("title", keys.space + u32(keys.epoch))
