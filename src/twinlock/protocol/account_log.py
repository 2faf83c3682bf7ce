"""The account log: which devices speak for an account. Verification only. See spec/sealing.md, sections 2 and 4."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping

import msgspec

from twinlock.errors import LogInvalidError, UpdateNeededError
from twinlock.ids import ID_BYTES, AccountId, DeviceId
from twinlock.protocol import hpke
from twinlock.protocol.calls import SignedEntry
from twinlock.protocol.labels import label
from twinlock.protocol.signed_log import KEY_BYTES, Body, Fields, LogPosition, check_entry

GENESIS_NONCE_BYTES = 16


class DeviceRecord(msgspec.Struct, frozen=True):
    """The public keys of a certified device."""

    sign_pk: bytes
    kem_pk: bytes


class AccountState(msgspec.Struct, frozen=True):
    """What an account's log says after `seq` entries.

    `devices` holds those that may act; `retired` keeps the keys of revoked ones, whose old envelopes stay readable.
    `kem_seq` is the entry that brought the present `kem` key.
    """

    account: AccountId
    sign_pk: bytes
    kem_pk: bytes
    devices: Mapping[DeviceId, DeviceRecord]
    retired: Mapping[DeviceId, DeviceRecord]
    seq: int
    head: bytes
    kem_seq: int = 1

    @property
    def revoked(self) -> frozenset[DeviceId]:
        """The devices that the account has revoked, for good."""
        return frozenset(self.retired)

    @property
    def position(self) -> LogPosition:
        """How far the log has been read."""
        return LogPosition(self.seq, self.head)

    def certified(self, device: DeviceId) -> DeviceRecord | None:
        """Return the keys of a device that the account has ever certified, revoked or not."""
        return self.devices.get(device) or self.retired.get(device)


def account_id_of(sign_pk: bytes) -> AccountId:
    """Return the id that an account's signing key certifies."""
    return AccountId(hashlib.sha256(label("account") + sign_pk).digest()[:ID_BYTES])


def device_id_of(sign_pk: bytes, kem_pk: bytes) -> DeviceId:
    """Return the id that a device's two keys certify."""
    return DeviceId(hashlib.sha256(label("device") + sign_pk + kem_pk).digest()[:ID_BYTES])


def replay_account(entries: Iterable[SignedEntry], after: AccountState | None = None) -> AccountState:
    """Verify entries in order, from the genesis or after a state, and return the state they lead to.

    Raises:
        SignatureError: an entry is not the account's own or not in its place.
        LogInvalidError: an entry breaks a rule, or there is no entry at all.
        UpdateNeededError: an entry is of a type that this version does not know.
    """
    state = after
    for entry in entries:
        state = _genesis(entry) if state is None else _follow(entry, state)
    if state is None:
        raise LogInvalidError("an account's log without a genesis")
    return state


def _genesis(entry: SignedEntry) -> AccountState:
    body = Body(entry.body)
    if body.type != "genesis":
        raise LogInvalidError("an account's log does not begin with a genesis")
    fields = body.fields
    fields.octets("nonce", GENESIS_NONCE_BYTES)
    sign_pk, kem_pk = fields.octets("sign", KEY_BYTES), fields.octets("kem", KEY_BYTES)
    body.finish()
    account = account_id_of(sign_pk)
    position = check_entry(account, LogPosition(), entry.body, entry.sig, sign_pk)
    return AccountState(account, sign_pk, kem_pk, {}, {}, position.seq, position.head)


def _follow(entry: SignedEntry, state: AccountState) -> AccountState:
    # The signature comes first: nothing in the body is believed before it.
    position = check_entry(state.account, state.position, entry.body, entry.sig, state.sign_pk)
    body = Body(entry.body)
    moved = msgspec.structs.replace(state, seq=position.seq, head=position.head)
    match body.type:
        case "device":
            changed = _device(body.fields, moved)
        case "revoke":
            changed = _revoke(body.fields, moved)
        case "rekem":
            kem_pk = body.fields.octets("kem", KEY_BYTES)
            changed = msgspec.structs.replace(moved, kem_pk=kem_pk, kem_seq=position.seq)
        case "genesis":
            raise LogInvalidError("a second genesis")
        case unknown:
            raise UpdateNeededError(f"an account entry of type {unknown}")
    body.finish()
    return changed


def _device(fields: Fields, state: AccountState) -> AccountState:
    device = DeviceId(fields.octets("device", ID_BYTES))
    record = DeviceRecord(fields.octets("sign", KEY_BYTES), fields.octets("kem", KEY_BYTES))
    if device != device_id_of(record.sign_pk, record.kem_pk):
        raise LogInvalidError("a device's id is not that of its keys")
    if not hpke.is_recipient(record.kem_pk):
        raise LogInvalidError("a device's key is one to which nothing can be wrapped")
    if state.certified(device) is not None:
        raise LogInvalidError("a device is certified twice")
    return msgspec.structs.replace(state, devices={**state.devices, device: record})


def _revoke(fields: Fields, state: AccountState) -> AccountState:
    device = DeviceId(fields.octets("device", ID_BYTES))
    record = state.devices.get(device)
    if record is None:
        raise LogInvalidError("a device is revoked that the account does not have")
    devices = {name: kept for name, kept in state.devices.items() if name != device}
    return msgspec.structs.replace(state, devices=devices, retired={**state.retired, device: record})
