"""Key derivation, always under a label. See spec/sealing.md, section 1."""

from __future__ import annotations

import hashlib
import hmac
import unicodedata

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from twinlock.protocol.labels import label
from twinlock.sealing.suite import SECRET_BYTES, StoreKey


def kdf(ikm: bytes, salt: bytes, name: str, context: bytes = b"") -> bytes:
    """Return 32 bytes of HKDF-SHA256 under a label."""
    return HKDF(SHA256(), SECRET_BYTES, salt, label(name, context)).derive(ikm)


def store_mac(store_key: StoreKey, name: str, context: bytes = b"") -> bytes:
    """Return `HMAC(StoreKey, label)`: the only way in which a StoreKey is used."""
    return hmac.digest(store_key.expose(), label(name, context), "sha256")


def stretch(password: str, salt: bytes, iterations: int) -> bytes:
    """Return 32 bytes of PBKDF2-HMAC-SHA256 of a password in its normal form (NFKC, UTF-8)."""
    return hashlib.pbkdf2_hmac("sha256", normal(password).encode(), salt, iterations, SECRET_BYTES)


def normal(password: str) -> str:
    """Return a password in the form in which it is counted and stretched."""
    return unicodedata.normalize("NFKC", password)
