"""The devices of an account: names, visits, passwords, kits; and what revoking one does, everywhere."""

import asyncio

import pytest

import twinlock
from tests.client_kit import NAME, PASSWORD, until
from twinlock.errors import (
    CredentialsError,
    DeviceRevokedError,
    InvalidCallError,
    LimitExceededError,
    NotFoundError,
    OfflineError,
    PasswordError,
    SudoNeededError,
    UnknownDeviceError,
)


@pytest.fixture
def world(account_world):
    return account_world


def id_of(db) -> str:
    return db._context.state.device_keys.device.hex()


def log_of(db, space="home"):
    return db._handle(db._courier.runtimes[bytes.fromhex(db.space(space).id)]).runtime.keyring.log


def own(db, space="home"):
    """The account's own record in a space's log."""
    return log_of(db, space).members[bytes.fromhex(db.account)]


async def recovered(world, folder, kit=None, password=None):
    db = await twinlock.recover(world.url, NAME, kit or world.kit, password, profile=world.folder / folder)
    world.open.append(db)
    return db


# Names and visits


async def test_devices_have_names_that_only_the_account_reads(world):
    a, b = await world.device("a"), await world.device("b")
    await a.rename_device("Ann's laptop")
    await a.rename_device("the kitchen", id_of(b))

    seen = {device.id: device for device in await b.devices()}

    assert seen[id_of(a)].name == "Ann's laptop"
    assert seen[id_of(b)].name == "the kitchen"
    assert seen[id_of(b)].this
    assert not seen[id_of(a)].this
    await a.close()
    await b.close()
    await world.stop()
    everything = b"".join(path.read_bytes() for path in (world.folder / "server").rglob("*") if path.is_file())
    assert b"the kitchen" not in everything


async def test_a_device_is_named_when_it_is_enrolled_by_default_like_the_machine(world, monkeypatch):
    monkeypatch.setattr("socket.gethostname", lambda: "h" * 200)
    first = await recovered(world, "first")
    options = twinlock.Options(device_name="watch")
    async with await twinlock.recover(world.url, NAME, world.kit, profile=world.folder / "second", options=options):
        names = [device.name for device in await first.devices()]

    assert names[-2:] == ["h" * 127, "watch"]


async def test_who_is_online_and_when_the_others_were_last_seen(world):
    a, b = await world.device("a"), await world.device("b")
    await until_seen(a, id_of(b), lambda device: device.online)
    await b.close()
    await until_seen(a, id_of(b), lambda device: not device.online)

    seen = {device.id: device for device in await a.devices()}

    now_ms = a._context.clock.now_ms()
    assert 0 <= now_ms - seen[id_of(b)].last_seen_ms < 60_000
    assert seen[id_of(a)].online


async def until_seen(db, device, condition):
    while not condition(next(info for info in await db.devices() if info.id == device)):
        pass


async def test_without_a_server_the_devices_are_those_that_were_known(world):
    a = await world.device("a")
    await a.rename_device("laptop")
    known = await a.devices()
    await world.stop()
    await until(lambda: a.status == "reconnecting")

    offline = await a.devices()

    assert [(each.id, each.name, each.last_seen_ms) for each in offline] == [
        (each.id, each.name, each.last_seen_ms) for each in known
    ]
    assert not any(device.online for device in offline)
    with pytest.raises(OfflineError):
        await a.rename_device("nobody hears it")


async def test_unknown_devices_and_long_names_are_refused(world):
    a = await world.device("a")
    with pytest.raises(UnknownDeviceError):
        await a.rename_device("x", "00" * 16)
    with pytest.raises(LimitExceededError):
        await a.rename_device("x" * 128)


# Passwords and kits


async def test_a_changed_password_takes_the_old_one_s_place_here_and_at_the_server(world):
    a, b = await world.device("a"), await world.device("b")
    with pytest.raises(CredentialsError):
        await a.change_password("wrong horse", "a new password")
    with pytest.raises(PasswordError):
        await a.change_password(PASSWORD, "short")

    await a.change_password(PASSWORD, "a new password")

    with pytest.raises(CredentialsError):
        await a.unlock(PASSWORD)
    await a.unlock("a new password")
    with pytest.raises(CredentialsError):
        await twinlock.sign_in(world.url, NAME, PASSWORD, world.folder / "new", kit=world.kit)
    # What unlocks another device is its own: it was never sent anywhere.
    await b.unlock(PASSWORD)


