"""How a sync node and the key service prove themselves to one another. Pure: the time is handed in.

A request is signed by the node over its time, a number that it never uses again, the life of the service and the hash
of its body. All that stands in a header, so that nobody's body is read but a known node's. An answer is signed by the
service over the request that it answers. Neither says anything to another node or service.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
from collections.abc import Callable, Iterable

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from twinlock.errors import ChallengeError, NodeRefusedError, OverloadedError, SignatureError
from twinlock.protocol.labels import label, u16, u64
from twinlock.protocol.proofs import verify

LIFE_BYTES = 16
KEY_BYTES = 32
HASH_BYTES = 32
SKEW_MS_MAX = 120_000
NUMBERS_APART_MAX = 1024
"""How far behind a node's newest request another may come; the numbers used within it are remembered exactly."""

NODE_LIVES_MAX = 256
"""Lives of one node within the time that a request could be taken; more are a node that does not stop to restart."""

REQUEST_HEADER = "twinlock-request"
ANSWER_HEADER = "twinlock-answer"
HEADER_BYTES_MAX = 512
NO_LIFE = bytes(LIFE_BYTES)
_RETRY_MS = 1_000
_NUMBER_MAX = (1 << 53) - 1


class RequestProof(msgspec.Struct, frozen=True, array_like=True):
    """What the header of a request holds."""

    node_pk: bytes
    node_life: bytes
    number: int
    time_ms: int
    life: bytes
    body_hash: bytes
    signature: bytes

    def message(self, service_pk: bytes) -> bytes:
        """Return what the node signs."""
        names = service_pk + self.node_pk + self.node_life + u64(self.number)
        return label("node-request", names + u64(self.time_ms) + self.life + self.body_hash)


class SentRequest(msgspec.Struct, frozen=True):
    """A request on its way: its header, and what its answer must be bound to."""

    header: str
    digest: bytes


class NodeIdentity:
    """A node's side: signs its requests, checks the answers of the one service that it knows."""

    __slots__ = ("_key", "_life", "_number", "node_pk", "service_pk")

    def __init__(self, key: Ed25519PrivateKey, service_pk: bytes, life: bytes) -> None:
        """`life` names this run of the node's process: 16 random bytes."""
        self._key = key
        self._life = life
        self._number = 0
        self.node_pk = key.public_key().public_bytes_raw()
        self.service_pk = service_pk

    def sign(self, body: bytes, life: bytes, now_ms: int) -> SentRequest:
        """Sign a request to a life of the service, once: the same body is signed anew to be sent again."""
        self._number += 1
        body_hash = hashlib.sha256(body).digest()
        proof = RequestProof(self.node_pk, self._life, self._number, now_ms, life, body_hash, b"")
        message = proof.message(self.service_pk)
        signed = msgspec.structs.replace(proof, signature=self._key.sign(message))
        return SentRequest(_text(msgspec.msgpack.encode(signed)), hashlib.sha256(message).digest())

    def check_answer(self, request: SentRequest, status: int, header: str, body: bytes) -> None:
        """Check that an answer is the service's own, to this request.

        Raises:
            SignatureError: it is not.
        """
        message = answer_message(self.service_pk, request.digest, status, body)
        try:
            signature = _octets(header)
        except ValueError as exc:
            raise SignatureError("an answer without a signature") from exc
        verify(self.service_pk, signature, message)


class _Used:
    """The numbers that one life of a node has used: the highest, and a bit for each of those just below it."""

    __slots__ = ("bits", "highest", "last_ms")

    def __init__(self) -> None:
        self.highest = 0
        self.bits = 0
        self.last_ms = 0

    def take(self, number: int, now_ms: int) -> bool:
        """Note a number; False if it was used, or is too far behind to tell."""
        self.last_ms = now_ms
        if number > self.highest:
            moved = number - self.highest
            kept = self.bits << moved if moved < NUMBERS_APART_MAX else 0
            self.bits = (kept | 1) & ((1 << NUMBERS_APART_MAX) - 1)
            self.highest = number
            return True
        behind = self.highest - number
        if behind >= NUMBERS_APART_MAX or self.bits >> behind & 1:
            return False
        self.bits |= 1 << behind
        return True


