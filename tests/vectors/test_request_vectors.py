"""The vectors of account requests, read from the spec's text alone and then by the project's own functions."""

import hashlib
import json
from pathlib import Path

import pytest

from twinlock.errors import TwinlockError
from twinlock.ids import AccountId, DeviceId
from twinlock.protocol.calls import Unlocker
from twinlock.protocol.device_calls import Parcel
from twinlock.protocol.proofs import verify
from twinlock.protocol.unlocker_proofs import rekem_message, sign_up_message, unlocker_put_message

FILE = Path(__file__).parents[2] / "spec" / "vectors" / "account_requests.json"
VECTOR = json.loads(FILE.read_text(encoding="utf-8"))


def p(data: bytes) -> bytes:
    return len(data).to_bytes(2, "big") + data


def label(name: str, context: bytes) -> bytes:
    return b"twinlock/1 " + name.encode() + b"\0" + context


def plain_hash(told: dict) -> bytes:
    """Hash an unlocker by the words of spec/sealing.md, section 2.2."""
    kind, kdf = p(told["kind"].encode()), p(told["kdf"].encode())
    rest = (p(bytes.fromhex(told[name])) for name in ("auth_key", "wrapped"))
    content = kind + kdf + p(bytes.fromhex(told["salt"])) + told["iterations"].to_bytes(4, "big") + b"".join(rest)
    return hashlib.sha256(label("unlocker", content)).digest()


def plain_message(case: dict) -> bytes:
    start = bytes.fromhex(case["server_id"] + case["account"])
    hashes = [plain_hash(told) for told in case["unlockers"]]
    counted = len(hashes).to_bytes(2, "big") + b"".join(hashes)
    if case["request"] == "sign_up":
        return label("sign-up", start + p(case["account_name"].encode()) + counted)
    if case["request"] == "put":
        return label(
            "unlocker-put", start + bytes.fromhex(case["kem_pk"]) + case["time_ms"].to_bytes(8, "big") + hashes[0]
        )
    parcels = len(case["parcels"]).to_bytes(2, "big")
    for parcel in case["parcels"]:
        parcels += bytes.fromhex(parcel["device"]) + hashlib.sha256(bytes.fromhex(parcel["sealed"])).digest()
    ends = len(case["ends"]).to_bytes(2, "big") + b"".join(p(kind.encode()) for kind in case["ends"])
    return label("rekem-request", start + bytes.fromhex(case["head"]) + parcels + counted + ends)


def own_message(case: dict) -> bytes:
    server_id, account = bytes.fromhex(case["server_id"]), AccountId(bytes.fromhex(case["account"]))
    unlockers = [unlocker_of(told) for told in case["unlockers"]]
    match case["request"]:
        case "sign_up":
            return sign_up_message(server_id, account, case["account_name"], unlockers)
        case "put":
            return unlocker_put_message(
                server_id, account, bytes.fromhex(case["kem_pk"]), case["time_ms"], unlockers[0]
            )
    parcels = [
        Parcel(DeviceId(bytes.fromhex(told["device"])), bytes.fromhex(told["sealed"])) for told in case["parcels"]
    ]
    return rekem_message(server_id, account, bytes.fromhex(case["head"]), parcels, unlockers, case["ends"])


def unlocker_of(told: dict) -> Unlocker:
    salt, auth_key, wrapped = (bytes.fromhex(told[name]) for name in ("salt", "auth_key", "wrapped"))
    return Unlocker(told["kind"], told["kdf"], salt, told["iterations"], auth_key, wrapped)


@pytest.mark.parametrize("case", VECTOR["accept"], ids=lambda case: case["name"])
def test_a_request_is_signed_as_the_spec_says(case):
    message = own_message(case)

    assert message.hex() == plain_message(case).hex() == case["message"]
    assert [plain_hash(told).hex() for told in case["unlockers"]] == [told["hash"] for told in case["unlockers"]]
    verify(bytes.fromhex(case["account_sign_pk"]), bytes.fromhex(case["signature"]), message)


@pytest.mark.parametrize("case", VECTOR["reject"], ids=lambda case: case["name"])
def test_another_request_is_refused(case):
    with pytest.raises(TwinlockError) as refused:
        verify(bytes.fromhex(case["account_sign_pk"]), bytes.fromhex(case["signature"]), own_message(case))
    assert refused.value.code == case["error"]
