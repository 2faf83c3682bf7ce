"""Frames and transcripts of sessions, played against the real ends of a session. See spec/vectors/README.md."""

import json
from collections import deque
from pathlib import Path

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from tools.vector_notation import read_bytes, written
from twinlock.contracts import DeviceHead
from twinlock.errors import ProofError, SignatureError, TwinlockError, error_from_code
from twinlock.ids import AccountId, Counter, DeviceId, EnvelopeId, Epoch, Incarnation, SpaceId
from twinlock.protocol import codec, proofs
from twinlock.protocol.client import ClientIdentity, ClientSession, Welcomed
from twinlock.protocol.frames import (
    Ack,
    Attach,
    Call,
    Detach,
    Hello,
    Lease,
    Leases,
    Notice,
    Push,
    Reject,
    Reply,
    Signal,
    Welcome,
)
from twinlock.protocol.server import ServerSession
from twinlock.protocol.space_log import Member, Role, SpaceLogState
from twinlock.server.sequencer import Author, Sequencer

FOLDER = Path(__file__).parents[2] / "spec" / "vectors"
SESSIONS = sorted(path.stem for path in (FOLDER / "sessions").glob("*.json"))


def read(construct: str) -> dict:
    return json.loads((FOLDER / f"{construct}.json").read_text(encoding="utf-8"))


def of(case, name: str) -> bytes:
    """Return a field that is written in hexadecimal."""
    return bytes.fromhex(case[name])


# Frames

DECODERS = {"client": codec.decode_client, "server": codec.decode_server}
FRAMES = read("frames")


def named(cases):
    return [pytest.param(case, id=case["name"]) for case in cases]


@pytest.mark.parametrize("case", named(FRAMES["accept"]))
def test_a_frame_is_read_and_written_as_its_vector_says(case):
    frame = DECODERS[case["from"]](of(case, "received" if "received" in case else "bytes"))

    assert type(frame).__name__.lower() == case["frame"]
    assert fields_of(frame) == (case["tag"], case["fields"])
    assert codec.encode(frame) == of(case, "bytes")


@pytest.mark.parametrize("case", named(FRAMES["reject"]))
def test_what_is_no_frame_is_refused(case):
    with pytest.raises(TwinlockError) as refused:
        DECODERS[case["from"]](read_bytes(case["received"]))

    assert refused.value.code == case["error"]


def fields_of(frame):
    tag, *fields = msgspec.msgpack.decode(codec.encode(frame))
    names = [field.name for field in msgspec.structs.fields(type(frame))][: len(fields)]
    return tag, {name: written(field) for name, field in zip(names, fields, strict=True)}


# Sessions

TRANSCRIPTS = [
    pytest.param(case, id=f"{name}: {case['name']}")
    for name in SESSIONS
    for part in ("accept", "reject")
    for case in read(f"sessions/{name}")[part]
]


def played_by(side: str):
    return [param for param in TRANSCRIPTS if param.values[0]["side"] in (side, "both")]


@pytest.mark.parametrize("case", played_by("client"))
def test_a_client_does_what_the_transcript_says(case):
    client = ClientSide(case["given"])
    for step in case["steps"]:
        (client.say if step["from"] == "client" else client.hear)(step)
    assert client.session.take_output() == []


@pytest.mark.parametrize("case", played_by("server"))
def test_a_server_does_what_the_transcript_says(case):
    server = ServerSide(case["given"])
    for step in case["steps"]:
        (server.hear if step["from"] == "client" else server.say)(step)
    is_refused = case["steps"][-1]["outcome"] == "limit_exceeded"
    assert is_refused or not server.owed


@pytest.mark.parametrize("case", TRANSCRIPTS)
def test_the_fields_of_a_step_are_those_of_its_bytes(case):
    for step in case["steps"]:
        for data in datas_of(step):
            frame = decoded(step, data)
            assert frame is None or type(frame).__name__.lower() == step["frame"]
            if "fields" in step and frame is not None:
                assert fields_of(frame) == (step["tag"], step["fields"])


def datas_of(step) -> list[bytes]:
    """Return the messages of a step, mostly one."""
    return [bytes.fromhex(data) for data in step["each"]] if "each" in step else [read_bytes(step["bytes"])]


def decoded(step, data: bytes):
    return None if step["outcome"] == "malformed_frame" else DECODERS[step["from"]](data)


