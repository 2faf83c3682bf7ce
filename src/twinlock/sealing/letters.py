"""How short secrets and codes are spelled for people: Crockford's base32. See spec/sealing.md, section 2."""

from __future__ import annotations

_CROCKFORD = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
_MISREAD = str.maketrans({"I": "1", "L": "1", "O": "0", "-": None, " ": None})
_LETTER_BITS = 5
_GROUP_LETTERS = 4


def spell(number: int, letters: int) -> str:
    """Write a number as letters of Crockford's base32 in groups of four."""
    shifts = range(_LETTER_BITS * (letters - 1), -1, -_LETTER_BITS)
    text = "".join(_CROCKFORD[number >> shift & 31] for shift in shifts)
    return "-".join(text[start : start + _GROUP_LETTERS] for start in range(0, letters, _GROUP_LETTERS))


def unspell(text: str, letters: int) -> int | None:
    """Read letters that a person typed; case, spaces, hyphens and I, L, O do not matter. None if they are none."""
    typed = text.upper().translate(_MISREAD).strip()
    if len(typed) != letters or not set(typed) <= set(_CROCKFORD):
        return None
    number = 0
    for letter in typed:
        number = number << _LETTER_BITS | _CROCKFORD.index(letter)
    return number
