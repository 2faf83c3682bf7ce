"""A box is `nonce || AES-256-GCM`: how everything but envelopes and HPKE is sealed. See spec/sealing.md, section 1."""

from __future__ import annotations

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from twinlock.errors import OpenError
from twinlock.protocol.envelope import NONCE_BYTES, TAG_BYTES
from twinlock.sealing.suite import Entropy

BOX_OVERHEAD_BYTES = NONCE_BYTES + TAG_BYTES


def seal_box(key: bytes, plaintext: bytes, aad: bytes, entropy: Entropy) -> bytes:
    """Seal under a key with a fresh random nonce, which stands in front."""
    nonce = entropy(NONCE_BYTES)
    return nonce + AESGCM(key).encrypt(nonce, plaintext, aad)


def open_box(key: bytes, sealed: bytes, aad: bytes) -> bytes:
    """Open what `seal_box` made.

    Raises:
        OpenError: another key, other additional data, or altered bytes.
    """
    cipher = AESGCM(key)
    # A crash reporter sends the variables of every frame: the key must not be one of them when opening fails.
    del key
    if len(sealed) < BOX_OVERHEAD_BYTES:
        raise OpenError
    try:
        return cipher.decrypt(sealed[:NONCE_BYTES], sealed[NONCE_BYTES:], aad)
    except InvalidTag as exc:
        raise OpenError from exc
