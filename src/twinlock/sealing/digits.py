"""Sixty digits that two people compare, so that no server can stand in for either. See spec/sealing.md, 2 and 4."""

from __future__ import annotations

import hashlib

from twinlock.protocol.labels import label

DIGITS_COUNT = 60
_GROUP = 5


def digits_of(name: str, context: bytes) -> str:
    """Return 60 decimal digits of a labelled hash, in groups of five."""
    number = int.from_bytes(hashlib.sha256(label(name, context)).digest(), "big") % 10**DIGITS_COUNT
    digits = f"{number:0{DIGITS_COUNT}d}"
    return " ".join(digits[start : start + _GROUP] for start in range(0, DIGITS_COUNT, _GROUP))


def safety_digits(sign_pk: bytes, other_sign_pk: bytes) -> str:
    """Return the digits by which two members know each other's account, the same on both sides."""
    return digits_of("safety", min(sign_pk, other_sign_pk) + max(sign_pk, other_sign_pk))
