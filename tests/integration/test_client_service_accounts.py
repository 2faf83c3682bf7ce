"""Accounts of programs: one file holds the keys, and whoever has it is the account."""

import json
from contextlib import asynccontextmanager

import pytest

import twinlock
from twinlock.client.transport import Transport, open_transport
from twinlock.errors import (
    CredentialsError,
    DeviceRevokedError,
    KeyFileError,
    NameTakenError,
    OfflineError,
    UnknownDeviceError,
)


@pytest.fixture
def world(account_world):
    return account_world


@pytest.fixture
async def key_file(world):
    """The keys of a service account named "worker"."""
    made = await twinlock.create_service_account(world.url, "Worker", world.folder / "worker.key")
    assert (made.name, len(made.id)) == ("worker", 32)
    return made.key_file


async def open_worker(world, key_file, profile="w1", **options):
    db = await twinlock.connect(key_file=key_file, profile=world.folder / profile, options=twinlock.Options(**options))
    world.open.append(db)
    return db


async def test_the_file_is_for_its_owner_only_and_names_account_and_server(world, key_file):
    assert key_file.stat().st_mode & 0o777 == 0o600
    content = json.loads(key_file.read_text())

    assert sorted(content) == ["kit", "name", "server_id", "url"]
    assert (content["name"], content["url"]) == ("worker", world.url)


async def test_the_file_enrols_a_device_where_the_profile_is_new_and_opens_it_unlocked(world, key_file):
    db = await open_worker(world, key_file)
    orders = await db.create_space("orders")
    await orders.collection("orders").doc("1").set({"count": 1})
    await db.synced()
    await db.close()

    again = await open_worker(world, key_file)
    second = await open_worker(world, key_file, "w2")

    assert again.account == second.account
    assert len(await again.devices()) == 2
    await again.create_space("more")
    assert await second.space("orders").collection("orders").doc("1").get() == {"count": 1}


async def test_it_stays_unlocked_for_longer_than_a_person_would(world, key_file):
    shift = {"ms": 0}
    real = twinlock.Options().wall_ms
    db = await open_worker(world, key_file, wall_ms=lambda: real() + shift["ms"])
    shift["ms"] = 20 * 60_000

    # A person would be asked for the password first.
    with pytest.raises(UnknownDeviceError):
        await db.revoke("nobody")


async def test_it_opens_without_a_server_once_it_is_enrolled(world, key_file):
    await (await open_worker(world, key_file)).close()
    await world.stop()

    db = await open_worker(world, key_file)

    assert db.name == "worker"
    with pytest.raises(OfflineError):
        await db.create_space("offline")
    with pytest.raises(OfflineError):
        await open_worker(world, key_file, "w2")
    assert not (world.folder / "w2").exists()


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660])
async def test_a_file_that_others_can_read_is_refused(world, key_file, mode):
    key_file.chmod(mode)

    with pytest.raises(KeyFileError):
        await open_worker(world, key_file)
    assert not (world.folder / "w1").exists()


async def test_what_is_no_key_file_is_refused(world, key_file):
    content = json.loads(key_file.read_text())
    for text in ("", "{}", json.dumps({**content, "kit": "AAAA"}), json.dumps({**content, "server_id": "AAAA"})):
        key_file.write_text(text)
        with pytest.raises(twinlock.TwinlockError) as caught:
            await open_worker(world, key_file)
        assert caught.value.code in ("key_file_refused", "wrong_server")
    key_file.unlink()
    with pytest.raises(KeyFileError):
        await open_worker(world, key_file)


async def test_a_file_is_never_overwritten_and_a_taken_name_leaves_none(world, key_file):
    before = key_file.read_text()
    with pytest.raises(KeyFileError):
        await twinlock.create_service_account(world.url, "other", key_file)
    assert key_file.read_text() == before
    with pytest.raises(NameTakenError):
        await twinlock.create_service_account(world.url, "worker", world.folder / "second.key")
    assert not (world.folder / "second.key").exists()


async def test_a_profile_of_another_account_is_refused(world, key_file):
    with pytest.raises(KeyFileError):
        await twinlock.connect(key_file=key_file, profile=world.folder / "a")
    # It is not left in use.
    await world.device("a")


async def test_a_new_kit_takes_the_old_one_s_place_in_the_file(world, key_file):
    old = key_file.read_bytes()
    db = await open_worker(world, key_file)
    await open_worker(world, key_file, "w2")
    await db.new_recovery_kit()
    for each in world.open:
        await each.close()

    assert key_file.read_bytes() != old
    assert key_file.stat().st_mode & 0o777 == 0o600
    for profile in ("w1", "w2", "w3"):
        db = await open_worker(world, key_file, profile)
        await db.create_space(f"by {profile}")
    stale = world.folder / "stale.key"
    stale.write_bytes(old)
    stale.chmod(0o600)
    with pytest.raises(CredentialsError):
        await open_worker(world, stale, "w4")


async def test_a_revoked_device_of_a_service_does_not_come_back_by_its_file(world, key_file):
    first, second = await open_worker(world, key_file), await open_worker(world, key_file, "w2")
    this = next(device.id for device in await second.devices() if device.this)
    await second.close()
    await first.revoke(this)

    for _ in range(2):
        with pytest.raises(DeviceRevokedError):
            await open_worker(world, key_file, "w2")
    assert len(await first.devices()) == 2


class LosesTheAnswer(Transport):
    """A connection that breaks when the server has made an account and says so."""

    def __init__(self, inner):
        self.inner = inner
        self.is_asked = False

    async def send(self, message):
        self.is_asked = self.is_asked or b"account.create" in message
        await self.inner.send(message)

    def send_now(self, message):
        return self.inner.send_now(message)

    async def receive(self):
        message = await self.inner.receive()
        if self.is_asked:
            raise OfflineError
        return message


@asynccontextmanager
async def dial_and_lose(address):
    async with open_transport(address) as inner:
        yield LosesTheAnswer(inner)


async def test_the_keys_stay_where_the_answer_to_the_sign_up_was_lost(world):
    key_file = world.folder / "lost.key"
    with pytest.raises(OfflineError, match="stays"):
        await twinlock.create_service_account(world.url, "lost", key_file, options=twinlock.Options(dial=dial_and_lose))

    assert (await open_worker(world, key_file)).name == "lost"
