"""A device on the wire for the server's tests: real keys, real frames, and every frame in the test's hands."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from typing import Any, TypeVar

import msgspec
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed
from websockets.typing import Subprotocol

from twinlock.ids import NO_ENVELOPE, Counter, DeviceId, EnvelopeId, Epoch, Seq, SpaceId
from twinlock.protocol import hpke, proofs
from twinlock.protocol.account_log import AccountState, replay_account
from twinlock.protocol.calls import (
    AppendLog,
    CreatePending,
    CreatePendingResult,
    CreateSpace,
    KeyringRow,
    PutUnlocker,
    Unlocker,
)
from twinlock.protocol.codec import decode_server, encode
from twinlock.protocol.envelope import Header, Kind, envelope_id
from twinlock.protocol.frames import (
    Ack,
    Attach,
    Attached,
    Call,
    Challenge,
    ClientFrame,
    Entries,
    Hello,
    Notice,
    Push,
    Reply,
    ServerFrame,
    Welcome,
)
from twinlock.protocol.labels import label
from twinlock.protocol.limits import FRAME_BYTES_MAX
from twinlock.protocol.space_log import SpaceLogState
from twinlock.protocol.space_rules import replay_space
from twinlock.sealing.account_requests import put_request, sign_up_request
from twinlock.sealing.identity import AccountKeys, DeviceKeys, account_genesis, device_entry
from twinlock.sealing.space_entries import epoch_entry, space_genesis
from twinlock.sealing.space_keys import EpochKeys, make_epoch, wrap_member_key
from twinlock.sealing.suite import ServiceKey
from twinlock.sealing.vault import RecoveryKit, make_unlocker
from twinlock.server import Server

WAIT_S = 10.0
Result = TypeVar("Result")
Frame = TypeVar("Frame", bound=ServerFrame)


def now_ms() -> int:
    """The wall clock in ms."""
    return time.time_ns() // 1_000_000


class Wire:
    """One open socket: sends frames, and finds frames among those that came."""

    def __init__(self, socket: ClientConnection, port: int) -> None:
        self.socket = socket
        self.port = port
        self.waiting: list[ServerFrame] = []
        self._next_call = 1

    async def send(self, frame: ClientFrame) -> None:
        await self.socket.send(encode(frame))

    async def next(self, kind: type[Frame], where: Callable[[Frame], bool] = lambda _: True) -> Frame:
        """Return the next frame of a kind; others wait for their own turn."""
        for place, frame in enumerate(self.waiting):
            if isinstance(frame, kind) and where(frame):
                return self.waiting.pop(place)
        async with asyncio.timeout(WAIT_S):
            while True:
                frame = decode_server(await self.socket.recv(decode=False))
                if isinstance(frame, kind) and where(frame):
                    return frame
                self.waiting.append(frame)

    async def call(self, method: str, params: Any, result: type[Result] = msgspec.Raw) -> Result:
        """Call and return the decoded result; an error of the server is raised as `CallFailed`."""
        number, self._next_call = self._next_call, self._next_call + 1
        await self.send(Call(number, method, msgspec.Raw(msgspec.msgpack.encode(params))))
        reply = await self.next(Reply, lambda frame: frame.id == number)
        if reply.error is not None:
            raise CallFailed(reply.error.code)
        return msgspec.msgpack.decode(reply.result, type=result)

    async def attach(self, space: SpaceId, cursor: int = 0, incarnation: bytes = b"") -> Attached:
        await self.send(Attach(space, incarnation, Seq(cursor)))
        return await self.next(Attached, lambda frame: frame.space == space)

    async def push(self, space: SpaceId, *envelopes: bytes) -> None:
        await self.send(Push(space, list(envelopes)))

    async def acked(self, space: SpaceId, counter: int) -> dict[Counter, Seq]:
        """Wait until a counter is acknowledged and return all that was on the way."""
        pairs: dict[Counter, Seq] = {}
        while counter not in pairs:
            pairs.update((await self.next(Ack, lambda frame: frame.space == space)).acked)
        return pairs

    async def entries(self, space: SpaceId, count: int) -> list[Any]:
        """Wait for some entries of a space."""
        found: list[Any] = []
        while len(found) < count:
            found += (await self.next(Entries, lambda frame: frame.space == space)).entries
        return found

    async def closed(self) -> tuple[int, str]:
        """Wait for the end of the connection and return its code and reason; what came before waits."""
        async with asyncio.timeout(WAIT_S):
            try:
                while True:
                    self.waiting.append(decode_server(await self.socket.recv(decode=False)))
            except ConnectionClosed:
                return self.socket.close_code or 0, self.socket.close_reason or ""

    async def refused(self) -> str:
        """Wait for the end and return the code of the notice that told why."""
        await self.closed()
        return next(frame.code for frame in self.waiting if isinstance(frame, Notice) and not frame.space)

    async def close(self) -> None:
        await self.socket.close()


class CallFailed(Exception):
    """A call was answered with an error."""

    def __init__(self, code: str) -> None:
        super().__init__(code)
        self.code = code


async def open_wire(port: int, **options: Any) -> Wire:
    """Connect, and leave the challenge unanswered."""
    socket = await connect(
        f"ws://127.0.0.1:{port}/sync",
        subprotocols=[Subprotocol("twinlock.1")],
        compression=None,
        max_size=FRAME_BYTES_MAX,
        proxy=None,
        **options,
    )
    return Wire(socket, port)


def hello_to(
    challenge: Challenge, port: int, account: AccountKeys, device: DeviceKeys, origin: str = "", token: str = ""
) -> Hello:
    """Make a device's answer to a challenge."""
    nonce, dialled = os.urandom(32), origin or f"ws://127.0.0.1:{port}"
    message = proofs.hello_message(
        server_id=proofs.server_id_of(challenge.server_pk),
        origin=dialled,
        incarnation=challenge.incarnation,
        account=account.account,
        device=device.device,
        server_nonce=challenge.nonce,
        client_nonce=nonce,
    )
    signature = device.sign.sign(proofs.with_token(message, token))
    return Hello(nonce, dialled, account.account, device.device, signature, token=token)


