"""Accounts through the SDK: sign-up, sign-in, recovery, the password's 15 minutes, and servers that are not the one."""

import pytest

import twinlock
from tests.client_kit import NAME, PASSWORD, ShiftedClock, World, until
from twinlock.client.sudo import SUDO_MS
from twinlock.errors import (
    ApprovalNeededError,
    ClockSkewError,
    CredentialsError,
    NameTakenError,
    NotFoundError,
    OfflineError,
    PasswordError,
    ProfileExistsError,
    ProfileMissingError,
    RecoveryKitError,
    SudoNeededError,
    WrongServerError,
)


@pytest.fixture
def world(account_world):
    return account_world


async def test_signing_up_makes_a_home_and_shows_the_kit_once(world):
    async with await twinlock.sign_up(world.url, "Bob", PASSWORD, profile=world.folder / "bob") as db:
        kit = db.recovery_kit()

        assert db.name == "bob"
        assert [(space.title, space.role) for space in db.spaces()] == [("home", "owner")]
        assert [device.this for device in await db.devices()] == [True]
        assert len(kit.replace("-", "")) == 28
        with pytest.raises(NotFoundError):
            db.recovery_kit()


async def test_a_taken_name_leaves_no_profile_behind(world):
    with pytest.raises(NameTakenError):
        await twinlock.sign_up(world.url, NAME, PASSWORD, profile=world.folder / "again")

    assert not (world.folder / "again").exists()


async def test_a_short_password_and_a_used_folder_are_refused(world):
    with pytest.raises(PasswordError):
        await twinlock.sign_up(world.url, "carol", "short", profile=world.folder / "carol")
    with pytest.raises(ProfileExistsError):
        await twinlock.sign_up(world.url, "carol", PASSWORD, profile=world.folder / "a")


async def test_a_password_signs_in_but_does_not_open_data(world):
    with pytest.raises(ApprovalNeededError):
        await twinlock.sign_in(world.url, NAME, PASSWORD, profile=world.folder / "new")

    assert not (world.folder / "new").exists()


@pytest.mark.parametrize(("name", "password"), [(NAME, "wrong horse"), ("nobody", PASSWORD)])
async def test_a_wrong_password_or_name_is_refused(world, name, password):
    with pytest.raises(CredentialsError):
        await twinlock.sign_in(world.url, name, password, profile=world.folder / "new")


async def test_password_and_kit_together_add_a_device_that_may_change_things(world):
    async with await twinlock.sign_in(world.url, NAME, PASSWORD, world.folder / "new", kit=world.kit) as db:
        await db.space("home").collection("todos").add({"text": "by the new device"})
        await db.synced()
        await db.create_space("second")

        assert len(await db.devices()) == 3
        assert sorted(space.title for space in db.spaces()) == ["home", "second"]


async def test_a_mistyped_kit_is_noticed_and_another_ones_kit_is_refused(world):
    wrong = world.kit[:-1] + ("0" if world.kit[-1] != "0" else "1")
    with pytest.raises(RecoveryKitError):
        await twinlock.recover(world.url, NAME, wrong, profile=world.folder / "new")
    async with await twinlock.sign_up(world.url, "bob", PASSWORD, profile=world.folder / "bob") as bob:
        other = bob.recovery_kit()

    with pytest.raises(CredentialsError):
        await twinlock.recover(world.url, NAME, other, profile=world.folder / "new")
    assert not (world.folder / "new").exists()


async def test_recovering_without_a_password_reads_and_writes_but_changes_no_devices(world):
    clock = ShiftedClock()
    options = twinlock.Options(wall_ms=clock)
    async with await twinlock.recover(
        world.url, NAME, world.kit.lower(), profile=world.folder / "new", options=options
    ) as db:
        await db.space("home").collection("todos").add({"text": "x"})
        await db.synced()
        clock.shift_ms = 16 * 60_000
        with pytest.raises(SudoNeededError):
            await db.create_space("more")
        with pytest.raises(SudoNeededError):
            await db.unlock(PASSWORD)


