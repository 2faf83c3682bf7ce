"""What transcripts of sessions are written with: a server and a device with fixed keys, and the steps between them."""

from __future__ import annotations

from typing import Any

from tests.unit.sealing_world import Person, SeededEntropy, World
from tools.vectors_frames import Frame, described
from twinlock.ids import NO_ENVELOPE, AccountId, Counter, DeviceId, Incarnation, Seq, SpaceId
from twinlock.protocol import proofs
from twinlock.protocol.codec import encode
from twinlock.protocol.envelope import Envelope, Kind
from twinlock.protocol.frames import Attached, Challenge, Hello, Welcome
from twinlock.sealing import DeviceKeys, Sealer

Case = dict[str, Any]

ORIGIN = "wss://sync.example:443"
CLIENT_MS, SERVER_MS = 1_750_000_000_000, 1_750_000_123_000
"""The two clocks when the connection opens: the client's is 2 minutes slow."""

LIMITS = {"push_envelopes_max": 64, "push_bytes_max": 4194304}
WINDOW = 64


class Transcript:
    """One conversation, as it is written step by step.

    Args:
        name: what happens in it.
        side: who is played: "client", "server", or "both" where both keep to the protocol.
        device: whether a device says hello, or nobody.
    """

    def __init__(self, name: str, side: str = "both", device: bool = True) -> None:
        self._name, self._side, self._is_device = name, side, device
        self.steps: list[Case] = []
        self.server = DeviceKeys.make(SeededEntropy("vectors session server"))
        self.world = World(Person("vectors session"))
        self.person = self.world.owner
        entropy = SeededEntropy("vectors session nonces")
        self.server_nonce, self.client_nonce, self.lease_nonce, incarnation = (entropy(n) for n in (32, 32, 32, 16))
        self.incarnation = Incarnation(incarnation)
        self._given: Case = {"server_heads": []}

    @property
    def space(self) -> SpaceId:
        """The space that all of it is about."""
        return self.world.log.space

    @property
    def server_id(self) -> bytes:
        """What the client has pinned."""
        return proofs.server_id_of(self.server.sign_pk)

    @property
    def account(self) -> AccountId:
        """Who says hello: nobody without a device."""
        return self.person.keys.account if self._is_device else AccountId(b"")

    @property
    def device(self) -> DeviceId:
        """Which device says hello, if any."""
        return self.person.device.device if self._is_device else DeviceId(b"")

    def given(self, **changes: Any) -> Transcript:
        """State that something holds before the first step."""
        self._given.update(changes)
        return self

    # Steps

    def step(self, frame: Frame, outcome: str = "taken", **more: Any) -> Transcript:
        """Have a frame sent, and say what its receiver makes of it."""
        self.steps.append({**described(frame), "bytes": encode(frame).hex(), "outcome": outcome, **more})
        return self

    def unsent(self, frame: Frame, error: str) -> Transcript:
        """Say that a client refuses to send a frame itself."""
        return self.step(frame, "unsent", error=error)

    def bulk(self, frame: Frame, parts: list[Any], outcome: str = "taken", **more: Any) -> Transcript:
        """Have a long frame sent, which is written in parts."""
        about = described(frame)
        self.steps.append({"from": about["from"], "frame": about["frame"], "bytes": parts, "outcome": outcome, **more})
        return self

    def each(self, frames: list[Any], outcome: str = "taken", **more: Any) -> Transcript:
        """Have frames of one kind sent, one after the other."""
        about = described(frames[0])
        many = [encode(frame).hex() for frame in frames]
        self.steps.append({"from": about["from"], "frame": about["frame"], "each": many, "outcome": outcome, **more})
        return self

    # The handshake

    def challenge(self, outcome: str = "taken", **more: Any) -> Transcript:
        """Open with the server's challenge."""
        frame = Challenge(self.server_nonce, self.server.sign_pk, self.incarnation, SERVER_MS)
        return self.step(frame, outcome, **{"at_ms": CLIENT_MS, **more})

    def hello(self, outcome: str = "taken", ticket: bytes = b"", token: str = "", **altered: Any) -> Transcript:
        """Answer it; what is altered goes into what is signed."""
        at_ms = altered.pop("at_ms", SERVER_MS + 40)
        return self.step(self.hello_frame(ticket, token, **altered), outcome, at_ms=at_ms)

    def hello_frame(self, ticket: bytes = b"", token: str = "", **altered: Any) -> Hello:
        """Return a hello to the challenge."""
        signed = {
            "server_id": self.server_id,
            "origin": ORIGIN,
            "incarnation": self.incarnation,
            "account": self.account,
            "device": self.device,
            "server_nonce": self.server_nonce,
            "client_nonce": self.client_nonce,
            **altered,
        }
        message = proofs.with_token(proofs.hello_message(**signed), token)
        signature = self.person.device.sign.sign(message) if self._is_device else b""
        return Hello(self.client_nonce, signed["origin"], self.account, self.device, signature, ticket, token)

    def welcome(self, outcome: str = "taken", signer: DeviceKeys | None = None, **altered: Any) -> Transcript:
        """Let the client in."""
        signed = {
            "server_id": self.server_id,
            "incarnation": self.incarnation,
            "server_nonce": self.server_nonce,
            "client_nonce": self.client_nonce,
            "device": self.device,
            **altered,
        }
        signature = (signer or self.server).sign.sign(proofs.welcome_message(**signed))
        ticket = b"ticket 2" if self._is_device else b""
        told = (
            {"clock_offset_ms": SERVER_MS + 50 - CLIENT_MS - 50, "round_trip_ms": 100} if outcome == "taken" else None
        )
        frame = Welcome(signature, SERVER_MS + 50, 7, LIMITS, ticket)
        return self.step(frame, outcome, at_ms=CLIENT_MS + 100, **({"tells": told} if told else {}))

    def opened(self) -> Transcript:
        """Do the whole handshake."""
        return self.challenge().hello().welcome()

    # The space

    def chain(self, count: int, after: tuple[int, bytes] = (0, NO_ENVELOPE), prefix: str = "edit") -> list[Envelope]:
        """Seal envelopes of the device's chain."""
        counter, prev = after
        sealer, sealed = Sealer(self.person.device, self.world.entropy), []
        for number in range(counter + 1, counter + count + 1):
            payload = f"{prefix} {number}".encode()
            envelope = sealer.seal(
                Kind.CHANGE, payload, self.world.keys, Counter(number), prev, self.world.log.head_prefix
            )
            sealed.append(envelope)
            prev = envelope.id
        return sealed

    def attached(self, head: int = 0, own: Envelope | None = None, **altered: Any) -> Attached:
        """Return what the server answers to `attach`."""
        fields = {
            "incarnation": self.incarnation,
            "start": Seq(1),
            "head": Seq(head),
            "resume": Seq(0),
            "log_bytes": 0,
            "own_counter": own.header.counter if own else Counter(0),
            "own_id": own.id if own else NO_ENVELOPE,
            "log_seq": self.world.log.seq,
            "log_head": self.world.log.head,
        }
        return Attached(self.space, **{**fields, **altered})

    def case(self) -> Case:
        """Return the transcript as it stands in its file."""
        keys = self.person.device
        given = {
            "server_sign_private": self.server.sign.private_bytes_raw().hex(),
            "server_pk": self.server.sign_pk.hex(),
            "pinned_server_id": self.server_id.hex(),
            "server_nonce": self.server_nonce.hex(),
            "server_ms": SERVER_MS,
            "incarnation": self.incarnation.hex(),
            "origin": ORIGIN,
            "server_origins": [ORIGIN],
            "account": self.account.hex(),
            "device": self.device.hex(),
            "device_sign_private": keys.sign.private_bytes_raw().hex() if self._is_device else "",
            "device_sign_pk": keys.sign_pk.hex() if self._is_device else "",
            "client_random": [self.client_nonce.hex(), self.lease_nonce.hex()],
            "ticket": "",
            "space": self.space.hex(),
            "epoch": self.world.log.epoch,
            **self._given,
        }
        return {"name": self._name, "side": self._side, "given": given, "steps": self.steps}