def anonymous_hello(port: int) -> Hello:
    """Make the hello of somebody who has no device yet."""
    return Hello(os.urandom(32), f"ws://127.0.0.1:{port}", b"", b"", b"")


async def open_anonymous(port: int) -> tuple[Wire, Challenge]:
    """Open a session without a device."""
    wire = await open_wire(port)
    challenge = await wire.next(Challenge)
    await wire.send(anonymous_hello(port))
    await wire.next(Welcome)
    return wire, challenge


class World:
    """An account with a device and a space on a running server."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.port = server.port
        self.account = AccountKeys.make(os.urandom)
        self.device = DeviceKeys.make(os.urandom)
        self.name = f"someone-{os.urandom(4).hex()}"
        self.kit = RecoveryKit.make(os.urandom)
        self.account_log: AccountState
        self.log: SpaceLogState
        self.keys: EpochKeys
        self.incarnation = b""
        self.server_id = b""

    @property
    def space(self) -> SpaceId:
        return self.log.space

    async def sign_up(self, token: str = "") -> None:
        """Create the account with its first device."""
        wire, challenge = await open_anonymous(self.port)
        self.incarnation = challenge.incarnation
        self.server_id = proofs.server_id_of(challenge.server_pk)
        genesis = account_genesis(self.account, os.urandom)
        entry = device_entry(self.account, replay_account([genesis]), self.device.sign_pk, self.device.kem_pk)
        unlocker = make_unlocker(self.kit, self.name, self.server_id, os.urandom, self.account)
        request = sign_up_request(self.account, self.server_id, self.name, [genesis, entry], [unlocker], token)
        await wire.call("account.create", request)
        self.account_log = replay_account([genesis, entry])
        await wire.close()

    async def open(self, device: DeviceKeys | None = None, token: str = "") -> Wire:
        """Connect as a device of the account."""
        wire = await open_wire(self.port)
        challenge = await wire.next(Challenge)
        await wire.send(hello_to(challenge, self.port, self.account, device or self.device, token=token))
        await wire.next(Welcome)
        return wire

    async def pending(self, wire: Wire, space: SpaceId, epoch: int, genesis: Any = None) -> ServiceKey:
        """Have the key service make the key of a coming epoch."""
        nonce, time_ms = os.urandom(32), now_ms()
        account, device = self.account.account, self.device.device
        message = proofs.pending_message(space, Epoch(epoch), nonce, time_ms, account, device)
        request = CreatePending(space, Epoch(epoch), nonce, time_ms, self.device.sign.sign(message), genesis)
        pending = await wire.call("space.pending", request, CreatePendingResult)
        ends_ms = pending.grant.not_after_ms
        info = proofs.lease_info(space, Epoch(epoch), device, ends_ms, self.incarnation, nonce)
        return ServiceKey(hpke.open_sealed(self.device.kem, pending.grant.sealed, info))

    async def create_space(self, wire: Wire) -> SpaceLogState:
        """Create a space with its first epoch; the last one created is `space`."""
        genesis = space_genesis(self.account, 0, os.urandom)
        state = replay_space([genesis])
        service_key = await self.pending(wire, state.space, 1, genesis)
        self.keys = make_epoch(state.space, Epoch(1), service_key, os.urandom)
        entries = [genesis, epoch_entry(self.account, state, self.keys, None, os.urandom)]
        await wire.call("space.create", CreateSpace(state.space, entries, [self._row()]))
        self.log = replay_space(entries)
        return self.log

    async def rotate(self, wire: Wire) -> None:
        """Open the next epoch."""
        number = self.log.epoch + 1
        service_key = await self.pending(wire, self.space, number)
        before, self.keys = self.keys.member_key, make_epoch(self.space, Epoch(number), service_key, os.urandom)
        entry = epoch_entry(self.account, self.log, self.keys, before, os.urandom)
        await wire.call("space.append", AppendLog(self.space, self.log.seq, [entry], [self._row()]))
        self.log = replay_space([entry], self.log)

    async def add_device(self, wire: Wire) -> DeviceKeys:
        """Certify another device of the account."""
        device = DeviceKeys.make(os.urandom)
        entry = device_entry(self.account, self.account_log, device.sign_pk, device.kem_pk)
        await wire.call("account.append", AppendLog(self.account.account, self.account_log.seq, [entry]))
        self.account_log = replay_account([entry], self.account_log)
        return device

    def put(self, unlocker: Unlocker, time_ms: int = 0) -> PutUnlocker:
        """Make the account's request to replace an unlocker."""
        return put_request(self.account, self.server_id, self.account_log, time_ms or now_ms(), unlocker)

    def chain(self, device: DeviceKeys | None = None) -> Chain:
        """Return a device's chain of envelopes in the space, at its beginning."""
        return Chain(self.space, device or self.device)

    def chain_in(self, space: SpaceId) -> Chain:
        """Return the chain of the account's first device in a space of others, at its beginning."""
        return Chain(space, self.device)

    def _row(self) -> KeyringRow:
        wrapped = wrap_member_key(self.keys, self.account.account, self.account.kem_pk)
        return KeyringRow(self.account.account, self.keys.epoch, wrapped)


