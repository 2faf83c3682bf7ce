"""Places in an ordered list: texts that sort like the elements, with room between any two. See spec/documents.md."""

from __future__ import annotations

from hashlib import sha256
from typing import Final

_DIGITS: Final = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_RADIX: Final = len(_DIGITS)
_HEAD_DIGITS: Final = 6
_HEADS: Final = _RADIX**_HEAD_DIGITS
_STEP: Final = _RADIX**2
"""Between two neighbours appended one after the other; leaves room for seven million of them."""


def place_between(low: str, high: str, element_id: str) -> str:
    """Return a place above `low` and below `high`; an empty text is no bound.

    The element's id is mixed in, so that two devices that insert at one spot get different places, and later inserts
    find room between them. Where there is no room (equal places), the result lies just above `low`.
    """
    if low and high and low >= high:
        high = ""
    head = _next_head(low, high)
    return (_midpoint(low, high) if head is None else _digits(head)) + _suffix(element_id)


def _next_head(low: str, high: str) -> int | None:
    """Return a step beyond the only bound, so that appending makes no ever longer places."""
    if low and high:
        return None
    if low:
        head = _head(low) + _STEP
    elif high:
        head = _head(high) - _STEP
    else:
        head = _HEADS // 2
    return head if 0 < head < _HEADS else None


def _midpoint(low: str, high: str) -> str:
    out: list[str] = []
    bounded = bool(high)
    position = 0
    while True:
        least = _digit(low, position, 0)
        most = _digit(high, position, 0) if bounded else _RADIX
        if most - least > 1:
            return "".join([*out, _DIGITS[(least + most) // 2]])
        out.append(_DIGITS[least])
        bounded = bounded and least == most
        position += 1


def _digit(place: str, position: int, beyond: int) -> int:
    """Return a digit of a place; what another device wrote may hold any characters, which count as the nearest."""
    if position >= len(place):
        return beyond
    found = _DIGITS.find(place[position])
    return found if found >= 0 else sum(digit < place[position] for digit in _DIGITS[1:])


def _head(place: str) -> int:
    head = 0
    for position in range(_HEAD_DIGITS):
        head = head * _RADIX + _digit(place, position, 0)
    return head


def _digits(head: int) -> str:
    out = []
    for _ in range(_HEAD_DIGITS):
        head, digit = divmod(head, _RADIX)
        out.append(_DIGITS[digit])
    return "".join(reversed(out))


def _suffix(element_id: str) -> str:
    digest = sha256(element_id.encode()).digest()
    return "".join([_DIGITS[byte % (_RADIX - 1) + 1] for byte in digest[:4]])
