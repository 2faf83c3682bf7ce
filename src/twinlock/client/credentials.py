"""What a person proves an account with: the password, the recovery kit, and what unlocks a device. See sealing.md."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod

from twinlock.client.account_log import AccountLog, present_keys
from twinlock.client.connection import Connection
from twinlock.client.device_context import DeviceContext
from twinlock.client.device_state import DeviceState
from twinlock.client.sudo import Sudo
from twinlock.errors import NotFoundError, RevisionError
from twinlock.protocol.account_log import AccountState
from twinlock.protocol.calls import Nothing, Unlocker
from twinlock.protocol.limits import CLOCK_SKEW_MS_MAX
from twinlock.sealing.account_requests import put_request
from twinlock.sealing.identity import AccountKeys
from twinlock.sealing.vault import RecoveryKit, kit_qr, make_unlocker

PUT_TRIES_MAX = 5


class KitKeeper(ABC):
    """Where a service account keeps its kit; persons write theirs down."""

    @abstractmethod
    def draft(self, kit: RecoveryKit) -> None:
        """Have a kit on the disk that the server does not know yet."""

    @abstractmethod
    def keep(self, state: DeviceState, keys: AccountKeys, kit: RecoveryKit) -> None:
        """The server knows it: it takes the old one's place."""


class Credentials:
    """Makes and replaces the account's unlockers, and holds the kit until it was shown."""

    __slots__ = ("_connection", "_context", "_kit", "_kit_keeper", "_log", "_password_unlock", "sudo")

    def __init__(
        self,
        context: DeviceContext,
        connection: Connection,
        sudo: Sudo,
        kit: RecoveryKit | None,
        password_unlock: bool,
        kit_keeper: KitKeeper | None = None,
    ) -> None:
        self._context = context
        self._connection = connection
        self._log = AccountLog(context, connection)
        self.sudo = sudo
        self._kit = kit
        self._password_unlock = password_unlock
        self._kit_keeper = kit_keeper

    async def unlock(self, password: str) -> None:
        """Open the account's signing key for 15 minutes.

        Raises:
            CredentialsError: the password is wrong.
            SudoNeededError: this device keeps no signing key.
        """
        state = self._context.state
        self.sudo.grant(await asyncio.to_thread(state.open_sudo, password, state.sudo_record()))

    # The kit

    def shown_kit(self) -> str:
        """Return the kit that was just made, once.

        Raises:
            NotFoundError: it was shown before.
        """
        kit, self._kit = self._kit, None
        if kit is None:
            raise NotFoundError("the recovery kit was shown before: make another with `await db.new_recovery_kit()`")
        return str(kit)

    def kit_qr(self, kit: str) -> str:
        """Return the text of a QR code that holds a kit, with the account and the server that it is for."""
        home = self._context.state.home
        return kit_qr(RecoveryKit.parse(kit), self._connection.origin, home.server_id, home.name)

    async def new_kit(self) -> str:
        """Replace the kit.

        Raises:
            SudoNeededError: the password was not given in the last 15 minutes.
        """
        await self.put_new_kit()
        return self.shown_kit()

    async def put_new_kit(self) -> None:
        """Replace the kit by one that is yet to be shown."""
        self.sudo.keys()
        state = await self._log.read()
        kit, unlocker = self.make_kit(present_keys(self.sudo, state))
        await self._put(unlocker, state)
        self.took_kit(kit)

    def make_kit(self, keys: AccountKeys) -> tuple[RecoveryKit, Unlocker]:
        """Draw a kit and make the record that lets it open these keys."""
        home, entropy = self._context.state.home, self._context.entropy
        kit = RecoveryKit.make(entropy)
        if self._kit_keeper is not None:
            self._kit_keeper.draft(kit)
        return kit, make_unlocker(kit, home.name, home.server_id, entropy, keys)

    def took_kit(self, kit: RecoveryKit) -> None:
        """The server has the record of a new kit: show it once, or keep it where a service account does."""
        self._kit = kit
        if self._kit_keeper is not None:
            self._kit_keeper.keep(self._context.state, self.sudo.keys(), kit)

    # The password

    async def change_password(self, old: str, new: str) -> None:
        """Replace the password, after the old one was proven here.

        Raises:
            CredentialsError: the old password is wrong.
            PasswordError: the new one is too short.
        """
        await self.unlock(old)
        await self.set_password(new)

    async def set_password(self, password: str) -> None:
        """Replace the account's password on the server, and what unlocks this device.

        Raises:
            SudoNeededError: the password was not given in the last 15 minutes.
            PasswordError: the new one is too short.
        """
        keys, kept = self.sudo.keys(), self._context.state
        state, wrapped = await self._log.read(), None
        if self._password_unlock:
            wrapped = keys = present_keys(self.sudo, state)
        unlocker = await asyncio.to_thread(
            make_unlocker, password, kept.home.name, kept.home.server_id, self._context.entropy, wrapped
        )
        await self._put(unlocker, state)
        kept.put_sudo(await asyncio.to_thread(kept.seal_sudo, keys, password))

    # Both

    async def _put(self, unlocker: Unlocker, state: AccountState) -> None:
        """Replace an unlocker on the server, by the account's signed word."""
        server_id, time_ms = self._context.state.home.server_id, self._context.clock.now_ms()
        for _ in range(PUT_TRIES_MAX):
            request = put_request(self.sudo.keys(), server_id, state, time_ms, unlocker)
            try:
                await self._connection.call("unlocker.put", request, Nothing)
                return
            except RevisionError as exc:
                # Another device's clock is ahead, and its unlocker was put a moment ago: this one is newer.
                if not 0 < exc.retry_after_ms <= CLOCK_SKEW_MS_MAX:
                    raise
                time_ms += exc.retry_after_ms
        raise RevisionError("others replace it at the same time, again and again")
