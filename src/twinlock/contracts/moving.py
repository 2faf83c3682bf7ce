"""The mark on a database that must not be served: it was moved away, or is not yet wholly there.

It is a record of the directory like any other, so that every engine keeps it; whoever opens a database to serve it
looks for it first.
"""

from __future__ import annotations

from enum import Enum

import msgspec

from twinlock.contracts.directory import Directory
from twinlock.errors import StoreError

MOVING_KEY = "moving"


class Whereabouts(Enum):
    """Why a database must not be served."""

    AWAY = "away"
    """It was moved; what devices have written since is elsewhere."""

    ARRIVING = "arriving"
    """A restore or a move into it has not ended."""


class Moving(msgspec.Struct, frozen=True, array_like=True):
    """The mark: `place` names where the database has gone or comes from, `at_ms` says since when."""

    whereabouts: Whereabouts
    place: str
    at_ms: int


def encode_moving(moving: Moving) -> bytes:
    """Return the mark as a directory's value."""
    return msgspec.msgpack.encode(moving)


def decode_moving(value: bytes) -> Moving:
    """Return what a mark says.

    Raises:
        StoreError: it says nothing.
    """
    try:
        return msgspec.msgpack.decode(value, type=Moving)
    except (msgspec.DecodeError, msgspec.ValidationError) as exc:
        raise StoreError("the mark of a moved database is damaged") from exc


def refuse_moved(value: bytes) -> None:
    """Refuse a database that bears the mark.

    Raises:
        StoreError: it was moved away, or is not yet wholly there.
    """
    moving = decode_moving(value)
    if moving.whereabouts is Whereabouts.AWAY:
        raise StoreError(f"this database was moved to {moving.place}: serve that one, devices have gone on there")
    raise StoreError(
        f"this database is not complete: what comes from {moving.place} has not ended; go on with a move by the same"
        " command, but for a restore empty this first (docs/operate/backup.md)"
    )


async def check_served(directory: Directory) -> None:
    """Check that a database may be served.

    Raises:
        StoreError: it was moved away, or is not yet wholly there.
    """
    record = await directory.get(MOVING_KEY)
    if record is not None:
        refuse_moved(record.value)
