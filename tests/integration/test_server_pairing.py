"""A new device asks, an old one approves: what the server carries between them, and to whom, over real sockets."""

import os

import msgspec
import pytest

from tests.server_kit import CallFailed, World, make_world, open_anonymous
from twinlock.errors import OverloadedError, PairingUnknownError
from twinlock.protocol import proofs
from twinlock.protocol.account_log import replay_account
from twinlock.protocol.calls import AppendLog, Nothing, Spaces, SpacesResult
from twinlock.protocol.device_calls import (
    ApprovePairing,
    AskPairing,
    AskPairingResult,
    FindPairing,
    FindPairingResult,
    TakePairing,
    TakePairingResult,
)
from twinlock.protocol.frames import Call
from twinlock.sealing.identity import AccountKeys, DeviceKeys, account_genesis, device_entry, revoke_entry
from twinlock.server import Server, Settings, pairing
from twinlock.server.authorize import Authority
from twinlock.server.names import Names
from twinlock.server.pairing import REQUEST_TTL_MS, Pairings, StoredPairing
from twinlock.server.peer import Peer
from twinlock.server.sequencer import Author
from twinlock.server.signed_logs import SignedLogs
from twinlock.server.stores import open_stores

SERVER_ID = bytes(range(32))
ANYBODY = Author(b"a" * 16, b"d" * 16, bytes(32))


@pytest.fixture
async def server():
    running = Server(Settings(engine="memory:", port=0))
    await running.start()
    yield running
    await running.stop()


@pytest.fixture
async def world(server):
    return await make_world(server)


class Newcomer:
    """A device without an account, in a session of nobody's."""

    def __init__(self, wire, server_id: bytes) -> None:
        self.wire = wire
        self.server_id = server_id
        self.keys = DeviceKeys.make(os.urandom)

    @property
    def id(self) -> bytes:
        return self.keys.device

    async def ask(self) -> AskPairingResult:
        return await self.wire.call("pairing.ask", AskPairing(self.keys.sign_pk, self.keys.kem_pk), AskPairingResult)

    async def take(self, signer: DeviceKeys | None = None) -> TakePairingResult:
        signature = (signer or self.keys).sign.sign(proofs.pairing_take_message(self.server_id, self.id))
        return await self.wire.call("pairing.take", TakePairing(self.id, signature), TakePairingResult)


async def newcomer(port: int) -> Newcomer:
    wire, challenge = await open_anonymous(port)
    return Newcomer(wire, proofs.server_id_of(challenge.server_pk))


async def certify(world: World, wire, device: DeviceKeys) -> None:
    entry = device_entry(world.account, world.account_log, device.sign_pk, device.kem_pk)
    await wire.call("account.append", AppendLog(world.account.account, world.account_log.seq, [entry]))
    world.account_log = replay_account([entry], world.account_log)


async def test_a_device_is_found_by_its_code_approved_and_comes_in(world):
    new, old = await newcomer(world.port), await world.open()
    asked = await new.ask()
    assert asked.device == new.id
    assert await new.take() == TakePairingResult()

    found = await old.call("pairing.find", FindPairing(new.id[:10]), FindPairingResult)
    assert (found.sign_pk, found.kem_pk) == (new.keys.sign_pk, new.keys.kem_pk)
    await certify(world, old, new.keys)
    await old.call("pairing.approve", ApprovePairing(new.id, b"sealed"), Nothing)

    taken = await new.take()
    assert (taken.account, taken.name, taken.sealed) == (world.account.account, world.name, b"sealed")
    assert replay_account(taken.entries) == world.account_log
    # A lost reply is asked for again.
    assert await new.take() == taken
    wire = await world.open(new.keys)
    assert (await wire.call("account.spaces", Spaces(), SpacesResult)).spaces == [world.space]


async def test_only_the_device_itself_fetches_the_answer(world):
    new, old = await newcomer(world.port), await world.open()
    await new.ask()
    await certify(world, old, new.keys)
    await old.call("pairing.approve", ApprovePairing(new.id, b"sealed"), Nothing)

    with pytest.raises(CallFailed, match="proof_refused"):
        await new.take(DeviceKeys.make(os.urandom))


