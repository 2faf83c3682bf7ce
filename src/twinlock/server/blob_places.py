"""How the objects of blobs are named in the store, and what lies in each part. Pure."""

from __future__ import annotations

from twinlock.errors import InvalidCallError
from twinlock.ids import ID_BYTES, BlobId, SpaceId
from twinlock.protocol.limits import BLOB_CHUNK_BYTES, BLOB_CHUNK_TAG_BYTES, BLOB_PART_BYTES

ALL_BLOBS = "blobs/"
_PART_DIGITS = 8
_SEALED_CHUNK_BYTES = BLOB_CHUNK_BYTES + BLOB_CHUNK_TAG_BYTES


def space_place(space: SpaceId) -> str:
    """Return what the names of all objects of a space begin with."""
    return f"{ALL_BLOBS}{space.hex()}/"


def blob_place(space: SpaceId, blob: BlobId) -> str:
    """Return what the names of all parts of a blob begin with."""
    return f"{space_place(space)}{blob.hex()}/"


def part_place(space: SpaceId, blob: BlobId, part: int) -> str:
    """Return the name of a part."""
    return f"{blob_place(space, blob)}{part:0{_PART_DIGITS}d}"


def part_of(name: str) -> int | None:
    """Return the number of a part by its name; None for something else that lies there."""
    digits = name.rpartition("/")[2]
    return int(digits) if len(digits) == _PART_DIGITS and digits.isdecimal() else None


def blob_of(name: str) -> tuple[SpaceId, BlobId] | None:
    """Return whose part an object is, by its name; None for something else that lies there."""
    words = name.split("/")
    if len(words) != 4 or not all(_is_id(word) for word in words[1:3]):
        return None
    return SpaceId(bytes.fromhex(words[1])), BlobId(bytes.fromhex(words[2]))


def parts_count(sealed_bytes: int) -> int:
    """Return how many parts a blob of so many sealed bytes has."""
    return -(-sealed_bytes // BLOB_PART_BYTES)


def part_bytes(sealed_bytes: int, part: int) -> int:
    """Return how many bytes a part has: all but the last are full."""
    return min(BLOB_PART_BYTES, sealed_bytes - part * BLOB_PART_BYTES)


def check_sealed_bytes(sealed_bytes: int) -> None:
    """Check that chunks can come to so many bytes: each holds at least one besides its tag.

    Raises:
        InvalidCallError: they cannot.
    """
    if sealed_bytes <= 0 or 0 < sealed_bytes % _SEALED_CHUNK_BYTES <= BLOB_CHUNK_TAG_BYTES:
        raise InvalidCallError("sealed chunks do not come to so many bytes")


def _is_id(word: str) -> bool:
    return len(word) == 2 * ID_BYTES and all(digit in "0123456789abcdef" for digit in word)
