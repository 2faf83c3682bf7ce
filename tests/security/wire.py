"""A device on the bare wire: it says exactly the frames that a test wants said, as an attacker would."""

from __future__ import annotations

import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TypeVar

import msgspec

from twinlock.client.transport import Transport, open_transport, parse_address
from twinlock.errors import OfflineError, TwinlockError, error_from_code
from twinlock.ids import NO_ENVELOPE, Counter, EnvelopeId, Epoch, Seq, SpaceId
from twinlock.protocol import codec, hpke, proofs
from twinlock.protocol.account_log import AccountState, replay_account
from twinlock.protocol.calls import (
    AppendLog,
    CreatePending,
    CreatePendingResult,
    CreateSpace,
    KeyringRow,
    LogHead,
)
from twinlock.protocol.envelope import Envelope, Kind
from twinlock.protocol.frames import (
    Ack,
    Attach,
    Attached,
    Call,
    Challenge,
    ClientFrame,
    Entries,
    Hello,
    Lease,
    Leases,
    Notice,
    Push,
    Reject,
    Reply,
    ServerFrame,
    Welcome,
)
from twinlock.protocol.space_log import SpaceLogState
from twinlock.protocol.space_rules import replay_space
from twinlock.sealing import (
    AccountKeys,
    DeviceKeys,
    EpochKeys,
    RecoveryKit,
    Sealer,
    ServiceKey,
    account_genesis,
    device_entry,
    epoch_entry,
    make_epoch,
    make_unlocker,
    revoke_entry,
    space_genesis,
    wrap_member_key,
)
from twinlock.sealing.account_requests import sign_up_request

Result = TypeVar("Result")
FIRST = Epoch(1)


def now_ms() -> int:
    """Return this machine's clock in ms since 1970."""
    return time.time_ns() // 1_000_000


class Wire:
    """One connection. Nothing is checked and nothing is answered by itself."""

    def __init__(self, transport: Transport, origin: str) -> None:
        self._transport = transport
        self._calls = 0
        self.origin = origin
        self.challenge: Challenge | None = None

    async def send(self, frame: ClientFrame) -> None:
        """Send a frame."""
        await self._transport.send(codec.encode(frame))

    async def send_bytes(self, message: bytes) -> None:
        """Send a message as it is."""
        await self._transport.send(message)

    async def receive(self) -> ServerFrame:
        """Return the next frame."""
        return codec.decode_server(await self._transport.receive())

    async def until(self, kind: type[Result]) -> Result:
        """Return the next frame of a kind; a refusal in between is raised."""
        while True:
            frame = await self.receive()
            if isinstance(frame, kind):
                return frame
            if isinstance(frame, Notice) and frame.code != "log_grown":
                raise error_from_code(frame.code, frame.detail)

    async def refusal(self) -> TwinlockError:
        """Return why the server ends this connection, and see to it that it does end."""
        try:
            while True:
                frame = await self.receive()
                if isinstance(frame, Notice):
                    error = error_from_code(frame.code, frame.detail)
                    break
        except OfflineError as exc:
            raise AssertionError("the connection ended without a word") from exc
        try:
            while True:
                await self.receive()
        except OfflineError:
            return error

    def hello(self, person: Person, device: DeviceKeys, /, **altered: object) -> Hello:
        """Make a true hello of a device to the challenge of this connection; `altered` goes into what is signed."""
        assert self.challenge is not None
        client_nonce = os.urandom(32)
        signed = {
            "server_id": proofs.server_id_of(self.challenge.server_pk),
            "origin": self.origin,
            "incarnation": self.challenge.incarnation,
            "account": person.keys.account,
            "device": device.device,
            "server_nonce": self.challenge.nonce,
            "client_nonce": client_nonce,
            **altered,
        }
        signature = device.sign.sign(proofs.hello_message(**signed))  # type: ignore[arg-type]  # a test alters at will
        return Hello(client_nonce, self.origin, person.keys.account, device.device, signature)

    async def call(self, method: str, params: msgspec.Struct, result: type[Result]) -> Result:
        """Call the server and return its answer, or raise its error."""
        self._calls += 1
        await self.send(Call(self._calls, method, msgspec.Raw(msgspec.msgpack.encode(params))))
        reply = await self.until(Reply)
        if reply.error is not None:
            raise error_from_code(reply.error.code, reply.error.detail)
        return msgspec.msgpack.decode(reply.result, type=result)

    async def push(self, space: SpaceId, *envelopes: bytes) -> Ack | Reject:
        """Push envelopes and return what the server says to them."""
        await self.send(Push(space, list(envelopes)))
        while True:
            frame = await self.receive()
            if isinstance(frame, Ack | Reject):
                return frame

    async def attach(self, space: SpaceId) -> Attached:
        """Ask for a space from its beginning."""
        await self.send(Attach(space, b"", Seq(0)))
        return await self.until(Attached)

    async def entries(self, space: SpaceId) -> list[bytes]:
        """Return the envelopes of a space, all that there are now."""
        attached = await self.attach(space)
        found: list[bytes] = []
        seen = attached.resume
        while seen < attached.head:
            page = await self.until(Entries)
            found += [entry.envelope for entry in page.entries]
            seen = page.entries[-1].seq
        return found

    async def lease(self, request: Lease) -> Leases:
        """Ask for service keys; the answer's error is raised."""
        await self.send(request)
        answer = await self.until(Leases)
        if answer.code:
            raise error_from_code(answer.code, answer.detail)
        return answer


