"""The keys of accounts and devices, and the account's log entries. See spec/sealing.md, section 2."""

from __future__ import annotations

from typing import NoReturn, Self

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from twinlock.ids import AccountId, DeviceId
from twinlock.protocol.account_log import GENESIS_NONCE_BYTES, AccountState, account_id_of, device_id_of
from twinlock.protocol.calls import SignedEntry
from twinlock.protocol.signed_log import (
    FieldValue,
    LogPosition,
    encode_body,
    entry_head,
    signature_message,
)
from twinlock.sealing.suite import SECRET_BYTES, Entropy

KEY_PAIR_BYTES = 2 * SECRET_BYTES


class KeyPairs:
    """An Ed25519 pair to sign and an X25519 pair to be wrapped to; shows nothing of either."""

    __slots__ = ("_raw", "kem", "kem_pk", "sign", "sign_pk")

    def __init__(self, raw: bytes) -> None:
        if len(raw) != KEY_PAIR_BYTES:
            raise ValueError(f"a pair of keys of {len(raw)} bytes")
        self._raw = bytes(raw)
        self.sign = Ed25519PrivateKey.from_private_bytes(raw[:SECRET_BYTES])
        self.kem = X25519PrivateKey.from_private_bytes(raw[SECRET_BYTES:])
        self.sign_pk = self.sign.public_key().public_bytes_raw()
        self.kem_pk = self.kem.public_key().public_bytes_raw()

    @classmethod
    def make(cls, entropy: Entropy) -> Self:
        """Make new keys from chance."""
        return cls(entropy(KEY_PAIR_BYTES))

    def expose(self) -> bytes:
        """Return both private keys, `sign || kem`, to be sealed."""
        return self._raw

    def __repr__(self) -> str:
        return f"{type(self).__name__}(hidden)"

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError(f"{type(self).__name__} are not to be written anywhere")


class AccountKeys(KeyPairs):
    """`account_sign` and `account_kem`: what a recovery kit brings back."""

    __slots__ = ("account",)

    def __init__(self, raw: bytes) -> None:
        super().__init__(raw)
        self.account: AccountId = account_id_of(self.sign_pk)

    @property
    def kems(self) -> tuple[X25519PrivateKey, ...]:
        """The key to which member keys are wrapped, as the only one that is known."""
        return (self.kem,)

    def with_kem(self, kem: X25519PrivateKey) -> AccountKeys:
        """Return the keys of the same account after its `kem` key was replaced."""
        return AccountKeys(self.expose()[:SECRET_BYTES] + kem.private_bytes_raw())


class DeviceKeys(KeyPairs):
    """`device_sign` and `device_kem`: made on the device, never leave it."""

    __slots__ = ("device",)

    def __init__(self, raw: bytes) -> None:
        super().__init__(raw)
        self.device: DeviceId = device_id_of(self.sign_pk, self.kem_pk)


def sign_entry(signer: AccountKeys, log_id: bytes, after: LogPosition, body: bytes) -> SignedEntry:
    """Sign a body as the entry that follows a position of a log."""
    head = entry_head(log_id, after.seq + 1, after.head, body)
    return SignedEntry(body, signer.sign.sign(signature_message(head)))


def account_genesis(keys: AccountKeys, entropy: Entropy) -> SignedEntry:
    """Make the first entry of an account's log."""
    nonce = entropy(GENESIS_NONCE_BYTES)
    body = encode_body("genesis", {"nonce": nonce, "sign": keys.sign_pk, "kem": keys.kem_pk})
    return sign_entry(keys, keys.account, LogPosition(), body)


def device_entry(keys: AccountKeys, state: AccountState, sign_pk: bytes, kem_pk: bytes) -> SignedEntry:
    """Certify a device by its public keys, after the present state of the account's log."""
    device = device_id_of(sign_pk, kem_pk)
    return _account_entry(keys, state, "device", {"device": device, "sign": sign_pk, "kem": kem_pk})


def revoke_entry(keys: AccountKeys, state: AccountState, device: DeviceId) -> SignedEntry:
    """Revoke a device, after the present state of the account's log."""
    return _account_entry(keys, state, "revoke", {"device": device})


def rekem_entry(keys: AccountKeys, state: AccountState, kem_pk: bytes) -> SignedEntry:
    """Replace the key to which the account's member keys are wrapped."""
    return _account_entry(keys, state, "rekem", {"kem": kem_pk})


def _account_entry(keys: AccountKeys, state: AccountState, kind: str, fields: dict[str, FieldValue]) -> SignedEntry:
    return sign_entry(keys, state.account, state.position, encode_body(kind, fields))
