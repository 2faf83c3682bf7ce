"""Padding: sizes tell at most 12 percent. See spec/sealing.md, section 5, and the PURBs paper for Padmé."""

from __future__ import annotations

from twinlock.errors import OpenError
from twinlock.protocol.envelope import CIPHERTEXT_BYTES_MAX, TAG_BYTES

PADDED_BYTES_MIN = 128
MARK = b"\x80"
"""The first byte of all padding; zeros follow."""


def padded_bytes(payload_bytes: int) -> int:
    """Return the length to which a payload of some length and its mark are padded."""
    least = max(payload_bytes + len(MARK), PADDED_BYTES_MIN)
    exponent = least.bit_length() - 1
    free_bits = exponent - exponent.bit_length()
    mask = (1 << free_bits) - 1
    return (least + mask) & ~mask


def _payload_bytes_max() -> int:
    room = CIPHERTEXT_BYTES_MAX - TAG_BYTES
    free_bits = (room.bit_length() - 1) - (room.bit_length() - 1).bit_length()
    return (room >> free_bits << free_bits) - len(MARK)


PAYLOAD_BYTES_MAX = _payload_bytes_max()
"""The longest payload whose padding still fits into an envelope."""


def pad(payload: bytes) -> bytes:
    """Append 0x80, then zeros up to the length that `padded_bytes` tells."""
    return (payload + MARK).ljust(padded_bytes(len(payload)), b"\0")


def unpad(padded: bytes) -> bytes:
    """Take the padding off.

    Raises:
        OpenError: it is not the padding that `pad` makes.
    """
    payload = padded.rstrip(b"\0")
    if not payload.endswith(MARK) or padded_bytes(len(payload) - 1) != len(padded):
        raise OpenError
    return payload[:-1]
