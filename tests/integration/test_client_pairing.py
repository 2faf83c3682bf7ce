"""A new device is added by an old one: its code, the digits, and everything that goes wrong on the way."""

import asyncio

import pytest

import twinlock
from tests.client_kit import NAME, PASSWORD
from twinlock.client import pairing
from twinlock.errors import (
    ClosedError,
    OfflineError,
    PairingRefusedError,
    PairingUnknownError,
    ProfileExistsError,
    ProfileInUseError,
    SudoNeededError,
)
from twinlock.protocol.account_log import replay_account
from twinlock.protocol.device_calls import FindPairingResult, TakePairingResult
from twinlock.sealing import AccountKeys, DeviceKeys, account_genesis, device_entry, parse_pairing, seal_account_keys


@pytest.fixture
def world(account_world):
    return account_world


@pytest.fixture(autouse=True)
def quick_polls(monkeypatch):
    """A person does not notice half a second; a test does."""
    monkeypatch.setattr(pairing, "POLL_INTERVAL_S", 0.02)
    monkeypatch.setattr(pairing, "RECONNECT_DELAY_S", 0.02)


def files(folder):
    """What is in a folder but the lock, which holds nothing."""
    return sorted(path.name for path in folder.iterdir() if path.name != "lock")


async def test_a_code_and_the_same_digits_bring_a_new_device_to_all_data(world):
    db = await world.unlocked()
    await db.space("home").collection("todos").doc("1").set({"text": "milk"})
    await db.synced()
    async with await twinlock.pair_device(world.url, world.folder / "new", device_name="Ann's phone") as request:
        assert [len(part) for part in request.code.split("-")] == [4, 4, 4, 4]
        digits = await db.pair_device(request.code.lower().replace("-", " "))
        approval = await request.approved()

        assert approval == twinlock.PairingApproval(NAME, digits)
        assert files(world.folder / "new") == []
        async with await request.confirm("a pass phrase of its own") as new:
            await new.synced()
            assert await new.space("home").collection("todos").doc("1").get() == {"text": "milk"}
            # For 15 minutes it may change things at once, and then by its own pass phrase.
            await new.create_space("by the new one")
            await new.unlock("a pass phrase of its own")
            names = {device.name: device for device in await db.devices()}
            assert names["Ann's phone"].online
            assert (await new.devices())[-1].this


async def test_a_qr_text_serves_as_well_and_the_device_opens_again_later(world):
    db = await world.unlocked()
    request = await twinlock.pair_device(world.url, world.folder / "new")
    digits = await db.pair_device(request.qr)
    assert (await request.approved()).digits == digits
    await (await request.confirm()).close()

    async with await twinlock.connect(profile=world.folder / "new") as new:
        assert new.name == NAME
        assert new.is_connected
        with pytest.raises(SudoNeededError):
            await new.unlock(PASSWORD)


async def test_the_new_device_waits_for_approval_through_a_restart_of_the_server(world):
    db = await world.unlocked()
    request = await twinlock.pair_device(world.url, world.folder / "new")
    waiting = asyncio.create_task(request.approved())
    await asyncio.sleep(0)
    await world.stop()
    await world.restart()
    await db.synced()

    digits = await db.pair_device(request.code)

    assert (await waiting).digits == digits
    await request.reject()


async def test_approving_takes_the_password(world):
    db = await world.device("a")
    request = await twinlock.pair_device(world.url, world.folder / "new")

    with pytest.raises(SudoNeededError):
        await db.pair_device(request.code)
    assert len(await db.devices()) == 2
    await request.reject()


async def test_approving_twice_is_fine(world):
    db = await world.unlocked()
    request = await twinlock.pair_device(world.url, world.folder / "new")

    assert await db.pair_device(request.code) == await db.pair_device(request.qr)
    assert len(await db.devices()) == 3
    await request.reject()


async def test_a_rejected_device_leaves_nothing_behind(world):
    db = await world.unlocked()
    request = await twinlock.pair_device(world.url, world.folder / "new")
    await db.pair_device(request.code)
    await request.approved()

    await request.reject()

    assert not (world.folder / "new").exists()
    with pytest.raises(ClosedError):
        await request.confirm()
    with pytest.raises(ClosedError):
        await request.approved()


async def test_what_nobody_approved_is_not_confirmed(world):
    async with await twinlock.pair_device(world.url, world.folder / "new") as request:
        with pytest.raises(PairingRefusedError):
            await request.confirm()
        with pytest.raises(ProfileInUseError):
            await twinlock.pair_device(world.url, world.folder / "new")

    assert not (world.folder / "new").exists()