async def make_world(server: Server) -> World:
    """Sign up an account and create a space."""
    world = World(server)
    await world.sign_up()
    wire = await world.open()
    await world.create_space(wire)
    await wire.close()
    return world


class Chain:
    """Makes a device's envelopes, each naming the one before; the server cannot tell them from sealed ones."""

    def __init__(self, space: SpaceId, device: DeviceKeys) -> None:
        self.space = space
        self.device = device
        self.counter = Counter(0)
        self.prev = NO_ENVELOPE

    def next(self, size: int = 200, **changes: Any) -> bytes:
        """Make the next envelope, with a body of some bytes; `changes` alter header fields."""
        self.counter = Counter(self.counter + 1)
        data = self.make(self.counter, self.prev, size, **changes)
        self.prev = envelope_id(data[:112], data[112:-64])
        return data

    def make(self, counter: int, prev: bytes, size: int = 200, **changes: Any) -> bytes:
        """Make an envelope at any place of the chain."""
        ciphertext = os.urandom(size)
        fields: dict[str, Any] = {
            "kind": Kind.CHANGE,
            "epoch": Epoch(1),
            "space": self.space,
            "device": DeviceId(self.device.device),
            "counter": Counter(counter),
            "session": 0,
            "log_head": bytes(8),
            "prev": EnvelopeId(prev),
            "nonce": os.urandom(12),
            "ciphertext_bytes": size,
        }
        header = Header(**{**fields, **changes}).pack()
        signature = self.device.sign.sign(label("envelope", envelope_id(header, ciphertext)))
        return header + ciphertext + signature
