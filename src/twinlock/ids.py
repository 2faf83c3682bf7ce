"""Identifiers of everything that Twinlock names, as types that never mix with plain bytes or integers."""

from __future__ import annotations

from typing import NewType

AccountId = NewType("AccountId", bytes)
"""16 bytes: the hash of the account's signing key. See spec/sealing.md, section 2."""

DeviceId = NewType("DeviceId", bytes)
"""16 bytes: the hash of the device's two public keys. See spec/sealing.md, section 2."""

SpaceId = NewType("SpaceId", bytes)
"""16 bytes: 2 bytes of partition, then 14 bytes of the hash of the space's genesis entry."""

EnvelopeId = NewType("EnvelopeId", bytes)
"""32 bytes: the hash of an envelope's header and of its ciphertext's hash."""

BlobId = NewType("BlobId", bytes)
"""16 random bytes that name a sealed file."""

Incarnation = NewType("Incarnation", bytes)
"""16 random bytes that name one life of a server's database; replaced at every restore."""

LogId = NewType("LogId", bytes)
"""16 bytes: the account id or the space id whose signed log is meant."""

Seq = NewType("Seq", int)
"""A place in a space's log: strictly growing, gaps mean nothing, 0 is before the first entry."""

Counter = NewType("Counter", int)
"""The running number of a device's envelopes in one space, from 1, without gaps."""

Epoch = NewType("Epoch", int)
"""The number of a space's pair of keys, from 1."""

AnyId = AccountId | DeviceId | SpaceId | EnvelopeId | BlobId | Incarnation | LogId

ID_BYTES = 16
ENVELOPE_ID_BYTES = 32
NO_ENVELOPE = EnvelopeId(bytes(ENVELOPE_ID_BYTES))
"""What stands as the predecessor of a device's first envelope in a space."""


def short(identifier: bytes) -> str:
    """Return the first 8 hex digits of an id, for logs and messages."""
    return identifier[:4].hex()
