"""The directory contract: small durable records with compare-and-set."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator

import msgspec

from twinlock.errors import InvalidCallError, LimitExceededError

DIRECTORY_KEY_BYTES_MAX = 255
DIRECTORY_VALUE_BYTES_MAX = 1 << 20


class Record(msgspec.Struct, frozen=True):
    """A stored value and its revision; a deleted or absent key has no record."""

    value: bytes
    revision: int


class Change(msgspec.Struct, frozen=True):
    """A key that changed; `record` is None when it was deleted."""

    key: str
    record: Record | None


class Directory(ABC):
    """Accounts, devices, signed logs, Keyring rows, quotas: durable, linearizable for each key.

    Keys are ASCII paths of at most 255 bytes such as `account/4f…`; values at most 1 MiB.
    """

    @abstractmethod
    async def get(self, key: str) -> Record | None:
        """Return the newest record of a key."""

    @abstractmethod
    async def put(self, key: str, value: bytes, expect_revision: int | None = None) -> int:
        """Store durably and return the new revision.

        `expect_revision` 0 means "the key must not exist", None means "whatever is there".

        Raises:
            RevisionError: the key is at another revision; nothing was stored.
        """

    @abstractmethod
    async def delete(self, key: str, expect_revision: int | None = None) -> None:
        """Delete a key; deleting an absent key is fine unless a revision above 0 is expected."""

    @abstractmethod
    async def list(self, prefix: str) -> dict[str, Record]:
        """Return every key that begins with a prefix, sorted by key."""

    @abstractmethod
    def scan(self) -> AsyncIterator[tuple[str, Record]]:
        """Yield every record there is, each key once, in any order, never holding all of them in memory.

        What changes meanwhile appears as it was or as it is.
        """

    @abstractmethod
    def watch(self, prefix: str) -> AsyncIterator[Change]:
        """Yield every change of keys that begin with a prefix, later than this call.

        Raises:
            OverloadedError: the watcher left too many unread; it lists again and watches anew.
        """


def check_record(key: str, value: bytes) -> None:
    """Check what is about to be stored; every engine calls this first.

    Raises:
        InvalidCallError: the key is empty or not ASCII.
        LimitExceededError: key or value is too long.
    """
    if not key or not key.isascii():
        raise InvalidCallError("a directory key is ASCII and not empty")
    if len(key) > DIRECTORY_KEY_BYTES_MAX:
        raise LimitExceededError(f"a directory key of {len(key)} bytes, {DIRECTORY_KEY_BYTES_MAX} at most")
    if len(value) > DIRECTORY_VALUE_BYTES_MAX:
        raise LimitExceededError(f"a directory value of {len(value)} bytes, {DIRECTORY_VALUE_BYTES_MAX} at most")
