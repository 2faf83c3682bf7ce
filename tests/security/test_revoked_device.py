"""A device that its account has revoked: what is left on its disk, and what a server can do by merely saying so."""

import shutil

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

import twinlock
from tests.client_kit import PASSWORD, ShiftedClock, until
from tests.security.raid import windows
from tests.security.test_stolen_device import assert_dark, safe_of, take, used_device
from tests.security.wire import anonymous
from twinlock.client.keystore import load_store_key
from twinlock.client.profile import Profile
from twinlock.errors import CredentialsError, DeviceRevokedError, OpenError
from twinlock.ids import Epoch
from twinlock.protocol.account_log import replay_account
from twinlock.protocol.calls import (
    AppendLog,
    KeyringRow,
    LogHead,
    OpenUnlocker,
    OpenUnlockerResult,
    ReadKeyring,
    UnlockerParams,
    UnlockerParamsResult,
)
from twinlock.protocol.device_calls import ReadRevocationResult
from twinlock.protocol.proofs import server_id_of
from twinlock.sealing import (
    AccountKeys,
    RecoveryKit,
    account_genesis,
    open_link,
    open_wrapped,
    revoke_entry,
    unlock,
    unwrap_member_key,
)

TEXT = "what the thief is after"
LEFT = ["lock", "revoked.json"]


async def revoke(world, device: bytes) -> None:
    """Have the account revoke a device by its kit alone, as somebody whose devices are all lost."""
    kit = RecoveryKit.parse(world.kit)
    async with anonymous(world.url) as wire:
        params = await wire.call("unlocker.params", UnlockerParams("ann", "recovery_kit"), UnlockerParamsResult)
        keys = unlock(params, kit, "ann", server_id_of(wire.challenge.server_pk))
        request = OpenUnlocker("ann", "recovery_kit", keys.auth_key)
        opened = await wire.call("unlocker.open", request, OpenUnlockerResult)
        account = open_wrapped(keys, kit, opened.account, opened.wrapped)
        state = replay_account(opened.entries)
        await wire.call(
            "account.append", AppendLog(account.account, state.seq, [revoke_entry(account, state, device)]), LogHead
        )


def files(folder) -> list[str]:
    """Everything that lies in a folder."""
    return sorted(path.name for path in folder.rglob("*"))


async def test_a_revoked_device_wipes_itself_at_its_next_contact(account_world):
    db, _, device = await used_device(account_world, ShiftedClock())
    await db.close()
    await revoke(account_world, device)

    for _ in range(2):
        with pytest.raises(DeviceRevokedError):
            await account_world.device("a")

    assert files(account_world.folder / "a") == LEFT
    marker = (account_world.folder / "a" / "revoked.json").read_text()
    assert device.hex() in marker
    assert TEXT not in marker
    Profile.open(account_world.folder / "a").close()
    # The person's other device has everything, and goes on.
    other = await account_world.device("b")
    await other.synced()
    assert await other.space("home").collection("notes").doc("x").get() == {"text": TEXT}


async def test_a_device_that_is_revoked_while_it_is_open_goes_dark_at_once(account_world):
    db, _, device = await used_device(account_world, ShiftedClock())
    notes = db.space("home").collection("notes")

    await revoke(account_world, device)
    await until(lambda: db.status == "disconnected")

    assert isinstance(db.last_error, DeviceRevokedError)
    for refused in (notes.doc("x").get(), notes.doc("y").set({"text": "unsent"}), db.devices(), db.synced()):
        with pytest.raises(DeviceRevokedError):
            await refused
    await db.close()
    assert files(account_world.folder / "a") == LEFT


async def test_the_wiping_is_finished_if_it_was_interrupted(account_world, monkeypatch):
    db, _, device = await used_device(account_world, ShiftedClock())
    await db.close()
    await revoke(account_world, device)
    with monkeypatch.context() as crash:
        crash.setattr(Profile, "erase_data", lambda profile: None)
        with pytest.raises(DeviceRevokedError):
            await account_world.device("a")
    assert "vault.db" in files(account_world.folder / "a")
    await account_world.stop()

    with pytest.raises(DeviceRevokedError):
        await twinlock.connect(profile=account_world.folder / "a")

    assert files(account_world.folder / "a") == LEFT


async def test_a_new_device_may_take_the_folder_of_a_revoked_one(account_world):
    db, _, device = await used_device(account_world, ShiftedClock())
    await db.close()
    await revoke(account_world, device)
    with pytest.raises(DeviceRevokedError):
        await account_world.device("a")

    async with await twinlock.recover(
        account_world.url, "ann", account_world.kit, profile=account_world.folder / "a"
    ) as again:
        await again.synced()
        assert await again.space("home").collection("notes").doc("x").get() == {"text": TEXT}
        assert "revoked.json" not in files(account_world.folder / "a")


