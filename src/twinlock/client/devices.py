"""The account's devices: who they are, what they are called, and the approval of a new one. See spec/sealing.md, 2."""

from __future__ import annotations

import logging

import msgspec

from twinlock.client.account_log import AccountLog, present_keys
from twinlock.client.connection import Connection
from twinlock.client.device_context import DeviceContext
from twinlock.client.device_state import DeviceMemo, DeviceName
from twinlock.client.sudo import Sudo
from twinlock.client.transport import parse_address
from twinlock.errors import OfflineError, OpenError, PairingRefusedError, PairingUnknownError, UnknownDeviceError
from twinlock.ids import DeviceId
from twinlock.protocol.account_log import AccountState
from twinlock.protocol.calls import Nothing
from twinlock.protocol.device_calls import (
    ApprovePairing,
    DeviceNote,
    DevicesResult,
    FindPairing,
    FindPairingResult,
    PutDeviceName,
)
from twinlock.protocol.device_calls import Devices as ReadDevices
from twinlock.sealing.identity import device_entry
from twinlock.sealing.pairing import (
    PairingTicket,
    check_device_keys,
    open_device_name,
    pairing_digits,
    parse_pairing,
    seal_account_keys,
    seal_device_name,
)

logger = logging.getLogger(__name__)


class DeviceInfo(msgspec.Struct, frozen=True):
    """A device of this account. What the server tells, name, last seen and online, is as old as the last contact.

    `name` is None if the device never told one, or told it under a key of the account that was replaced;
    `last_seen_ms` is 0 if it was never seen.
    """

    id: str
    this: bool
    revoked: bool
    name: str | None = None
    last_seen_ms: int = 0
    online: bool = False


class Devices:
    """Knows and changes the devices of the account."""

    __slots__ = ("_connection", "_context", "_log", "_sudo")

    def __init__(self, context: DeviceContext, connection: Connection, sudo: Sudo) -> None:
        self._context = context
        self._connection = connection
        self._sudo = sudo
        self._log = AccountLog(context, connection)

    # Who they are

    async def all(self) -> list[DeviceInfo]:
        """Return the devices, in the order in which they came; offline, as far as they are known here.

        Raises:
            LogForkError: the server shows another log of the account than before.
        """
        online: set[DeviceId] = set()
        try:
            state = await self._log.read()
            online = await self._learn()
        except OfflineError:
            state = self._log.known()
        return self._infos(state, online)

    def find(self, wanted: str, state: AccountState) -> DeviceId:
        """Return the device of that id, or of that name if only one has it.

        Raises:
            UnknownDeviceError: there is none, or more than one.
        """
        infos = self._infos(state, set())
        found = [info for info in infos if info.id == wanted]
        found = found or [info for info in infos if info.name == wanted and not info.revoked]
        found = found or [info for info in infos if info.name == wanted]
        if len(found) != 1:
            names = ", ".join(f"{info.id} ({info.name or 'no name'})" for info in infos)
            count = f"{len(found)} devices are" if found else "no device is"
            raise UnknownDeviceError(f"{count} called {wanted!r}; known are: {names}")
        return DeviceId(bytes.fromhex(found[0].id))

    async def _learn(self) -> set[DeviceId]:
        """Take in what the server knows of the devices; return those that are connected."""
        result = await self._connection.call("account.devices", ReadDevices(), DevicesResult)
        memos = {note.device: DeviceMemo(self._name_of(note), note.last_seen_ms) for note in result.devices}
        if memos != self._context.state.device_memos():
            self._context.state.put_device_memos(memos)
        return {note.device for note in result.devices if note.is_online}

    def _name_of(self, note: DeviceNote) -> str:
        kept = self._context.state
        for kem in kept.account_kem.kems if note.name else ():
            try:
                return open_device_name(kem, kept.home.account, note.device, note.name)
            except OpenError:
                continue
        return ""

    def _infos(self, state: AccountState, online: set[DeviceId]) -> list[DeviceInfo]:
        kept = self._context.state
        memos, this = kept.device_memos(), kept.device_keys.device
        own = kept.device_name()
        infos: list[DeviceInfo] = []
        for device in (*state.devices, *state.retired):
            memo = memos.get(device, DeviceMemo("", 0))
            name = memo.name or (own.name if own is not None and device == this else "")
            is_online = device in online or (device == this and self._connection.session is not None)
            revoked = device in state.retired
            infos.append(DeviceInfo(device.hex(), device == this, revoked, name or None, memo.last_seen_ms, is_online))
        return infos

    # What they are called

    async def rename(self, name: str, wanted: str | None = None) -> None:
        """Give this device, or another one of the account, a name.

        Raises:
            OfflineError: the name is kept by the server, for the account's other devices.
            LimitExceededError: it is longer than 127 bytes.
        """
        kept = self._context.state
        device = kept.device_keys.device
        if wanted is not None:
            await self.all()
            device = self.find(wanted, self._log.known())
        await self._put_name(device, name)
        if device == kept.device_keys.device:
            kept.put_device_name(DeviceName(name, kept.account_kem.kem_pk))

    async def tell_own_name(self) -> None:
        """See to it that the server has this device's name, sealed under the account's present key."""
        kept = self._context.state
        own = kept.device_name()
        if own is not None and own.put_under != kept.account_kem.kem_pk:
            await self._put_name(kept.device_keys.device, own.name)
            kept.put_device_name(DeviceName(own.name, kept.account_kem.kem_pk))

    async def reseal_names(self) -> None:
        """Seal every name that opens under the account's present key."""
        await self._learn()
        for device, memo in self._context.state.device_memos().items():
            if memo.name:
                await self._put_name(device, memo.name)

    async def _put_name(self, device: DeviceId, name: str) -> None:
        kept = self._context.state
        sealed = seal_device_name(kept.account_kem.kem, kept.home.account, device, name, self._context.entropy)
        await self._connection.call("device.put_name", PutDeviceName(device, sealed), Nothing)

    # A new one

    async def approve(self, code: str) -> str:
        """Add the device that shows a code, or a QR code of this text; return the digits to be compared.

        Raises:
            SudoNeededError: the password was not given in the last 15 minutes.
            PairingUnknownError: no device waits under this code.
            PairingRefusedError: the code is of another server, or the server told other keys than the code names.
        """
        keys = self._sudo.keys()
        ticket = parse_pairing(code)
        self._check_place(ticket)
        found = await self._connection.call("pairing.find", FindPairing(ticket.prefix), FindPairingResult)
        device = check_device_keys(ticket, found.sign_pk, found.kem_pk)
        state = await self._log.append(
            lambda state: (
                None if state.certified(device) is not None else device_entry(keys, state, found.sign_pk, found.kem_pk)
            )
        )
        if device not in state.devices:
            raise PairingRefusedError("this device was revoked before: it begins again with new keys")
        # The log may have brought a new key of the account meanwhile.
        sealed = seal_account_keys(present_keys(self._sudo, state), device, found.kem_pk)
        await self._connection.call("pairing.approve", ApprovePairing(device, sealed), Nothing)
        return pairing_digits(state.account, device)

    def _check_place(self, ticket: PairingTicket) -> None:
        if not ticket.server_id:
            return
        if ticket.server_id != self._context.state.home.server_id:
            raise PairingRefusedError("the new device waits at another server")
        try:
            parse_address(ticket.origin)
        except OfflineError as exc:
            raise PairingUnknownError("the QR code names no server") from exc
