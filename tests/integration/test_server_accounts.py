"""Sign-up, sign-in, devices and keyrings over a real socket."""

import os

import msgspec
import pytest

from tests.server_kit import (
    CallFailed,
    World,
    hello_to,
    make_world,
    open_anonymous,
    open_wire,
)
from twinlock.protocol import proofs
from twinlock.protocol.account_log import replay_account
from twinlock.protocol.calls import (
    AppendLog,
    CreateAccount,
    KeyringRow,
    LogHead,
    Nothing,
    OpenUnlocker,
    OpenUnlockerResult,
    PutKeyring,
    ReadKeyring,
    ReadLog,
    ReadLogResult,
    Spaces,
    SpacesResult,
    UnlockerParams,
    UnlockerParamsResult,
)
from twinlock.protocol.frames import Challenge, Hello, Welcome
from twinlock.sealing.account_requests import sign_up_request
from twinlock.sealing.identity import AccountKeys, DeviceKeys, account_genesis, device_entry, revoke_entry
from twinlock.sealing.vault import RecoveryKit, make_unlocker, unlock
from twinlock.server import Server, Settings


@pytest.fixture
async def server():
    running = Server(Settings(engine="memory:", port=0))
    await running.start()
    yield running
    await running.stop()


@pytest.fixture
async def world(server):
    return await make_world(server)


async def open_with_kit(world: World, kit: RecoveryKit):
    """Sign in with a recovery kit in a session without a device."""
    wire, _ = await open_anonymous(world.port)
    params = await wire.call("unlocker.params", UnlockerParams(world.name, "recovery_kit"), UnlockerParamsResult)
    keys = unlock(params, kit, world.name, world.server_id)
    request = OpenUnlocker(world.name, "recovery_kit", keys.auth_key)
    return wire, await wire.call("unlocker.open", request, OpenUnlockerResult)


async def test_the_kit_opens_the_account_and_adds_a_device_that_can_sign_in(world):
    wire, result = await open_with_kit(world, world.kit)
    assert (result.account, result.entries) == (world.account.account, result.entries)
    state, device = replay_account(result.entries), DeviceKeys.make(os.urandom)
    entry = device_entry(world.account, state, device.sign_pk, device.kem_pk)

    head = await wire.call("account.append", AppendLog(result.account, state.seq, [entry]), LogHead)

    assert head.seq == state.seq + 1
    new = await world.open(device)
    assert (await new.call("account.spaces", Spaces(), SpacesResult)).spaces == [world.space]


async def test_a_wrong_kit_a_wrong_name_and_a_right_one_of_another_differ_in_nothing(world):
    for name in (world.name, "nobody"):
        wire, _ = await open_anonymous(world.port)
        with pytest.raises(CallFailed, match="wrong_credentials"):
            await wire.call("unlocker.open", OpenUnlocker(name, "recovery_kit", os.urandom(32)))


async def test_an_unknown_name_has_steady_parameters_that_look_like_anybodys(world):
    wire, _ = await open_anonymous(world.port)

    async def ask(name: str, kind: str) -> UnlockerParamsResult:
        return await wire.call("unlocker.params", UnlockerParams(name, kind), UnlockerParamsResult)

    real, fake = await ask(world.name, "recovery_kit"), await ask("nobody", "recovery_kit")
    assert (fake.kdf, fake.iterations, len(fake.salt)) == (real.kdf, real.iterations, len(real.salt))
    assert fake == await ask("nobody", "recovery_kit")
    assert fake.salt != (await ask("nobody", "password")).salt != (await ask("somebody", "password")).salt


async def test_tries_are_limited_by_name(world):
    wire, _ = await open_anonymous(world.port)
    codes = []
    for _ in range(12):
        with pytest.raises(CallFailed) as caught:
            await wire.call("unlocker.open", OpenUnlocker(world.name, "recovery_kit", b"x" * 32))
        codes.append(caught.value.code)

    assert codes == ["wrong_credentials"] * 10 + ["rate_limited"] * 2


async def test_a_taken_name_is_refused_and_its_owner_keeps_it(world):
    other = World(world.server)
    other.name = world.name

    with pytest.raises(CallFailed, match="name_taken"):
        await other.sign_up()

    await open_with_kit(world, world.kit)


async def test_who_knows_an_accounts_log_cannot_sign_it_up_again_with_a_secret_of_their_own(world):
    member = await world.open()
    page = await member.call("account.log", ReadLog(world.account.account), ReadLogResult)
    forged = make_unlocker(RecoveryKit.make(os.urandom), world.name, world.server_id, os.urandom, world.account)
    wire, _ = await open_anonymous(world.port)

    with pytest.raises(CallFailed, match="signature_refused"):
        await wire.call("account.create", CreateAccount(world.name, page.entries, [forged], signature=bytes(64)))

    with pytest.raises(CallFailed, match="not_signed_in"):
        await wire.call("account.log", ReadLog(world.account.account))
    await open_with_kit(world, world.kit)


async def test_signing_up_again_after_a_lost_reply_is_fine(server):
    world = World(server)
    wire, challenge = await open_anonymous(world.port)
    genesis = account_genesis(world.account, os.urandom)
    entry = device_entry(world.account, replay_account([genesis]), world.device.sign_pk, world.device.kem_pk)
    server_id = proofs.server_id_of(challenge.server_pk)
    unlocker = make_unlocker(world.kit, world.name, server_id, os.urandom, world.account)
    request = sign_up_request(world.account, server_id, world.name, [genesis, entry], [unlocker])

    first = await wire.call("account.create", request, LogHead)

    assert await wire.call("account.create", request, LogHead) == first