async def test_the_password_allows_changes_for_fifteen_minutes(world):
    clock = ShiftedClock()
    db = await world.device("a", wall_ms=clock)
    with pytest.raises(SudoNeededError):
        await db.create_space("trips")
    with pytest.raises(CredentialsError):
        await db.unlock("wrong horse")

    await db.unlock(PASSWORD)
    await db.create_space("trips")
    clock.shift_ms = 15 * 60_000
    with pytest.raises(SudoNeededError):
        await db.create_space("later")


async def test_the_signing_key_leaves_the_memory_of_a_device_that_nobody_uses(world):
    clock = ShiftedClock()
    db = await world.device("a", wall_ms=clock)
    await db.unlock(PASSWORD)
    assert db._sudo._keys is not None

    clock.shift_ms += SUDO_MS

    await until(lambda: db._sudo._keys is None)


async def test_a_new_kit_replaces_the_old_one(world):
    db = await world.device("a")
    await db.unlock(PASSWORD)
    kit = await db.new_recovery_kit()

    with pytest.raises(CredentialsError):
        await twinlock.recover(world.url, NAME, world.kit, profile=world.folder / "old")
    async with await twinlock.recover(world.url, NAME, kit, profile=world.folder / "new") as recovered:
        assert recovered.status == "connected"


async def test_a_kit_is_replaced_by_a_device_whose_clock_is_behind_that_of_the_last(world):
    ahead, behind = await world.unlocked("a"), await world.unlocked("b")
    ahead._context.clock.offset_ms += 60_000
    await ahead.new_recovery_kit()

    kit = await behind.new_recovery_kit()

    async with await twinlock.recover(world.url, NAME, kit, profile=world.folder / "new") as recovered:
        assert recovered.status == "connected"


async def test_a_clock_that_was_set_far_ahead_replaces_no_kit(world):
    db = await world.unlocked()
    db._context.clock.offset_ms += 10 * 60_000

    with pytest.raises(ClockSkewError):
        await db.new_recovery_kit()

    async with await twinlock.recover(world.url, NAME, world.kit, profile=world.folder / "new") as recovered:
        assert recovered.status == "connected"


async def test_another_server_is_noticed_before_it_is_believed(world, tmp_path_factory):
    other = World(tmp_path_factory.mktemp("other"))
    await other.start()
    try:
        with pytest.raises(WrongServerError):
            await twinlock.connect(other.url, world.folder / "a")
        db = await world.device("a")
        assert db.status == "connected"
    finally:
        await other.close()


async def test_without_a_server_nothing_is_enrolled(world):
    await world.stop()

    with pytest.raises(OfflineError):
        await twinlock.sign_up(world.url, "dave", PASSWORD, profile=world.folder / "dave")
    assert not (world.folder / "dave").exists()
    db = await world.device("a")
    await db.unlock(PASSWORD)
    with pytest.raises(OfflineError):
        await db.create_space("trips")


async def test_signing_out_removes_everything_and_keeps_what_is_unsent(world):
    db = await world.device("a")
    await world.stop()
    await db.space("home").collection("todos").add({"text": "unsent"})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("twinlock.client.client.SIGN_OUT_MS_MAX", 50)
        with pytest.raises(OfflineError):
            await db.sign_out()
    await world.restart()
    await db.synced()

    (world.folder / "a" / "mine.txt").write_text("not Twinlock's")

    await db.sign_out()

    assert [path.name for path in (world.folder / "a").iterdir()] == ["mine.txt"]
    with pytest.raises(ProfileMissingError):
        await twinlock.connect(profile=world.folder / "a")


async def test_a_passphrase_guards_the_profile(world):
    async with await twinlock.sign_up(
        world.url, "erin", PASSWORD, profile=world.folder / "erin", passphrase="open sesame"
    ) as db:
        assert not db.weak_storage
    async with await twinlock.connect(profile=world.folder / "erin", passphrase="open sesame") as db:
        assert db.name == "erin"
    with pytest.raises(twinlock.TwinlockError, match="store_key_unavailable"):
        await twinlock.connect(profile=world.folder / "erin", passphrase="wrong")