async def test_a_kit_is_taken_from_its_qr_text(world):
    a = await world.unlocked()
    qr = a.kit_qr(await a.new_recovery_kit())

    assert qr.startswith(f"twinlock:kit?origin={world.url}&server=")
    with pytest.raises(NotFoundError):
        a.recovery_kit()
    assert (await recovered(world, "new", qr)).status == "connected"


# Revoking


async def test_a_revoked_device_is_cut_off_in_every_space(world):
    a, b = await world.unlocked(), await world.device("b")
    await a.create_space("trips")
    await until(lambda: len(b.spaces()) == 2)
    await b.space("home").collection("todos").doc("1").set({"text": "before"})
    await b.synced()

    await a.revoke(id_of(b))

    await until(lambda: b.status == "disconnected")
    with pytest.raises(DeviceRevokedError):
        await b.space("home").collection("todos").doc("1").get()
    device = bytes.fromhex(id_of(b))
    assert [cutoff.counters for cutoff in own(a).cutoffs] == [{device: 1}]
    assert [cutoff.counters for cutoff in own(a, "trips").cutoffs] == [{device: 0}]
    assert {info.id: info.revoked for info in await a.devices()}[id_of(b)]
    await a.synced()
    assert await a.space("home").collection("todos").doc("1").get() == {"text": "before"}


async def test_revoking_takes_the_password_another_device_and_one_that_is_there(world):
    a = await world.device("a")
    with pytest.raises(SudoNeededError):
        await a.revoke(id_of(await world.device("b")))
    await a.unlock(PASSWORD)
    with pytest.raises(InvalidCallError):
        await a.revoke(id_of(a))
    with pytest.raises(UnknownDeviceError):
        await a.revoke("nobody's")
    assert not any(device.revoked for device in await a.devices())


async def test_a_device_is_revoked_by_its_name_and_again_without_harm(world):
    a, b = await world.unlocked(), await world.device("b")
    await b.rename_device("lost phone")

    await a.revoke("lost phone")
    seq = log_of(a).seq
    await a.revoke("lost phone")

    assert log_of(a).seq == seq
    assert [device.name for device in await a.devices() if device.revoked] == ["lost phone"]


async def test_an_interrupted_revocation_is_finished_at_the_next_unlock(world, monkeypatch):
    a, b = await world.unlocked(), await world.device("b")
    await a.create_space("trips")

    async def cut(runtime, state):
        raise OfflineError("the connection broke")

    with monkeypatch.context() as broken:
        broken.setattr("twinlock.client.revocation.Revoker._finish_space", lambda self, runtime, state: cut(0, 0))
        with pytest.raises(OfflineError):
            await a.revoke(id_of(b))
    assert {info.id: info.revoked for info in await a.devices()}[id_of(b)]
    assert own(a).cutoffs == own(a, "trips").cutoffs == ()
    await a.close()

    again = await world.device("a")
    await again.unlock(PASSWORD)
    await until(lambda: own(again).cutoffs and own(again, "trips").cutoffs)

    device = bytes.fromhex(id_of(b))
    assert [set(cutoff.counters) for cutoff in own(again).cutoffs] == [{device}]


async def test_a_space_that_is_made_later_knows_of_the_revoked_device_too(world):
    a, b = await world.unlocked(), await world.device("b")
    await a.revoke(id_of(b))
    await a.create_space("later")

    await a.unlock(PASSWORD)

    await until(lambda: own(a, "later").cutoffs)


