"""A device for simulations: a real replica and a real session over a store that can crash."""

from __future__ import annotations

import copy

import msgspec

from twinlock.ids import Epoch
from twinlock.protocol.account_log import AccountState
from twinlock.protocol.client import ClientIdentity, ClientSession, Welcomed
from twinlock.protocol.frames import Ack, Attached, Entries, Reject
from twinlock.protocol.space_log import SpaceLogState
from twinlock.replica.batch import Batch
from twinlock.replica.events import CutWanted, LogsWanted, RotationWanted, WritesConfirmed, WritesRefused
from twinlock.replica.keyring import Keyring
from twinlock.replica.live import LiveQuery
from twinlock.replica.locked import LockedOutbox, open_records
from twinlock.replica.replica import Replica
from twinlock.replica.upkeep import UpkeepSettings
from twinlock.replica.wear import DEFAULT_WEAR
from twinlock.sealing.identity import AccountKeys, DeviceKeys
from twinlock.sealing.suite import Entropy, MemberKey, ServiceKey, StoreKey
from twinlock.server.sequencer import Author
from twinlock.testing.memory_store import MemoryStore
from twinlock.testing.simulator_server import Connection, SimulatedServer

ORIGIN = "ws://simulated"
LEASE_MS = 10 * 3_600_000
UPKEEP = UpkeepSettings(log_bytes_min=3_000, pack_bytes=1_500, jitter_ms_max=300)


class World(msgspec.Struct):
    """What all devices of a simulation may learn: the account, the space's log and its keys."""

    account_keys: AccountKeys
    account: AccountState
    log: SpaceLogState
    keys: dict[Epoch, tuple[MemberKey, ServiceKey]]
    server_id: bytes
    others: list[AccountState] = []


