"""The client's end of a session: handshake, attachments, pushes in flight, calls. Sans-I/O.

Frames go in with `receive`, events come out; what must be sent lies in `take_output`. See spec/protocol.md, section 3.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from enum import Enum

import msgspec

from twinlock.errors import (
    IncarnationError,
    LimitExceededError,
    SignatureError,
    TwinlockError,
    UnexpectedFrameError,
    WrongServerError,
    error_from_code,
)
from twinlock.ids import AccountId, Counter, DeviceId, Epoch, Incarnation, Seq, SpaceId
from twinlock.protocol import codec, proofs
from twinlock.protocol.envelope import HEADER_BYTES
from twinlock.protocol.frames import (
    Ack,
    Attach,
    Attached,
    Call,
    Challenge,
    ClientFrame,
    Detach,
    Entries,
    Goaway,
    Hello,
    Lease,
    Leases,
    Notice,
    Push,
    Reject,
    Reply,
    ServerFrame,
    Signal,
    Signals,
    Welcome,
)
from twinlock.protocol.limits import (
    CONNECTION_CALLS_IN_FLIGHT_MAX,
    CONNECTION_PUSHES_IN_FLIGHT_MAX,
    CONNECTION_SPACES_MAX,
    PUSH_BYTES_MAX,
    PUSH_ENVELOPES_MAX,
    SIGNAL_BYTES_MAX,
)

NONCE_BYTES = 32
LEASES_IN_FLIGHT_MAX = CONNECTION_CALLS_IN_FLIGHT_MAX // 2
"""A device of many spaces asks for all its keys at once; the rest of the window is left to calls."""

_COUNTER = slice(40, 48)
"""Where the counter stands in an envelope's header."""


class ClientIdentity(msgspec.Struct, frozen=True):
    """Who says hello: a device of an account, and how it signs. Without a device the session is anonymous.

    `token` is one of the application's own issuer, for servers that ask for it; it is bound to the device's signature.
    """

    account: AccountId = AccountId(b"")
    device: DeviceId = DeviceId(b"")
    sign: Callable[[bytes], bytes] | None = None
    token: str = ""

    def __repr__(self) -> str:
        return f"ClientIdentity({self.account.hex()!r}, {self.device.hex()!r}, hidden)"


class Welcomed(msgspec.Struct, frozen=True):
    """The server proved its key and took the hello. `server_id` is to be pinned if nothing was pinned yet.

    `clock_offset_ms`, added to this device's clock, gives the server's; it is exact to half of `round_trip_ms`.
    """

    server_id: bytes
    incarnation: Incarnation
    session: int
    limits: dict[str, int]
    ticket: bytes
    clock_offset_ms: int
    round_trip_ms: int


class Replied(msgspec.Struct, frozen=True):
    """A call's reply: `result` is its MessagePack, or `error` says why there is none."""

    call: int
    result: msgspec.Raw
    error: TwinlockError | None


Event = Welcomed | Attached | Ack | Reject | Entries | Leases | Signals | Replied | Notice | Goaway


class _State(Enum):
    CONNECTING = "connecting"
    CHALLENGED = "challenged"
    WELCOMED = "welcomed"
    CLOSED = "closed"


