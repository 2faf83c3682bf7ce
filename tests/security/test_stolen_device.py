"""A thief has a device's whole folder, the StoreKey with it: what opens while a lease lives, and what when it ended."""

import shutil
import sqlite3
from typing import NamedTuple

import apsw
import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from tests.client_kit import PASSWORD, ShiftedClock, until
from tests.security.raid import KEY_BYTES, pieces, stored, windows
from twinlock.client.keystore import load_store_key
from twinlock.client.replica_file import KEY_FILE_NAME, REPLICA_FILE_NAME, _WrappedKey
from twinlock.errors import LeaseExpiredError, OpenError
from twinlock.ids import Epoch
from twinlock.protocol.calls import (
    SignedEntry,
)
from twinlock.protocol.labels import label, u32
from twinlock.protocol.proofs import b_commit
from twinlock.protocol.space_rules import replay_space
from twinlock.sealing import (
    EpochKeys,
    MemberKey,
    ServiceKey,
    open_record,
)
from twinlock.sealing.boxes import open_box
from twinlock.sealing.derive import kdf, store_mac

HOUR_MS = 3_600_000
TEXT = "what the thief is after"


class Loot(NamedTuple):
    """Everything that can be had from a profile folder without a password: raw values and opened records."""

    folder: object
    records: dict[str, bytes]
    values: set[bytes]

    @property
    def store_key(self):
        return load_store_key(self.folder, None).key

    def candidates(self) -> set[bytes]:
        """Return whatever could be a key, and what can be derived of each by the StoreKey."""
        found = windows(self.values)
        return found | {store_mac(self.store_key, name) for name in ("local", "record", "sudo", "title-index")}


def take(folder) -> Loot:
    """Open everything in a folder that opens by what lies in the folder."""
    key = load_store_key(folder, None).key
    connection = sqlite3.connect(folder / "vault.db")
    rows = connection.execute("SELECT name, sealed FROM records").fetchall()
    connection.close()
    records = {name: open_record(key, name, sealed) for name, sealed in rows}
    values = stored(folder)
    for record in records.values():
        values.update(pieces(record))
    return Loot(folder, records, values)


class Safe(NamedTuple):
    """One space's replica file on the stolen device, and what is publicly known of its keys."""

    loot: Loot
    space: bytes
    device: bytes
    log: object

    def service_keys(self, candidates: set[bytes]) -> list[bytes]:
        """Return which candidates are the service key."""
        commit = self.log.epochs[Epoch(1)].b_commit
        return [key for key in candidates if b_commit(self.space, Epoch(1), key) == commit]

    def wrapped(self) -> tuple[bytes, bytes]:
        """Return the wrapped key of the replica file, and what it is bound to."""
        data = (self.loot.folder / "spaces" / self.space.hex() / KEY_FILE_NAME).read_bytes()
        record = msgspec.msgpack.decode(data, type=_WrappedKey)
        return record.wrapped, label("replica-key", self.space + u32(record.epoch))

    def file_keys(self, candidates: set[bytes]) -> list[bytes]:
        """Return what the wrapped key opens to, trying each candidate as its key and as the data key."""
        wrapped, aad = self.wrapped()
        salt, found = store_mac(self.loot.store_key, "local", self.space), []
        for candidate in candidates:
            for key in (candidate, kdf(candidate, salt, "local", self.device)):
                try:
                    found.append(open_box(key, wrapped, aad))
                except OpenError:
                    continue
        return found

    def reads(self, key: bytes) -> bool:
        """Tell whether a key opens the replica file itself."""
        path = self.loot.folder / "spaces" / self.space.hex() / REPLICA_FILE_NAME
        connection = apsw.Connection(str(path))
        try:
            connection.pragma("cipher", "chacha20")
            connection.pragma("key", f"raw:{key.hex()}")
            return bool(connection.execute("SELECT count(*) FROM sqlite_schema").fetchall())
        except apsw.Error:
            return False
        finally:
            connection.close()


def safe_of(loot: Loot, db_space: str, device: bytes) -> Safe:
    """Find a space in the loot."""
    entries = msgspec.msgpack.decode(loot.records[f"space-log/{db_space}"], type=list[SignedEntry])
    return Safe(loot, bytes.fromhex(db_space), device, replay_space(entries))


async def used_device(world, clock, lease_hours: int | None = None):
    """A device that wrote something, with the id of the space and of itself."""
    db = await world.device("a", wall_ms=clock)
    if lease_hours is None:
        space = db.space("home")
    else:
        await db.unlock(PASSWORD)
        space = await db.create_space("strict", lease_hours=lease_hours)
    await space.collection("notes").doc("x").set({"text": TEXT})
    await db.synced()
    return db, space.id, db._context.state.device_keys.device


