"""Labels: the prefix that keeps every key, signature and hash to one use. See spec/sealing.md, section 1."""

from __future__ import annotations

_PREFIX = b"twinlock/1 "
_PREFIXED_BYTES_MAX = (1 << 16) - 1


def label(name: str, context: bytes = b"") -> bytes:
    """Return `"twinlock/1 " name 0x00 context`. Parts of the context have fixed lengths or are `prefixed`."""
    return _PREFIX + name.encode("ascii") + b"\0" + context


def prefixed(data: bytes) -> bytes:
    """Return data after its length as u16, so that neighbours in a context cannot run into one another."""
    assert len(data) <= _PREFIXED_BYTES_MAX
    return len(data).to_bytes(2, "big") + data


def u16(number: int) -> bytes:
    """Return an integer as 2 bytes, big-endian."""
    return number.to_bytes(2, "big")


def u32(number: int) -> bytes:
    """Return an integer as 4 bytes, big-endian."""
    return number.to_bytes(4, "big")


def u64(number: int) -> bytes:
    """Return an integer as 8 bytes, big-endian."""
    return number.to_bytes(8, "big")
