"""What a thief can do with the folder of a lost device and its StoreKey: open each record, try each value as a key."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import msgspec
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from twinlock.client.keystore import load_store_key
from twinlock.client.profile import STORE_KEY_FILE_NAME
from twinlock.client.replica_file import KEY_FILE_NAME
from twinlock.errors import OpenError
from twinlock.ids import AccountId, Epoch, SpaceId
from twinlock.protocol.calls import KeyringRow, SignedEntry
from twinlock.protocol.labels import label, u32
from twinlock.protocol.proofs import b_commit
from twinlock.protocol.space_log import SpaceLogState
from twinlock.protocol.space_rules import replay_space
from twinlock.sealing import DeviceKeys, EpochKeys, MemberKey, ServiceKey, StoreKey, open_record, unwrap_member_key
from twinlock.sealing.boxes import open_box
from twinlock.sealing.derive import kdf, store_mac
from twinlock.sealing.suite import SECRET_BYTES

VALUE_BYTES_MAX = 8192
FILE_BYTES_MAX = 1024
"""What is tried of each file as it lies there: more of a database is its sealed pages only."""


class Loot(NamedTuple):
    """A stolen folder, opened as far as it opens: its records, and every 32 bytes in a row of all that it holds."""

    folder: Path
    store_key: StoreKey
    records: dict[str, bytes]
    candidates: set[bytes]

    @property
    def device(self) -> DeviceKeys:
        """The keys by which the device proves itself: the StoreKey opens them."""
        return DeviceKeys(self.records["device-keys"])

    @property
    def account(self) -> AccountId:
        """The account that the device is of."""
        home = msgspec.msgpack.decode(self.records["home"])
        return AccountId(home["account"])

    @property
    def account_kem(self) -> X25519PrivateKey:
        """The account's key to which member keys were wrapped."""
        return X25519PrivateKey.from_private_bytes(self.records["account-kem"][:SECRET_BYTES])

    def logs(self) -> list[SpaceLogState]:
        """The logs of the spaces that the device knew, as it knew them."""
        found = [record for name, record in self.records.items() if name.startswith("space-log/")]
        return [replay_space(msgspec.msgpack.decode(record, type=list[SignedEntry])) for record in found]


def steal(profile: Path, to: Path) -> None:
    """Copy a device's folder as it lies there, and its StoreKey out of whatever holds it."""
    key = load_store_key(profile, None).key
    shutil.copytree(profile, to)
    (to / STORE_KEY_FILE_NAME).write_bytes(msgspec.json.encode({"custody": "file", "sealed": key.expose()}))


def open_loot(folder: Path) -> Loot:
    """Open everything in a folder that opens by what lies in it."""
    key = load_store_key(folder, None).key
    records = {name: open_record(key, name, sealed) for name, sealed in _rows(folder / "vault.db")}
    values = [path.read_bytes()[:FILE_BYTES_MAX] for path in folder.rglob("*") if path.is_file()]
    for record in records.values():
        values += _pieces(record)
    found = {value[at : at + SECRET_BYTES] for value in values for at in range(len(value) - SECRET_BYTES + 1)}
    return Loot(folder, key, records, found)


class Found(NamedTuple):
    """What the search of a stolen folder for keys came to."""

    tried: int
    service_keys: int
    replica_keys: int


def find(folder: Path) -> Found:
    """Try every value that can be had from a folder as a service key, and as what opens a replica file."""
    loot = open_loot(folder)
    keys = service_keys(loot)
    replicas = sum(len(replica_keys(loot, space, found)) for space, found in keys.items())
    return Found(len(loot.candidates), sum(map(len, keys.values())), replicas)


def service_keys(loot: Loot) -> dict[SpaceId, list[bytes]]:
    """Return which values of the loot are the service key of an epoch, for each space."""
    found: dict[SpaceId, list[bytes]] = {}
    for log in loot.logs():
        commits = {n: record.b_commit for n, record in log.epochs.items()}
        found[log.space] = [
            key for key in loot.candidates for n, commit in commits.items() if b_commit(log.space, n, key) == commit
        ]
    return found


def replica_keys(loot: Loot, space: SpaceId, service_keys: list[bytes]) -> list[bytes]:
    """Return what opens as the key of a space's replica file.

    Each value of the loot is tried as what wraps that key and as the data key that this is derived from; then the
    member key, which the loot does hold, together with each service key that is given.
    """
    path = loot.folder / "spaces" / space.hex() / KEY_FILE_NAME
    record = msgspec.msgpack.decode(path.read_bytes())
    wrapped, epoch = record["wrapped"], Epoch(record["epoch"])
    salt, device = store_mac(loot.store_key, "local", space), loot.device.device
    tried = set(loot.candidates)
    for key in service_keys:
        tried.add(EpochKeys(space, epoch, member_key(loot, space), ServiceKey(key)).data_key.expose())
    found = []
    for candidate in tried:
        for key in (candidate, kdf(candidate, salt, "local", device)):
            try:
                found.append(open_box(key, wrapped, label("replica-key", space + u32(epoch))))
            except OpenError:
                continue
    return found


def member_key(loot: Loot, space: SpaceId) -> MemberKey:
    """Open the Keyring row of the loot by the account's key, which the StoreKey opens."""
    row = msgspec.msgpack.decode(loot.records[f"keyring-row/{space.hex()}"], type=KeyringRow)
    return unwrap_member_key(row.wrapped, loot.account_kem, space, row.epoch, loot.account)


def _rows(vault: Path) -> list[tuple[str, bytes]]:
    connection = sqlite3.connect(f"file:{vault}?mode=ro", uri=True)
    try:
        return connection.execute("SELECT name, sealed FROM records").fetchall()
    finally:
        connection.close()


def _pieces(value: object) -> Iterator[bytes]:
    """Yield every string of bytes in a record, also of what is coded inside."""
    match value:
        case bytes():
            yield value[:VALUE_BYTES_MAX]
            try:
                inner = msgspec.msgpack.decode(value)
            except (msgspec.MsgspecError, ValueError):
                return
            if isinstance(inner, dict | list):
                yield from _pieces(inner)
        case dict():
            for inner in value.values():
                yield from _pieces(inner)
        case list():
            for inner in value:
                yield from _pieces(inner)
