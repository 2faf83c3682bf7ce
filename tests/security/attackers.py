"""What attackers hold and do: a member's keys turned on the others, a server's stores, and its place in between."""

from __future__ import annotations

import base64
import os
import shutil
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec

from tests.client_kit import World, until
from tests.security.dishonest import database, key_service
from tests.security.raid import stored, windows
from tests.security.wire import Wire, challenged, now_ms
from twinlock.client.client import Client
from twinlock.client.transport import Address, Transport, open_transport
from twinlock.document.operations import PUT, Edit, encode_change
from twinlock.document.stamps import NEVER
from twinlock.ids import NO_ENVELOPE, AccountId, Counter, DeviceId, EnvelopeId, Epoch, SpaceId
from twinlock.keyservice.wrapper import service_key_context
from twinlock.keyservice.wrapper_file import FileKeyWrapper
from twinlock.protocol import codec, proofs
from twinlock.protocol.calls import ReadLogResult, SignedEntry
from twinlock.protocol.clock import Hlc, pack
from twinlock.protocol.envelope import TAG_BYTES, Envelope, Header, Kind, envelope_id, parse
from twinlock.protocol.frames import Attached, Call, ClientFrame, Hello, Lease, Reply, ServerFrame, Welcome
from twinlock.protocol.space_rules import replay_space
from twinlock.sealing import DeviceKeys, EpochKeys, Sealer
from twinlock.sealing.cipher import envelope_message
from twinlock.sealing.padding import pad
from twinlock.testing.workload import open_database

FAMILY = "family"
"""The space that ann shares with ben, an editor, and cleo, a reader."""

SECRET = "where the key to the shed is hidden"
"""What ann wrote into it, and the attackers want."""


async def make_household(world: World) -> None:
    """Share a space between three accounts, let two of them write, and close everything."""
    await world.start()
    ann, ben, cleo = [await world.unlocked(profile) for profile in ("a", "ben", "cleo")]
    family = await ann.create_space(FAMILY)
    for guest, role in ((ben, "editor"), (cleo, "reader")):
        await guest.join(await family.invite(role))
    await put(ann, "shed", SECRET)
    await put(ben, "list", "milk")
    for db in (ann, ben, cleo):
        await db.synced()
    await world.close()


async def put(db: Client, id: str, text: str) -> None:
    """Write a document of the family, until the server has it."""
    await (await db.space(FAMILY).collection("notes").doc(id).set({"text": text})).durable()


async def texts(db: Client, space: str = FAMILY) -> dict[str, str]:
    """Everything that a device shows of a space, once it has read all that the server delivers."""
    await db.synced()
    return {doc.id: doc.data["text"] for doc in await db.space(space).collection("notes").get()}


async def shows(db: Client, id: str, text: str) -> None:
    """Wait until a device shows a document with a text."""
    found: list[Any] = []
    ended = db.space(FAMILY).collection("notes").doc(id).on_snapshot(lambda snap: found.append(snap.doc))
    await until(lambda: found and found[-1] is not None and found[-1]["text"] == text)
    ended()


def reasons(db: Client) -> list[str]:
    """Why a device did not merge what it did not merge."""
    return sorted(str(kept.reason) for found in db.quarantine.values() for kept in found)


def change(id: str, text: str, time_ms: int | None = None) -> bytes:
    """Make the payload of a change that writes one document, as any member's software can."""
    stamp = Hlc(pack(now_ms() if time_ms is None else time_ms))
    return encode_change([Edit("notes", id, stamp, [[PUT, NEVER, {"text": text}]])])