class ClientSession:
    """One connection's state machine; a reconnect makes a new one.

    Nothing that the server says is believed before its signature over both nonces verified under the pinned key.
    Any error raised by `receive` ends the session: the connection must be closed.

    Args:
        identity: the device that signs in.
        origin: `scheme://host:port` that was dialled; the hello is worth nothing at another.
        server_id: the pinned server, or None to trust the first (sign-up).
        entropy: the source of the nonce.
        ticket: what the last welcome gave, to be let in sooner.
    """

    __slots__ = (
        "_attached",
        "_calls",
        "_challenge",
        "_client_nonce",
        "_entropy",
        "_hello_ms",
        "_identity",
        "_leases",
        "_left",
        "_next_call",
        "_origin",
        "_output",
        "_pushes",
        "_server_id",
        "_state",
        "_ticket",
        "_waiting_leases",
    )

    def __init__(
        self,
        identity: ClientIdentity,
        origin: str,
        server_id: bytes | None,
        entropy: Callable[[int], bytes],
        ticket: bytes = b"",
    ) -> None:
        self._identity = identity
        self._origin = origin
        self._server_id = server_id
        self._entropy = entropy
        self._ticket = ticket
        self._state = _State.CONNECTING
        self._challenge: Challenge | None = None
        self._client_nonce = b""
        self._hello_ms = 0
        self._output: list[bytes] = []
        self._attached: dict[SpaceId, bool] = {}
        self._left: set[SpaceId] = set()
        self._pushes: dict[SpaceId, deque[Counter]] = {}
        self._calls: set[int] = set()
        self._next_call = 1
        self._leases: set[bytes] = set()
        self._waiting_leases: deque[Lease] = deque()

    @property
    def welcomed(self) -> bool:
        """Whether the handshake is done and the session open."""
        return self._state is _State.WELCOMED

    @property
    def push_room(self) -> int:
        """How many more pushes may be in flight now."""
        return CONNECTION_PUSHES_IN_FLIGHT_MAX - sum(map(len, self._pushes.values()))

    @property
    def call_room(self) -> int:
        """How many more calls may be in flight now; leases that are not answered yet count too."""
        return CONNECTION_CALLS_IN_FLIGHT_MAX - len(self._calls) - len(self._leases)

    def is_attached(self, space: SpaceId) -> bool:
        """Tell whether the server has confirmed the attachment of a space."""
        return self._attached.get(space, False)

    def take_output(self) -> list[bytes]:
        """Return the frames that must be sent now, in order."""
        output, self._output = self._output, []
        return output

    def receive(self, data: bytes, now_ms: int) -> Event | None:
        """Take in one message of the server and return what it means (None for the challenge).

        Args:
            data: one binary message.
            now_ms: this device's own clock, uncorrected.

        Raises:
            WrongServerError: the server is not the pinned one, or cannot prove it.
            MalformedFrameError, UnexpectedFrameError, LimitExceededError: it does not keep to the protocol.
            TwinlockError: before the welcome, the reason why the server refused the hello.
        """
        if self._state is _State.CLOSED:
            raise UnexpectedFrameError("the session is closed")
        try:
            frame = codec.decode_server(data)
            if self._state is _State.WELCOMED:
                return self._on_frame(frame)
            return self._on_handshake(frame, now_ms)
        except TwinlockError:
            self._state = _State.CLOSED
            raise

    # Handshake

    def _on_handshake(self, frame: ServerFrame, now_ms: int) -> Event | None:
        match frame:
            case Challenge() if self._state is _State.CONNECTING:
                self._answer(frame, now_ms)
                return None
            case Welcome() if self._state is _State.CHALLENGED:
                return self._on_welcome(frame, now_ms)
            case Notice():
                raise error_from_code(frame.code, frame.detail, frame.retry_after_ms)
            case Goaway():
                return frame
        raise UnexpectedFrameError(f"{type(frame).__name__} while {self._state.value}")

    def _answer(self, frame: Challenge, now_ms: int) -> None:
        server_id = proofs.server_id_of(frame.server_pk)
        if self._server_id is not None and server_id != self._server_id:
            raise WrongServerError("its key is not the pinned one")
        self._challenge = frame
        self._client_nonce = self._entropy(NONCE_BYTES)
        self._hello_ms = now_ms
        self._state = _State.CHALLENGED
        who = self._identity
        signature = b""
        if who.sign is not None:
            message = proofs.hello_message(
                server_id=server_id,
                origin=self._origin,
                incarnation=frame.incarnation,
                account=who.account,
                device=who.device,
                server_nonce=frame.nonce,
                client_nonce=self._client_nonce,
            )
            signature = who.sign(proofs.with_token(message, who.token))
        hello = Hello(self._client_nonce, self._origin, who.account, who.device, signature, self._ticket, who.token)
        self._send(hello)

    def _on_welcome(self, frame: Welcome, now_ms: int) -> Welcomed:
        challenge = self._challenge
        assert challenge is not None
        server_id = proofs.server_id_of(challenge.server_pk)
        message = proofs.welcome_message(
            server_id=server_id,
            incarnation=challenge.incarnation,
            server_nonce=challenge.nonce,
            client_nonce=self._client_nonce,
            device=self._identity.device,
        )
        try:
            proofs.verify(challenge.server_pk, frame.signature, message)
        except SignatureError as exc:
            raise WrongServerError("its welcome is not signed by its key") from exc
        self._state = _State.WELCOMED
        # The server read its clock at some moment between our hello and now: the middle is the best guess.
        middle_ms = (self._hello_ms + now_ms) // 2
        return Welcomed(
            server_id=server_id,
            incarnation=challenge.incarnation,
            session=frame.session,
            limits=frame.limits,
            ticket=frame.ticket,
            clock_offset_ms=frame.server_time_ms - middle_ms,
            round_trip_ms=now_ms - self._hello_ms,
        )

    # Open session: what comes in

    def _on_frame(self, frame: ServerFrame) -> Event | None:
        match frame:
            case Entries():
                return self._on_entries(frame)
            case Ack():
                self._settle(frame.space, max((counter for counter, _ in frame.acked), default=Counter(0)))
                return frame
            case Reject():
                # The server refuses all that follows of this device until that counter comes again.
                self._pushes.pop(frame.space, None)
                return frame
            case Attached():
                return self._on_attached(frame)
            case Reply():
                return self._on_reply(frame)
            case Leases():
                self._leases.discard(frame.nonce)
                self._send_leases()
                return frame
            case Signals() | Notice() | Goaway():
                return frame
        raise UnexpectedFrameError(f"{type(frame).__name__} in an open session")

    def _on_attached(self, frame: Attached) -> Attached | None:
        if frame.space not in self._attached:
            return None  # Detached meanwhile.
        assert self._challenge is not None
        if frame.incarnation != self._challenge.incarnation:
            raise IncarnationError("attached to another incarnation than the challenge named")
        self._attached[frame.space] = True
        return frame

    def _on_entries(self, frame: Entries) -> Entries | None:
        if self._attached.get(frame.space):
            return frame
        if frame.space in self._attached and frame.space not in self._left:
            raise UnexpectedFrameError("entries of a space before its `attached`")
        return None  # What was on its way when the earlier attachment ended.

    def _on_reply(self, frame: Reply) -> Replied:
        if frame.id not in self._calls:
            raise UnexpectedFrameError(f"a reply to call {frame.id}, which is not open")
        self._calls.discard(frame.id)
        self._send_leases()
        error = frame.error
        failure = error_from_code(error.code, error.detail, error.retry_after_ms) if error is not None else None
        return Replied(frame.id, frame.result, failure)

    def _settle(self, space: SpaceId, upto: Counter) -> None:
        pushes = self._pushes.get(space)
        while pushes and pushes[0] <= upto:
            pushes.popleft()

    # Open session: what goes out

    def attach(self, space: SpaceId, incarnation: bytes, cursor: Seq) -> None:
        """Ask for delivery of a space from a cursor on.

        Raises:
            LimitExceededError: 512 spaces are attached already.
        """
        if space not in self._attached and len(self._attached) >= CONNECTION_SPACES_MAX:
            raise LimitExceededError(f"{CONNECTION_SPACES_MAX} spaces are attached to this connection already")
        if space in self._attached:
            self._left.add(space)
        self._attached[space] = False
        self._send_open(Attach(space, incarnation, cursor))

    def detach(self, space: SpaceId) -> None:
        """End delivery of a space; what is still on its way is dropped here."""
        if self._attached.pop(space, None) is not None:
            self._left.add(space)
            self._pushes.pop(space, None)
            self._send_open(Detach(space))

    def push(self, space: SpaceId, envelopes: Sequence[bytes]) -> None:
        """Send envelopes to be committed, in order. At most `push_room` more may be in flight.

        Raises:
            LimitExceededError: too many or too large for one push, or no room in the window.
        """
        if not 1 <= len(envelopes) <= PUSH_ENVELOPES_MAX or sum(map(len, envelopes)) > PUSH_BYTES_MAX:
            raise LimitExceededError(f"a push of {len(envelopes)} envelopes, {sum(map(len, envelopes))} bytes")
        if self.push_room < 1:
            raise LimitExceededError(f"{CONNECTION_PUSHES_IN_FLIGHT_MAX} pushes are in flight already")
        assert len(envelopes[-1]) > HEADER_BYTES
        last = Counter(int.from_bytes(envelopes[-1][_COUNTER], "big"))
        self._pushes.setdefault(space, deque()).append(last)
        self._send_open(Push(space, list(envelopes)))

    def lease(self, request: Lease) -> None:
        """Ask for service keys, with a request that the device has signed; it waits while too many are in flight."""
        self._check_open(request)
        self._waiting_leases.append(request)
        self._send_leases()

    def request_lease(self, space: SpaceId, epochs: Sequence[Epoch], now_ms: int) -> bytes:
        """Sign and send a request for service keys; return its nonce, which the answer repeats.

        Args:
            space: the space.
            epochs: the epochs whose keys are missing or end soon.
            now_ms: the corrected time.
        """
        who = self._identity
        assert who.sign is not None
        nonce = self._entropy(NONCE_BYTES)
        message = proofs.lease_message(
            space=space,
            epochs=list(epochs),
            nonce=nonce,
            time_ms=now_ms,
            account=who.account,
            device=who.device,
        )
        self.lease(Lease(space, list(epochs), nonce, now_ms, who.sign(message)))
        return nonce

    def signal(self, space: SpaceId, sealed: bytes) -> None:
        """Relay a sealed signal to those who are attached now.

        Raises:
            LimitExceededError: it is over 16 KiB.
        """
        if len(sealed) > SIGNAL_BYTES_MAX:
            raise LimitExceededError(f"a signal of {len(sealed)} bytes")
        self._send_open(Signal(space, sealed))

    def call(self, method: str, params: msgspec.Struct) -> int:
        """Send a request and return its number, which `Replied` repeats.

        Raises:
            LimitExceededError: 64 calls are open already.
        """
        if self.call_room < 1:
            raise LimitExceededError(f"{CONNECTION_CALLS_IN_FLIGHT_MAX} calls are in flight already")
        number = self._next_call
        self._next_call += 1
        self._calls.add(number)
        self._send_open(Call(number, method, msgspec.Raw(msgspec.msgpack.encode(params))))
        return number

    def close(self) -> None:
        """End the session; nothing more goes in or out."""
        self._state = _State.CLOSED
        self._output.clear()

    def _send_leases(self) -> None:
        while self._waiting_leases and self.call_room > 0 and len(self._leases) < LEASES_IN_FLIGHT_MAX:
            request = self._waiting_leases.popleft()
            self._leases.add(request.nonce)
            self._send(request)

    def _send_open(self, frame: ClientFrame) -> None:
        self._check_open(frame)
        self._send(frame)

    def _check_open(self, frame: ClientFrame) -> None:
        if self._state is not _State.WELCOMED:
            raise UnexpectedFrameError(f"{type(frame).__name__} while {self._state.value}")

    def _send(self, frame: ClientFrame) -> None:
        self._output.append(codec.encode(frame))
