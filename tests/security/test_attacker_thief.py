"""A thief with a device: locked, with its StoreKey at hand while a lease lives, and after the lease has ended."""

import os
import sqlite3

import msgspec
import pytest

from tests.client_kit import PASSWORD, ShiftedClock, until
from tests.security.attackers import Hand, copied, delivered
from tests.security.raid import database_values, stored, windows
from tests.security.test_stolen_device import (
    HOUR_MS,
    TEXT,
    assert_dark,
    opens,
    safe_of,
    sign_pk_of,
    take,
    used_device,
)
from twinlock.client.keystore import Custody, _KeyFile, load_store_key
from twinlock.errors import (
    CredentialsError,
    DeviceRevokedError,
    OpenError,
    SignatureError,
    StoreDamagedError,
    StoreKeyError,
)
from twinlock.ids import Epoch
from twinlock.protocol.calls import AppendLog, LogHead
from twinlock.protocol.frames import Leases
from twinlock.protocol.proofs import b_commit
from twinlock.sealing import (
    DeviceKeys,
    EpochKeys,
    MemberKey,
    ServiceKey,
    StoreKey,
    device_entry,
    open_payload,
    open_record,
    open_sudo,
)
from twinlock.sealing.vault import seal_store_key

PASSPHRASE = "of the person, in their head"


def hold_elsewhere(folder, custody: Custody):
    """Put a profile's StoreKey where a careful application has it; return the key, which the thief does not get."""
    key = load_store_key(folder, None).key
    sealed = seal_store_key(key, PASSPHRASE, os.urandom, iterations=1) if custody is Custody.PASSPHRASE else b""
    name = os.urandom(16).hex() if custody is Custody.KEYRING else ""
    (folder / "store.key").unlink()
    (folder / "store.key").write_bytes(msgspec.json.encode(_KeyFile(custody, name, sealed)))
    (folder / "store.key").chmod(0o600)
    return key


def vault(folder) -> dict[str, bytes]:
    """The records of a profile, as sealed as they lie there."""
    connection = sqlite3.connect(folder / "vault.db")
    rows = dict(connection.execute("SELECT name, sealed FROM records").fetchall())
    connection.close()
    return rows


@pytest.mark.parametrize("custody", [Custody.KEYRING, Custody.PASSPHRASE])
async def test_a_locked_stolen_device_gives_its_thief_nothing_useful(account_world, tmp_path, custody):
    db, space, _ = await used_device(account_world, ShiftedClock())
    log = db.space("home")._handle.runtime.keyring.log
    sign_pk = log.members[db._context.state.home.account].sign_pk
    secrets = Hand(db, "home").secrets()
    await db.close()
    store_key = hold_elsewhere(account_world.folder / "a", custody)
    folder = copied(account_world.folder / "a", tmp_path / "stolen")

    # What they get: names of records and the size of things, none of which is a key or a word of the contents.
    records = vault(folder)
    assert {f"keyring/{space}", "account-kem", "account-sudo", "device-keys"} <= set(records)
    values = stored(folder)
    candidates = windows(values)
    assert len(candidates) > 2_000
    assert [name for name, secret in secrets.items() if secret in candidates] == []
    assert store_key.expose() not in candidates
    assert TEXT.encode() not in b"".join(values)
    # Every value as the StoreKey, and as each of the keys themselves.
    for candidate in candidates:
        with pytest.raises((OpenError, StoreDamagedError)):
            open_record(StoreKey(candidate), "account-kem", records["account-kem"])
    commit = log.epochs[Epoch(1)].b_commit
    assert not any(b_commit(bytes.fromhex(space), Epoch(1), key) == commit for key in candidates)
    assert not any(sign_pk_of(candidate) == sign_pk for candidate in candidates)
    # Our own client does not open it either, whatever they guess.
    for guess in (None, "guessed"):
        with pytest.raises(StoreKeyError):
            load_store_key(folder, guess)

    # The control: with the StoreKey, all of this opens.
    assert open_record(store_key, "account-kem", records["account-kem"]) == secrets["account_kem"]
    if custody is Custody.PASSPHRASE:
        assert load_store_key(folder, PASSPHRASE).key == store_key


