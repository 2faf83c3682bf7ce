"""A server for simulations: the real rules for pushes over a log that can be killed and restored to an older state."""

from __future__ import annotations

import msgspec

from twinlock.contracts import DeviceHead
from twinlock.errors import CounterConflictError
from twinlock.ids import Counter, DeviceId, EnvelopeId, Incarnation, Seq
from twinlock.protocol import codec, proofs
from twinlock.protocol.calls import CutResult
from twinlock.protocol.frames import (
    Ack,
    Attach,
    Attached,
    Challenge,
    ClientFrame,
    Entries,
    Entry,
    Hello,
    Push,
    Reject,
    ServerFrame,
    Welcome,
)
from twinlock.protocol.space_log import SpaceLogState
from twinlock.sealing.identity import DeviceKeys
from twinlock.sealing.suite import Entropy
from twinlock.server.sequencer import Author, Refusal, Sequencer

PAGE_ENTRIES = 7
"""Few, so that a catch-up takes several pages."""


class Backup(msgspec.Struct, frozen=True):
    """An older state of the log."""

    entries: list[Entry]
    start: Seq
    heads: dict[DeviceId, DeviceHead]


class Connection:
    """A socket: two queues of messages, and how far the log was delivered on it."""

    __slots__ = ("author", "delivered", "is_open", "nonce", "to_client", "to_server")

    def __init__(self, author: Author, nonce: bytes) -> None:
        self.author = author
        self.nonce = nonce
        self.to_server: list[bytes] = []
        self.to_client: list[bytes] = []
        self.delivered: Seq | None = None
        self.is_open = True

    def send(self, frame: ServerFrame) -> None:
        """Put a frame on its way to the client."""
        self.to_client.append(codec.encode(frame))


