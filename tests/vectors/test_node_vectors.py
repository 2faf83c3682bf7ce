"""The vectors of signed requests between servers, and of the ledger, read as another implementation would read them."""

import hashlib
import json
import sqlite3
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from twinlock.errors import LedgerBrokenError, TwinlockError
from twinlock.keyservice.ledger import Ledger
from twinlock.keyservice.node_auth import NodeGate, NodeIdentity, SentRequest, answer_message, check_body
from twinlock.protocol.proofs import verify

FOLDER = Path(__file__).parents[2] / "spec" / "vectors"
CASES = [
    pytest.param(construct, part, case, id=f"{construct}: {case['name']}")
    for construct in ("node", "ledger")
    for part in ("accept", "reject")
    for case in json.loads((FOLDER / f"{construct}.json").read_text(encoding="utf-8"))[part]
]


def of(case, name: str) -> bytes:
    """Return a field that is written in hexadecimal."""
    return bytes.fromhex(case[name])


@pytest.mark.parametrize(("construct", "part", "case"), CASES)
def test_a_vector_is_read_as_the_spec_says(construct, part, case):
    check = {"node": check_node, "ledger": check_ledger}[construct]
    if part == "accept":
        check(case)
        return
    with pytest.raises(TwinlockError) as refused:
        check(case)
    assert refused.value.code == case["error"]


def check_node(case):
    service = Ed25519PrivateKey.from_private_bytes(of(case, "service_private"))
    gate = NodeGate(service, [of(case, "node_pk")], of(case, "service_life"), lambda: case["now_ms"])
    proof = gate.check(case["request"])
    assert (proof.node_pk, proof.node_life, proof.number) == (
        of(case, "node_pk"),
        of(case, "node_life"),
        case["number"],
    )
    check_body(proof, of(case, "body"))
    gate.take(proof)
    if case.get("repeated"):
        gate.take(proof)
    service_pk, message = of(case, "service_pk"), proof.message(of(case, "service_pk"))
    assert (gate.service_pk, message, proof.time_ms) == (service_pk, of(case, "message"), case["time_ms"])
    verify(proof.node_pk, proof.signature, message)
    asking = NodeIdentity(service, service_pk, proof.node_life)
    sent = SentRequest(case["request"], hashlib.sha256(message).digest())
    asking.check_answer(sent, case["status"], case["answer"], of(case, "answer_body"))
    assert answer_message(service_pk, sent.digest, case["status"], of(case, "answer_body")) == of(
        case, "answer_message"
    )
    assert gate.sign_answer(proof, case["status"], of(case, "answer_body")) == case["answer"]


def check_ledger(case):
    with sqlite3.connect(":memory:") as connection:
        connection.execute("CREATE TABLE ledger (n INTEGER PRIMARY KEY, record BLOB, hash BLOB)")
        connection.execute("CREATE TABLE meta (name TEXT PRIMARY KEY, value BLOB)")
        connection.execute("INSERT INTO meta VALUES ('ledger_head', ?)", (of(case, "proof"),))
        rows = [
            (number, record.encode(), bytes.fromhex(chained))
            for number, (record, chained) in enumerate(zip(case["records"], case["hashes"], strict=False), 1)
        ]
        connection.executemany("INSERT INTO ledger VALUES (?, ?, ?)", rows)
        report = Ledger(connection, of(case, "ledger_key")).verify()
    connection.close()
    if not report.intact:
        raise LedgerBrokenError
    assert (report.records_count, report.head.hex()) == (len(case["records"]), case["hashes"][-1])
