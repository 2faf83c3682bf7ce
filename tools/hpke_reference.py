"""HPKE base mode written out from RFC 9180, with a chosen ephemeral key: an independent check, and fixed vectors.

Never used by the package itself: a chosen ephemeral key is safe in tests only.
"""

from __future__ import annotations

import hashlib
import hmac

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

KEM_SUITE = b"KEM\x00\x20"
AES_128_GCM = (0x0001, 16)
AES_256_GCM = (0x0002, 32)


def extract(salt: bytes, suite: bytes, name: bytes, ikm: bytes) -> bytes:
    """LabeledExtract of RFC 9180, section 4."""
    return hmac.digest(salt or bytes(32), b"HPKE-v1" + suite + name + ikm, "sha256")


def expand(prk: bytes, suite: bytes, name: bytes, info: bytes, length: int) -> bytes:
    """LabeledExpand of RFC 9180, section 4; one block is enough for every length used here."""
    assert length <= hashlib.sha256().digest_size
    full = length.to_bytes(2, "big") + b"HPKE-v1" + suite + name + info
    return hmac.digest(prk, full + b"\x01", "sha256")[:length]


def shared_secret(exchanged: bytes, share: bytes, recipient_pk: bytes) -> bytes:
    """ExtractAndExpand of DHKEM(X25519, HKDF-SHA256)."""
    prk = extract(b"", KEM_SUITE, b"eae_prk", exchanged)
    return expand(prk, KEM_SUITE, b"shared_secret", share + recipient_pk, 32)


def key_and_nonce(secret: bytes, info: bytes, aead: tuple[int, int] = AES_256_GCM) -> tuple[bytes, bytes]:
    """KeySchedule of the base mode."""
    number, key_bytes = aead
    suite = b"HPKE\x00\x20\x00\x01" + number.to_bytes(2, "big")
    context = b"\x00" + extract(b"", suite, b"psk_id_hash", b"") + extract(b"", suite, b"info_hash", info)
    prk = extract(secret, suite, b"secret", b"")
    return expand(prk, suite, b"key", context, key_bytes), expand(prk, suite, b"base_nonce", context, 12)


def seal(ephemeral: X25519PrivateKey, recipient_pk: bytes, plaintext: bytes, info: bytes) -> bytes:
    """Seal in one shot, with a given ephemeral key."""
    share = ephemeral.public_key().public_bytes_raw()
    exchanged = ephemeral.exchange(X25519PublicKey.from_public_bytes(recipient_pk))
    key, nonce = key_and_nonce(shared_secret(exchanged, share, recipient_pk), info)
    return share + AESGCM(key).encrypt(nonce, plaintext, None)


def open_sealed(recipient: X25519PrivateKey, sealed: bytes, info: bytes) -> bytes:
    """Open in one shot."""
    share = sealed[:32]
    exchanged = recipient.exchange(X25519PublicKey.from_public_bytes(share))
    key, nonce = key_and_nonce(shared_secret(exchanged, share, recipient.public_key().public_bytes_raw()), info)
    return AESGCM(key).decrypt(nonce, sealed[32:], None)