async def test_a_stolen_device_costs_the_account_its_key_and_every_space_an_epoch(world):
    """Everything that the thief could read from the disk opens nothing that comes after."""
    a, b = await world.unlocked(), await world.device("b")
    c = await recovered(world, "c", password=PASSWORD)
    await b.rename_device("stolen")
    await c.rename_device("watch")
    await a.create_space("trips")
    before = own(a).kem_pk

    await a.revoke("stolen", stolen=True)

    kit = a.recovery_kit()
    assert own(a).kem_pk == own(a, "trips").kem_pk == a._context.state.account_kem.kem_pk != before
    assert log_of(a).epoch == log_of(a, "trips").epoch == 2
    with pytest.raises(CredentialsError):
        await recovered(world, "thief")
    # The device that stays takes its parcel, goes on reading and writing, and still knows the names.
    await a.space("home").collection("todos").doc("1").set({"text": "under the new epoch"})
    await a.synced()
    await until(lambda: log_of(c).epoch == 2 and c._context.state.account_kem.kem_pk == own(a).kem_pk)
    await c.synced()
    assert await c.space("home").collection("todos").doc("1").get() == {"text": "under the new epoch"}
    assert {device.name for device in await c.devices()} >= {"stolen", "watch"}
    # It also changes things: what it unlocks is the account's new pair of keys.
    await c.unlock(PASSWORD)
    await c.create_space("by the watch")
    # And the new kit brings a new device to all of it.
    d = await recovered(world, "d", kit)
    await d.synced()
    assert sorted(space.title for space in d.spaces()) == ["by the watch", "home", "trips"]
    assert await d.space("home").collection("todos").doc("1").get() == {"text": "under the new epoch"}


async def test_a_device_that_was_away_takes_its_parcel_when_it_comes_back(world):
    a = await world.unlocked()
    b = await world.device("b")
    stolen = await recovered(world, "c")
    await b.close()
    await a.revoke(id_of(stolen), stolen=True)
    await a.space("home").collection("todos").doc("1").set({"text": "meanwhile"})
    await a.synced()

    b = await world.device("b")
    await b.synced()

    assert await b.space("home").collection("todos").doc("1").get() == {"text": "meanwhile"}
    assert b._context.state.account_kem.kem_pk == own(a).kem_pk


async def test_a_stolen_device_s_revocation_is_finished_by_calling_it_again(world, monkeypatch):
    a, b = await world.unlocked(), await world.device("b")
    answer = a._connection.call

    async def breaking(method, params, result):
        found = await answer(method, params, result)
        if method == "account.rekem":
            raise OfflineError("the connection broke before the reply")
        return found

    with monkeypatch.context() as broken:
        broken.setattr(a._connection, "call", breaking)
        with pytest.raises(OfflineError):
            await a.revoke(id_of(b), stolen=True)
        with pytest.raises(NotFoundError):
            a.recovery_kit()

    await a.revoke(id_of(b), stolen=True)

    assert own(a).kem_pk == a._context.state.account_kem.kem_pk
    assert log_of(a).epoch == 2
    assert len(own(a).cutoffs) == 1
    # The kit of the first try was never seen: it is replaced by one that is.
    assert (await recovered(world, "new", a.recovery_kit())).is_connected


async def test_another_device_finishes_what_the_one_that_began_never_can(world, monkeypatch):
    """The device that called another one stolen is lost itself before it told the spaces."""
    a = await world.unlocked()
    b = await world.device("b")
    stolen = await recovered(world, "c")
    await a.create_space("trips")
    await until(lambda: len(b.spaces()) == 2)

    async def broken(self, runtime, state):
        raise OfflineError("the connection broke")

    with monkeypatch.context() as lost:
        lost.setattr("twinlock.client.revocation.Revoker._finish_space", broken)
        with pytest.raises(OfflineError):
            await a.revoke(id_of(stolen), stolen=True)
        await a.close()
    await b.close()

    b = await world.device("b")
    before = own(b).kem_pk
    await b.unlock(PASSWORD)

    await until(lambda: log_of(b).epoch == log_of(b, "trips").epoch == 2)
    assert own(b).kem_pk == own(b, "trips").kem_pk == b._context.state.account_kem.kem_pk != before
    assert own(b).cutoffs
    assert own(b, "trips").cutoffs


