"""Somebody who holds copies of files and tries to read them, by the formulas of spec/sealing.md alone.

A raid is given folders as they lie on the disk: those of the server, of the key service, of devices (with their
StoreKeys), and what people have on paper. It takes every key out of them that opens, again and again until nothing new
is found, and returns the secrets that it can read. It also reads what lies in the files outside of any table: rows that
were deleted, and pages that were replaced.
"""

import base64
import json
import re
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import apsw
import msgspec

from tests.e2e.formulas import (
    HEADER_BYTES,
    SIGNATURE_BYTES,
    b_commit,
    data_key,
    device_id,
    dk_commit,
    earlier_member_key,
    envelope_id,
    from_base64,
    invite_kem,
    kdf,
    kit_wrap_key,
    label,
    log_head,
    mac,
    open_aead,
    open_box,
    open_envelope,
    open_hpke,
    prefixed,
    public_key,
    seal_envelope,
    sha256,
    u32,
    u64,
    unwrapped_member_key,
)

SECRET = re.compile(rb"secret:([a-z0-9-]+)")
ROW = re.compile(rb"\x93\xc4\x10(.{16})([\x01-\x7f])\xc4\x50(.{80})", re.DOTALL)
WRAPPED_BYTES = 64
WRAPPED_BEHIND = (16, 17, 64, 65)
"""How far behind the space's id a wrapped key stands in a row of SQLite: one of an epoch, and one that is pending."""

KEY_BYTES = 32

Place = tuple[bytes, int]
"""An epoch of a space."""


class Kit(NamedTuple):
    """A recovery kit on paper: the letters, and the account that it is for."""

    letters: str
    name: str


class Link(NamedTuple):
    """An invite link that somebody has read."""

    url: str

    @property
    def parts(self) -> tuple[bytes, bytes, bytes]:
        """Space, invite and secret."""
        space, invite, secret = (from_base64(part) for part in self.url.partition("#tl1.")[2].split("."))
        return space, invite, secret


class Device:
    """What a profile folder gives to the one who has it with its StoreKey; without that, sealed records."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.records: dict[str, bytes] = {}
        self.store_key = self._store_key()
        if self.store_key is None:
            return
        for name, sealed in vault_rows(folder):
            key = mac(self.store_key, "record", prefixed(name.encode()))
            opened = open_box(key, sealed, label("record-aad", prefixed(name.encode())))
            assert opened is not None, f"{name} does not open under its StoreKey"
            self.records[name] = opened

    def _store_key(self) -> bytes | None:
        path = self.folder / "store.key"
        return base64.b64decode(json.loads(path.read_bytes())["sealed"]) if path.exists() else None

    @property
    def keys(self) -> tuple[bytes, bytes] | None:
        """The device's own private keys: to sign, and to be sealed to."""
        raw = self.records.get("device-keys")
        return None if raw is None else (raw[:KEY_BYTES], raw[KEY_BYTES:])

    @property
    def id(self) -> bytes | None:
        """The id that follows from its keys."""
        return None if self.keys is None else device_id(*self.keys)

    @property
    def account(self) -> bytes:
        """The account that it is for."""
        return bytes(decoded(self.records["home"])["account"])

    def kems(self) -> list[bytes]:
        """The private keys to which something may have been wrapped."""
        account = self.records.get("account-kem", b"")
        found = [account[at : at + KEY_BYTES] for at in range(0, len(account), KEY_BYTES)]
        return found + ([] if self.keys is None else [self.keys[1]])

    def spaces(self) -> list[Path]:
        """The folders of its spaces."""
        return sorted(path for path in (self.folder / "spaces").glob("*") if path.is_dir())