class Hand:
    """All that a member's device holds of a space at one moment: keys, log, and its place in its own chain."""

    def __init__(self, db: Client, space: str = FAMILY) -> None:
        self.runtime = db.space(space)._handle.runtime
        self.space: SpaceId = self.runtime.space
        self.device: DeviceKeys = db._context.state.device_keys
        self.account: AccountId = self.runtime.keyring.account
        self.kem = db._context.state.account_kem.kem
        self.log = self.runtime.keyring.log
        self.entries = list(self.runtime.entries)
        self.keys: dict[Epoch, EpochKeys] = {
            epoch: keys for epoch in self.log.epochs if (keys := self.runtime.keyring.keys(epoch)) is not None
        }

    def seal(
        self,
        payload: bytes,
        after: tuple[int, bytes] = (0, NO_ENVELOPE),
        *,
        kind: Kind = Kind.CHANGE,
        epoch: int = 1,
        log_head: bytes | None = None,
    ) -> Envelope:
        """Seal and sign an envelope as the device that this is, wherever in its chain."""
        counter, prev = after
        head = self.log.head_prefix if log_head is None else log_head
        place = (Counter(counter + 1), EnvelopeId(prev), head)
        sealer, keys = Sealer(self.device, os.urandom), self.keys[Epoch(epoch)]
        if kind is Kind.DROP:
            return sealer.seal_drop(payload, self.space, Epoch(epoch), keys.drop_pk, place)
        return sealer.seal(kind, payload, keys, *place)

    def sealed_in_the_name_of(self, device: DeviceId, payload: bytes, after: tuple[int, bytes]) -> bytes:
        """Seal under another device's key, which every member derives, and sign as oneself: more cannot be forged."""
        keys, padded, nonce = self.keys[Epoch(1)], pad(payload), os.urandom(12)
        place = (Counter(after[0] + 1), 0, self.log.head_prefix, EnvelopeId(after[1]))
        header = Header(Kind.CHANGE, Epoch(1), self.space, device, *place, nonce, len(padded) + TAG_BYTES).pack()
        ciphertext = keys.device_cipher(device).encrypt(nonce, padded, header)
        return header + ciphertext + self.device.sign.sign(envelope_message(envelope_id(header, ciphertext)))

    def lease_request(self, *epochs: int) -> Lease:
        """Make a true request of this device for service keys."""
        nonce, time_ms, wanted = os.urandom(32), now_ms(), [Epoch(epoch) for epoch in epochs]
        message = proofs.lease_message(self.space, wanted, nonce, time_ms, self.account, self.device.device)
        return Lease(self.space, wanted, nonce, time_ms, self.device.sign.sign(message))

    @asynccontextmanager
    async def wire(self, url: str) -> AsyncIterator[Wire]:
        """Sign in as this device and say whatever a test wants said: a client of the attacker's own making."""
        async with challenged(url) as wire:
            assert wire.challenge is not None
            client_nonce = os.urandom(32)
            message = proofs.hello_message(
                server_id=proofs.server_id_of(wire.challenge.server_pk),
                origin=wire.origin,
                incarnation=wire.challenge.incarnation,
                account=self.account,
                device=self.device.device,
                server_nonce=wire.challenge.nonce,
                client_nonce=client_nonce,
            )
            signature = self.device.sign.sign(message)
            await wire.send(Hello(client_nonce, wire.origin, self.account, self.device.device, signature))
            await wire.until(Welcome)
            yield wire

    def secrets(self) -> dict[str, bytes]:
        """Return every secret of it by name."""
        found = {
            "device_sign": self.device.expose()[:32],
            "device_kem": self.device.expose()[32:],
            "account_kem": self.kem.private_bytes_raw(),
        }
        for epoch, keys in self.keys.items():
            found[f"A_{epoch}"] = keys.member_key.expose()
            found[f"B_{epoch}"] = keys.service_key.expose()
            found[f"DataKey_{epoch}"] = keys.data_key.expose()
        return found


def posing_as(device: DeviceId, envelope: Envelope) -> bytes:
    """Put another device's id into an envelope; its author cannot sign for it."""
    return envelope.data[:24] + device + envelope.data[40:]


# The server's stores, in the hands of whoever runs it.


def delivered(world: World, space: SpaceId) -> list[Envelope]:
    """Return the envelopes of a space that the server keeps."""
    with open_database(database(world)) as connection:
        rows = connection.execute("SELECT envelope FROM log WHERE space = ? ORDER BY seq", (space,)).fetchall()
    return [parse(data) for (data,) in rows]


def plant(world: World, space: SpaceId, *envelopes: bytes) -> None:
    """Put envelopes into the server's log, unchecked, and have them delivered; the server does not run."""
    with open_database(database(world)) as connection:
        for data in envelopes:
            row = (space, now_ms(), data)
            added = connection.execute("INSERT INTO log (space, received_ms, envelope) VALUES (?, ?, ?)", row)
            # The true chains stay as they are: the server only says that there is more to read.
            connection.execute("UPDATE heads SET seq = ? WHERE space = ?", (added.lastrowid, space))


def chain_head(world: World, space: SpaceId, device: DeviceId) -> tuple[int, bytes]:
    """Return the last counter and id of a device's chain, as the server has it."""
    own = [each for each in delivered(world, space) if each.header.device == device]
    return (own[-1].header.counter, own[-1].id) if own else (0, NO_ENVELOPE)


def service_keys(world: World, space: SpaceId) -> dict[Epoch, bytes]:
    """Return every B of a space, unwrapped by the root key: what a dishonest key service can do at any time."""
    folder = world.folder / "server" / "keyservice"
    wrapper = FileKeyWrapper.load(folder / "root.key")
    with open_database(key_service(world)) as connection:
        rows = connection.execute("SELECT epoch, wrapped FROM keys WHERE space = ?", (space,)).fetchall()
        (identity,) = connection.execute("SELECT value FROM meta WHERE name = 'keyservice_id'").fetchone()
    return {Epoch(n): wrapper.unwrap(wrapped, service_key_context(space, Epoch(n), identity)) for n, wrapped in rows}


def replace_service_key(world: World, space: SpaceId, key: bytes) -> None:
    """Have the key service release another key than the one it has committed to."""
    folder = world.folder / "server" / "keyservice"
    wrapper = FileKeyWrapper.load(folder / "root.key")
    with open_database(key_service(world)) as connection:
        (identity,) = connection.execute("SELECT value FROM meta WHERE name = 'keyservice_id'").fetchone()
        wrapped = wrapper.wrap(key, service_key_context(space, Epoch(1), identity))
        connection.execute("UPDATE keys SET wrapped = ? WHERE space = ? AND epoch = 1", (wrapped, space))