def copy(folder, to) -> None:
    """Take a folder as it lies there."""
    shutil.copytree(folder, to)


async def test_while_the_lease_lives_a_stolen_folder_with_its_store_key_opens(account_world, tmp_path):
    """The control: the same thief, before the lease ends. This is what the threat model admits."""
    db, space, device = await used_device(account_world, ShiftedClock())
    await db.close()
    copy(account_world.folder / "a", tmp_path / "stolen")

    loot = take(tmp_path / "stolen")
    safe = safe_of(loot, space, device)
    (b,) = set(safe.service_keys(loot.candidates()))
    a = next(key for key in windows(loot.values) if opens(safe, key, b))

    keys = EpochKeys(safe.space, Epoch(1), MemberKey(a), ServiceKey(b))
    (file_key,) = safe.file_keys({keys.data_key.expose()})
    assert safe.reads(file_key)


def opens(safe: Safe, a: bytes, b: bytes) -> bool:
    """Tell whether two keys are those of the space."""
    return EpochKeys(safe.space, Epoch(1), MemberKey(a), ServiceKey(b)).dk_commit == safe.log.epochs[Epoch(1)].dk_commit


def assert_dark(loot: Loot, safe: Safe) -> None:
    """Show that nothing in the loot, nor what derives from it, is the missing key or opens the replica file."""
    candidates = loot.candidates()
    assert len(candidates) > 2_000
    assert safe.service_keys(candidates) == []
    assert safe.file_keys(candidates) == []
    whole = {value for value in loot.values if len(value) == KEY_BYTES}
    assert not any(safe.reads(key) for key in whole)
    assert TEXT.encode() not in b"".join(loot.values)


async def test_once_the_lease_has_ended_nothing_in_the_folder_opens_the_data(account_world, tmp_path):
    clock = ShiftedClock()
    db, space, device = await used_device(account_world, clock)
    await account_world.stop()
    await until(lambda: db.status == "reconnecting")
    clock.shift_ms += 25 * HOUR_MS
    db._courier.tend()
    with pytest.raises(LeaseExpiredError):
        await db.space(bytes.fromhex(space)).collection("notes").doc("x").get()
    copy(account_world.folder / "a", tmp_path / "while-open")
    await db.close()
    copy(account_world.folder / "a", tmp_path / "closed")

    for name in ("while-open", "closed"):
        loot = take(tmp_path / name)
        assert_dark(loot, safe_of(loot, space, device))


async def test_a_device_that_is_opened_after_the_lease_ended_drops_it(account_world, tmp_path):
    clock = ShiftedClock()
    db, space, device = await used_device(account_world, clock)
    await db.close()
    await account_world.stop()
    clock.shift_ms += 25 * HOUR_MS
    db = await account_world.device("a", wall_ms=clock)
    assert db.status == "locked"
    await db.close()
    copy(account_world.folder / "a", tmp_path / "stolen")

    loot = take(tmp_path / "stolen")
    assert_dark(loot, safe_of(loot, space, device))


async def test_with_no_lease_hours_the_folder_never_holds_the_service_key(account_world, tmp_path):
    db, space, device = await used_device(account_world, ShiftedClock(), lease_hours=0)
    copy(account_world.folder / "a", tmp_path / "while-open")
    await db.close()
    copy(account_world.folder / "a", tmp_path / "closed")

    for name in ("while-open", "closed"):
        loot = take(tmp_path / name)
        assert_dark(loot, safe_of(loot, space, device))


async def test_the_folder_does_not_give_the_right_to_add_devices(account_world, tmp_path):
    """The account's signing key takes the password as well, whatever else a thief has."""
    db, _, _ = await used_device(account_world, ShiftedClock())
    await db.unlock(PASSWORD)
    wanted = db._sudo.keys().sign_pk
    await db.close()
    copy(account_world.folder / "a", tmp_path / "stolen")
    loot = take(tmp_path / "stolen")

    kept = windows({value for record in loot.records.values() for value in pieces(record)})

    assert "account-sudo" in loot.records
    assert not any(sign_pk_of(candidate) == wanted for candidate in kept)


def sign_pk_of(candidate: bytes) -> bytes:
    """Return the public half, if a candidate were a signing key."""
    return Ed25519PrivateKey.from_private_bytes(candidate).public_key().public_bytes_raw()