class Raid:
    """What some pieces of loot give together."""

    def __init__(self, *loot: object) -> None:
        self.folders = [piece for piece in loot if isinstance(piece, Path)]
        self.papers = [piece for piece in loot if isinstance(piece, Kit | Link)]
        self.devices = [Device(folder) for folder in self.folders if (folder / "vault.db").exists()]
        self.logs: dict[bytes, list[bytes]] = {}
        self.epochs: dict[Place, dict[str, bytes]] = {}
        self.kems: dict[bytes, bytes | None] = {}
        self.member_keys: dict[Place, set[bytes]] = {}
        self.service_keys: dict[Place, bytes] = {}
        self.data_keys: dict[Place, bytes] = {}
        self.envelopes: set[bytes] = set()
        self.opened: dict[str, set[str]] = {"files": set(), "envelopes": set(), "replicas": set(), "side files": set()}
        self._raw = [path.read_bytes().rstrip(b"\0") for path in self._files()]
        self._read_logs()
        self._find_kems()
        self._find_service_keys()
        self._find_member_keys()
        self._join_keys()
        self._read_all()

    # What it came to

    @property
    def secrets(self) -> set[str]:
        """Every secret that can be read, wherever."""
        return set().union(*self.opened.values())

    def epochs_of(self, space: str) -> set[int]:
        """The epochs of a space that can be opened."""
        return {epoch for known, epoch in self.data_keys if known.hex() == space}

    def service_keys_of(self, space: str) -> set[int]:
        """The epochs of a space whose service keys are there."""
        return {epoch for known, epoch in self.service_keys if known.hex() == space}

    def envelopes_of(self, space: str) -> list[bytes]:
        """The envelopes of a space that lie in the files, readable or not."""
        return [envelope for envelope in self.envelopes if envelope[8:24].hex() == space]

    # The public part: signed logs

    def _files(self) -> Iterator[Path]:
        for folder in self.folders:
            yield from sorted(path for path in folder.rglob("*") if path.is_file() and not path.name.endswith("-shm"))

    def _read_logs(self) -> None:
        for folder in self.folders:
            for key, value in rows(folder / "twinlock.db", "SELECT key, value FROM records ORDER BY key"):
                if key.startswith("log/"):
                    self._add_entry(bytes.fromhex(key.split("/")[1]), int(key.split("/")[2]), decoded(value)[0])
            for log, seq, body in rows(
                folder / "keyservice.db", "SELECT log, seq, body FROM entries ORDER BY log, seq"
            ):
                self._add_entry(log, seq, body)
        for device in self.devices:
            for name, record in device.records.items():
                if name.startswith("space-log/"):
                    for seq, (body, _) in enumerate(decoded(record), 1):
                        self._add_entry(bytes.fromhex(name.split("/")[1]), seq, body)

    def _add_entry(self, log: bytes, seq: int, body: bytes) -> None:
        bodies = self.logs.setdefault(log, [])
        if seq != len(bodies) + 1:
            return
        bodies.append(body)
        fields = json.loads(body)
        opened = fields["epoch"] if fields["type"] == "remove" else fields if fields["type"] == "epoch" else None
        if opened is not None:
            parts = {name: from_base64(opened[name]) for name in ("b_commit", "dk_commit", "link")}
            self.epochs[log, opened["n"]] = parts

    # Keys

    def _find_kems(self) -> None:
        """Private keys of accounts, devices and invites; of an invite also the name under which A is wrapped to it."""
        for device in self.devices:
            self.kems.update(dict.fromkeys(device.kems()))
        for paper in self.papers:
            if isinstance(paper, Link):
                space, invite, secret = paper.parts
                self.kems[invite_kem(space, secret)] = invite
            else:
                self.kems.update(dict.fromkeys(self._kems_of_kit(paper)))

    def _kems_of_kit(self, kit: Kit) -> Iterator[bytes]:
        """Open the account's keys by a kit, as far as the server's records are at hand."""
        for folder in self.folders:
            if not (folder / "server.key").exists():
                continue
            server_id = sha256(public_key((folder / "server.key").read_bytes()[:KEY_BYTES]))
            sql = "SELECT key, value FROM records WHERE key LIKE 'unlocker/%recovery_kit%'"
            for key, value in rows(folder / "twinlock.db", sql):
                salt, wrapped = decoded(value)["salt"], decoded(value)["wrapped"]
                aad = label("unlocker-wrap", prefixed(b"recovery_kit") + bytes.fromhex(key.split("/")[1]))
                opened = open_box(kit_wrap_key(kit.letters, kit.name, server_id, salt), wrapped, aad)
                if opened is not None:
                    yield opened[KEY_BYTES:]

    def _find_service_keys(self) -> None:
        for place, key in self._leased():
            self._try_service_key(place, key)
        root_keys = {front: key for folder in self.folders for front, key in root_keys_of(folder / "root.key").items()}
        for folder in self.folders:
            if not (folder / "keyservice.db").exists():
                continue
            ((identity,),) = rows(folder / "keyservice.db", "SELECT value FROM meta WHERE name = 'keyservice_id'")
            for place, wrapped in self._wrapped_keys(folder):
                context = label("kw", place[0] + u32(place[1]) + identity)
                root_key = root_keys.get(wrapped[:4])
                key = root_key and open_aead(root_key, wrapped[4:16], wrapped[16:], context)
                self._try_service_key(place, key or b"")

    def _leased(self) -> Iterator[tuple[Place, bytes]]:
        """The service keys that devices keep, and whatever else in their opened records could be one."""
        for device in self.devices:
            for name, record in device.records.items():
                if name.startswith("keyring/"):
                    for lease in decoded(record)[1]:
                        yield (bytes.fromhex(name.split("/")[1]), lease[0]), lease[1]
                if not name.startswith(("space-log/", "account-log/")):
                    for window in windows(record):
                        yield from ((place, window) for place in self.epochs)

    def _wrapped_keys(self, folder: Path) -> Iterator[tuple[Place, bytes]]:
        """Everything in the key service's files that stands behind the id of a space as a wrapped key would."""
        for path in folder.glob("keyservice.db*"):
            data = path.read_bytes()
            for place in self.epochs:
                for at in found_at(data, place[0]):
                    for behind in WRAPPED_BEHIND:
                        yield place, data[at + behind : at + behind + WRAPPED_BYTES]

    def _try_service_key(self, place: Place, key: bytes) -> None:
        if place in self.epochs and b_commit(*place, key) == self.epochs[place]["b_commit"]:
            self.service_keys[place] = key

    def _find_member_keys(self) -> None:
        for device in self.devices:
            for name, record in device.records.items():
                if name.startswith("keyring/"):
                    for epoch, key in decoded(record)[0].items():
                        self._add_member_key((bytes.fromhex(name.split("/")[1]), epoch), key)
        records = [record for device in self.devices for record in device.records.values()]
        seen = {match for data in (*self._raw, *records) for match in ROW.findall(data)}
        for account, epoch, wrapped in seen:
            for kem, name in self.kems.items():
                for space in {space for space, number in self.epochs if number == epoch[0] and name in (None, account)}:
                    key = unwrapped_member_key(kem, space, epoch[0], account, wrapped)
                    if key is not None:
                        self._add_member_key((space, epoch[0]), key)

    def _add_member_key(self, place: Place, key: bytes) -> None:
        """Keep a member key, and those before it, to which the links of the log lead."""
        self.member_keys.setdefault(place, set()).add(key)
        space, epoch = place
        link = self.epochs.get(place, {}).get("link")
        earlier = earlier_member_key(space, epoch, key, link) if link else None
        if earlier is not None:
            self._add_member_key((space, epoch - 1), earlier)

    def _join_keys(self) -> None:
        for place, service_key in self.service_keys.items():
            for member_key in self.member_keys.get(place, ()):
                self._try_data_key(place, data_key(*place, member_key, service_key))

    def _try_data_key(self, place: Place, key: bytes) -> None:
        if dk_commit(*place, key) == self.epochs[place]["dk_commit"]:
            self.data_keys[place] = key

    # Contents

    def _read_all(self) -> None:
        for data in self._raw:
            self._note("files", data)
        for folder in self.folders:
            self.envelopes.update(row[0] for row in rows(folder / "twinlock.db", "SELECT envelope FROM log"))
        for data in self._raw:
            self.envelopes.update(self._envelopes_in(data))
        for envelope in self.envelopes:
            self._note("envelopes", self.content_of(envelope))
        for device in self.devices:
            for record in device.records.values():
                self._note("files", record)
            for folder in device.spaces():
                self._read_side_file(device, folder)
                self._read_replica(device, folder)

    def _note(self, place: str, data: bytes | None) -> None:
        self.opened[place] |= {name.decode() for name in SECRET.findall(data or b"")}

    def _envelopes_in(self, data: bytes) -> Iterator[bytes]:
        """Everything that looks like an envelope of a known space."""
        for space in {space for space, _ in self.epochs}:
            for at in found_at(data, space):
                header = data[max(at - 8, 0) : at - 8 + HEADER_BYTES]
                if len(header) == HEADER_BYTES and header[0] == 1 and header[1] in (1, 2, 3) and not any(header[2:4]):
                    whole = HEADER_BYTES + int.from_bytes(header[108:], "big") + SIGNATURE_BYTES
                    yield data[at - 8 : at - 8 + whole]

    def content_of(self, envelope: bytes) -> bytes | None:
        """An envelope's payload with its padding, where the keys are there."""
        space, epoch = envelope[8:24], int.from_bytes(envelope[4:8], "big")
        key = self.data_keys.get((space, epoch))
        return key and open_envelope(key, space, envelope)

    def _read_side_file(self, device: Device, folder: Path) -> None:
        path, space = folder / "locked.log", bytes.fromhex(folder.name)
        data = path.read_bytes() if path.exists() else b""
        while data:
            size = int.from_bytes(data[:4], "big")
            record, data = data[4 : 4 + size], data[4 + size :]
            front, key = record[:12], self.data_keys.get((space, int.from_bytes(record[:4], "big")))
            if key is not None and device.id is not None:
                info = label("locked-write", space + device.id + front)
                self._note("side files", open_hpke(kdf(key, space, "drop"), record[12:-32], info))

    def _read_replica(self, device: Device, folder: Path) -> None:
        if not (folder / "replica.key").exists() or device.store_key is None or device.id is None:
            return
        space, wrapped = bytes.fromhex(folder.name), decoded((folder / "replica.key").read_bytes())
        key = self.data_keys.get((space, wrapped["epoch"]))
        if key is None:
            return
        local_key = kdf(key, mac(device.store_key, "local", space), "local", device.id)
        file_key = open_box(local_key, wrapped["wrapped"], label("replica-key", space + u32(wrapped["epoch"])))
        assert file_key is not None, "the data key is right and does not open the replica"
        for value in replica_values(folder / "replica.db", file_key):
            self._note("replicas", value)
            for envelope in self._envelopes_in(value):
                self._note("replicas", self.content_of(envelope))


