"""A sender for simulations: a real `Sender` and a real session over a file that can crash."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from twinlock.protocol.account_log import AccountState, replay_account
from twinlock.protocol.client import ClientIdentity, ClientSession, Welcomed
from twinlock.protocol.frames import Ack, Attached, Reject
from twinlock.replica.batch import SetDocument
from twinlock.replica.drops import SenderStore
from twinlock.replica.events import LogsWanted, WritesRefused
from twinlock.replica.keyring import Keyring
from twinlock.replica.sender import Sender
from twinlock.replica.sender_writes import own_prefix
from twinlock.sealing.identity import AccountKeys, DeviceKeys, account_genesis, device_entry
from twinlock.sealing.suite import Entropy
from twinlock.server.sequencer import Author
from twinlock.testing.simulator_device import ORIGIN, World
from twinlock.testing.simulator_server import Connection, SimulatedServer

COLLECTION = "senses"


class MemorySenderStore(SenderStore):
    """Groups in a list; a crash takes those back that were not yet on the disk."""

    __slots__ = ("_durable_count", "_groups")

    def __init__(self) -> None:
        self._groups: list[list[bytes]] = []
        self._durable_count = 0

    def groups(self) -> Iterator[tuple[int, list[bytes]]]:
        """Return every group and its place."""
        yield from enumerate(self._groups)

    def append(self, records: Sequence[bytes], *, durable: bool) -> int:
        """Append a group."""
        self._groups.append(list(records))
        if durable:
            self._durable_count = len(self._groups)
        return len(self._groups) - 1

    def read(self, place: int) -> list[bytes]:
        """Return a group."""
        return self._groups[place]

    def replace(self, groups: Iterable[Sequence[bytes]]) -> list[int]:
        """Put other groups in place of all."""
        self._groups = [list(group) for group in groups]
        self._durable_count = len(self._groups)
        return list(range(len(self._groups)))

    @property
    def stored_bytes(self) -> int:
        """How large it is."""
        return sum(len(record) for group in self._groups for record in group)

    def crash(self) -> None:
        """Lose power."""
        del self._groups[self._durable_count :]


class SimulatedSensor:
    """An account of its own with one device, which may only send."""

    def __init__(self, world: World, entropy: Entropy) -> None:
        self.account_keys = AccountKeys.make(entropy)
        self.keys = DeviceKeys.make(entropy)
        genesis = replay_account([account_genesis(self.account_keys, entropy)])
        entry = device_entry(self.account_keys, genesis, self.keys.sign_pk, self.keys.kem_pk)
        self.account: AccountState = replay_account([entry], genesis)
        self.store = MemorySenderStore()
        self.refused: list[WritesRefused] = []
        self.connection: Connection | None = None
        self.session: ClientSession | None = None
        self.written: set[str] = set()
        self.readings_count = 0
        self._world = world
        self._entropy = entropy

    def start(self) -> None:
        """Start the application (anew)."""
        self.keyring = Keyring(self._world.log, self.account_keys, self.keys)
        self.sender = Sender(self.keyring, self.keys, self.store, self._entropy)

    def sense(self, now_ms: int) -> None:
        """Write a reading, and its newest in a document of its own."""
        own = own_prefix(self.account_keys.account)
        name = f"{own}-{self.readings_count}"
        batch = [
            SetDocument(COLLECTION, name, {"number": self.readings_count}),
            SetDocument(COLLECTION, own, {"newest": self.readings_count}, merge=True),
        ]
        [token] = self.sender.write_all([batch], now_ms)
        assert isinstance(token, int)
        self.written |= {name, own}
        self.readings_count += 1

    def crash(self) -> None:
        """Lose power: what was not durable is gone, the rest comes back."""
        self.disconnect()
        self.store.crash()
        self.start()

    def disconnect(self) -> None:
        """Lose the connection."""
        self.sender.on_disconnected()
        if self.connection is not None:
            self.connection.is_open = False
        self.session = self.connection = None

    def serve(self, server: SimulatedServer, now_ms: int) -> bool:
        """Move one message each way, dialling first if need be; return whether anything happened."""
        if self.connection is None or not self.connection.is_open:
            self.disconnect()
            self.connection = server.connect(
                Author(self.account_keys.account, self.keys.device, self.keys.sign_pk), now_ms
            )
            identity = ClientIdentity(self.account_keys.account, self.keys.device, self.keys.sign.sign)
            self.session = ClientSession(identity, ORIGIN, self._world.server_id, self._entropy)
            return True
        self._pump(now_ms)
        moved = server.step(self.connection, now_ms)
        if self.connection.to_client and self.session is not None:
            self._receive(self.connection.to_client.pop(0), self.session, now_ms)
            moved = True
        self._pump(now_ms)
        return moved

    def _receive(self, message: bytes, session: ClientSession, now_ms: int) -> None:
        match session.receive(message, now_ms):
            case Welcomed():
                self._learn(now_ms)
                request = self.sender.attach_request()
                session.attach(request.space, request.incarnation, request.cursor)
            case Attached() as attached:
                self.sender.on_attached(attached, now_ms)
            case Ack() as ack:
                self.sender.on_ack(ack, now_ms)
            case Reject() as reject:
                self.sender.on_reject(reject, now_ms)

    def _learn(self, now_ms: int) -> None:
        self.keyring.install_log(self._world.log)
        self.sender.keys_changed(now_ms)

    def _pump(self, now_ms: int) -> None:
        for event in self.sender.take_events():
            if isinstance(event, WritesRefused):
                self.refused.append(event)
            elif isinstance(event, LogsWanted):
                self._learn(now_ms)
        if self.session is not None and self.connection is not None:
            if self.session.welcomed:
                for push in self.sender.outgoing(now_ms, self.session.push_room):
                    self.session.push(self.keyring.space, push)
            self.connection.to_server += self.session.take_output()
