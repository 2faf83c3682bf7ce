"""Sealing and opening of envelopes, and of writes made while locked. See spec/sealing.md, sections 5 and 7.

Only this module and `boxes` make nonces: random ones, so that clones and restored machines stay safe. Those of `blobs`
count the chunks of one blob.
"""

from __future__ import annotations

import hmac

from cryptography.exceptions import InvalidTag

from twinlock.errors import DocumentTooLargeError, KeyMismatchError, OpenError
from twinlock.ids import Counter, DeviceId, EnvelopeId, Epoch, SpaceId
from twinlock.protocol import hpke
from twinlock.protocol.envelope import (
    HEADER_BYTES,
    NONCE_BYTES,
    SIGNATURE_BYTES,
    TAG_BYTES,
    Envelope,
    Header,
    Kind,
    envelope_id,
)
from twinlock.protocol.labels import label, u32, u64
from twinlock.sealing.derive import store_mac
from twinlock.sealing.identity import DeviceKeys
from twinlock.sealing.padding import PAYLOAD_BYTES_MAX, pad, padded_bytes, unpad
from twinlock.sealing.space_keys import EpochKeys
from twinlock.sealing.suite import Entropy, StoreKey

_NO_NONCE = bytes(NONCE_BYTES)
_ENVELOPE_PREFIX = label("envelope")
_MAC_BYTES = 32


def envelope_message(identifier: EnvelopeId) -> bytes:
    """Return what a device signs of its envelope."""
    return _ENVELOPE_PREFIX + identifier


def sealed_bytes(payload_bytes: int) -> int:
    """Return the length of the envelope that a change or snapshot of some length will have."""
    return HEADER_BYTES + padded_bytes(payload_bytes) + TAG_BYTES + SIGNATURE_BYTES


class Sealer:
    """Seal payloads as envelopes of one device. The caller keeps the chain: counter and predecessor come in."""

    __slots__ = ("_device_keys", "_entropy")

    def __init__(self, device_keys: DeviceKeys, entropy: Entropy) -> None:
        self._device_keys = device_keys
        self._entropy = entropy

    def seal(
        self, kind: Kind, payload: bytes, keys: EpochKeys, counter: Counter, prev: EnvelopeId, log_head: bytes
    ) -> Envelope:
        """Return a signed envelope that holds a payload; `log_head` is `SpaceLogState.head_prefix`.

        Raises:
            DocumentTooLargeError: the payload does not fit into an envelope.
        """
        assert kind in (Kind.CHANGE, Kind.SNAPSHOT)
        _check_fits(payload)
        device = self._device_keys.device
        padded, nonce = pad(payload), self._entropy(NONCE_BYTES)
        size = len(padded) + TAG_BYTES
        header = Header(kind, keys.epoch, keys.space, device, counter, 0, log_head, prev, nonce, size)
        packed = header.pack()
        return self._sign(header, packed, keys.device_cipher(device).encrypt(nonce, padded, packed))

    def seal_drop(
        self, payload: bytes, space: SpaceId, epoch: Epoch, drop_pk: bytes, chain: tuple[Counter, EnvelopeId, bytes]
    ) -> Envelope:
        """Return a signed envelope that only members can open: a sender holds neither key.

        Args:
            chain: counter, predecessor and log head, as for `seal`.
        """
        _check_fits(payload)
        counter, prev, log_head = chain
        padded = pad(payload)
        size = len(padded) + hpke.OVERHEAD_BYTES
        device = self._device_keys.device
        header = Header(Kind.DROP, epoch, space, device, counter, 0, log_head, prev, _NO_NONCE, size)
        packed = header.pack()
        return self._sign(header, packed, hpke.seal(drop_pk, padded, label("drop", packed)))

    def _sign(self, header: Header, packed: bytes, ciphertext: bytes) -> Envelope:
        identifier = envelope_id(packed, ciphertext)
        signature = self._device_keys.sign.sign(envelope_message(identifier))
        return Envelope(header, identifier, packed + ciphertext + signature)


def open_padded(envelope: Envelope, keys: EpochKeys) -> bytes:
    """Return an envelope's padded payload; its author and place are the reader's business.

    Raises:
        OpenError: the ciphertext or the header was altered, or the keys are of another epoch.
    """
    header, data = envelope.header, envelope.data
    if header.kind is Kind.DROP:
        return hpke.open_sealed(keys.drop_private, envelope.ciphertext, label("drop", envelope.header_bytes))
    cipher = keys.device_cipher(header.device)
    try:
        return cipher.decrypt(header.nonce, data[HEADER_BYTES:-SIGNATURE_BYTES], data[:HEADER_BYTES])
    except InvalidTag as exc:
        raise OpenError from exc


def open_payload(envelope: Envelope, keys: EpochKeys) -> bytes:
    """Return an envelope's payload; raises as `open_padded`, also when the padding is wrong."""
    return unpad(open_padded(envelope, keys))


def seal_locked_write(
    payload: bytes, drop_pk: bytes, place: tuple[SpaceId, Epoch, DeviceId], number: int, store_key: StoreKey
) -> bytes:
    """Seal a write made while locked, so that this device itself cannot open it until its next lease.

    Anyone could seal to the public drop key, so the record carries an HMAC under the StoreKey. `number` counts the
    records of the side file from 1.
    """
    _check_fits(payload)
    space, epoch, device = place
    front = u32(epoch) + u64(number)
    sealed = hpke.seal(drop_pk, pad(payload), label("locked-write", space + device + front))
    return front + sealed + _locked_mac(store_key, space, device, front + sealed)


def locked_write_epoch(record: bytes) -> Epoch:
    """Return the epoch whose keys open a record of the side file."""
    return Epoch(int.from_bytes(record[:4], "big"))


def open_locked_write(record: bytes, keys: EpochKeys, device: DeviceId, store_key: StoreKey) -> tuple[int, bytes]:
    """Return the number and the payload of a write made while locked.

    Raises:
        OpenError: the record was altered, or is not this device's own.
        KeyMismatchError: the keys are of another epoch.
    """
    if len(record) < 12 + hpke.OVERHEAD_BYTES + _MAC_BYTES:
        raise OpenError
    front, sealed, mac = record[:12], record[12:-_MAC_BYTES], record[-_MAC_BYTES:]
    if not hmac.compare_digest(_locked_mac(store_key, keys.space, device, front + sealed), mac):
        raise OpenError
    if locked_write_epoch(record) != keys.epoch:
        raise KeyMismatchError("a write made while locked is of another epoch")
    padded = hpke.open_sealed(keys.drop_private, sealed, label("locked-write", keys.space + device + front))
    return int.from_bytes(front[4:], "big"), unpad(padded)


def _locked_mac(store_key: StoreKey, space: SpaceId, device: DeviceId, data: bytes) -> bytes:
    return store_mac(store_key, "locked-write-mac", space + device + data)


def _check_fits(payload: bytes) -> None:
    if len(payload) > PAYLOAD_BYTES_MAX:
        raise DocumentTooLargeError(f"{len(payload)} bytes, {PAYLOAD_BYTES_MAX} at most")