def rows(path: Path, sql: str) -> Iterable[tuple[Any, ...]]:
    """What a query gives; nothing where there is no such file."""
    if not path.exists():
        return []
    with opened(path) as connection:
        return connection.execute(sql).fetchall()


def vault_rows(folder: Path) -> Iterable[tuple[str, bytes]]:
    """The records of a device as they are stored: names, and what is sealed under them."""
    return rows(folder / "vault.db", "SELECT name, sealed FROM records")


@contextmanager
def opened(path: Path) -> Iterator[apsw.Connection]:
    """Open a database and leave its files as they are: a journal that is merged is not there for the next look."""
    with closing(apsw.Connection(str(path))) as connection:
        connection.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)
        yield connection


def decoded(data: bytes) -> Any:
    return msgspec.msgpack.decode(data, strict=False)


def found_at(data: bytes, wanted: bytes) -> Iterator[int]:
    at = data.find(wanted)
    while at >= 0:
        yield at
        at = data.find(wanted, at + 1)


def windows(data: bytes) -> set[bytes]:
    return {data[at : at + KEY_BYTES] for at in range(len(data) - KEY_BYTES + 1)}


def root_keys_of(path: Path) -> dict[bytes, bytes]:
    """Every version of the root key that is in its file, by what stands in front of what it wrapped."""
    keys = json.loads(path.read_bytes())["keys"] if path.exists() else {}
    return {u32(int(version)): base64.b64decode(key) for version, key in keys.items()}


