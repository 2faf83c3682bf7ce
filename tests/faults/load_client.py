"""A device on the wire that goes on whatever happens: real keys, real frames, no replica, and everything taken down.

It reconnects with full jitter to one node after the other, pushes again what was not acknowledged, reads on from its
cursor, and does what `retry_after` and `goaway` say. It believes nothing else: whether what it saw may have happened is
for `twinlock.testing.checker` to judge.
"""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections import OrderedDict

import msgspec

from bench.lean_socket import LeanSocket, shake_hands
from tests.server_kit import Chain
from twinlock.errors import TwinlockError, error_from_code
from twinlock.ids import NO_ENVELOPE, Seq
from twinlock.protocol import proofs
from twinlock.protocol.client import ClientIdentity, ClientSession, Event, Welcomed
from twinlock.protocol.envelope import parse
from twinlock.protocol.frames import LOG_GROWN, Ack, Attached, Entries, Goaway, Notice, Reject
from twinlock.protocol.labels import label
from twinlock.testing.history import Acked, Connected, Delivered, Disconnected, Joined, Pushed, Recorder, Rejected, mark

CONNECT_S_MAX = 5.0
SILENCE_S_MAX = 6.0
"""A node that answers no ping for so long is left for another."""

ANSWER_S_MAX = 20.0
"""A node that has answered no push for so long is left for another, though it answers pings."""

PING_S = 1.0
BACKOFF_S = (0.05, 1.0)
"""Shorter than the SDK's half minute, so that what is measured is the server and not the patience of its clients."""

BATCH_MAX = 8
VERIFIED_EACH = 16
"""Signatures cost more than all else here; ids, which cover every byte but them, are compared for all envelopes."""

_RETRIES = ("now", "later", "reseal")
_NEVER = ("counter_conflict", "prev_mismatch", "stale_epoch")
"""What no server may say to a client that seals each counter once, under the only epoch that there is."""

_PING = bytes((0x89, 0x80, 0, 0, 0, 0))


class _Waiting(msgspec.Struct, frozen=True, gc=False):
    data: bytes
    id: str
    offered_s: float


class Refused(Exception):
    """The node asked to come back later, or said why the connection ends."""

    def __init__(self, code: str, retry_after_ms: int) -> None:
        super().__init__(code)
        self.retry_after_ms = retry_after_ms


class _Socket(LeanSocket):
    """Knows when it last heard anything."""

    __slots__ = ("heard_s",)

    def __init__(self, receiver) -> None:
        super().__init__(receiver)
        self.heard_s = time.monotonic()

    def data_received(self, data: bytes) -> None:
        self.heard_s = time.monotonic()
        super().data_received(data)

    def ping(self) -> None:
        self.transport.write(_PING)