def records(world: World, prefix: str) -> dict[str, bytes]:
    """Return what the server's directory holds under keys that begin so."""
    with open_database(database(world)) as connection:
        return dict(connection.execute("SELECT key, value FROM records WHERE key LIKE ?", (prefix + "%",)).fetchall())


def signed_log(world: World, log: bytes) -> list[SignedEntry]:
    """Return a signed log as the key service keeps it."""
    with open_database(key_service(world)) as connection:
        rows = connection.execute("SELECT body, sig FROM entries WHERE log = ? ORDER BY seq", (log,)).fetchall()
    return [SignedEntry(body, sig) for body, sig in rows]


def put_record(world: World, key: str, value: bytes) -> None:
    """Change a value of the server's directory."""
    with open_database(database(world)) as connection:
        connection.execute("UPDATE records SET value = ? WHERE key = ?", (value, key))


def copied(folder: Path, to: Path) -> Path:
    """Copy a folder as it lies there, whoever has it open."""
    shutil.copytree(folder, to)
    return to


def found_in(folder: Path, secrets: Mapping[str, bytes]) -> list[str]:
    """Return which secrets lie anywhere in a folder's files, database values or what is coded in them."""
    there = windows(stored(folder))
    return [name for name, secret in secrets.items() if secret in there]


# The place in between: a dishonest server, or a network whose TLS is broken.


class Between:
    """Stands between devices and the true server, keeps all that passes, and changes what it likes.

    `requests` and `replies` change what a call says and what is answered to it, by the name of the method; `frames`
    changes other frames of the server. What is not changed passes as it is.
    """

    def __init__(self) -> None:
        self.requests: dict[str, Callable[[bytes], bytes]] = {}
        self.replies: dict[str, Callable[[bytes], bytes]] = {}
        self.frames: Callable[[Any], Any] = lambda frame: frame
        self.sent: list[ClientFrame] = []
        self.passed: list[bytes] = []

    @asynccontextmanager
    async def dial(self, address: Address) -> AsyncIterator[Transport]:
        """Open a connection that passes through here."""
        async with open_transport(address) as transport:
            yield _Watched(transport, self)

    def calls(self, method: str) -> list[Call]:
        """Return the calls of a method that were made."""
        return [frame for frame in self.sent if isinstance(frame, Call) and frame.method == method]


class _Watched(Transport):
    """One connection that somebody else has in his hands."""

    def __init__(self, inner: Transport, between: Between) -> None:
        self._inner = inner
        self._between = between
        self._methods: dict[int, str] = {}

    async def send(self, message: bytes) -> None:
        await self._inner.send(self._outgoing(message))

    def send_now(self, message: bytes) -> bool:
        return self._inner.send_now(self._outgoing(message))

    async def receive(self) -> bytes:
        message = await self._inner.receive()
        self._between.passed.append(message)
        frame: ServerFrame = codec.decode_server(message)
        if isinstance(frame, Reply):
            change_it = self._between.replies.get(self._methods.pop(frame.id, ""))
            if change_it is None or frame.error is not None:
                return message
            return codec.encode(msgspec.structs.replace(frame, result=msgspec.Raw(change_it(bytes(frame.result)))))
        changed = self._between.frames(frame)
        return message if changed is frame else codec.encode(changed)

    def _outgoing(self, message: bytes) -> bytes:
        self._between.passed.append(message)
        frame = codec.decode_client(message)
        self._between.sent.append(frame)
        if not isinstance(frame, Call):
            return message
        self._methods[frame.id] = frame.method
        change_it = self._between.requests.get(frame.method)
        if change_it is None:
            return message
        return codec.encode(msgspec.structs.replace(frame, params=msgspec.Raw(change_it(bytes(frame.params)))))


def log_that_says(between: Between, space: SpaceId, true: list[SignedEntry], forged: list[SignedEntry]) -> None:
    """Have devices told of another log of a space: the true entries, as many as are given, and then forged ones."""
    told = [*true, *forged]
    asked: list[int] = []

    def request(params: bytes) -> bytes:
        query = msgspec.msgpack.decode(params)
        asked.append(query["after_seq"] if query["log"] == space else -1)
        return params

    def reply(result: bytes) -> bytes:
        after = asked.pop()
        return result if after < 0 else msgspec.msgpack.encode(ReadLogResult(told[after:], len(told)))

    def frame(frame: Any) -> Any:
        if isinstance(frame, Attached) and frame.space == space:
            head = replay_space(true).head if not forged else os.urandom(32)
            return msgspec.structs.replace(frame, log_seq=len(told), log_head=head)
        return frame

    between.requests["space.log"], between.replies["space.log"], between.frames = request, reply, frame


def text_of(data: bytes) -> bytes:
    """Return bytes as signed logs write them: base64url without padding."""
    return base64.urlsafe_b64encode(data).rstrip(b"=")
