"""The blob contract: large sealed bytes beside the log, stored in parts under names."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator

import msgspec

from twinlock.errors import InvalidCallError, LimitExceededError

BLOB_NAME_BYTES_MAX = 255
BLOB_PART_BYTES_MAX = 16 << 20
_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*(/[A-Za-z0-9_-][A-Za-z0-9._-]*)*")


class StoredPart(msgspec.Struct, frozen=True):
    """A stored object: its name, how many bytes it has, and when it was written (ms since 1970, UTC)."""

    name: str
    size: int
    written_ms: int


class BlobStore(ABC):
    """Objects of at most 16 MiB under names such as `blobs/<space>/<blob>/00000003`; what is larger comes in parts.

    A put is all or nothing, and durable when it returns. Objects are written once: a later put of a name replaces it
    as a whole. Names are ASCII paths of letters, digits, `-`, `_`, `.` and `/`.
    """

    @abstractmethod
    async def put(self, name: str, data: bytes) -> None:
        """Store an object durably.

        Raises:
            InvalidCallError: the name is none.
            LimitExceededError: it is too large.
            StoreError: the store failed; nothing was stored.
        """

    @abstractmethod
    async def get(self, name: str, first: int = 0, size: int | None = None) -> bytes | None:
        """Return an object's bytes from `first` on, at most `size` of them; None if there is none."""

    @abstractmethod
    async def delete(self, name: str) -> None:
        """Delete an object; deleting an absent one is fine."""

    @abstractmethod
    def list(self, prefix: str) -> AsyncIterator[StoredPart]:
        """Yield every object whose name begins with a prefix that ends at a `/`, in any order."""

    @abstractmethod
    async def close(self) -> None:
        """Release the store."""


def check_name(name: str) -> None:
    """Check an object's name; every store calls this first.

    Raises:
        InvalidCallError: it is empty, too long, has other characters, or could leave its folder.
    """
    if not _NAME.fullmatch(name) or len(name) > BLOB_NAME_BYTES_MAX:
        raise InvalidCallError("the name of an object is a short path of plain words")


def check_object(name: str, data: bytes) -> None:
    """Check what is about to be stored; every store calls this first.

    Raises:
        InvalidCallError: the name is none.
        LimitExceededError: it is too large.
    """
    check_name(name)
    if len(data) > BLOB_PART_BYTES_MAX:
        raise LimitExceededError(f"an object of {len(data)} bytes, {BLOB_PART_BYTES_MAX} at most")


def check_range(first: int, size: int | None) -> None:
    """Check what is to be read of an object.

    Raises:
        InvalidCallError: it begins before the first byte, or ends before it begins.
    """
    if first < 0 or (size is not None and size < 0):
        raise InvalidCallError("a range begins and ends at a byte of the object")


def check_prefix(prefix: str) -> None:
    """Check the prefix of a listing.

    Raises:
        InvalidCallError: it is not a path that ends at a `/`.
    """
    if not prefix.endswith("/"):
        raise InvalidCallError("the prefix of a listing ends at a /")
    check_name(prefix.removesuffix("/"))
