"""How a space ends for this account: it was removed, it left, or the space was shredded. See spec/sealing.md, 7 and 9.

Only the space's own signed log tells it. What a server says without it detaches a space and wipes nothing.
"""

from __future__ import annotations

import logging
from enum import StrEnum

import msgspec

from twinlock.client.device_context import DeviceContext
from twinlock.errors import LogForkError, RemovedError, ShreddedError, TwinlockError
from twinlock.ids import AccountId, SpaceId
from twinlock.protocol.signed_log import PREFIX_BYTES
from twinlock.protocol.space_log import SpaceLogState

logger = logging.getLogger(__name__)


class EndReason(StrEnum):
    """Why a space is no longer here."""

    REMOVED = "removed"
    LEFT = "left"
    SHREDDED = "shredded"


class SpaceEnd(msgspec.Struct, frozen=True):
    """How a space ended: what the application is told, and up to where its log was read.

    `unsent_writes` counts the writes of this device that the server never had; they are gone with the keys. Those that
    lay in a replica which was locked at that moment are not counted.
    """

    space: str
    reason: EndReason
    unsent_writes: int
    noticed_ms: int
    seq: int
    head: bytes

    def error(self) -> TwinlockError:
        """Return what is raised to whoever still uses the space."""
        return error_of_end(self.reason)


def error_of_end(reason: EndReason) -> TwinlockError:
    """Return what is raised to whoever uses a space that has ended."""
    match reason:
        case EndReason.SHREDDED:
            return ShreddedError()
        case EndReason.LEFT:
            return RemovedError("it has left")
        case EndReason.REMOVED:
            return RemovedError()


def reason_of_end(log: SpaceLogState, account: AccountId) -> EndReason | None:
    """Return why an account has no part in a space any more; None if it has one, or waits to have one."""
    if log.is_shredded:
        return EndReason.SHREDDED
    former = log.former.get(account)
    if former is None or account in log.members or account in log.applicants:
        return None
    return EndReason.REMOVED if former.removed_seq else EndReason.LEFT


def space_ends(context: DeviceContext) -> dict[SpaceId, SpaceEnd]:
    """Return the spaces that ended on this device and did not begin again."""
    present = set(context.state.spaces())
    return {space: end for space, end in context.state.space_ends(SpaceEnd).items() if space not in present}


def finish_wiping(context: DeviceContext) -> None:
    """Delete what a crash left of spaces whose keys are gone already."""
    for space in space_ends(context):
        context.profile.erase_space(space)


def check_goes_on(context: DeviceContext, log: SpaceLogState) -> None:
    """Refuse the log of a space that ended here, unless it goes on from its end.

    Raises:
        LogForkError: a server could bring a removed member back into a space that its own log says is over.
    """
    end = context.state.space_ends(SpaceEnd).get(log.space)
    if end is not None and log.head_prefixes.get(end.head[:PREFIX_BYTES]) != end.seq:
        raise LogForkError("it does not contain the entry by which the space ended here")