async def test_a_used_folder_and_a_missing_server_are_refused(world):
    with pytest.raises(ProfileExistsError):
        await twinlock.pair_device(world.url, world.folder / "a")
    await world.stop()
    with pytest.raises(OfflineError):
        await twinlock.pair_device(world.url, world.folder / "new")
    assert not (world.folder / "new").exists()


async def test_an_unknown_code_and_one_of_another_server_are_refused(world):
    db = await world.unlocked()
    request = await twinlock.pair_device(world.url, world.folder / "new")
    ticket = parse_pairing(request.qr)
    elsewhere = pairing.pairing_qr(ticket.origin, bytes(32), ticket.prefix)

    for code, error in (
        ("0000-0000-0000-0000", PairingUnknownError),
        ("no code at all", PairingUnknownError),
        (elsewhere, PairingRefusedError),
        (pairing.pairing_qr("ftp://nowhere", ticket.server_id, ticket.prefix), PairingUnknownError),
    ):
        with pytest.raises(error):
            await db.pair_device(code)
    assert len(await db.devices()) == 2
    await request.reject()


async def test_nobody_waits_longer_than_ten_minutes(world, monkeypatch):
    monkeypatch.setattr(pairing, "REQUEST_S_MAX", 0.05)
    async with await twinlock.pair_device(world.url, world.folder / "new") as request:
        with pytest.raises(PairingUnknownError):
            await request.approved()


async def test_a_server_that_tells_other_keys_is_caught_by_the_code(world, monkeypatch):
    """The server puts keys of its own in the place of those of the device that shows the code."""
    db = await world.unlocked()
    swapped = DeviceKeys.make(db._context.entropy)
    answer = db._connection.call

    async def lying(method, params, result):
        if method == "pairing.find":
            return FindPairingResult(swapped.sign_pk, swapped.kem_pk)
        return await answer(method, params, result)

    monkeypatch.setattr(db._devices._connection, "call", lying)
    request = await twinlock.pair_device(world.url, world.folder / "new")

    with pytest.raises(PairingRefusedError):
        await db.pair_device(request.code)
    monkeypatch.undo()
    assert len(await db.devices()) == 2
    await request.reject()


class ServerOfItsOwn:
    """A server that answers a new device with an account that it made itself."""

    def __init__(self, entropy):
        self.keys = AccountKeys.make(entropy)
        self.entropy = entropy

    def answer(self, device_keys, certifies=True):
        entries = [account_genesis(self.keys, self.entropy)]
        if certifies:
            entries.append(device_entry(self.keys, replay_account(entries), device_keys.sign_pk, device_keys.kem_pk))
        sealed = seal_account_keys(self.keys, device_keys.device, device_keys.kem_pk)
        return TakePairingResult(self.keys.account, NAME, sealed, entries)


async def answered(world, monkeypatch, make):
    """Pair a device with a server that gives an answer of its own."""
    request = await twinlock.pair_device(world.url, world.folder / "new")
    answer = make(request._new.device_keys)

    async def lying(session, method, params, result):
        return answer

    monkeypatch.setattr(pairing.AnonymousSession, "call", lying)
    return request


async def test_a_server_that_pairs_into_its_own_account_is_caught_by_the_digits(world, monkeypatch):
    db = await world.unlocked()
    server = ServerOfItsOwn(db._context.entropy)
    honest = await twinlock.pair_device(world.url, world.folder / "honest")
    digits = await db.pair_device(honest.code)
    await honest.reject()

    request = await answered(world, monkeypatch, server.answer)
    approval = await request.approved()

    assert approval.name == NAME
    assert approval.digits != digits
    await request.reject()
    assert not (world.folder / "new").exists()


@pytest.mark.parametrize("fault", ["not certified", "another log", "another device's", "cut short"])
async def test_an_answer_that_does_not_fit_is_refused(world, monkeypatch, fault):
    entropy = (await world.device("a"))._context.entropy
    server, other = ServerOfItsOwn(entropy), ServerOfItsOwn(entropy)

    def make(device_keys):
        good = server.answer(device_keys)
        match fault:
            case "not certified":
                return server.answer(device_keys, certifies=False)
            case "another log":
                return TakePairingResult(good.account, NAME, good.sealed, other.answer(device_keys).entries)
            case "another device's":
                return TakePairingResult(
                    good.account, NAME, server.answer(DeviceKeys.make(entropy)).sealed, good.entries
                )
        return TakePairingResult(good.account, NAME, good.sealed[:60], good.entries)

    request = await answered(world, monkeypatch, make)
    with pytest.raises(PairingRefusedError):
        await request.approved()
    await request.reject()
    assert not (world.folder / "new").exists()