async def test_two_devices_revoke_at_the_same_time(world):
    a, b = await world.unlocked(), await world.unlocked("b")
    lost = [await recovered(world, name) for name in ("c", "d")]
    await a.create_space("trips")
    await until(lambda: len(b.spaces()) == 2)

    await asyncio.gather(a.revoke(id_of(lost[0])), b.revoke(id_of(lost[1]), stolen=True))

    wanted = {bytes.fromhex(id_of(db)) for db in lost}
    for db in (a, b):
        await until(lambda db=db: all(ended(own(db, space)) == wanted for space in ("home", "trips")))
        await until(lambda db=db: own(db).kem_pk == db._context.state.account_kem.kem_pk)
        await db.synced()


def ended(member):
    """The devices whose chains a space's log has ended."""
    return {device for cutoff in member.cutoffs for device in cutoff.counters}


@pytest.mark.parametrize("role", ["reader", "sender"])
async def test_a_member_without_rights_cuts_its_device_off_and_the_owner_rotates(world, role):
    """Ann owns the space; Ben, who may write nothing or read nothing there, has a device stolen."""
    ann, ben = await world.unlocked(), await world.unlocked("ben")
    link = await ann.space("home").invite(role)
    shared = (await ben.join(link)).id
    request = await twinlock.pair_device(world.url, world.folder / "phone", device_name="phone")
    await ben.pair_device(request.code)
    await request.approved()
    world.open.append(await request.confirm())

    await ben.revoke("phone", stolen=True)

    member = log_of(ben, shared).members[bytes.fromhex(ben.account)]
    assert [set(cutoff.counters) for cutoff in member.cutoffs] == [{request._new.device_keys.device}]
    assert member.kem_pk == ben._context.state.account_kem.kem_pk
    if role == "sender":
        # It held no key of the space that a thief could use.
        await until(lambda: log_of(ann).seq == log_of(ben, shared).seq)
        assert not log_of(ann).wants_rotation
    else:
        await until(lambda: log_of(ann).epoch == 2)
        await ann.space("home").collection("todos").doc("1").set({"text": "after"})
        await ann.synced()
        await until(lambda: log_of(ben, shared).epoch == 2 and not ben.space(shared).locked)
        await ben.synced()
        assert await ben.space(shared).collection("todos").doc("1").get() == {"text": "after"}


async def test_a_password_that_opens_data_does_so_again_once_it_is_set_anew(world):
    """Calling a device stolen ends every secret that opens the old keys, also a password that was allowed to."""
    password = "a password of many letters"
    options = twinlock.Options(password_unlock=True)
    dora = await twinlock.sign_up(world.url, "dora", password, world.folder / "d1", options=options)
    world.open.append(dora)
    second = await twinlock.sign_in(world.url, "dora", password, world.folder / "d2", options=options)
    world.open.append(second)
    assert sorted(space.title for space in second.spaces()) == ["home"]

    await dora.revoke(id_of(second), stolen=True)

    with pytest.raises(CredentialsError):
        await twinlock.sign_in(world.url, "dora", password, world.folder / "d3", options=options)
    await dora.set_password(password)
    world.open.append(await twinlock.sign_in(world.url, "dora", password, world.folder / "d3", options=options))


async def test_after_all_devices_are_lost_the_kit_brings_one_back_that_revokes_them(world):
    for profile in ("a", "b"):
        db = await world.device(profile)
        await db.space("home").collection("todos").doc(profile).set({"text": profile})
        await db.synced()
        await db.close()

    db = await recovered(world, "new", password="a new password")
    lost = [device.id for device in await db.devices() if not device.this]
    for device in lost:
        await db.revoke(device, stolen=True)
    kit = db.recovery_kit()

    for profile in ("a", "b"):
        with pytest.raises(DeviceRevokedError):
            await world.device(profile)
    await db.synced()
    assert {doc.id for doc in await db.space("home").collection("todos").get()} == {"a", "b"}
    assert log_of(db).epoch == 3
    assert (await recovered(world, "another", kit)).is_connected
    with pytest.raises(CredentialsError):
        await recovered(world, "old")