async def test_with_the_store_key_copied_before_nothing_that_is_left_opens(account_world, tmp_path):
    """A thief has the StoreKey. Before the wipe the leases go, after it everything: either way the disk is dark."""
    db, space, device = await used_device(account_world, ShiftedClock())
    key = load_store_key(account_world.folder / "a", None).key
    await db.close()
    await revoke(account_world, device)
    with pytest.MonkeyPatch.context() as half_way:
        # What the disk holds between the moment when the leases are let go and the end of the wiping.
        half_way.setattr("twinlock.client.client.wipe", lambda profile, device, now_ms: None)
        with pytest.raises(DeviceRevokedError):
            await account_world.device("a")
    shutil.copytree(account_world.folder / "a", tmp_path / "half-way")
    loot = take(tmp_path / "half-way")
    assert loot.store_key == key
    assert_dark(loot, safe_of(loot, space, device))

    with pytest.raises(DeviceRevokedError):
        await account_world.device("a")

    assert files(account_world.folder / "a") == LEFT


async def test_a_server_that_merely_says_so_cannot_wipe_a_device(account_world, monkeypatch, tmp_path):
    """It can make a device let go of its leases, as it can by giving none; the keys and the data stay."""
    db, space, device = await used_device(account_world, ShiftedClock())
    await db.close()

    def lying(state, device):
        raise DeviceRevokedError

    with monkeypatch.context() as dishonest:
        dishonest.setattr("twinlock.server.session.author_of", lying)
        with pytest.raises(DeviceRevokedError):
            await account_world.device("a")
        shutil.copytree(account_world.folder / "a", tmp_path / "copy")
    loot = take(tmp_path / "copy")
    assert_dark(loot, safe_of(loot, space, device))

    honest = await account_world.device("a")
    assert await honest.space("home").collection("notes").doc("x").get() == {"text": TEXT}
    await honest.unlock(PASSWORD)


async def test_another_account_s_revocation_is_none(account_world, monkeypatch):
    """The server shows the log of an account that it made itself, in which it revokes whom it likes."""
    db, _, _ = await used_device(account_world, ShiftedClock())
    await db.close()

    async def foreign(session, method, params, result):
        keys = AccountKeys.make(lambda size: bytes(range(size)))
        return ReadRevocationResult([account_genesis(keys, lambda size: bytes(size))])

    def lying(state, device):
        raise DeviceRevokedError

    with monkeypatch.context() as dishonest:
        dishonest.setattr("twinlock.server.session.author_of", lying)
        dishonest.setattr("twinlock.client.enrolment.AnonymousSession.call", foreign)
        with pytest.raises(DeviceRevokedError):
            await account_world.device("a")

    assert (await account_world.device("a")).status == "connected"


async def test_what_a_thief_took_opens_no_key_after_the_device_was_called_stolen(account_world, tmp_path):
    """The thief has the whole disk with its StoreKey, and a server that gives everything that it stores."""
    thieved = await account_world.device("b")
    await thieved.synced()
    stolen_id = next(info.id for info in await thieved.devices() if info.this)
    await thieved.close()
    shutil.copytree(account_world.folder / "b", tmp_path / "loot")
    loot = take(tmp_path / "loot")
    a = await account_world.unlocked()
    runtime = a._courier.runtimes[bytes.fromhex(a.space("home").id)]
    account, space = runtime.keyring.account, runtime.space
    old_row = await a._connection.call("space.keyring", ReadKeyring(space), KeyringRow)
    old_kem = X25519PrivateKey.from_private_bytes(loot.records["account-kem"])

    await a.revoke(stolen_id, stolen=True)

    row = await a._connection.call("space.keyring", ReadKeyring(space), KeyringRow)
    assert (old_row.epoch, row.epoch) == (1, 2)
    # The control: the loot opens what was wrapped before.
    taken = unwrap_member_key(old_row.wrapped, old_kem, space, old_row.epoch, account)
    with pytest.raises(OpenError):
        unwrap_member_key(row.wrapped, old_kem, space, row.epoch, account)
    newest = runtime.keyring.member_key(Epoch(2))
    assert newest is not None
    assert newest.expose() not in windows(loot.values)
    # The link leads from the new key to the old one, not the other way.
    with pytest.raises(OpenError):
        open_link(space, Epoch(2), taken, runtime.keyring.log.epochs[Epoch(2)].link)
    kit = RecoveryKit.parse(account_world.kit)
    async with anonymous(account_world.url) as wire:
        params = await wire.call("unlocker.params", UnlockerParams("ann", "recovery_kit"), UnlockerParamsResult)
        keys = unlock(params, kit, "ann", server_id_of(wire.challenge.server_pk))
        with pytest.raises(CredentialsError):
            await wire.call("unlocker.open", OpenUnlocker("ann", "recovery_kit", keys.auth_key), OpenUnlockerResult)
