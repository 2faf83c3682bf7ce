"""A sender with its file, a server's sequencer, and a reader, for tests without sockets."""

from pathlib import Path
from typing import Any

from tests.unit.sealing_world import Person, SeededEntropy, World
from twinlock.client.sender_file import SenderFile
from twinlock.contracts import DeviceHead
from twinlock.document.document import Document
from twinlock.ids import Counter, Incarnation, Seq
from twinlock.protocol.frames import Ack, Attached, Entry, Reject
from twinlock.protocol.space_log import Role
from twinlock.replica.batch import Batch, SetDocument
from twinlock.replica.contents import decode_content
from twinlock.replica.drops import DropLog
from twinlock.replica.events import WritesConfirmed, WritesRefused
from twinlock.replica.keyring import Keyring
from twinlock.replica.sender import Sender
from twinlock.replica.sender_writes import own_prefix
from twinlock.server.sequencer import Author, Decision, Sequencer

NOW = 1_700_000_000_000


class Kems:
    """What a keyring needs of an account's keys."""

    def __init__(self, person: Person) -> None:
        self.account = person.keys.account
        self.kem = person.keys.kem
        self.kems = (person.keys.kem,)


class SenderWorld:
    """A space with one sensor, its device, and the server's chain of it."""

    def __init__(self, folder: Path) -> None:
        self.space = World()
        self.sensor = Person("sensor")
        self.space.admit(self.sensor, Role.SENDER)
        self.folder = folder
        folder.mkdir(exist_ok=True)
        self.entries: list[Entry] = []
        self.sequencer = Sequencer(self.space.log.space, self.space.log, {})
        self.confirmed: list[int] = []
        self.refused: list[WritesRefused] = []
        self._files: list[SenderFile] = []
        self.sender = self.start()

    @property
    def id(self) -> str:
        """What the sensor's documents begin with."""
        return own_prefix(self.sensor.keys.account)

    def start(self, folder: Path | None = None) -> Sender:
        """Start the application (anew)."""
        self.keyring = Keyring(self.space.log, Kems(self.sensor), self.sensor.device)
        self.file = self._open(folder or self.folder)
        self.sender = Sender(self.keyring, self.sensor.device, self.file, SeededEntropy(f"run {len(self.entries)}"))
        return self.sender

    def _open(self, folder: Path) -> SenderFile:
        self._files.append(SenderFile(folder))
        return self._files[-1]

    def stored(self) -> DropLog:
        """Return what the file says."""
        return DropLog(self._open(self.folder))

    def close(self) -> None:
        for file in self._files:
            file.close()

    def write(self, name: str, data: dict[str, Any], now_ms: int = NOW) -> int:
        return self.write_batch([SetDocument("readings", self.id + name, data)], now_ms)

    def write_batch(self, batch: Batch, now_ms: int = NOW) -> int:
        [result] = self.sender.write_all([batch], now_ms)
        if not isinstance(result, int):
            raise result
        return result

    # The server

    def attach(self, now_ms: int = NOW) -> None:
        log = self.space.log
        own = self.sequencer.head_of(self.sensor.device.device)
        self.sequencer.forget_refusal(self.sensor.device.device)
        frame = Attached(
            log.space, Incarnation(bytes(16)), Seq(1), Seq(0), Seq(0), 0, own.counter, own.id, log.seq, log.head
        )
        self.sender.on_attached(frame, now_ms)

    def exchange(self, now_ms: int = NOW, rounds: int = 20) -> None:
        """Push and answer until nothing moves."""
        for _ in range(rounds):
            pushes = self.sender.outgoing(now_ms)
            self._note_events()
            if not pushes:
                return
            for push in pushes:
                self.serve(push, now_ms)
        raise AssertionError("does not come to rest")

    def serve(self, push: list[bytes], now_ms: int = NOW) -> None:
        decision = self.take(push, now_ms)
        acked = [(each.header.counter, Seq(len(self.entries))) for each in decision.fresh]
        stored = {entry.envelope for entry in self.entries}
        conflict = next((each for each in decision.known if each.data not in stored), None)
        acked += [(each.header.counter, Seq(1)) for each in decision.known if conflict is None]
        if acked:
            self.sender.on_ack(Ack(self.space.log.space, acked), now_ms)
        if conflict is not None:
            self.reject(conflict.header.counter, "counter_conflict")
        elif decision.refusal is not None:
            self.reject(decision.refusal.counter, decision.refusal.error.code)
        self._note_events()

    def take(self, push: list[bytes], now_ms: int = NOW) -> Decision:
        """Take a push without a word."""
        sensor = self.sensor
        author = Author(sensor.keys.account, sensor.device.device, sensor.device.sign_pk)
        decision = self.sequencer.decide(push, author)
        self.sequencer.confirm(decision.fresh)
        for envelope in decision.fresh:
            self.entries.append(Entry(Seq(len(self.entries) + 1), now_ms, envelope.data))
        return decision

    def reject(self, counter: int, code: str, retry_after_ms: int = 0) -> None:
        own = self.sequencer.head_of(self.sensor.device.device)
        frame = Reject(self.space.log.space, Counter(counter), code, "", retry_after_ms, own.counter, own.id)
        self.sender.on_reject(frame, NOW)
        self._note_events()

    def restore_server(self, entries: int) -> None:
        """The server goes on from a backup that has so many entries."""
        self.entries = self.entries[:entries]
        page = self.space.reader().read(self.entries)
        heads = {device: DeviceHead(head.counter, head.id) for device, head in page.heads.items()}
        self.sequencer = Sequencer(self.space.log.space, self.space.log, heads)
        self.sender.on_disconnected()

    def _note_events(self) -> None:
        for event in self.sender.take_events():
            if isinstance(event, WritesConfirmed):
                self.confirmed += event.tokens
            elif isinstance(event, WritesRefused):
                self.refused.append(event)

    # A reader

    def documents(self) -> dict[str, Any]:
        """Return what a member reads, by what follows the sensor's id."""
        page = self.space.reader(decode=decode_content).read(self.entries)
        assert not page.quarantined
        found: dict[str, Document] = {}
        for opened in page.opened:
            for edit in opened.content.edits:
                found.setdefault(edit.id, Document.empty()).apply(edit, opened.source.device)
        return {name.removeprefix(self.id): document.value() for name, document in found.items()}

    def document(self, name: str) -> Document:
        page = self.space.reader(decode=decode_content).read(self.entries)
        document = Document.empty()
        for opened in page.opened:
            for edit in opened.content.edits:
                if edit.id == self.id + name:
                    document.apply(edit, opened.source.device)
        return document
