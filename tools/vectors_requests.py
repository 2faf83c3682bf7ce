"""The vectors of what an account signs about its unlockers: signing up, replacing one, and replacing its `kem` key."""

from __future__ import annotations

from tests.unit.sealing_world import Person, SeededEntropy, flipped
from tools.vectors_keys import Case, Vector, vector
from twinlock.protocol.calls import Unlocker
from twinlock.protocol.device_calls import Parcel
from twinlock.protocol.unlocker_proofs import rekem_message, sign_up_message, unlocker_hash, unlocker_put_message

TIME_MS = 1_800_000_000_000


def account_requests() -> Vector:
    """Each request's message, and the account's signature on it."""
    entropy, person = SeededEntropy("vectors account requests"), Person("vectors account requests")
    keys, server_id, head = person.keys, entropy(32), entropy(32)
    kit = Unlocker("recovery_kit", "hkdf-sha256", entropy(16), 0, entropy(32), entropy(92))
    password = Unlocker("password", "pbkdf2-sha256", entropy(16), 1_000_000, entropy(32))
    parcels = [Parcel(person.device.device, entropy(80)), Parcel(entropy(16), entropy(80))]
    common: Case = {
        "account": keys.account.hex(),
        "account_sign_pk": keys.sign_pk.hex(),
        "server_id": server_id.hex(),
    }

    def case(name: str, request: str, message: bytes, unlockers: list[Unlocker], **more: object) -> Case:
        signature = keys.sign.sign(message).hex()
        told = [_unlocker(unlocker) for unlocker in unlockers]
        return {
            "name": name, "request": request, **common, **more, "unlockers": told,
            "message": message.hex(), "signature": signature,
        }  # fmt: skip

    both, kem = [kit, password], keys.kem_pk
    signing_up = sign_up_message(server_id, keys.account, "mia", both)
    putting = unlocker_put_message(server_id, keys.account, kem, TIME_MS, password)
    changing = rekem_message(server_id, keys.account, head, parcels, [kit], ["password"])
    alone = rekem_message(server_id, keys.account, head, [], [], [])
    told = [{"device": parcel.device.hex(), "sealed": parcel.sealed.hex()} for parcel in parcels]
    put = case("a password is put", "put", putting, [password], kem_pk=kem.hex(), time_ms=TIME_MS)
    rekem = case("a new kem key", "rekem", changing, [kit], head=head.hex(), parcels=told, ends=["password"])
    up = case("signing up", "sign_up", signing_up, both, account_name="mia")
    bare = case("a new kem key and nothing with it", "rekem", alone, [], head=head.hex(), parcels=[], ends=[])
    refused = {"error": "signature_refused"}
    reject: list[Case] = [
        {**put, "name": "put at another server", "server_id": bytes(32).hex(), **refused},
        {**put, "name": "put at another time", "time_ms": TIME_MS + 1, **refused},
        {**put, "name": "put under another kem key", "kem_pk": flipped(kem, 0).hex(), **refused},
        {**put, "name": "another unlocker put", "unlockers": [_unlocker(kit)], **refused},
        {**put, "name": "put with the signature of signing up", "signature": up["signature"], **refused},
        {**put, "name": "put by a device", "signature": person.device.sign.sign(putting).hex(), **refused},
        {**up, "name": "signing up under another name", "account_name": "mio", **refused},
        {**up, "name": "signing up without the kit", "unlockers": [_unlocker(password)], **refused},
        {**rekem, "name": "a parcel left out", "parcels": told[:1], **refused},
        {**rekem, "name": "the parcels exchanged", "parcels": told[::-1], **refused},
        {**rekem, "name": "another unlocker attached", "unlockers": [_unlocker(password)], **refused},
        {**rekem, "name": "the kit ends as well", "ends": ["password", "recovery_kit"], **refused},
        {**rekem, "name": "after other entries", "head": bytes(32).hex(), **refused},
    ]
    return vector("account_requests", "sealing.md, section 2.2", [up, put, rekem, bare], reject)


def _unlocker(unlocker: Unlocker) -> Case:
    return {
        "kind": unlocker.kind,
        "kdf": unlocker.kdf,
        "salt": unlocker.salt.hex(),
        "iterations": unlocker.iterations,
        "auth_key": unlocker.auth_key.hex(),
        "wrapped": unlocker.wrapped.hex(),
        "hash": unlocker_hash(unlocker).hex(),
    }


MAKERS = {"account_requests": account_requests}