async def test_only_a_device_that_the_log_certifies_is_approved(world):
    new, old = await newcomer(world.port), await world.open()
    await new.ask()

    with pytest.raises(CallFailed, match="pairing_refused"):
        await old.call("pairing.approve", ApprovePairing(new.id, b"sealed"))

    assert await new.take() == TakePairingResult()


async def test_a_device_that_was_revoked_meanwhile_gets_nothing(world):
    new, old = await newcomer(world.port), await world.open()
    await new.ask()
    await certify(world, old, new.keys)
    await old.call("pairing.approve", ApprovePairing(new.id, b"sealed"), Nothing)
    entry = revoke_entry(world.account, world.account_log, new.id)
    await old.call("account.append", AppendLog(world.account.account, world.account_log.seq, [entry]))

    with pytest.raises(CallFailed, match="pairing_refused"):
        await new.take()


async def test_one_account_cannot_take_over_what_another_has_approved(server, world):
    new, old, thief = await newcomer(world.port), await world.open(), await make_world(server)
    await new.ask()
    await certify(world, old, new.keys)
    await old.call("pairing.approve", ApprovePairing(new.id, b"sealed"), Nothing)
    stranger = await thief.open()
    await certify(thief, stranger, new.keys)

    with pytest.raises(CallFailed, match="pairing_refused"):
        await stranger.call("pairing.approve", ApprovePairing(new.id, b"of the thief"))
    with pytest.raises(CallFailed, match="pairing_unknown"):
        await stranger.call("pairing.find", FindPairing(new.id))

    # The account that approved it may do so again: its first answer may have been lost.
    await old.call("pairing.approve", ApprovePairing(new.id, b"sealed again"), Nothing)
    assert (await new.take()).sealed == b"sealed again"


async def test_codes_are_whole_and_name_somebody(world):
    new, old = await newcomer(world.port), await world.open()
    await new.ask()

    for length, code in ((10, "pairing_unknown"), (16, "pairing_unknown"), (9, "invalid_call"), (17, "invalid_call")):
        with pytest.raises(CallFailed, match=code):
            await old.call("pairing.find", FindPairing(os.urandom(length)))


async def test_codes_cannot_be_scanned(world):
    old, codes = await world.open(), []
    for _ in range(32):
        with pytest.raises(CallFailed) as caught:
            await old.call("pairing.find", FindPairing(os.urandom(10)))
        codes.append(caught.value.code)

    assert codes[:30] == ["pairing_unknown"] * 30
    assert codes[-1] == "rate_limited"


async def test_an_address_asks_only_so_often(server):
    new = await newcomer(server.port)
    for _ in range(30):
        await new.ask()

    with pytest.raises(CallFailed, match="rate_limited"):
        await new.ask()


@pytest.mark.parametrize("keys", [AskPairing(b"short", bytes(32)), AskPairing(bytes(32), bytes(33))])
async def test_keys_have_their_length(server, keys):
    new = await newcomer(server.port)

    with pytest.raises(CallFailed, match="invalid_call"):
        await new.wire.call("pairing.ask", keys)


@pytest.mark.parametrize("method", ["pairing.find", "pairing.approve"])
async def test_who_has_no_device_neither_finds_nor_approves(server, method):
    new = await newcomer(server.port)

    await new.wire.send(Call(1, method, msgspec.Raw(b"\x80")))

    assert await new.wire.refused() == "unexpected_frame"


# What time does to requests, under a clock that the test drives


class Visitor(Peer):
    """Whoever calls, without a socket."""

    def __init__(self, author: Author | None = None) -> None:
        self.author, self.address = author, "192.0.2.1"

    def write(self, message): ...
    def send(self, frame): ...
    def settle(self, pushed_bytes): ...
    def refuse(self, error): ...