class ClientSide:
    """A client that is told what to send, and hears what the transcript's server says."""

    def __init__(self, given) -> None:
        device = DeviceId(of(given, "device"))
        sign = Ed25519PrivateKey.from_private_bytes(of(given, "device_sign_private")).sign if device else None
        chance = deque(bytes.fromhex(data) for data in given["client_random"])
        self.session = ClientSession(
            ClientIdentity(AccountId(of(given, "account")), device, sign, given.get("token", "")),
            given["origin"],
            of(given, "pinned_server_id") or None,
            lambda count: chance.popleft()[:count],
            of(given, "ticket"),
        )

    def hear(self, step) -> None:
        for data in datas_of(step):
            if step["outcome"] in ("taken", "passed over"):
                event = self.session.receive(data, step.get("at_ms", 0))
                assert (event is None) == (step["outcome"] == "passed over" or step["frame"] == "challenge")
                self.check_told(step, event)
                continue
            with pytest.raises(TwinlockError) as refused:
                self.session.receive(data, step.get("at_ms", 0))
            assert refused.value.code == step["outcome"]
            assert self.session.take_output() == []
            with pytest.raises(TwinlockError):
                self.session.receive(data, 0)

    def check_told(self, step, event) -> None:
        if "tells" in step:
            assert isinstance(event, Welcomed)
            told = {"clock_offset_ms": event.clock_offset_ms, "round_trip_ms": event.round_trip_ms}
            assert told == step["tells"]

    def say(self, step) -> None:
        for data in datas_of(step):
            frame = codec.decode_client(data)
            if step["outcome"] == "unsent":
                with pytest.raises(TwinlockError) as refused:
                    self.ask_for(frame)
                assert refused.value.code == step["error"]
                assert self.session.take_output() == []
                continue
            self.ask_for(frame)
            assert self.session.take_output() == [data]

    def ask_for(self, frame) -> None:
        session = self.session
        match frame:
            case Attach(space, incarnation, cursor):
                session.attach(space, incarnation, cursor)
            case Detach(space):
                session.detach(space)
            case Push(space, envelopes):
                session.push(space, envelopes)
            case Signal(space, sealed):
                session.signal(space, sealed)
            case Lease(space, epochs, nonce, time_ms):
                assert session.request_lease(space, epochs, time_ms) == nonce
            case Call(number, method, params):
                assert session.call(method, msgspec.msgpack.decode(params)) == number
            case Hello():
                """Said unasked, in answer to the challenge."""


class ServerSide:
    """A server's end of a session and its sequencer; what they owe the client is compared with what the server says."""

    def __init__(self, given) -> None:
        self.given = given
        self.session = ServerSession(of(given, "server_nonce"), given["server_ms"])
        self.space = SpaceId(of(given, "space"))
        self.account, self.device = AccountId(of(given, "account")), DeviceId(of(given, "device"))
        self.author = Author(self.account, self.device, of(given, "device_sign_pk"))
        role, epochs = Role(given.get("role", "owner")), range(1, given["epoch"] + 1)
        members = {self.account: Member(b"", b"", role, ((1, role),))}
        rules = SpaceLogState(
            space=self.space,
            partition=0,
            members=members,
            epochs=dict.fromkeys(epochs),
            epoch=Epoch(given["epoch"]),
            head_prefixes={},
            seq=1,
            head=b"",
        )
        heads = {
            DeviceId(bytes.fromhex(device)): DeviceHead(Counter(counter), EnvelopeId(bytes.fromhex(name)))
            for device, counter, name in given["server_heads"]
        }
        self.sequencer = Sequencer(self.space, rules, heads)
        self.owed: list[tuple[str, int]] = []
        self.fresh = {}

    def hear(self, step) -> None:
        for data in datas_of(step):
            if step["outcome"] == "taken":
                self.take(codec.decode_client(data), step)
                continue
            with pytest.raises(TwinlockError) as refused:
                self.take(codec.decode_client(data), step)
            assert refused.value.code == step["outcome"]

    def take(self, frame, step) -> None:
        self.session.take(frame)
        match frame:
            case Hello():
                self.prove(frame, self.session.take_challenge(step["at_ms"]))
            case Attach(space):
                # A server counts the space from here on, before it has looked for it.
                self.session.attached(space)
            case Detach(space):
                self.session.detached(space)
            case Push(space, envelopes) if space == self.space:
                self.decide(envelopes, step)

    def prove(self, hello: Hello, nonce: bytes) -> None:
        """Check a hello as protocol.md, section 3, says."""
        if hello.origin not in self.given["server_origins"]:
            raise ProofError
        if not hello.device:
            return
        message = proofs.hello_message(
            proofs.server_id_of(of(self.given, "server_pk")),
            hello.origin,
            Incarnation(of(self.given, "incarnation")),
            hello.account,
            hello.device,
            nonce,
            hello.client_nonce,
        )
        try:
            proofs.verify(self.author.sign_pk, hello.signature, proofs.with_token(message, hello.token))
        except SignatureError as exc:
            raise ProofError from exc

    def decide(self, envelopes, step) -> None:
        if "server_refuses" in step:
            error = error_from_code(step["server_refuses"])
            decision = self.sequencer.refuse(envelopes, self.device, error)
        else:
            decision = self.sequencer.decide(envelopes, self.author)
        for envelope in decision.fresh:
            self.fresh[envelope.header.counter] = envelope
        self.owed += [("ack", envelope.header.counter) for envelope in (*decision.known, *decision.fresh)]
        if decision.refusal is not None:
            self.owed.append((decision.refusal.error.code, decision.refusal.counter))
        is_answered = bool(decision.known or decision.fresh or decision.refusal)
        assert is_answered == step.get("answered", True)
        if not is_answered:
            self.session.settle_push()

    def say(self, step) -> None:
        for data in datas_of(step):
            frame = codec.decode_server(data)
            match frame:
                case Welcome():
                    self.session.welcome(self.account, self.device, frame.session)
                case Notice() if frame.space:
                    self.session.detached(SpaceId(frame.space))
                case Reply() | Leases():
                    self.session.settle_call()
                case Ack():
                    self.pay([("ack", counter) for counter, _ in frame.acked])
                    self.sequencer.confirm([self.fresh[n] for n, _ in frame.acked if n in self.fresh])
                case Reject():
                    self.pay([(frame.code, frame.counter)])
                    head = self.sequencer.head_of(self.device)
                    assert (frame.own_counter, frame.own_id) == (head.counter, head.id)
        for _ in range(step.get("settles", 0)):
            self.session.settle_push()

    def pay(self, answers) -> None:
        assert self.owed[: len(answers)] == answers
        del self.owed[: len(answers)]
