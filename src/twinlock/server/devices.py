"""The calls about an account's devices: names, visits, revocation. See spec/protocol.md, section 6."""

from __future__ import annotations

from collections.abc import Callable

from twinlock.contracts import Directory
from twinlock.errors import LimitExceededError, UnknownDeviceError
from twinlock.ids import ID_BYTES, AccountId, DeviceId
from twinlock.protocol.calls import Nothing
from twinlock.protocol.device_calls import (
    DeviceNote,
    Devices,
    DevicesResult,
    PutDeviceName,
    ReadRevocation,
    ReadRevocationResult,
)
from twinlock.protocol.labels import u64
from twinlock.server.authorize import Authority, device_of
from twinlock.server.methods import Method
from twinlock.server.neighbours import AskPresence, Neighbours, Present
from twinlock.server.peer import Peer
from twinlock.server.presence import Presence
from twinlock.server.tries import Tries

NAME_BYTES_MAX = 1024
"""A device's name, as its account sealed it."""


class DeviceBook:
    """Keeps what the server knows of devices, and answers the calls about them."""

    __slots__ = ("_authority", "_directory", "_neighbours", "_now_ms", "_presence", "_revocations")

    def __init__(
        self,
        directory: Directory,
        authority: Authority,
        presence: Presence,
        neighbours: Neighbours,
        revocations: Tries,
        now_ms: Callable[[], int],
    ) -> None:
        self._neighbours = neighbours
        self._directory = directory
        self._authority = authority
        self._presence = presence
        self._revocations = revocations
        self._now_ms = now_ms
        neighbours.on(AskPresence, self._answer_presence)

    def methods(self) -> dict[str, Method]:
        """Return what is answered here, by name."""
        return {
            "account.devices": Method(Devices, self._devices),
            "device.put_name": Method(PutDeviceName, self._put_name),
            "device.revocation": Method(ReadRevocation, self._revocation),
        }

    def _answer_presence(self, ask: AskPresence) -> None:
        online = [device for device in ask.devices if self._presence.is_online(device)]
        seen_ms = {device: self._presence.unwritten_ms(device) for device in ask.devices}
        seen_ms = {device: seen for device, seen in seen_ms.items() if seen}
        self._neighbours.tell(Present(self._neighbours.node, ask.node, ask.number, online, seen_ms))

    async def write_visits(self) -> list[DeviceId]:
        """Write down the visits that are due, and return whose they were."""
        due = self._presence.take_due()
        for device, (account, seen_ms) in due.items():
            await self._directory.put(f"{_seen(account)}{device.hex()}", u64(seen_ms))
        return list(due)

    async def _devices(self, peer: Peer, request: Devices) -> DevicesResult:
        account = device_of(peer).account
        state = await self._authority.account(account)
        names = await self._directory.list(_names(account))
        seen = await self._directory.list(_seen(account))
        devices = (*state.devices, *state.retired)
        elsewhere, elsewhere_ms = await self._neighbours.who_is_there(devices)
        notes = []
        for device in devices:
            name, visit = names.get(f"{_names(account)}{device.hex()}"), seen.get(f"{_seen(account)}{device.hex()}")
            is_online = device in elsewhere or self._presence.is_online(device)
            written_ms = int.from_bytes(visit.value, "big") if visit else 0
            unwritten_ms = max(self._presence.unwritten_ms(device), elsewhere_ms.get(device, 0))
            last_seen_ms = self._now_ms() if is_online else max(written_ms, unwritten_ms)
            notes.append(DeviceNote(device, last_seen_ms, is_online, name.value if name else b""))
        return DevicesResult(notes)

    async def _put_name(self, peer: Peer, request: PutDeviceName) -> Nothing:
        account = device_of(peer).account
        if (await self._authority.account(account)).certified(request.device) is None:
            raise UnknownDeviceError
        if len(request.name) > NAME_BYTES_MAX:
            raise LimitExceededError(f"a name of {len(request.name)} bytes, {NAME_BYTES_MAX} at most")
        await self._directory.put(f"{_names(account)}{request.device.hex()}", request.name)
        return Nothing()

    async def _revocation(self, peer: Peer, request: ReadRevocation) -> ReadRevocationResult:
        """Give a log to the device that it revokes; an unknown account and an unknown device get the same answer."""
        self._revocations.count(peer.address)
        is_account = len(request.account) == ID_BYTES and await self._authority.exists(request.account)
        if not is_account or request.device not in (await self._authority.account(request.account)).retired:
            return ReadRevocationResult([])
        return ReadRevocationResult(await self._authority.log(request.account))


def _names(account: AccountId) -> str:
    return f"device_name/{account.hex()}/"


def _seen(account: AccountId) -> str:
    return f"seen/{account.hex()}/"