async def test_a_thief_with_the_store_key_reads_until_the_lease_ends_and_gets_none_after_revocation(
    account_world, tmp_path
):
    db, space, device = await used_device(account_world, ShiftedClock())
    hand = Hand(db, "home")
    await db.close()
    loot = take(copied(account_world.folder / "a", tmp_path / "stolen"))
    safe = safe_of(loot, space, device)

    # What they get: A and, while the lease lives, B, hence the data; and leases, as long as nobody revokes.
    (b,) = set(safe.service_keys(loot.candidates()))
    a = next(key for key in windows(loot.values) if opens(safe, key, b))
    keys = EpochKeys(safe.space, Epoch(1), MemberKey(a), ServiceKey(b))
    plain = [open_payload(each, keys) for each in delivered(account_world, safe.space)]
    assert any(TEXT.encode() in each for each in plain)
    stolen = DeviceKeys(loot.records["device-keys"])
    assert stolen.device == hand.device.device
    async with hand.wire(account_world.url) as wire:
        assert (await wire.lease(hand.lease_request(1))).grants

        # The person takes another device and revokes this one.
        other = await account_world.unlocked("b")
        await other.revoke(device.hex())
        assert isinstance(await wire.refusal(), DeviceRevokedError)

    # What they do not get: any lease from then on, by themselves or by whoever still has a session.
    with pytest.raises(DeviceRevokedError):
        async with hand.wire(account_world.url):
            pass
    refused = await ask_through(other, hand)
    assert refused.code
    assert refused.grants == []


async def ask_through(db, hand):
    """Have a session of another device carry the thief's request for a lease."""
    async with Hand(db, "home").wire(db._connection.origin) as wire:
        await wire.send(hand.lease_request(1))
        return await wire.until(Leases)


async def test_a_thief_with_the_store_key_gets_account_sign_by_guessing_the_passphrase_alone(account_world, tmp_path):
    db, _, _ = await used_device(account_world, ShiftedClock())
    account = db._context.state.home.account
    sign_pk = db.space("home")._handle.runtime.keyring.log.members[account].sign_pk
    log = db.space("home")._handle.runtime.keyring.accounts[account]
    await db.close()
    loot = take(copied(account_world.folder / "a", tmp_path / "stolen"))
    candidates = loot.candidates()

    assert not any(sign_pk_of(candidate) == sign_pk for candidate in candidates)
    with pytest.raises(CredentialsError):
        open_sudo(loot.store_key, "hunter2", account, loot.records["account-sudo"])
    # Without it they add no device: what they can sign with is the device's key and keys of their own.
    mole = DeviceKeys.make(os.urandom)
    right = open_sudo(loot.store_key, PASSWORD, account, loot.records["account-sudo"])
    assert right.sign_pk == sign_pk, "the control: whoever guesses it has the key"
    wrong = device_entry(type(right).make(os.urandom), log, mole.sign_pk, mole.kem_pk)
    other = await account_world.device("b")
    hand = Hand(other, "home")
    async with hand.wire(account_world.url) as wire:
        with pytest.raises(SignatureError):
            await wire.call("account.append", AppendLog(account, log.seq, [wrong]), LogHead)
    assert len(await other.devices()) == 2


@pytest.mark.parametrize("lease_hours", [0, None])
async def test_a_thief_after_the_lease_has_a_and_the_device_keys_and_no_data(account_world, tmp_path, lease_hours):
    """Also with every envelope that the server stores, and its whole disk but the key service's."""
    clock = ShiftedClock()
    db, space, device = await used_device(account_world, clock, lease_hours)
    runtime = db.space(bytes.fromhex(space))._handle.runtime
    a, sign = runtime.keyring.member_key(Epoch(1)).expose(), db._context.state.device_keys.expose()
    await account_world.stop()
    await until(lambda: db.status == "reconnecting")
    if lease_hours is None:
        clock.shift_ms += 25 * HOUR_MS
        db._courier.tend()
        assert db.status == "locked"
    loot = take(copied(account_world.folder / "a", tmp_path / "stolen"))
    safe = safe_of(loot, space, device)

    assert a in windows(loot.values), "what they get: A"
    assert loot.records["device-keys"] == sign, "and the device's keys"
    assert_dark(loot, safe)
    server = set(database_values(account_world.folder / "server" / "twinlock.db"))
    assert len(server) > 50
    assert safe.service_keys(windows(server)) == []
    guess = EpochKeys(safe.space, Epoch(1), MemberKey(a), ServiceKey(a))
    for envelope in delivered(account_world, safe.space):
        with pytest.raises(OpenError):
            open_payload(envelope, guess)