class NodeGate:
    """The service's side: knows its nodes, and takes each of their requests once."""

    __slots__ = ("_key", "_nodes", "_now_ms", "life", "service_pk")

    def __init__(self, key: Ed25519PrivateKey, nodes: Iterable[bytes], life: bytes, now_ms: Callable[[], int]) -> None:
        self._key = key
        self._nodes: dict[bytes, dict[bytes, _Used]] = {node: {} for node in nodes}
        self._now_ms = now_ms
        self.life = life
        self.service_pk = key.public_key().public_bytes_raw()

    def check(self, header: str) -> RequestProof:
        """Return what a request's header proves; its body is still to be compared with `check_body`.

        Raises:
            NodeRefusedError: no request, not of a known node, not signed by it, of another time, or repeated.
        """
        proof = _read_proof(header)
        known = [hmac.compare_digest(node, proof.node_pk) for node in self._nodes]
        if not any(known):
            raise NodeRefusedError(f"no node with the key {proof.node_pk.hex()} is named")
        try:
            verify(proof.node_pk, proof.signature, proof.message(self.service_pk))
        except SignatureError as exc:
            raise NodeRefusedError("the node did not sign this for this service") from exc
        return proof

    def take(self, proof: RequestProof) -> None:
        """Count a checked request as used: what it asks for is done now or never.

        Raises:
            NodeRefusedError: it is of another time than now, or was used before.
            ChallengeError: it names an earlier life of this service; the node signs it again for the present one.
            OverloadedError: the node has begun more lives than can be told apart.
        """
        now_ms = self._now_ms()
        if abs(now_ms - proof.time_ms) > SKEW_MS_MAX:
            raise NodeRefusedError(f"the node's clock is {abs(now_ms - proof.time_ms)} ms away from this one")
        if not hmac.compare_digest(proof.life, self.life):
            raise ChallengeError("the request names another life of the key service")
        if not self._used(proof, now_ms).take(proof.number, now_ms):
            raise NodeRefusedError("the request was repeated")

    def sign_answer(self, proof: RequestProof, status: int, body: bytes) -> str:
        """Return the header of an answer."""
        digest = hashlib.sha256(proof.message(self.service_pk)).digest()
        return _text(self._key.sign(answer_message(self.service_pk, digest, status, body)))

    def _used(self, proof: RequestProof, now_ms: int) -> _Used:
        lives = self._nodes[proof.node_pk]
        used = lives.get(proof.node_life)
        if used is None:
            # A time of the future can be taken for twice the skew.
            for life in [life for life, each in lives.items() if now_ms - each.last_ms > 2 * SKEW_MS_MAX]:
                del lives[life]
            if len(lives) >= NODE_LIVES_MAX:
                raise OverloadedError("the node has begun too many lives", retry_after_ms=_RETRY_MS)
            used = lives[proof.node_life] = _Used()
        return used


def check_body(proof: RequestProof, body: bytes) -> None:
    """Check that a body is the one that the header was signed for.

    Raises:
        NodeRefusedError: it is another.
    """
    if not hmac.compare_digest(proof.body_hash, hashlib.sha256(body).digest()):
        raise NodeRefusedError("the body is not the one that was signed")


def answer_message(service_pk: bytes, request_digest: bytes, status: int, body: bytes) -> bytes:
    """Return what the service signs."""
    return label("node-answer", service_pk + request_digest + u16(status) + hashlib.sha256(body).digest())


def read_proof(header: str) -> RequestProof | None:
    """Return what a header says, unproved, for the signing of a refusal; None if it says nothing."""
    try:
        return _read_proof(header)
    except NodeRefusedError:
        return None


_decode_proof = msgspec.msgpack.Decoder(RequestProof).decode


def _read_proof(header: str) -> RequestProof:
    try:
        proof = _decode_proof(_octets(header))
    except (msgspec.MsgspecError, ValueError) as exc:
        raise NodeRefusedError("a request without a node's proof") from exc
    lengths = (len(proof.node_pk), len(proof.node_life), len(proof.life), len(proof.body_hash))
    are_numbers = 1 <= proof.number <= _NUMBER_MAX and 0 <= proof.time_ms <= _NUMBER_MAX
    if lengths != (KEY_BYTES, LIFE_BYTES, LIFE_BYTES, HASH_BYTES) or not are_numbers:
        raise NodeRefusedError("a node's proof of no proper form")
    return proof


def _text(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode("ascii")


def _octets(text: str) -> bytes:
    if not text or len(text) > HEADER_BYTES_MAX:
        raise ValueError("no header, or a long one")
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except binascii.Error as exc:
        raise ValueError("not base64url") from exc
