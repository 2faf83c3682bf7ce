"""The new device's side of pairing: it shows a code, waits to be approved, and asks its person to compare digits.

See spec/sealing.md, section 2.
"""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from types import TracebackType
from typing import Self

import msgspec

from twinlock.client.client import Client
from twinlock.client.enrolment import AnonymousSession, Enrolment, enrolling
from twinlock.client.new_profile import NewProfile, profile_folder
from twinlock.client.options import Options
from twinlock.client.transport import Address, parse_address
from twinlock.errors import (
    ClosedError,
    LogInvalidError,
    PairingRefusedError,
    PairingUnknownError,
    SignatureError,
    TwinlockError,
)
from twinlock.protocol.account_log import replay_account
from twinlock.protocol.device_calls import AskPairing, AskPairingResult, TakePairing, TakePairingResult
from twinlock.protocol.names import account_name
from twinlock.protocol.proofs import pairing_take_message
from twinlock.sealing.pairing import open_account_keys, pairing_code, pairing_digits, pairing_qr
from twinlock.sealing.vault import check_password

logger = logging.getLogger(__name__)

POLL_INTERVAL_S = 0.5
RECONNECT_DELAY_S = 1.0
REQUEST_S_MAX = 10 * 60
"""A code holds for so long; then the new device begins again with new keys."""


class PairingApproval(msgspec.Struct, frozen=True):
    """What an old device's approval gave: the account's name, as the server tells it, and the digits to compare."""

    name: str
    digits: str


class PairingRequest:
    """A device that waits to be approved. It is on the disk only once it was confirmed."""

    def __init__(self, new: NewProfile, address: Address, options: Options) -> None:
        self._new = new
        self._address = address
        self._options = options
        self._server_id: bytes | None = None
        self._made: Enrolment | None = None
        self._ends_s = asyncio.get_running_loop().time() + REQUEST_S_MAX
        self._is_over = False

    @property
    def device(self) -> str:
        """The id that this device will have, in hex: by it an account revokes what it approved by mistake."""
        return self._new.device_keys.device.hex()

    @property
    def code(self) -> str:
        """The code to type on an old device: 16 letters and digits in four groups."""
        return pairing_code(self._new.device_keys.device)

    @property
    def qr(self) -> str:
        """The text of the QR code to be shown to an old device; it also names the server."""
        assert self._server_id is not None
        return pairing_qr(self._address.origin, self._server_id, self._new.device_keys.device)

    async def ask(self) -> None:
        """Leave the public keys with the server; the first server that is met is pinned."""
        async with enrolling(self._options, self._address, self._server_id) as session:
            await self._ask(session)

    async def approved(self) -> PairingApproval:
        """Wait until an old device has approved this one; a lost connection is taken up again.

        Raises:
            PairingUnknownError: nobody approved it within 10 minutes.
            PairingRefusedError: what came is not meant for this device.
        """
        self._check_open()
        while self._made is None:
            try:
                async with enrolling(self._options, self._address, self._server_id) as session:
                    self._made = await self._wait(session)
            except TwinlockError as exc:
                if exc.retry == "no":
                    raise
                logger.info("waiting for approval without a connection", extra={"code": exc.code})
                self._check_time()
                await asyncio.sleep(max(RECONNECT_DELAY_S, exc.retry_after_ms / 1000))
        return PairingApproval(self._made.name, pairing_digits(self._made.keys.account, self._new.device_keys.device))

    async def confirm(self, password: str | None = None) -> Client:
        """Finish the profile and open it, once the person has seen the same digits on both devices.

        Args:
            password: what `db.unlock` takes on this device; without one it keeps no signing key, so that it can change
                no devices and make no spaces after 15 minutes.

        Raises:
            PairingRefusedError: the device was not approved yet.
            PasswordError: the password is too short.
        """
        self._check_open()
        if self._made is None:
            raise PairingRefusedError("nobody has approved this device yet")
        if password is not None:
            check_password(password)
        self._is_over = True
        return await self._new.open(self._made, password)

    async def reject(self) -> None:
        """Leave nothing on this device. An account that has approved it still lists it: revoke it there."""
        if not self._is_over:
            self._is_over = True
            self._new.remove()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Reject what was not confirmed."""
        await self.reject()

    async def _ask(self, session: AnonymousSession) -> None:
        keys = self._new.device_keys
        self._server_id = session.server_id
        await session.call("pairing.ask", AskPairing(keys.sign_pk, keys.kem_pk), AskPairingResult)

    async def _wait(self, session: AnonymousSession) -> Enrolment:
        keys = self._new.device_keys
        message = pairing_take_message(session.server_id, keys.device)
        request = TakePairing(keys.device, keys.sign.sign(message))
        while True:
            try:
                taken = await session.call("pairing.take", request, TakePairingResult)
            except PairingUnknownError:
                # A server that was restarted may have forgotten the request.
                self._check_time()
                await self._ask(session)
                continue
            if taken.account:
                return self._open(taken, session.server_id)
            self._check_time()
            await asyncio.sleep(POLL_INTERVAL_S)

    def _open(self, taken: TakePairingResult, server_id: bytes) -> Enrolment:
        try:
            state = replay_account(taken.entries)
            name = account_name(taken.name)
        except (LogInvalidError, SignatureError) as exc:
            raise PairingRefusedError("the account's log does not verify") from exc
        if state.account != taken.account:
            raise PairingRefusedError("the log is another account's")
        keys = open_account_keys(taken.sealed, self._new.device_keys, state)
        return Enrolment(server_id, name, keys, taken.entries)

    def _check_time(self) -> None:
        if asyncio.get_running_loop().time() >= self._ends_s:
            raise PairingUnknownError("nobody approved this device in time")

    def _check_open(self) -> None:
        if self._is_over:
            raise ClosedError


async def pair_device(
    url: str,
    profile: Path | str | None = None,
    passphrase: str | None = None,
    device_name: str | None = None,
    *,
    options: Options = Options(),  # noqa: B008 - an immutable value
) -> PairingRequest:
    """Ask to be added to an account by one of its devices, which is given this one's code or QR code.

    Show `.code` or `.qr`; `await .approved()` gives the digits that the other device shows too; then `await .confirm()`
    opens the database, or `await .reject()` leaves nothing behind.

    Raises:
        OfflineError: there is no such server.
        ProfileExistsError: the folder has a profile already.
    """
    if device_name is not None:
        options = msgspec.structs.replace(options, device_name=device_name)
    address = parse_address(url)
    new = NewProfile(profile_folder(profile), address.text, passphrase, options)
    request = PairingRequest(new, address, options)
    try:
        await request.ask()
    except TwinlockError:
        await request.reject()
        raise
    return request