@pytest.mark.parametrize("name", ["", "Über", "a b", "a/b", "x" * 129])
async def test_names_that_are_not_allowed_are_refused(server, name):
    world = World(server)
    wire, _ = await open_anonymous(world.port)
    genesis = account_genesis(world.account, os.urandom)
    unlocker = make_unlocker(world.kit, "fine", bytes(32), os.urandom, world.account)

    with pytest.raises(CallFailed, match="name_invalid"):
        await wire.call("account.create", CreateAccount(name, [genesis], [unlocker]))


async def test_a_new_kit_replaces_the_old_one(world):
    wire, kit = await world.open(), RecoveryKit.make(os.urandom)
    unlocker = make_unlocker(kit, world.name, world.server_id, os.urandom, world.account)

    await wire.call("unlocker.put", world.put(unlocker), Nothing)

    await open_with_kit(world, kit)
    with pytest.raises(CallFailed, match="wrong_credentials"):
        await open_with_kit(world, world.kit)


async def test_a_revoked_device_is_cut_off_at_once_and_stays_out(world):
    wire = await world.open()
    device = await world.add_device(wire)
    revoked = await world.open(device)
    entry = revoke_entry(world.account, world.account_log, device.device)

    await wire.call("account.append", AppendLog(world.account.account, world.account_log.seq, [entry]))

    assert await revoked.refused() == "device_revoked"
    again = await open_wire(world.port)
    await again.send(hello_to(await again.next(Challenge), world.port, world.account, device))
    assert await again.refused() == "device_revoked"


async def test_an_entry_on_top_of_an_old_head_is_a_conflict(world):
    wire, device = await world.open(), DeviceKeys.make(os.urandom)
    old = world.account_log
    await world.add_device(wire)
    entry = device_entry(world.account, old, device.sign_pk, device.kem_pk)

    with pytest.raises(CallFailed, match="log_conflict"):
        await wire.call("account.append", AppendLog(world.account.account, old.seq, [entry]))


async def test_logs_of_strangers_are_not_told(server, world):
    stranger = await make_world(server)
    wire = await stranger.open()

    for method, log, code in (
        ("account.log", world.account.account, "role_forbids"),
        ("account.append", world.account.account, "role_forbids"),
        ("space.log", world.space, "unknown_space"),
        ("space.append", world.space, "unknown_space"),
    ):
        params = AppendLog(log, 0, []) if method.endswith("append") else ReadLog(log)
        with pytest.raises(CallFailed, match=code):
            await wire.call(method, params)


async def test_the_keyring_gives_and_takes_ones_own_row(world):
    wire = await world.open()
    row = await wire.call("space.keyring", ReadKeyring(world.space), KeyringRow)
    assert (row.account, row.epoch, len(row.wrapped)) == (world.account.account, 1, 80)

    await wire.call("space.keyring_put", PutKeyring(world.space, row), Nothing)
    with pytest.raises(CallFailed, match="role_forbids"):
        await wire.call("space.keyring_put", PutKeyring(world.space, KeyringRow(b"x" * 16, 1, b"w")))


@pytest.mark.parametrize(
    ("method", "params", "code"),
    [
        ("no.such.method", Spaces(), "unknown_method"),
        ("space.log", Spaces(), "invalid_call"),
        ("space.log", msgspec.Raw(b"\x01"), "invalid_call"),
        ("unlocker.params", UnlockerParams("someone", "retina"), "invalid_call"),
    ],
)
async def test_a_wrong_call_is_answered_and_the_session_goes_on(world, method, params, code):
    wire = await world.open()

    with pytest.raises(CallFailed, match=code):
        await wire.call(method, params)

    await wire.call("account.spaces", Spaces())


async def test_a_hello_is_good_for_one_challenge_only(world):
    first, second = await open_wire(world.port), await open_wire(world.port)
    hello = hello_to(await first.next(Challenge), world.port, world.account, world.device)
    await first.send(hello)
    await first.next(Welcome)

    await second.send(hello)

    assert await second.refused() == "proof_refused"


async def test_a_second_hello_is_not_expected(world):
    wire = await open_wire(world.port)
    hello = hello_to(await wire.next(Challenge), world.port, world.account, world.device)
    await wire.send(hello)
    await wire.next(Welcome)

    await wire.send(hello)

    assert await wire.refused() == "unexpected_frame"


async def test_a_hello_for_another_address_is_refused(world):
    wire = await open_wire(world.port)
    challenge = await wire.next(Challenge)

    await wire.send(hello_to(challenge, world.port, world.account, world.device, "wss://evil.example"))

    assert await wire.refused() == "proof_refused"


async def test_only_the_devices_own_key_opens_a_session(world):
    impostor = DeviceKeys.make(os.urandom)
    for account, device, code in (
        (world.account, impostor, "unknown_device"),
        (AccountKeys.make(os.urandom), world.device, "unknown_device"),
    ):
        wire = await open_wire(world.port)
        await wire.send(hello_to(await wire.next(Challenge), world.port, account, device))
        assert await wire.refused() == code

    wire = await open_wire(world.port)
    hello = hello_to(await wire.next(Challenge), world.port, world.account, impostor)
    stolen = msgspec.structs.replace(hello, device=world.device.device)
    await wire.send(stolen)
    assert await wire.refused() == "proof_refused"


@pytest.mark.parametrize("nonce_bytes", [15, 65])
async def test_a_nonce_that_is_too_short_or_too_long_is_refused(world, nonce_bytes):
    wire = await open_wire(world.port)
    await wire.next(Challenge)

    await wire.send(Hello(os.urandom(nonce_bytes), f"ws://127.0.0.1:{world.port}", b"", b"", b""))

    assert await wire.refused() == "proof_refused"