class SimulatedServer:
    """One space's server. What it acknowledges is durable; `restore` goes back behind that all the same."""

    def __init__(self, rules: SpaceLogState, keys: DeviceKeys, entropy: Entropy) -> None:
        self._keys = keys
        self._entropy = entropy
        self.rules = rules
        self.entries: list[Entry] = []
        self.start = Seq(1)
        self.incarnation = Incarnation(entropy(16))
        self._births: list[tuple[Incarnation, Seq]] = [(self.incarnation, Seq(0))]
        self._sequencer = Sequencer(rules.space, rules, {})
        self.connections: list[Connection] = []
        self._taken: dict[tuple[DeviceId, Counter], EnvelopeId] = {}
        self._clock_ms = self._receive_ms = 0

    @property
    def head(self) -> Seq:
        """The newest entry."""
        return self.entries[-1].seq if self.entries else Seq(self.start - 1)

    def install(self, rules: SpaceLogState) -> None:
        """Go on by a newer log of the space."""
        self.rules = self._sequencer.rules = rules

    def set_clock(self, ahead_ms: int) -> None:
        """Set the server's clock so far before the right time; receive times do not go back while the process runs."""
        self._clock_ms = ahead_ms
        self._receive_ms = max(self._receive_ms, ahead_ms)

    def connect(self, author: Author, now_ms: int) -> Connection:
        """Accept a connection and challenge it."""
        connection = Connection(author, self._entropy(32))
        connection.send(Challenge(connection.nonce, self._keys.sign_pk, self.incarnation, now_ms + self._clock_ms))
        self.connections.append(connection)
        return connection

    def kill(self) -> None:
        """End the process: every connection breaks, whatever is on its way is lost."""
        for connection in self.connections:
            connection.is_open = False
        self.connections.clear()
        self._receive_ms = self._clock_ms
        self._sequencer.restore(self._sequencer.durable)

    def drop(self, connection: Connection) -> None:
        """Break one connection; whatever is on its way is lost."""
        connection.is_open = False
        if connection in self.connections:
            self.connections.remove(connection)

    def backup(self) -> Backup:
        """Keep the present state."""
        return Backup(list(self.entries), self.start, dict(self._sequencer.durable))

    def restore(self, backup: Backup) -> None:
        """Come back with an older state and a new incarnation."""
        self.kill()
        self.entries = list(backup.entries)
        self.start = backup.start
        self.incarnation = Incarnation(self._entropy(16))
        self._births.append((self.incarnation, self.head))
        self._sequencer = Sequencer(self.rules.space, self.rules, backup.heads)

    def step(self, connection: Connection, now_ms: int) -> bool:
        """Take in one message of a connection; return whether there was one."""
        if not connection.to_server or not connection.is_open:
            return False
        frame = codec.decode_client(connection.to_server.pop(0))
        self._take(connection, frame, now_ms)
        return True

    def _take(self, connection: Connection, frame: ClientFrame, now_ms: int) -> None:
        match frame:
            case Hello():
                self._welcome(connection, frame, now_ms)
            case Attach():
                self._attach(connection, frame)
            case Push():
                self._push(connection, frame, now_ms)

    def _welcome(self, connection: Connection, frame: Hello, now_ms: int) -> None:
        author = connection.author
        server_id = proofs.server_id_of(self._keys.sign_pk)
        nonces = (connection.nonce, frame.client_nonce)
        hello = proofs.hello_message(server_id, frame.origin, self.incarnation, frame.account, frame.device, *nonces)
        proofs.verify(author.sign_pk, frame.signature, hello)
        welcome = proofs.welcome_message(server_id, self.incarnation, *nonces, frame.device)
        connection.send(Welcome(self._keys.sign.sign(welcome), now_ms + self._clock_ms, 1, {}))

    def _attach(self, connection: Connection, frame: Attach) -> None:
        resume = self._resume(frame)
        head = self._sequencer.head_of(connection.author.device)
        self._sequencer.forget_refusal(connection.author.device)
        if frame.incarnation and frame.incarnation != self.incarnation:
            self._sequencer.allow_healing(connection.author.device)
        log_bytes = sum(len(entry.envelope) for entry in self.entries if entry.seq >= self.start)
        connection.send(
            Attached(
                frame.space,
                self.incarnation,
                self.start,
                self.head,
                resume,
                log_bytes,
                head.counter,
                head.id,
                self.rules.seq,
                self.rules.head,
            )
        )
        connection.delivered = Seq(max(resume, self.start - 1))

    def _resume(self, frame: Attach) -> Seq:
        """Return the cursor, or the lowest birth head of the lives that came after the one it was given in."""
        names = [name for name, _ in self._births]
        if frame.incarnation not in names:
            return frame.cursor
        later = self._births[names.index(Incarnation(frame.incarnation)) + 1 :]
        return min([frame.cursor, *(birth for _, birth in later)])

    def _push(self, connection: Connection, frame: Push, now_ms: int) -> None:
        device = connection.author.device
        decision = self._sequencer.decide(frame.envelopes, connection.author)
        acked: list[tuple[Counter, Seq]] = []
        refusal = decision.refusal
        for envelope in decision.known:
            if self._taken[device, envelope.header.counter] != envelope.id:
                # A clone of the device was first.
                refusal = Refusal(envelope.header.counter, CounterConflictError())
                break
            acked.append((envelope.header.counter, self._seq_of(envelope.data)))
        newest_ms = self.entries[-1].received_ms if self.entries else 0
        received_ms = max(now_ms + self._receive_ms, newest_ms)
        for envelope in decision.fresh:
            seq = Seq(self.head + 1)
            self.entries.append(Entry(seq, received_ms, envelope.data))
            self._taken[device, envelope.header.counter] = envelope.id
            acked.append((envelope.header.counter, seq))
        self._sequencer.confirm(decision.fresh)
        if acked:
            connection.send(Ack(frame.space, acked))
        if refusal is not None:
            head, error = self._sequencer.head_of(device), refusal.error
            connection.send(Reject(frame.space, refusal.counter, error.code, error.detail, 0, head.counter, head.id))

    def _seq_of(self, data: bytes) -> Seq:
        return next((entry.seq for entry in self.entries if entry.envelope == data), Seq(0))

    def deliver(self, connection: Connection) -> bool:
        """Send the next page of entries to a connection; return whether there was any."""
        if connection.delivered is None or not connection.is_open:
            return False
        after = connection.delivered
        if after + 1 < self.start:
            # What was to come next has been cut: the device must attach anew to learn that it skips something.
            self.drop(connection)
            return False
        page = [entry for entry in self.entries if entry.seq > after and entry.seq >= self.start][:PAGE_ENTRIES]
        if not page:
            return False
        connection.delivered = page[-1].seq
        connection.send(Entries(self.rules.space, page, self.head))
        return True

    def cut(self, incarnation: bytes, upto: Seq) -> CutResult | None:
        """Cut the log's head, by the same rules as the engines; None where the call is refused."""
        if incarnation != self.incarnation or upto > self.head:
            return None
        self.start = Seq(max(self.start, upto + 1))
        # What is cut is gone, as after the grace.
        self.entries = [entry for entry in self.entries if entry.seq >= self.start]
        return CutResult(self.start, sum(len(entry.envelope) for entry in self.entries))
