"""Which records of a directory go into a backup and along with a move. See docs/internals/server.md for all keys."""

from __future__ import annotations

from typing import NamedTuple

import msgspec

from twinlock.contracts import MOVING_KEY
from twinlock.errors import BackupDamagedError
from twinlock.ids import Incarnation, Seq, SpaceId

BIRTHS = "birth/"
SIGNED_LOGS = "log/"
IDENTITY_KEY = "cluster/identity"
"""Which server the nodes of a cluster are: written by the first that starts, also on a cluster that is still empty."""

_NOT_CARRIED = ("heads/", "start/", "changing/")
_NOT_CARRIED_KEYS = frozenset({"probe", "chores", "cluster/settings", MOVING_KEY})


class Birth(NamedTuple):
    """The head that a space had when an incarnation of the database began, as the server writes it."""

    incarnation: Incarnation
    head: Seq


def is_carried(key: str) -> bool:
    """Tell whether a record is of the data, and not of the engine or the nodes that hold it now."""
    return key not in _NOT_CARRIED_KEYS and not key.startswith(_NOT_CARRIED)


def birth_key(space: SpaceId) -> str:
    """Return the key of a space's births."""
    return f"{BIRTHS}{space.hex()}"


def with_birth(value: bytes, incarnation: Incarnation) -> bytes:
    """Return a space's births and that of a database whose seqs are all new: devices read everything again there.

    Raises:
        BackupDamagedError: the record is none of births.
    """
    try:
        births = msgspec.msgpack.decode(value, type=list[Birth]) if value else []
    except (msgspec.MsgspecError, ValueError) as exc:
        raise BackupDamagedError("a record of births cannot be read") from exc
    if births and births[-1].incarnation == incarnation:
        births.pop()
    return msgspec.msgpack.encode([*births, Birth(incarnation, Seq(0))])
