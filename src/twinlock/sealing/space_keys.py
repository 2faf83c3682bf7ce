"""The keys of a space: epochs, what is derived from them, wraps and links. See spec/sealing.md, section 3."""

from __future__ import annotations

import hmac
from functools import cached_property
from typing import NoReturn

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from twinlock.errors import KeyMismatchError, OpenError
from twinlock.ids import AccountId, BlobId, DeviceId, Epoch, SpaceId
from twinlock.protocol import hpke
from twinlock.protocol.labels import label, u32, u64
from twinlock.protocol.proofs import b_commit
from twinlock.protocol.space_log import EpochRecord
from twinlock.sealing.boxes import open_box, seal_box
from twinlock.sealing.derive import kdf, store_mac
from twinlock.sealing.suite import SECRET_BYTES, DataKey, Entropy, MemberKey, ServiceKey, StoreKey


class EpochKeys:
    """Everything that A and B of one epoch give. Made by `open_epoch`, or by `EpochKeys` for an epoch to be opened."""

    def __init__(self, space: SpaceId, epoch: Epoch, member_key: MemberKey, service_key: ServiceKey) -> None:
        self.space = space
        self.epoch = epoch
        self.member_key = member_key
        self.service_key = service_key
        salt, ikm = service_key.expose(), member_key.expose()
        self.data_key = DataKey(kdf(ikm, salt, "data", space + u32(epoch)))
        self._device_ciphers: dict[DeviceId, AESGCM] = {}

    @cached_property
    def dk_commit(self) -> bytes:
        """The public commitment to the data key."""
        return self._derive("commit", u32(self.epoch))

    @cached_property
    def b_commit(self) -> bytes:
        """The public commitment to the service key."""
        return b_commit(self.space, self.epoch, self.service_key.expose())

    @cached_property
    def drop_private(self) -> X25519PrivateKey:
        """The key that opens drops; it is stored nowhere."""
        return X25519PrivateKey.from_private_bytes(self._derive("drop"))

    @cached_property
    def drop_pk(self) -> bytes:
        """The key to which drops are sealed; it stands in the log."""
        return self.drop_private.public_key().public_bytes_raw()

    def device_key(self, device: DeviceId) -> bytes:
        """Return the AES key of a device's changes and snapshots."""
        return self._derive("device", device)

    def device_cipher(self, device: DeviceId) -> AESGCM:
        """Return the cipher under a device's key, made once."""
        cipher = self._device_ciphers.get(device)
        if cipher is None:
            cipher = self._device_ciphers[device] = AESGCM(self.device_key(device))
        return cipher

    def signal_key(self, device: DeviceId, session: int) -> bytes:
        """Return the AES key of the signals of one session of a device."""
        return self._derive("signal", device + u64(session))

    def blob_key(self, blob: BlobId) -> bytes:
        """Return the AES key of one blob, which is sealed once."""
        return self._derive("blob", blob)

    def staging_key(self, store_key: StoreKey, blob: BlobId) -> bytes:
        """Return what seals this device's note of a blob that waits for its upload: it takes A, B and the StoreKey."""
        return kdf(self.data_key.expose(), store_mac(store_key, "staging", self.space), "staging", blob)

    def local_key(self, store_key: StoreKey, device: DeviceId) -> bytes:
        """Return what wraps the key of this device's replica file: it takes A, B and the StoreKey."""
        salt = store_mac(store_key, "local", self.space)
        return kdf(self.data_key.expose(), salt, "local", device)

    def _derive(self, name: str, context: bytes = b"") -> bytes:
        return kdf(self.data_key.expose(), self.space, name, context)

    def __repr__(self) -> str:
        return f"EpochKeys(epoch {self.epoch}, hidden)"

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError("the keys of an epoch are not to be written anywhere")


def make_epoch(space: SpaceId, epoch: Epoch, service_key: ServiceKey, entropy: Entropy) -> EpochKeys:
    """Draw a new member key and join it with the service key that was leased for a coming epoch."""
    return EpochKeys(space, epoch, MemberKey.make(entropy), service_key)


def open_epoch(
    space: SpaceId, epoch: Epoch, member_key: MemberKey, service_key: ServiceKey, record: EpochRecord
) -> EpochKeys:
    """Join both keys and check them against the signed epoch entry.

    Raises:
        KeyMismatchError: one of the keys is wrong, or the entry's drop key is; nothing may be sealed or opened.
    """
    keys = EpochKeys(space, epoch, member_key, service_key)
    if not hmac.compare_digest(keys.b_commit, record.b_commit):
        raise KeyMismatchError(f"the service key of epoch {epoch}")
    if not hmac.compare_digest(keys.dk_commit, record.dk_commit):
        raise KeyMismatchError(f"the member key of epoch {epoch}")
    if not hmac.compare_digest(keys.drop_pk, record.drop_pk):
        raise KeyMismatchError(f"the drop key of epoch {epoch}")
    return keys


def check_service_key(space: SpaceId, epoch: Epoch, service_key: ServiceKey, commitment: bytes) -> None:
    """Check a leased service key against its public commitment.

    Raises:
        KeyMismatchError: the key service gave another key than the one it committed to.
    """
    if not hmac.compare_digest(b_commit(space, epoch, service_key.expose()), commitment):
        raise KeyMismatchError(f"the service key of epoch {epoch}")


def wrap_member_key(keys: EpochKeys, account: AccountId, kem_pk: bytes) -> bytes:
    """Return the 80 bytes of a Keyring row: A, wrapped to a member's account."""
    return wrap_bare(keys.member_key, keys.space, keys.epoch, account, kem_pk)


def wrap_bare(member_key: MemberKey, space: SpaceId, epoch: Epoch, account: AccountId, kem_pk: bytes) -> bytes:
    """Return the same for a member key that is at hand without its service key: wrapping again takes no lease."""
    return hpke.seal(kem_pk, member_key.expose(), _wrap_info(space, epoch, account))


def unwrap_member_key(
    wrapped: bytes, kem: X25519PrivateKey, space: SpaceId, epoch: Epoch, account: AccountId
) -> MemberKey:
    """Open a Keyring row. What comes out is believed only after `open_epoch` has checked it.

    Raises:
        OpenError: the row is not for this account, space and epoch.
    """
    return _member_key(hpke.open_sealed(kem, wrapped, _wrap_info(space, epoch, account)))


def make_link(keys: EpochKeys, earlier: MemberKey, entropy: Entropy) -> bytes:
    """Seal the member key of the epoch before under that of this epoch, so that one wrap gives all."""
    aad = label("link", keys.space + u32(keys.epoch))
    return seal_box(_link_key(keys.space, keys.epoch, keys.member_key), earlier.expose(), aad, entropy)


def open_link(space: SpaceId, epoch: Epoch, member_key: MemberKey, link: bytes) -> MemberKey:
    """Return the member key of the epoch before `epoch`.

    Raises:
        OpenError: the link was not sealed under this member key.
    """
    aad = label("link", space + u32(epoch))
    return _member_key(open_box(_link_key(space, epoch, member_key), link, aad))


def _link_key(space: SpaceId, epoch: Epoch, member_key: MemberKey) -> bytes:
    return kdf(member_key.expose(), space, "link", u32(epoch))


def _wrap_info(space: SpaceId, epoch: Epoch, account: AccountId) -> bytes:
    return label("wrap-a", space + u32(epoch) + account)


def _member_key(raw: bytes) -> MemberKey:
    if len(raw) != SECRET_BYTES:
        raise OpenError
    return MemberKey(raw)
