"""Unlockers change by the account's word alone: a device that was stolen, and not revoked yet, locks nobody out."""

import os

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from msgspec.structs import replace

from tests.server_kit import CallFailed, World, make_world, now_ms, open_anonymous
from twinlock.protocol.account_log import replay_account
from twinlock.protocol.calls import (
    CreateAccount,
    OpenUnlocker,
    OpenUnlockerResult,
    PutUnlocker,
    ReadLog,
    ReadLogResult,
    Unlocker,
)
from twinlock.protocol.device_calls import Parcel
from twinlock.protocol.limits import CLOCK_SKEW_MS_MAX
from twinlock.protocol.unlocker_proofs import unlocker_put_message
from twinlock.sealing.account_requests import put_request, rekem_request, sign_up_request
from twinlock.sealing.identity import AccountKeys, rekem_entry
from twinlock.sealing.vault import RecoveryKit, make_unlocker
from twinlock.server import Server, Settings


@pytest.fixture
async def server():
    running = Server(Settings(engine="memory:", port=0, unlocker_tries_per_min=0, sign_ups_per_min=0))
    await running.start()
    yield running
    await running.stop()


@pytest.fixture
async def world(server):
    return await make_world(server)


def password(secret: bytes, wrapped: bytes = b"") -> Unlocker:
    """Make a password's record without the stretching."""
    return Unlocker("password", "pbkdf2-sha256", os.urandom(16), 1_000_000, secret * 32, wrapped)


async def signs_in(world: World, secret: bytes) -> bool:
    wire, _ = await open_anonymous(world.port)
    try:
        result = await wire.call("unlocker.open", OpenUnlocker(world.name, "password", secret * 32), OpenUnlockerResult)
    except CallFailed as failed:
        if failed.code != "wrong_credentials":
            raise
        return False
    finally:
        await wire.close()
    return result.account == world.account.account


async def test_a_thief_who_holds_a_device_replaces_neither_kit_nor_password(server, world):
    thief, wire = await make_world(server), await world.open()
    own = password(b"o")
    await wire.call("unlocker.put", world.put(own))
    put = world.put(password(b"t"), now_ms() + 1_000)
    device, server_id, state = world.device, world.server_id, world.account_log
    by_device = device.sign.sign(
        unlocker_put_message(server_id, state.account, state.kem_pk, put.time_ms, put.unlocker)
    )
    kit = make_unlocker(RecoveryKit.make(os.urandom), world.name, world.server_id, os.urandom, world.account)

    for forged in (
        replace(put, signature=bytes(64)),
        replace(put, signature=b""),
        replace(put, signature=by_device),
        replace(put, signature=thief.put(put.unlocker, put.time_ms).signature),
        replace(put, time_ms=put.time_ms + 1),
        replace(put, unlocker=password(b"t")),
        replace(put, unlocker=replace(put.unlocker, kind="recovery_kit")),
        replace(put, unlocker=replace(put.unlocker, iterations=1)),
        PutUnlocker(kit, put.time_ms, put.signature),
        put_request(world.account, bytes(32), state, put.time_ms, put.unlocker),
    ):
        with pytest.raises(CallFailed, match="signature_refused"):
            await wire.call("unlocker.put", forged)

    assert await signs_in(world, b"o")
    assert not await signs_in(world, b"t")


async def test_an_older_request_is_not_taken_again(world):
    wire, start_ms = await world.open(), now_ms()
    old, new = world.put(password(b"o"), start_ms), world.put(password(b"n"), start_ms + 1)
    await wire.call("unlocker.put", old)
    await wire.call("unlocker.put", new)

    for repeated in (old, world.put(password(b"x"), start_ms + 1), world.put(password(b"x"), start_ms - 9)):
        with pytest.raises(CallFailed, match="revision_conflict"):
            await wire.call("unlocker.put", repeated)

    # The newest may be repeated, after a lost reply.
    await wire.call("unlocker.put", new)
    assert await signs_in(world, b"n")
    assert not await signs_in(world, b"o")


async def test_a_request_from_the_future_is_refused_since_nothing_could_follow_it(world):
    wire = await world.open()
    put = world.put(password(b"f"), now_ms() + CLOCK_SKEW_MS_MAX + 10_000)
    for future in (put, replace(put, time_ms=(1 << 64) - 1), replace(put, time_ms=0), replace(put, time_ms=-1)):
        with pytest.raises(CallFailed, match="clock_skew"):
            await wire.call("unlocker.put", future)

    await wire.call("unlocker.put", world.put(password(b"f"), now_ms() + CLOCK_SKEW_MS_MAX - 10_000))


@pytest.mark.parametrize("iterations", [-1, 1 << 32])
async def test_a_number_that_cannot_be_signed_is_refused(world, iterations):
    wire, put = await world.open(), world.put(password(b"n"))

    with pytest.raises(CallFailed, match="invalid_call"):
        await wire.call("unlocker.put", replace(put, unlocker=replace(put.unlocker, iterations=iterations)))


async def test_a_request_under_the_former_keys_ends_with_them(world):
    wire, kem = await world.open(), X25519PrivateKey.generate()
    kept = world.put(password(b"k", b"the old keys, wrapped"), now_ms() + 60_000)
    after, entry = (
        world.account.with_kem(kem),
        rekem_entry(world.account, world.account_log, kem.public_key().public_bytes_raw()),
    )
    kit = make_unlocker(RecoveryKit.make(os.urandom), world.name, world.server_id, os.urandom, after)
    parcels = [Parcel(world.device.device, b"sealed")]
    request = rekem_request(world.account, world.server_id, world.account_log, [entry], parcels, [kit])
    await wire.call("account.rekem", request)

    with pytest.raises(CallFailed, match="signature_refused"):
        await wire.call("unlocker.put", kept)

    world.account_log = replay_account([entry], world.account_log)
    await wire.call("unlocker.put", world.put(password(b"n")))
    assert await signs_in(world, b"n")


async def test_who_knows_the_log_of_an_account_without_a_password_gives_it_none(world):
    page = await (await world.open()).call("account.log", ReadLog(world.account.account), ReadLogResult)
    wire, _ = await open_anonymous(world.port)
    stranger = sign_up_request(
        AccountKeys.make(os.urandom), world.server_id, world.name, page.entries, [password(b"s")]
    )

    for signature in (b"", stranger.signature):
        request = CreateAccount(world.name, page.entries, [password(b"s")], signature=signature)
        with pytest.raises(CallFailed, match="signature_refused"):
            await wire.call("account.create", request)

    assert not await signs_in(world, b"s")
