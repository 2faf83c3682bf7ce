"""The vectors of a key service as a process of its own: signed requests and answers, and its ledger."""

from __future__ import annotations

import hashlib
import hmac

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from tests.unit.sealing_world import SeededEntropy, flipped
from tools.vectors_keys import Case, Vector, vector
from twinlock.keyservice.ledger import LedgerRecord
from twinlock.keyservice.node_auth import NodeGate, NodeIdentity, answer_message
from twinlock.protocol.labels import label, u64

NOW_MS = 1_700_000_000_000


def nodes() -> Vector:
    """A request of a node, the answer to it, and what neither side takes."""
    entropy = SeededEntropy("vectors node")
    node_key, service_key, other_key = (Ed25519PrivateKey.from_private_bytes(entropy(32)) for _ in range(3))
    service_pk, node_life, life = service_key.public_key().public_bytes_raw(), entropy(16), entropy(16)
    body, answer = b"a batch of calls", b"their outcomes"

    def request(key: Ed25519PrivateKey, to_life: bytes, time_ms: int, to: bytes = service_pk) -> str:
        return NodeIdentity(key, to, node_life).sign(body, to_life, time_ms).header

    node = NodeIdentity(node_key, service_pk, node_life)
    sent = node.sign(body, life, NOW_MS)
    gate = NodeGate(service_key, [node.node_pk], life, lambda: NOW_MS)
    proof = gate.check(sent.header)
    case: Case = {
        "name": "a request and its answer",
        "node_pk": node.node_pk.hex(),
        "node_life": node_life.hex(),
        "number": 1,
        "time_ms": NOW_MS,
        "service_private": service_key.private_bytes_raw().hex(),
        "service_pk": service_pk.hex(),
        "service_life": life.hex(),
        "now_ms": NOW_MS,
        "body": body.hex(),
        "request": sent.header,
        "message": proof.message(service_pk).hex(),
        "status": 200,
        "answer_body": answer.hex(),
        "answer_message": answer_message(service_pk, sent.digest, 200, answer).hex(),
        "answer": gate.sign_answer(proof, 200, answer),
    }
    elsewhere = other_key.public_key().public_bytes_raw()
    refused = {
        "of an unknown node": request(other_key, life, NOW_MS),
        "to another service": request(node_key, life, NOW_MS, elsewhere),
        "121 s old": request(node_key, life, NOW_MS - 120_001),
        "121 s ahead": request(node_key, life, NOW_MS + 120_001),
        "nothing": "",
        "no base64": "*" * 40,
        "cut short": sent.header[:-4],
    }
    reject: list[Case] = [
        {**case, "name": name, "request": made, "error": "node_refused"} for name, made in refused.items()
    ]
    reject += [
        {**case, "name": "another body", "body": b"another batch".hex(), "error": "node_refused"},
        {**case, "name": "repeated", "repeated": True, "error": "node_refused"},
        {
            **case,
            "name": "another life",
            "request": request(node_key, entropy(16), NOW_MS),
            "error": "challenge_refused",
        },
        {**case, "name": "another answer", "answer_body": b"no outcomes".hex(), "error": "signature_refused"},
        {**case, "name": "another status", "status": 503, "error": "signature_refused"},
        {**case, "name": "an answer without a signature", "answer": "", "error": "signature_refused"},
    ]
    return vector("node", "sealing.md, section 7", [case], reject)


def ledgers() -> Vector:
    """Records, their chain of hashes, and the authenticated head."""
    entropy = SeededEntropy("vectors ledger")
    key, space, account, device = entropy(32), entropy(16).hex(), entropy(16).hex(), entropy(16).hex()
    who = {"space": space, "account": account, "device": device}
    records = [
        LedgerRecord(NOW_MS, "pending", **who, epochs=[1], not_after_ms=NOW_MS + 86_400_000),
        LedgerRecord(NOW_MS + 1, "lease", **who, epochs=[1], not_after_ms=NOW_MS + 86_400_001),
        LedgerRecord(NOW_MS + 2, "lease", **who, epochs=[1], refused="the device was revoked"),
        LedgerRecord(NOW_MS + 3, "denied", space, keys_count=1),
        LedgerRecord(NOW_MS + 4, "root_destroyed", root_version=1),
    ]
    told = [msgspec.json.encode(record) for record in records]
    case = _ledger("five records", key, told)
    short, altered = told[:-1], [*told[:2], told[3], *told[3:]]
    stale: Case = {"hashes": case["hashes"], "proof": case["proof"]}
    reject: list[Case] = [
        {**_ledger("a record altered", key, altered), **stale},
        {**_ledger("two records swapped", key, [told[1], told[0], *told[2:]]), **stale},
        {**_ledger("the last record cut off", key, short), "proof": case["proof"]},
        {**_ledger("made anew without the key", entropy(32), told), "ledger_key": key.hex()},
        {**_ledger("nothing left", key, []), "proof": case["proof"]},
        {**case, "name": "another proof", "proof": flipped(bytes.fromhex(str(case["proof"])), 0).hex()},
    ]
    return vector("ledger", "sealing.md, section 7", [case], [{**each, "error": "ledger_broken"} for each in reject])


def _ledger(name: str, key: bytes, records: list[bytes]) -> Case:
    """Return records with the chain that the page describes, written out here once more."""
    hashes, chained = [], bytes(32)
    for number, record in enumerate(records, 1):
        before = label("ledger") + u64(number) + chained
        chained = hashlib.sha256(before + hashlib.sha256(record).digest()).digest()
        hashes.append(chained.hex())
    return {
        "name": name,
        "ledger_key": key.hex(),
        "records": [record.decode() for record in records],
        "hashes": hashes,
        "proof": _proof(key, len(records), chained).hex(),
    }


def _proof(key: bytes, count: int, chained: bytes) -> bytes:
    """Return the proof of a ledger's head."""
    return hmac.digest(key, label("ledger-head", u64(count) + chained), "sha256")


MAKERS = {"node": nodes, "ledger": ledgers}