class LoadClient:
    """One device in one space: it reads, and writes if it has a chain to write to.

    Args:
        name: what it is called in the history.
        identity: how it says hello.
        space: the space.
        ports: the nodes that it may dial, on the loopback.
        recorder: takes down all of it.
        chance: decides where it goes and how much it writes at once.
        chain: makes its envelopes; without one it only reads.
    """

    def __init__(self, name, identity: ClientIdentity, space, ports, recorder: Recorder, chance, chain=None) -> None:
        self.name = name
        self.space = space
        self.ports = list(ports)
        self.window = 32
        self.batch_max = BATCH_MAX
        self.body_bytes = 200
        self.pace_s = 0.0
        """How long it rests between its pushes, about."""

        self.verify_pks: dict[str, bytes] = {}
        """Keys by device: where one is known, the signature of every so many envelopes is verified."""

        self.cursor = 0
        self.acked_seq = 0
        self.acked_count = 0
        self.may_write = chain is not None
        self.failure: str = ""
        self.codes: dict[str, int] = {}
        self.ack_latency_s: list[tuple[float, float]] = []
        """When an envelope was acknowledged and how long that took from its first push."""

        self._identity = identity
        self._recorder = recorder
        self._chance: random.Random = chance
        self._chain: Chain | None = chain
        self._incarnation = b""
        self._unacked: OrderedDict[int, _Waiting] = OrderedDict()
        self._stock: list[tuple[int, bytes, str]] = []
        self._sent_upto = 0
        self._not_before_s = 0.0
        self._socket: _Socket | None = None
        self._session: ClientSession | None = None
        self._ended: BaseException | None = None
        self._wake = asyncio.Event()
        self._pushed_s = 0.0
        self._ticket = b""
        self._failures = 0
        self.head = 0

    @property
    def unacked_count(self) -> int:
        return len(self._unacked)

    async def run(self) -> None:
        """Live through connections until cancelled, or until something happened that must not."""
        self._chance.shuffle(self.ports)
        while not self.failure:
            port = self.ports[0]
            self.ports = [*self.ports[1:], port]
            wait_s = await self._connection(port)
            if not wait_s:
                wait_s = self._chance.uniform(0, min(BACKOFF_S[1], BACKOFF_S[0] * 2**self._failures))
            self._failures = min(self._failures + 1, 10)
            await asyncio.sleep(wait_s)
        raise AssertionError(f"{self.name}: {self.failure}")

    async def _connection(self, port: int) -> float:
        """Live through one connection; return how long the node wants to be left alone."""
        why, retry_after_ms = "closed", 0
        try:
            await self._live(port)
        except Refused as refused:
            why, retry_after_ms = str(refused), refused.retry_after_ms
        except TwinlockError as error:
            why, retry_after_ms = error.code, error.retry_after_ms
            if error.retry not in _RETRIES:
                self.failure = str(error)
        except (OSError, TimeoutError) as exc:
            why = type(exc).__name__
        finally:
            if self._socket is not None:
                self._socket.close()
            self._socket = self._session = None
        self.codes[why] = self.codes.get(why, 0) + 1
        self._recorder.note(Disconnected(time.monotonic(), self.name, why, retry_after_ms))
        return retry_after_ms / 1000

    def drop(self) -> None:
        """Break the connection from this side."""
        if self._socket is not None:
            self._socket.close()

    async def _live(self, port: int) -> None:
        self._ended = None
        # Nothing is under way on a new connection.
        self._sent_upto = 0
        self._session = ClientSession(self._identity, f"ws://127.0.0.1:{port}", None, os.urandom, self._ticket)
        self._socket = socket = _Socket(self._receive)
        # A handshake that is given up still ends some time; nobody waits for that.
        socket.opened.add_done_callback(lambda opened: opened.cancelled() or opened.exception())
        async with asyncio.timeout(CONNECT_S_MAX):
            await shake_hands(socket, port)
        socket.closed.add_done_callback(lambda _: self._wake.set())
        began_s = time.monotonic()
        pinged_s = began_s
        while not socket.closed.done() and self._ended is None:
            self._push_some()
            now_s = time.monotonic()
            if now_s - socket.heard_s > SILENCE_S_MAX:
                raise TimeoutError
            if not self._session.is_attached(self.space) and now_s - began_s > ANSWER_S_MAX:
                raise TimeoutError
            if self._sent_upto and self._unacked and now_s - self._pushed_s > ANSWER_S_MAX:
                raise TimeoutError
            if now_s - pinged_s > PING_S:
                pinged_s = now_s
                socket.ping()
            self._wake.clear()
            await self._rest()
        if self._ended is not None:
            raise self._ended
        raise ConnectionResetError

    async def _rest(self) -> None:
        """Sleep until something comes, or until it is time for the next push."""
        if self.pace_s and self.may_write:
            await asyncio.sleep(self.pace_s * self._chance.uniform(0.5, 1.5))
            return
        wait_s = max(0.02, min(0.5, self._not_before_s - time.monotonic())) if self._unacked else 0.5
        # Not `wait_for`: in Python 3.11 it loses a cancellation that comes together with what it waits for.
        timer = asyncio.get_running_loop().call_later(wait_s, self._wake.set)
        try:
            await self._wake.wait()
        finally:
            timer.cancel()

    # What comes

    def _receive(self, frame: memoryview) -> None:
        session = self._session
        if session is None or self._ended is not None:
            return
        try:
            event = session.receive(bytes(frame), time.time_ns() // 1_000_000)
            if event is not None:
                self._take(event)
        except (TwinlockError, Refused) as exc:
            self._ended = exc
        except Exception as exc:
            # Raised into the transport it would only be logged: this client must fail its test.
            self.failure = f"{type(exc).__name__}: {exc}"
            self._ended = Refused("failed", 0)
        self._flush()
        self._wake.set()

    def _take(self, event: Event) -> None:
        match event:
            case Welcomed():
                self._ticket = event.ticket
                self._session.attach(self.space, self._incarnation, Seq(self.cursor))
            case Attached():
                self._on_attached(event)
            case Entries():
                self._on_entries(event)
            case Ack():
                self._on_ack(event)
            case Reject():
                self._on_reject(event)
            case Goaway():
                raise Refused("goaway", event.retry_after_ms)
            case Notice() if event.code != LOG_GROWN:
                raise error_from_code(event.code, event.detail, event.retry_after_ms)

    def _on_attached(self, event: Attached) -> None:
        now_s, device = time.monotonic(), mark(self._identity.device)
        self._recorder.note(Connected(now_s, self.name, str(self.ports[-1])))
        self._recorder.note(
            Joined(
                now_s,
                self.name,
                self.space.hex(),
                device,
                event.incarnation.hex(),
                self.cursor,
                event.resume,
                event.head,
                event.own_counter,
            )
        )
        self._incarnation = event.incarnation
        self.head = event.head
        self._failures = 0
        # Everything goes out again that was not acknowledged, also what the server says that it has.
        self._sent_upto = 0

    def _on_entries(self, event: Entries) -> None:
        seen = []
        for entry in event.entries:
            envelope = parse(entry.envelope)
            device = mark(envelope.header.device)
            seen.append((entry.seq, device, envelope.header.counter, mark(envelope.id)))
            if device in self.verify_pks and envelope.header.counter % VERIFIED_EACH == 0:
                proofs.verify(self.verify_pks[device], envelope.signature, label("envelope", envelope.id))
        self.cursor = event.entries[-1].seq
        self.head = event.head
        self._recorder.note(Delivered(time.monotonic(), self.name, self.space.hex(), seen))

    def _on_ack(self, event: Ack) -> None:
        now_s = time.monotonic()
        self._recorder.note(
            Acked(
                now_s, self.name, self.space.hex(), mark(self._identity.device), [tuple(pair) for pair in event.acked]
            )
        )
        self._pushed_s = now_s
        for counter, seq in event.acked:
            self.acked_seq = max(self.acked_seq, seq)
            sent = self._unacked.pop(counter, None)
            if sent is not None:
                self.acked_count += 1
                self.ack_latency_s.append((now_s, now_s - sent.offered_s))

    def _on_reject(self, event: Reject) -> None:
        now_s = time.monotonic()
        self._recorder.note(
            Rejected(
                now_s,
                self.name,
                self.space.hex(),
                mark(self._identity.device),
                event.counter,
                event.code,
                event.retry_after_ms,
                event.own_counter if event.own_id != NO_ENVELOPE else 0,
            )
        )
        self.codes[event.code] = self.codes.get(event.code, 0) + 1
        self._pushed_s = now_s
        self._sent_upto = 0
        self._not_before_s = now_s + max(event.retry_after_ms / 1000, 0.02)
        if error_from_code(event.code).retry not in _RETRIES or event.code in _NEVER:
            self.failure = f"rejected: {event.code} {event.detail}"

    # What goes

    def _push_some(self) -> None:
        session = self._session
        if session is None or not session.is_attached(self.space) or time.monotonic() < self._not_before_s:
            return
        if self.may_write and len(self._unacked) < self.window:
            self._seal(self._chance.randint(1, min(BATCH_MAX, self.window - len(self._unacked))))
            self.offer()
        if self._unacked and self._sent_upto < next(reversed(self._unacked)):
            waiting = [counter for counter in self._unacked if counter > self._sent_upto]
            while waiting and session.push_room > 0:
                some, waiting = waiting[: self.batch_max], waiting[self.batch_max :]
                self._push(some)
        self._flush()

    def prepare(self, count: int) -> None:
        """Seal changes that `offer` lets go all at once; nothing else may be written until then."""
        self._seal(count)

    def offer(self) -> None:
        """Begin to push everything that was prepared."""
        now_s = time.monotonic()
        for counter, data, identifier in self._stock:
            self._unacked[counter] = _Waiting(data, identifier, now_s)
        self._stock.clear()
        self._wake.set()

    def _seal(self, count: int) -> None:
        for _ in range(count):
            data = self._chain.next(self.body_bytes)
            self._stock.append((self._chain.counter, data, mark(self._chain.prev)))

    def _push(self, counters: list[int]) -> None:
        now_s = time.monotonic()
        waiting = [self._unacked[counter] for counter in counters]
        if not self._sent_upto:
            self._pushed_s = now_s
        pairs = [(counter, one.id) for counter, one in zip(counters, waiting, strict=True)]
        self._recorder.note(Pushed(now_s, self.name, self.space.hex(), mark(self._identity.device), pairs))
        self._session.push(self.space, [one.data for one in waiting])
        self._sent_upto = counters[-1]

    def _flush(self) -> None:
        if self._session is not None and self._socket is not None and self._socket.transport is not None:
            for message in self._session.take_output():
                self._socket.send(message)
