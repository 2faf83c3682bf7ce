"""What becomes of a device that its account has revoked: it goes dark, for good. See spec/sealing.md, section 9.

A server alone can wipe nothing: only the account's own signed log tells a device that it was revoked.
"""

from __future__ import annotations

import logging

import msgspec

from twinlock.client.device_context import DeviceContext
from twinlock.client.enrolment import anonymous_session
from twinlock.client.keystore import forget_store_key
from twinlock.client.profile import Profile
from twinlock.client.transport import Address, Dial
from twinlock.errors import DeviceRevokedError, StoreKeyError, TwinlockError
from twinlock.ids import DeviceId
from twinlock.protocol.account_log import replay_account
from twinlock.protocol.device_calls import ReadRevocation, ReadRevocationResult

logger = logging.getLogger(__name__)


class RevokedMark(msgspec.Struct, frozen=True):
    """What stays in the folder of a revoked device: which device it was, and since when."""

    device: str
    noticed_ms: int


async def is_revoked(context: DeviceContext, address: Address, dial: Dial) -> bool:
    """Ask the server for the account's log and verify that it revokes this device; False if it cannot show that."""
    home, device = context.state.home, context.state.device_keys.device
    try:
        wall_ms = context.clock.wall_ms
        async with anonymous_session(address, home.server_id, context.entropy, wall_ms, dial) as session:
            request = ReadRevocation(home.account, device)
            result = await session.call("device.revocation", request, ReadRevocationResult)
        state = replay_account(result.entries)
    except TwinlockError as exc:
        logger.warning("the server calls this device revoked and shows no entry", extra={"code": exc.code})
        return False
    return state.account == home.account and device in state.retired


def wipe(profile: Profile, device: DeviceId, now_ms: int) -> None:
    """Delete the StoreKey and everything that it sealed, and leave a mark; doing it again is fine."""
    mark = RevokedMark(device.hex(), now_ms)
    profile.mark_revoked(msgspec.json.encode(mark))
    _wipe_marked(profile)


def refuse_if_revoked(profile: Profile) -> None:
    """Refuse a profile whose device was revoked, and finish its wiping if that was interrupted.

    Raises:
        DeviceRevokedError: it was.
    """
    if profile.is_revoked:
        _wipe_marked(profile)
        raise DeviceRevokedError("its profile was wiped")


def _wipe_marked(profile: Profile) -> None:
    try:
        forget_store_key(profile.folder)
    except StoreKeyError as exc:
        # What it opens goes all the same; the next opening tries to delete the key again.
        logger.warning("the StoreKey could not be deleted", extra={"code": exc.code})
    profile.erase_data()
