"""HPKE, RFC 9180 base mode, single shot: wrap bytes to an X25519 key. See spec/sealing.md, section 1.

Both the members' side (member keys, drops) and the key service (leases) use it, so it is shared. Base mode does not
say who wrapped: whoever opens checks the result against a signed commitment before use.
"""

from __future__ import annotations

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.hpke import AEAD, KDF, KEM, Suite

from twinlock.errors import OpenError

SHARE_BYTES = 32
"""The ephemeral public key that stands before the ciphertext."""

OVERHEAD_BYTES = SHARE_BYTES + 16
_SUITE = Suite(KEM.X25519, KDF.HKDF_SHA256, AEAD.AES_256_GCM)
_PRIME = (1 << 255) - 19
_SMALL_ORDER = frozenset(
    {
        0,
        1,
        _PRIME - 1,
        325606250916557431795983626356110631294008115727848805560023387167927233504,
        39382357235489614581723060781553021112529911719440698176882885853963445705823,
    }
)
"""The points of small order of Curve25519 and its twist: with them every shared secret is zero."""


def is_recipient(public_key: bytes) -> bool:
    """Tell whether something can be wrapped to a public key: it has its length, and is not of small order."""
    point = int.from_bytes(public_key, "little") & ((1 << 255) - 1)
    return len(public_key) == SHARE_BYTES and point % _PRIME not in _SMALL_ORDER


def seal(public_key: bytes, plaintext: bytes, info: bytes) -> bytes:
    """Wrap a plaintext to the holder of a public key, bound to `info`. The ephemeral key is drawn by the library.

    Raises:
        ValueError: the public key has a wrong length or is of small order.
    """
    return _SUITE.encrypt(plaintext, X25519PublicKey.from_public_bytes(public_key), info)


def open_sealed(private_key: X25519PrivateKey, sealed: bytes, info: bytes) -> bytes:
    """Unwrap what `seal` made for this key and this `info`.

    Raises:
        OpenError: another key, another `info`, altered bytes, or a share of small order.
    """
    if len(sealed) < OVERHEAD_BYTES:
        raise OpenError
    try:
        return _SUITE.decrypt(sealed, private_key, info)
    except (InvalidTag, ValueError) as exc:
        raise OpenError from exc