def replica_values(path: Path, file_key: bytes) -> Iterator[bytes]:
    """Every value of every table of a replica file."""
    with opened(path) as connection:
        connection.pragma("cipher", "chacha20")
        connection.pragma("key", f"raw:{file_key.hex()}")
        tables = connection.execute("SELECT name FROM sqlite_schema WHERE type = 'table'").fetchall()
        for (table,) in tables:
            for row in connection.execute(f'SELECT * FROM "{table}"'):
                for value in row:
                    if isinstance(value, bytes | str):
                        yield value if isinstance(value, bytes) else value.encode()


def forge(raid: Raid, space: str, device: Device, padded: bytes) -> bytes:
    """Seal a change as a device would: under the newest epoch that the raid opens, as the next link of its chain."""
    assert device.keys is not None
    assert device.id is not None
    name, epoch = bytes.fromhex(space), max(raid.epochs_of(space))
    own = [each for each in raid.envelopes_of(space) if each[24:40] == device.id and raid.content_of(each) is not None]
    last = max(own, key=lambda each: each[40:48], default=None)
    chain = (1, bytes(32)) if last is None else (int.from_bytes(last[40:48], "big") + 1, envelope_id(last))
    head = log_head(name, raid.logs[name])[:8]
    place = (name, epoch, device.id)
    return seal_envelope(raid.data_keys[name, epoch], (*chain, head), place, device.keys[0], padded)


def ledger_events(folder: Path, space: str) -> list[str]:
    """What was granted and done for a space, as the ledger tells it once its chain of hashes was checked."""
    head, events = bytes(32), []
    for n, record, stored in rows(folder / "keyservice.db", "SELECT n, record, hash FROM ledger ORDER BY n"):
        head = sha256(label("ledger") + u64(n) + head + sha256(record))
        assert head == stored, f"record {n} was altered"
        fields = json.loads(record)
        if fields.get("space") == space:
            events.append("refused" if "refused" in fields else fields["event"])
    return events
