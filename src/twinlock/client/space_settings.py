"""What owners and admins decide: a space's name, leases, epochs, and its end. See spec/sealing.md, 3, 4 and 7."""

from __future__ import annotations

import contextlib

from twinlock.client.courier import Courier
from twinlock.client.device_context import DeviceContext
from twinlock.client.epochs import Epochs
from twinlock.client.log_writer import Draft, LogWriter, check_admits
from twinlock.client.space_runtime import SpaceRuntime
from twinlock.errors import InvalidCallError, RoleError, ShreddedError
from twinlock.protocol.space_log import LEASE_HOURS_MAX, NEEDS_KEYSTORE, Role, SpaceLogState
from twinlock.sealing.identity import AccountKeys
from twinlock.sealing.space_entries import config_lease_entry, config_offline_entry, config_title_entry, shred_entry


class SpaceSettings:
    """Changes what holds for a whole space."""

    __slots__ = ("_context", "_courier", "_epochs", "_writer")

    def __init__(self, context: DeviceContext, courier: Courier, writer: LogWriter, epochs: Epochs) -> None:
        self._context = context
        self._courier = courier
        self._writer = writer
        self._epochs = epochs

    async def rename(self, runtime: SpaceRuntime, title: str) -> None:
        """Give a space another name.

        Raises:
            LeaseExpiredError: the space is locked: the name is sealed.
        """

        async def prepare(signer: AccountKeys, log: SpaceLogState) -> Draft | None:
            check_admits(log, signer.account)
            keys = runtime.keyring.newest_keys()
            is_named = log.title is not None and log.title.epoch == log.epoch and runtime.title == title
            return None if is_named else Draft([config_title_entry(signer, log, keys, title, self._context.entropy)])

        await self._writer.write(runtime, prepare)

    async def set_lease_hours(self, runtime: SpaceRuntime, lease_hours: int) -> None:
        """Say how long a device may read without the server; with 0 no lease is ever stored."""
        if not 0 <= lease_hours <= LEASE_HOURS_MAX:
            raise InvalidCallError(f"leases last 0 to {LEASE_HOURS_MAX} hours")

        async def prepare(signer: AccountKeys, log: SpaceLogState) -> Draft | None:
            check_admits(log, signer.account)
            return None if log.lease_hours == lease_hours else Draft([config_lease_entry(signer, log, lease_hours)])

        await self._writer.write(runtime, prepare)

    async def set_offline_needs(self, runtime: SpaceRuntime, needs: str) -> None:
        """Say what a device's store must offer before leases are kept in it: `keystore`, or nothing at all (empty)."""
        if needs not in ("", NEEDS_KEYSTORE):
            raise InvalidCallError(f"a store offers {NEEDS_KEYSTORE!r} or ''")

        async def prepare(signer: AccountKeys, log: SpaceLogState) -> Draft | None:
            check_admits(log, signer.account)
            return None if log.offline_needs == needs else Draft([config_offline_entry(signer, log, needs)])

        await self._writer.write(runtime, prepare)

    async def rotate(self, runtime: SpaceRuntime, *, only_if_wanted: bool = False) -> None:
        """Open a new epoch, unless somebody else does meanwhile.

        Args:
            runtime: the space.
            only_if_wanted: open none if the log does not ask for it by now.
        """
        before = runtime.keyring.log.epoch

        async def prepare(signer: AccountKeys, log: SpaceLogState) -> Draft | None:
            check_admits(log, signer.account)
            if log.epoch > before or (only_if_wanted and not log.wants_rotation):
                return None
            return await self._epochs.rotation(runtime, signer, log, self._courier.incarnation)

        await self._writer.write(runtime, prepare)

    async def shred(self, runtime: SpaceRuntime) -> None:
        """Have the service keys destroyed: every copy becomes unreadable, those of other devices when they hear of it.

        Doing it again is fine.

        Raises:
            RoleError: only an owner does this.
        """

        async def prepare(signer: AccountKeys, log: SpaceLogState) -> Draft | None:
            if log.role_of(signer.account) is not Role.OWNER:
                raise RoleError("only an owner shreds a space")
            return Draft([shred_entry(signer, log)])

        with contextlib.suppress(ShreddedError):
            await self._writer.write(runtime, prepare)
