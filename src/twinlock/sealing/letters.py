"""How short secrets and fingerprints are shown to people: Crockford's base32, and 60 digits. See spec/sealing.md, 2."""

from __future__ import annotations

import hashlib

_CROCKFORD = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
_MISREAD = str.maketrans({"I": "1", "L": "1", "O": "0", "-": None, " ": None})
_LETTER_BITS = 5
_GROUP_LETTERS = 4
_DIGITS = 60
_GROUP_DIGITS = 5


def spell(number: int, letters: int) -> str:
    """Write a number as letters of Crockford's base32 in groups of four."""
    shifts = range(_LETTER_BITS * (letters - 1), -1, -_LETTER_BITS)
    return _grouped("".join(_CROCKFORD[number >> shift & 31] for shift in shifts), _GROUP_LETTERS, "-")


def unspell(text: str, letters: int) -> int | None:
    """Read letters that a person typed; case, spaces, hyphens and I, L, O do not matter. None if they are none."""
    typed = text.upper().translate(_MISREAD).strip()
    if len(typed) != letters or not set(typed) <= set(_CROCKFORD):
        return None
    number = 0
    for letter in typed:
        number = number << _LETTER_BITS | _CROCKFORD.index(letter)
    return number


def sixty_digits(message: bytes) -> str:
    """Return the fingerprint of a labelled message: 12 groups of 5 digits, made to be compared by two people."""
    number = int.from_bytes(hashlib.sha256(message).digest(), "big") % 10**_DIGITS
    return _grouped(f"{number:0{_DIGITS}d}", _GROUP_DIGITS, " ")


def _grouped(text: str, size: int, between: str) -> str:
    return between.join(text[start : start + size] for start in range(0, len(text), size))