class Person:
    """An account with its kit, its log and its devices."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.keys = AccountKeys.make(os.urandom)
        self.kit = RecoveryKit.make(os.urandom)
        self.device = DeviceKeys.make(os.urandom)
        self.entries = [account_genesis(self.keys, os.urandom)]
        self.certify(self.device)

    @property
    def log(self) -> AccountState:
        """What the account's log says."""
        return replay_account(self.entries)

    def certify(self, device: DeviceKeys) -> None:
        """Add a device to the account's log."""
        self.entries.append(device_entry(self.keys, self.log, device.sign_pk, device.kem_pk))

    def lease_request(self, space: SpaceId, device: DeviceKeys | None = None, time_ms: int = 0) -> Lease:
        """Make a true request for the service key of the first epoch."""
        device, nonce, time_ms = device or self.device, os.urandom(32), time_ms or now_ms()
        message = proofs.lease_message(space, [FIRST], nonce, time_ms, self.keys.account, device.device)
        return Lease(space, [FIRST], nonce, time_ms, device.sign.sign(message))


class Room:
    """A space with its keys, and the chain of one device in it."""

    def __init__(self, log: SpaceLogState, keys: EpochKeys, device: DeviceKeys) -> None:
        self.log = log
        self.keys = keys
        self.device = device
        self.counter = Counter(0)
        self.prev: EnvelopeId = NO_ENVELOPE

    @property
    def space(self) -> SpaceId:
        """The space's id."""
        return self.log.space

    def seal(self, payload: bytes = b"payload") -> Envelope:
        """Seal the next envelope of the device's chain."""
        self.counter = Counter(self.counter + 1)
        sealer = Sealer(self.device, os.urandom)
        envelope = sealer.seal(Kind.CHANGE, payload, self.keys, self.counter, self.prev, self.log.head_prefix)
        self.prev = envelope.id
        return envelope


@asynccontextmanager
async def challenged(url: str) -> AsyncIterator[Wire]:
    """Connect and take the challenge; what is said to it is up to the test."""
    address = parse_address(url)
    async with open_transport(address) as transport:
        wire = Wire(transport, address.origin)
        wire.challenge = await wire.until(Challenge)
        yield wire


@asynccontextmanager
async def anonymous(url: str) -> AsyncIterator[Wire]:
    """Open a session without a device."""
    async with challenged(url) as wire:
        await wire.send(Hello(os.urandom(32), wire.origin, b"", b"", b""))  # type: ignore[arg-type]  # nobody
        await wire.until(Welcome)
        yield wire


@asynccontextmanager
async def signed_in(url: str, person: Person, device: DeviceKeys | None = None) -> AsyncIterator[Wire]:
    """Open a session of a person's device."""
    async with challenged(url) as wire:
        await wire.send(wire.hello(person, device or person.device))
        await wire.until(Welcome)
        yield wire


async def sign_up(url: str, name: str) -> Person:
    """Make an account with one device and a kit."""
    person = Person(name)
    async with anonymous(url) as wire:
        assert wire.challenge is not None
        server_id = proofs.server_id_of(wire.challenge.server_pk)
        unlocker = make_unlocker(person.kit, name, server_id, os.urandom, person.keys)
        await wire.call(
            "account.create", sign_up_request(person.keys, server_id, name, person.entries, [unlocker]), LogHead
        )
    return person


async def grow_account(wire: Wire, person: Person, upto: int) -> None:
    """Tell the server of what was added to the account's log behind its first entries."""
    await wire.call("account.append", AppendLog(person.keys.account, upto, person.entries[upto:]), LogHead)


async def revoke(wire: Wire, person: Person, device: DeviceKeys) -> None:
    """Revoke a device of the person."""
    known = len(person.entries)
    person.entries.append(revoke_entry(person.keys, person.log, device.device))
    await grow_account(wire, person, known)


async def create_room(wire: Wire, person: Person) -> Room:
    """Make a space of the person's own."""
    genesis = space_genesis(person.keys, 0, os.urandom)
    state = replay_space([genesis])
    device, nonce, time_ms = person.device, os.urandom(32), now_ms()
    message = proofs.pending_message(state.space, FIRST, nonce, time_ms, person.keys.account, device.device)
    request = CreatePending(state.space, FIRST, nonce, time_ms, device.sign.sign(message), genesis)
    pending = await wire.call("space.pending", request, CreatePendingResult)
    assert wire.challenge is not None
    grant = pending.grant
    info = proofs.lease_info(state.space, FIRST, device.device, grant.not_after_ms, wire.challenge.incarnation, nonce)
    keys = make_epoch(state.space, FIRST, ServiceKey(hpke.open_sealed(device.kem, grant.sealed, info)), os.urandom)
    entries = [genesis, epoch_entry(person.keys, state, keys, None, os.urandom)]
    row = KeyringRow(person.keys.account, FIRST, wrap_member_key(keys, person.keys.account, person.keys.kem_pk))
    await wire.call("space.create", CreateSpace(state.space, entries, [row]), LogHead)
    return Room(replay_space(entries), keys, device)