class Desk:
    """The requests of a server whose clock stands until it is moved."""

    def __init__(self, stores) -> None:
        self.directory, self.ms = stores.directory, 1_750_000_000_000
        authority = Authority(SignedLogs(stores.directory, stores.keys), lambda account: None, lambda devices: None)
        names = Names(stores.directory, authority)
        self.pairings = Pairings(stores.directory, authority, names, SERVER_ID, 1000, lambda: self.ms)
        self.authority = authority

    async def call(self, method: str, params, author: Author | None = None):
        """Answer a call as the dispatcher does."""
        raw = await self.pairings.methods()[method].answer(Visitor(author), msgspec.Raw(msgspec.msgpack.encode(params)))
        return msgspec.msgpack.decode(raw)

    async def ask(self, keys: DeviceKeys):
        return await self.call("pairing.ask", AskPairing(keys.sign_pk, keys.kem_pk))

    async def take(self, keys: DeviceKeys):
        signature = keys.sign.sign(proofs.pairing_take_message(SERVER_ID, keys.device))
        return await self.call("pairing.take", TakePairing(keys.device, signature))

    async def approved(self) -> DeviceKeys:
        """Return a device that asked, was certified by an account and approved."""
        account, keys, old = AccountKeys.make(os.urandom), DeviceKeys.make(os.urandom), DeviceKeys.make(os.urandom)
        entries = [account_genesis(account, os.urandom)]
        for device in (old, keys):
            entries.append(device_entry(account, replay_account(entries), device.sign_pk, device.kem_pk))
        await self.authority.append(account.account, 0, entries)
        await self.ask(keys)
        author = Author(account.account, old.device, old.sign_pk)
        await self.call("pairing.approve", ApprovePairing(keys.device, b"sealed"), author)
        return keys

    async def waiting(self) -> int:
        return len(await self.directory.list("pairing/"))


@pytest.fixture
async def desk():
    stores = await open_stores(Settings(engine="memory:"))
    yield Desk(stores)
    await stores.close()


async def test_a_request_ends_after_ten_minutes_and_asking_again_prolongs_it(desk):
    keys = DeviceKeys.make(os.urandom)
    assert (await desk.ask(keys))["expires_ms"] == desk.ms + REQUEST_TTL_MS

    desk.ms += REQUEST_TTL_MS - 1
    await desk.ask(keys)
    desk.ms += REQUEST_TTL_MS - 1
    assert (await desk.take(keys))["account"] == b""
    desk.ms += 1

    with pytest.raises(PairingUnknownError):
        await desk.take(keys)
    with pytest.raises(PairingUnknownError):
        await desk.call("pairing.find", FindPairing(keys.device), ANYBODY)


async def test_what_has_ended_is_deleted(desk):
    await desk.ask(DeviceKeys.make(os.urandom))
    desk.ms += REQUEST_TTL_MS // 2
    await desk.ask(DeviceKeys.make(os.urandom))
    desk.ms += REQUEST_TTL_MS // 2

    await desk.pairings.clean()

    assert await desk.waiting() == 1


async def test_an_approval_ends_as_well(desk):
    keys = await desk.approved()
    desk.ms += REQUEST_TTL_MS

    with pytest.raises(PairingUnknownError):
        await desk.take(keys)


async def test_the_answer_is_forgotten_once_the_device_has_come_in(desk):
    keys, other = await desk.approved(), await desk.approved()
    assert (await desk.take(keys))["sealed"] == b"sealed"

    await desk.pairings.forget_taken([keys.device, other.device])

    with pytest.raises(PairingUnknownError):
        await desk.take(keys)
    # That one came in without having fetched anything: its request is somebody else's affair.
    assert (await desk.take(other))["sealed"] == b"sealed"


async def test_a_code_that_fits_to_two_is_refused(desk):
    # Ids that share 80 bits cannot be made; these stand in the directory as if somebody had.
    record = msgspec.msgpack.encode(StoredPairing(bytes(32), bytes(32), desk.ms + 1))
    for last in (b"one...", b"two..."):
        await desk.directory.put(f"pairing/{(b'p' * 10 + last).hex()}", record)

    with pytest.raises(PairingUnknownError, match="more than one"):
        await desk.call("pairing.find", FindPairing(b"p" * 10), ANYBODY)
    assert await desk.call("pairing.find", FindPairing(b"p" * 10 + b"o"), ANYBODY)


async def test_requests_are_bounded_and_those_that_ended_make_room(desk, monkeypatch):
    monkeypatch.setattr(pairing, "REQUESTS_MAX", 3)
    for _ in range(3):
        await desk.ask(DeviceKeys.make(os.urandom))

    with pytest.raises(OverloadedError):
        await desk.ask(DeviceKeys.make(os.urandom))
    desk.ms += REQUEST_TTL_MS

    await desk.ask(DeviceKeys.make(os.urandom))
    assert await desk.waiting() == 1
