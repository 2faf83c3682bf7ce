"""How nodes and the key service prove themselves: what is taken, and everything that is not."""

import base64
import os
import stat

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from twinlock.errors import ChallengeError, NodeRefusedError, OverloadedError, SignatureError, StoreError
from twinlock.keyservice.key_files import open_signing_key, public_key_text
from twinlock.keyservice.node_auth import (
    NODE_LIVES_MAX,
    NUMBERS_APART_MAX,
    SKEW_MS_MAX,
    NodeGate,
    NodeIdentity,
    RequestProof,
    check_body,
)

NOW_MS = 1_700_000_000_000
LIFE = bytes(range(16))
BODY = b"what is asked"


class Clock:
    def __init__(self) -> None:
        self.ms = NOW_MS

    def __call__(self) -> int:
        return self.ms


class Ends:
    """A node and the service that knows it."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.node_key, self.service_key = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()
        self.gate = self.new_gate(LIFE)
        self.node = self.new_node()

    def new_gate(self, life: bytes) -> NodeGate:
        return NodeGate(self.service_key, [self.node_key.public_key().public_bytes_raw()], life, self.clock)

    def new_node(self) -> NodeIdentity:
        return NodeIdentity(self.node_key, self.service_key.public_key().public_bytes_raw(), os.urandom(16))

    def take(self, header: str, body: bytes = BODY, gate: NodeGate | None = None) -> RequestProof:
        gate = gate or self.gate
        proof = gate.check(header)
        check_body(proof, body)
        gate.take(proof)
        return proof


@pytest.fixture
def ends():
    return Ends()


def decoded(header: str) -> RequestProof:
    return msgspec.msgpack.decode(base64.urlsafe_b64decode(header + "=" * (-len(header) % 4)), type=RequestProof)


def encoded(proof: RequestProof) -> str:
    return base64.urlsafe_b64encode(msgspec.msgpack.encode(proof)).rstrip(b"=").decode()


class TestRequests:
    def test_a_known_nodes_request_is_taken_once(self, ends):
        request = ends.node.sign(BODY, LIFE, NOW_MS)
        ends.take(request.header)

        with pytest.raises(NodeRefusedError, match="repeated"):
            ends.take(request.header)
        ends.take(ends.node.sign(BODY, LIFE, NOW_MS).header)

    def test_a_stranger_is_refused_before_its_body_is_looked_at(self, ends):
        stranger = NodeIdentity(Ed25519PrivateKey.generate(), ends.gate.service_pk, os.urandom(16))

        with pytest.raises(NodeRefusedError, match="named"):
            ends.gate.check(stranger.sign(BODY, LIFE, NOW_MS).header)

    def test_a_stranger_who_names_a_known_node_is_refused(self, ends):
        stranger = NodeIdentity(Ed25519PrivateKey.generate(), ends.gate.service_pk, os.urandom(16))
        forged = msgspec.structs.replace(decoded(stranger.sign(BODY, LIFE, NOW_MS).header), node_pk=ends.node.node_pk)

        with pytest.raises(NodeRefusedError, match="did not sign"):
            ends.gate.check(encoded(forged))

    @pytest.mark.parametrize(
        "change",
        [
            {"number": 2},
            {"time_ms": NOW_MS + 1},
            {"life": bytes(16)},
            {"node_life": bytes(16)},
            {"body_hash": bytes(32)},
            {"signature": bytes(64)},
            {"signature": b""},
        ],
    )
    def test_nothing_in_it_can_be_altered(self, ends, change):
        altered = msgspec.structs.replace(decoded(ends.node.sign(BODY, LIFE, NOW_MS).header), **change)

        with pytest.raises(NodeRefusedError):
            ends.take(encoded(altered))

    def test_another_body_is_refused_and_does_not_use_the_request_up(self, ends):
        request = ends.node.sign(BODY, LIFE, NOW_MS)

        with pytest.raises(NodeRefusedError, match="body"):
            ends.take(request.header, BODY + b"!")
        ends.take(request.header)

    def test_a_request_to_another_service_is_refused(self, ends):
        elsewhere = NodeIdentity(ends.node_key, Ed25519PrivateKey.generate().public_key().public_bytes_raw(), LIFE)

        with pytest.raises(NodeRefusedError):
            ends.gate.check(elsewhere.sign(BODY, LIFE, NOW_MS).header)

    @pytest.mark.parametrize("sign", [1, -1])
    def test_limit_of_its_time(self, ends, sign):
        """The last moment that is taken, and the first that is not, on both sides."""
        ends.take(ends.node.sign(BODY, LIFE, NOW_MS + sign * SKEW_MS_MAX).header)

        with pytest.raises(NodeRefusedError, match="clock"):
            ends.take(ends.node.sign(BODY, LIFE, NOW_MS + sign * (SKEW_MS_MAX + 1)).header)

    def test_a_request_to_an_earlier_life_of_the_service_is_not_taken_by_the_next(self, ends):
        request = ends.node.sign(BODY, LIFE, NOW_MS)
        ends.take(request.header)
        restarted = ends.new_gate(os.urandom(16))

        with pytest.raises(ChallengeError):
            ends.take(request.header, gate=restarted)
        ends.take(ends.node.sign(BODY, restarted.life, NOW_MS).header, gate=restarted)

    def test_requests_may_overtake_one_another_within_bounds(self, ends):
        requests = [ends.node.sign(BODY, LIFE, NOW_MS) for _ in range(NUMBERS_APART_MAX + 1)]
        ends.take(requests[-1].header)
        ends.take(requests[1].header)
        ends.take(requests[5].header)

        for used in (-1, 1, 5):
            with pytest.raises(NodeRefusedError, match="repeated"):
                ends.take(requests[used].header)
        with pytest.raises(NodeRefusedError, match="repeated"):
            ends.take(requests[0].header)

    def test_a_restarted_node_begins_anew_and_its_earlier_requests_stay_used(self, ends):
        before = ends.node.sign(BODY, LIFE, NOW_MS)
        ends.take(before.header)

        ends.take(ends.new_node().sign(BODY, LIFE, NOW_MS).header)

        with pytest.raises(NodeRefusedError, match="repeated"):
            ends.take(before.header)

    def test_lives_of_a_node_that_are_kept(self, ends):
        first = ends.node.sign(BODY, LIFE, NOW_MS)
        ends.take(first.header)
        for _ in range(NODE_LIVES_MAX - 1):
            ends.take(ends.new_node().sign(BODY, LIFE, NOW_MS).header)
        with pytest.raises(OverloadedError):
            ends.take(ends.new_node().sign(BODY, LIFE, NOW_MS).header)

        ends.clock.ms += 2 * SKEW_MS_MAX + 1
        ends.take(ends.new_node().sign(BODY, LIFE, ends.clock.ms).header)

        with pytest.raises(NodeRefusedError, match="clock"):
            ends.take(first.header)

    @pytest.mark.parametrize("header", ["", "?", "AAAA", "x" * 10_000, "wA", "kw"])
    def test_what_is_no_proof_is_refused(self, ends, header):
        with pytest.raises(NodeRefusedError, match="proof"):
            ends.gate.check(header)

    @pytest.mark.parametrize(
        "change", [{"node_pk": b""}, {"node_life": bytes(17)}, {"number": 0}, {"number": 1 << 60}, {"time_ms": -1}]
    )
    def test_a_proof_of_no_proper_form_is_refused(self, ends, change):
        odd = msgspec.structs.replace(decoded(ends.node.sign(BODY, LIFE, NOW_MS).header), **change)

        with pytest.raises(NodeRefusedError, match="form"):
            ends.gate.check(encoded(odd))


class TestAnswers:
    def test_an_answer_belongs_to_its_request(self, ends):
        request, other = ends.node.sign(BODY, LIFE, NOW_MS), ends.node.sign(BODY, LIFE, NOW_MS)
        header = ends.gate.sign_answer(ends.take(request.header), 200, b"answer")

        ends.node.check_answer(request, 200, header, b"answer")
        for altered in (
            (other, 200, header, b"answer"),
            (request, 403, header, b"answer"),
            (request, 200, header, b"answers"),
            (request, 200, "", b"answer"),
            (request, 200, "?", b"answer"),
            (request, 200, header[:-4] + "AAAA", b"answer"),
        ):
            with pytest.raises(SignatureError):
                ends.node.check_answer(*altered)

    def test_an_answer_of_another_service_is_refused(self, ends):
        request = ends.node.sign(BODY, LIFE, NOW_MS)
        node_pk = ends.node.node_pk
        impostor = NodeGate(Ed25519PrivateKey.generate(), [node_pk], LIFE, ends.clock)

        header = impostor.sign_answer(decoded(request.header), 200, b"answer")

        with pytest.raises(SignatureError):
            ends.node.check_answer(request, 200, header, b"answer")


class TestKeyFiles:
    def test_a_key_is_made_once_for_its_owner_alone(self, tmp_path):
        path = tmp_path / "folder" / "node.key"

        made = public_key_text(open_signing_key(path))

        assert public_key_text(open_signing_key(path)) == made
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
        assert [each.name for each in path.parent.iterdir()] == ["node.key"]

    def test_a_key_that_others_may_read_or_that_is_damaged_is_refused(self, tmp_path):
        path = tmp_path / "node.key"
        open_signing_key(path)
        path.chmod(0o640)
        with pytest.raises(StoreError, match="chmod 600"):
            open_signing_key(path)

        path.chmod(0o600)
        path.write_bytes(b"short")
        with pytest.raises(StoreError, match="damaged"):
            open_signing_key(path)
        assert path.read_bytes() == b"short"