class SimulatedDevice:
    """One device and the wire between it and the server.

    `skew_ms` is how wrong its clock is; the offset learnt at `welcome` corrects it.
    """

    def __init__(self, name: int, keys: DeviceKeys, world: World, entropy: Entropy, skew_ms: int) -> None:
        self.name = name
        self.keys = keys
        self.world = world
        self._entropy = entropy
        self.skew_ms = skew_ms
        self.offset_ms = 0
        self.store = MemoryStore()
        self._copy = copy.deepcopy(self.store)
        self.connection: Connection | None = None
        self.session: ClientSession | None = None
        self.side_file: list[bytes] = []
        self._store_key = StoreKey.make(entropy)
        self.confirmed: set[int] = set()
        self.refused: list[WritesRefused] = []
        self.rotations_wanted: list[RotationWanted] = []
        self.wear = DEFAULT_WEAR
        self.keyring = self._make_keyring(0)
        self.replica: Replica | None = self._make_replica()

    # Keys

    def _make_keyring(self, now_ms: int) -> Keyring:
        keyring = Keyring(self.world.log, self.world.account_keys, self.keys)
        self._meet(keyring)
        self._lease(keyring, now_ms)
        return keyring

    def _meet(self, keyring: Keyring) -> None:
        for account in (self.world.account, *self.world.others):
            keyring.install_account(account)

    def _lease(self, keyring: Keyring, now_ms: int) -> None:
        for epoch, (member_key, service_key) in self.world.keys.items():
            if epoch in keyring.log.epochs:
                keyring.install_member_key(epoch, member_key)
                keyring.install_service_key(epoch, service_key, now_ms + LEASE_MS, now_ms)

    def _make_replica(self) -> Replica:
        return Replica(self.keyring, self.keys, self.store, self._entropy, UPKEEP, self.wear)

    def learn(self, true_ms: int) -> None:
        """Fetch logs and leases, as the shell does when it is told to."""
        self.keyring.install_log(self.world.log)
        self._meet(self.keyring)
        self._lease(self.keyring, self.now_ms(true_ms))
        if self.replica is not None:
            self.replica.keys_changed(self.now_ms(true_ms))

    def now_ms(self, true_ms: int) -> int:
        """Return the corrected time."""
        return true_ms + self.skew_ms + self.offset_ms

    @property
    def has_right_clock(self) -> bool:
        """Whether it stamps by the right time: its clock is right, or it has met the server."""
        return abs(self.skew_ms) < 1_000 or (self.skew_ms < 0 and self.offset_ms > 0)

    # Life

    def write(self, batch: Batch, true_ms: int) -> int:
        """Write, also while locked; return the token, 0 for a write to the side file."""
        now_ms = self.now_ms(true_ms)
        if self.replica is not None:
            try:
                return self.replica.write(batch, now_ms)
            finally:
                self.pump(true_ms)
        outbox = LockedOutbox(self.world.log, self.keys.device, self._store_key, len(self.side_file))
        self.side_file.append(outbox.seal(batch, now_ms))
        return 0

    def lock(self) -> None:
        """The lease ends: the replica is let go of."""
        self.disconnect()
        self.keyring.lock()
        self.replica = None

    def unlock(self, true_ms: int) -> None:
        """There is a lease again: what was written meanwhile becomes pending."""
        if self.replica is None:
            self.keyring = self._make_keyring(self.now_ms(true_ms))
            self.replica = self._make_replica()
            opened = open_records(self.side_file, self.keyring, self._store_key)
            self.replica.absorb(opened, self.now_ms(true_ms))
            self.side_file.clear()

    def crash(self, true_ms: int) -> None:
        """Lose power: what was not durable is gone, the rest comes back."""
        self.disconnect()
        self.store.crash()
        if self.replica is not None:
            self.keyring = self._make_keyring(self.now_ms(true_ms))
            self.replica = self._make_replica()

    def back_up(self) -> None:
        """Keep a copy of the disk."""
        self._copy = copy.deepcopy(self.store)

    def go_back(self, true_ms: int) -> None:
        """Come back with the disk as it was when it was copied last; what was not sent since is gone."""
        self.disconnect()
        self.store = copy.deepcopy(self._copy)
        self.keyring = self._make_keyring(self.now_ms(true_ms))
        self.replica = self._make_replica()

    # Wire

    def connect(self, server: SimulatedServer, true_ms: int) -> None:
        """Dial the server."""
        if self.replica is None:
            return
        self.disconnect()
        author = Author(self.keyring.account, self.keys.device, self.keys.sign_pk)
        self.connection = server.connect(author, true_ms)
        identity = ClientIdentity(self.keyring.account, self.keys.device, self.keys.sign.sign)
        self.session = ClientSession(identity, ORIGIN, self.world.server_id, self._entropy)

    def disconnect(self) -> None:
        """Lose the connection."""
        if self.session is not None and self.replica is not None:
            self.replica.on_disconnected()
        if self.connection is not None:
            self.connection.is_open = False
        self.session = self.connection = None

    def receive(self, server: SimulatedServer, true_ms: int) -> bool:
        """Take in one message; return whether there was one."""
        if self.connection is None or self.session is None:
            return False
        if not self.connection.is_open:
            self.disconnect()
            return True
        if not self.connection.to_client:
            return False
        event = self.session.receive(self.connection.to_client.pop(0), true_ms + self.skew_ms)
        replica = self.replica
        assert replica is not None
        now_ms = self.now_ms(true_ms)
        match event:
            case Welcomed():
                self.offset_ms = event.clock_offset_ms
                now_ms = self.now_ms(true_ms)
                self.keyring.note_trusted_time(now_ms)
                self.learn(true_ms)
                request = replica.attach_request()
                self.session.attach(request.space, request.incarnation, request.cursor)
            case Attached():
                replica.on_attached(event, now_ms)
            case Entries():
                replica.on_entries(event, now_ms)
            case Ack():
                replica.on_ack(event, now_ms)
            case Reject():
                replica.on_reject(event, now_ms)
        self.pump(true_ms, server)
        return True

    def work(self, server: SimulatedServer, true_ms: int) -> bool:
        """Do one slice of the replica's work; return whether there was any."""
        if self.replica is None:
            return False
        worked = self.replica.work(self.now_ms(true_ms))
        self.pump(true_ms, server)
        return worked

    def pump(self, true_ms: int, server: SimulatedServer | None = None) -> None:
        """Send what is to be sent, and take what the replica tells."""
        replica, session, connection = self.replica, self.session, self.connection
        if replica is None:
            return
        if session is not None and connection is not None:
            if session.welcomed:
                for push in replica.outgoing(self.now_ms(true_ms), session.push_room):
                    session.push(self.keyring.space, push)
            connection.to_server += session.take_output()
        self._take_events(replica, true_ms, server)

    def _take_events(self, replica: Replica, true_ms: int, server: SimulatedServer | None) -> None:
        for event in replica.take_events():
            match event:
                case WritesConfirmed(tokens=tokens):
                    self.confirmed.update(tokens)
                case WritesRefused():
                    self.refused.append(event)
                case RotationWanted():
                    self.rotations_wanted.append(event)
                case LogsWanted():
                    self.learn(true_ms)
                case CutWanted(params=params) if server is not None:
                    is_open = self.connection is not None and self.connection.is_open
                    result = server.cut(params.incarnation, params.upto) if is_open else None
                    replica.on_cut(result, self.now_ms(true_ms))

    @property
    def is_settled(self) -> bool:
        """Whether everything here is on the server and everything there is here."""
        return self.replica is not None and self.replica.caught_up and not self.replica.pending_count

    def marks(self) -> set[str]:
        """Return the writes that have reached this device or began on it."""
        return {document.id for document in self.store.documents() if document.collection == "marks"}

    def states(self) -> list[tuple[tuple[str, str], bytes]]:
        """Return every document's confirmed state, by key."""
        return [(document.key, document.confirmed) for document in self.store.documents() if document.confirmed]


def follow(live: LiveQuery, replica: Replica, ids: list[str], now_ms: int) -> list[str]:
    """Apply a live query's changes to the ids of its result, and check that both ways tell the same."""
    for query, snapshot in replica.take_snapshots(now_ms):
        if query is not live:
            continue
        for change in snapshot.changes:
            if change.old_index >= 0:
                assert ids.pop(change.old_index) == change.id
            if change.new_index >= 0:
                ids.insert(change.new_index, change.id)
        assert ids == [identifier for identifier, _ in snapshot.documents]
    return ids
