"""The vectors of labels, derivation, ids, padding, HPKE, unlockers, kits, keys of an epoch, links and proofs."""

from __future__ import annotations

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from tests.unit.sealing_world import Person, SeededEntropy, flipped
from tools import hpke_reference
from twinlock.ids import AccountId, DeviceId, Epoch, Incarnation, SpaceId
from twinlock.protocol import proofs
from twinlock.protocol.account_log import account_id_of, device_id_of
from twinlock.protocol.calls import UnlockerParamsResult
from twinlock.protocol.envelope import envelope_id
from twinlock.protocol.labels import label, prefixed, u32
from twinlock.protocol.space_log import space_id_of
from twinlock.sealing import (
    MemberKey,
    RecoveryKit,
    ServiceKey,
    StoreKey,
    kit_qr,
    make_unlocker,
    seal_record,
    title_index,
    unlock,
)
from twinlock.sealing.derive import kdf, store_mac
from twinlock.sealing.padding import PAYLOAD_BYTES_MAX, pad, padded_bytes
from twinlock.sealing.space_keys import EpochKeys, make_link
from twinlock.sealing.vault import kind_of

Case = dict[str, object]
Vector = dict[str, object]


def vector(construct: str, section: str, accept: list[dict[str, object]], reject: list[dict[str, object]]) -> Vector:
    """Return one file's content. Bytes are written in hexadecimal."""
    return {"construct": construct, "spec": section, "accept": accept, "reject": reject}


def labels() -> Vector:
    """Labels and length prefixes."""
    accept: list[dict[str, object]] = [
        {"name": f"label {name}", "label": name, "context": context.hex(), "output": label(name, context).hex()}
        for name, context in [("account", b""), ("data", bytes(16) + u32(1)), ("log-sig", bytes(range(32)))]
    ]
    accept += [
        {"name": f"prefixed {len(data)}", "data": data.hex(), "output": prefixed(data).hex()}
        for data in (b"", b"a", bytes(300))
    ]
    return vector("labels", "sealing.md, section 1", accept, [])


def derivation() -> Vector:
    """HKDF-SHA256 under labels, and the HMAC of a StoreKey."""
    entropy = SeededEntropy("vectors kdf")
    accept: list[dict[str, object]] = []
    for name, context in [("data", bytes(20)), ("device", bytes(range(16))), ("drop", b""), ("link", u32(7))]:
        ikm, salt = entropy(32), entropy(16)
        made = kdf(ikm, salt, name, context).hex()
        case = {"ikm": ikm.hex(), "salt": salt.hex(), "label": name, "context": context.hex(), "output": made}
        accept.append({"name": f"kdf {name}", **case})
    store_key = StoreKey.make(entropy)
    mac = store_mac(store_key, "local", bytes(16)).hex()
    case = {"store_key": store_key.expose().hex(), "label": "local", "context": bytes(16).hex(), "output": mac}
    accept.append({"name": "store mac", **case})
    return vector("kdf", "sealing.md, section 1", accept, [])


def ids() -> Vector:
    """Ids that certify themselves."""
    entropy = SeededEntropy("vectors ids")
    sign_pk, kem_pk, head, header, ciphertext = (entropy(size) for size in (32, 32, 32, 112, 144))
    accept: list[dict[str, object]] = [
        {"name": "account", "sign_pk": sign_pk.hex(), "output": account_id_of(sign_pk).hex()},
        {
            "name": "device",
            "sign_pk": sign_pk.hex(),
            "kem_pk": kem_pk.hex(),
            "output": device_id_of(sign_pk, kem_pk).hex(),
        },
        {"name": "space", "partition": 513, "genesis_head": head.hex(), "output": space_id_of(513, head).hex()},
        {
            "name": "envelope",
            "header": header.hex(),
            "ciphertext": ciphertext.hex(),
            "output": envelope_id(header, ciphertext).hex(),
        },
        {"name": "server", "server_pk": sign_pk.hex(), "output": proofs.server_id_of(sign_pk).hex()},
    ]
    return vector("ids", "sealing.md, sections 2, 4, 5 and 6", accept, [])


def padding() -> Vector:
    """Padmé with a floor of 128 bytes."""
    sizes = [0, 1, 126, 127, 128, 143, 144, 255, 256, 1000, 4095, 4096, 65_535, 65_536, 500_000, PAYLOAD_BYTES_MAX]
    accept: list[dict[str, object]] = [
        {"name": f"length {size}", "payload_bytes": size, "padded_bytes": padded_bytes(size)} for size in sizes
    ]
    accept += [
        {"name": f"bytes {len(payload)}", "payload": payload.hex(), "padded": pad(payload).hex()}
        for payload in (b"", b"hello", b"\x80\x00\x00", b"x" * 150)
    ]
    bad = {
        "empty": b"",
        "zeros only": bytes(128),
        "no mark": b"hello".ljust(128, b"\x01"),
        "too short": b"x\x80" + bytes(125),
        "too long": b"x\x80" + bytes(127),
        "not a Padmé length": b"x" * 150 + b"\x80" + bytes(8),
    }
    return vector(
        "padding",
        "sealing.md, section 5",
        accept,
        [{"name": name, "padded": data.hex(), "error": "open_failed"} for name, data in bad.items()],
    )


def hpke() -> Vector:
    """Opening of HPKE, and what must not open."""
    entropy = SeededEntropy("vectors hpke")
    accept: list[dict[str, object]] = []
    for plaintext, info in [(bytes(range(32)), label("wrap-a", bytes(36))), (b"", b""), (b"x" * 144, b"info")]:
        private, ephemeral = (X25519PrivateKey.from_private_bytes(entropy(32)) for _ in range(2))
        sealed = hpke_reference.seal(ephemeral, private.public_key().public_bytes_raw(), plaintext, info)
        accept.append(
            {
                "name": f"{len(plaintext)} bytes",
                "private_key": private.private_bytes_raw().hex(),
                "info": info.hex(),
                "plaintext": plaintext.hex(),
                "sealed": sealed.hex(),
            }
        )
    case = {"private_key": private.private_bytes_raw().hex(), "info": info.hex(), "error": "open_failed"}
    bad = {
        "share altered": flipped(sealed, 0),
        "ciphertext altered": flipped(sealed, 40),
        "tag altered": flipped(sealed, len(sealed) - 1),
        "share of small order": bytes(32) + sealed[32:],
        "too short": sealed[:47],
        "empty": b"",
    }
    reject: list[dict[str, object]] = [{"name": name, **case, "sealed": data.hex()} for name, data in bad.items()]
    reject.append({"name": "another info", **case, "info": b"Info".hex(), "sealed": sealed.hex()})
    return vector("hpke", "sealing.md, section 1", accept, reject)


def recovery_kits() -> Vector:
    """The letters of recovery kits, and letters that do not check out."""
    entropy = SeededEntropy("vectors kit")
    accept: list[dict[str, object]] = []
    for name, raw in [("zeros", bytes(16)), ("ones", b"\xff" * 16), ("random", entropy(16))]:
        text = str(RecoveryKit(raw))
        accept.append({"name": name, "raw": raw.hex(), "text": text, "typed": text})
        accept.append({"name": f"{name}, as typed", "raw": raw.hex(), "text": text, "typed": _sloppy(text)})
    qr = kit_qr(RecoveryKit(raw), "wss://sync.example.org:443", entropy(32), "ann+work@example")
    accept.append({"name": "random, by QR", "raw": raw.hex(), "text": text, "typed": qr})
    letters = text.replace("-", "")
    swapped = letters[:5] + ("2" if letters[5] != "2" else "3") + letters[6:]
    bad = {"one letter wrong": swapped, "too short": letters[:-1], "too long": letters + "0", "empty": ""}
    bad["a letter that is never used"] = letters[:-1] + "U"
    bad["a QR text without a kit"] = qr.replace("kit=", "k=")
    bad["the check of another kit"] = letters[:-3] + str(RecoveryKit(bytes(16)))[-3:]
    return vector(
        "recovery_kit",
        "sealing.md, section 2",
        accept,
        [{"name": name, "typed": typed, "error": "recovery_kit_malformed"} for name, typed in bad.items()],
    )


def unlockers() -> Vector:
    """The keys that passwords and kits give, and account keys wrapped by them."""
    entropy, person = SeededEntropy("vectors unlocker"), Person("vectors unlocker")
    server_id = entropy(32)
    kit = RecoveryKit.make(entropy)
    accept: list[dict[str, object]] = []
    for name, secret, iterations in [
        ("password", "correct horse battery", 1000),
        ("password in NFKC", "pa\u0308ssword with \ufb01nesse", 1000),
        ("password of full strength", "correct horse battery", 1_000_000),
        ("kit", kit, 0),
    ]:
        made = make_unlocker(secret, "Mia", server_id, entropy, person.keys, iterations=iterations)
        params = UnlockerParamsResult(made.kdf, made.salt, made.iterations)
        keys = unlock(params, secret, "mia", server_id, iterations_min=iterations)
        accept.append(
            {
                "name": name,
                "kind": kind_of(secret),
                "secret": str(secret),
                "account_name": "Mia",
                "server_id": server_id.hex(),
                "kdf": made.kdf,
                "salt": made.salt.hex(),
                "iterations": made.iterations,
                "auth_key": keys.auth_key.hex(),
                "wrap_key": keys.wrap_key.hex(),
                "account": person.keys.account.hex(),
                "wrapped": made.wrapped.hex(),
                "account_keys": person.keys.expose().hex(),
            }
        )
    password, of_kit = accept[0], accept[-1]
    reject: list[dict[str, object]] = [
        {**password, "name": "wrong password", "secret": "correct horse buttery", "error": "wrong_credentials"},
        {**of_kit, "name": "wrong kit", "secret": str(RecoveryKit(bytes(16))), "error": "wrong_credentials"},
        {**of_kit, "name": "another account's keys", "account": bytes(16).hex(), "error": "wrong_credentials"},
        {**password, "name": "a password derived like a kit", "kdf": "hkdf-sha256", "error": "weak_parameters"},
        {**password, "name": "too few iterations", "iterations": 999, "error": "weak_parameters"},
        {**password, "name": "a short salt", "salt": bytes(8).hex(), "error": "weak_parameters"},
    ]
    return vector("unlocker", "sealing.md, section 2", accept, reject)


def epoch_keys() -> Vector:
    """Everything that comes from A and B, and what does not fit the commitments."""
    entropy, person = SeededEntropy("vectors epoch"), Person("vectors epoch")
    space, epoch = SpaceId(entropy(16)), Epoch(3)
    keys = EpochKeys(space, epoch, MemberKey.make(entropy), ServiceKey.make(entropy))
    store_key, device = StoreKey.make(entropy), person.device.device
    ephemeral = X25519PrivateKey.from_private_bytes(entropy(32))
    info = label("wrap-a", space + u32(epoch) + person.keys.account)
    case: dict[str, object] = {
        "name": "epoch 3",
        "space": space.hex(),
        "epoch": epoch,
        "member_key": keys.member_key.expose().hex(),
        "service_key": keys.service_key.expose().hex(),
        "data_key": keys.data_key.expose().hex(),
        "b_commit": keys.b_commit.hex(),
        "dk_commit": keys.dk_commit.hex(),
        "drop_private": keys.drop_private.private_bytes_raw().hex(),
        "drop_pk": keys.drop_pk.hex(),
        "device": device.hex(),
        "device_key": keys.device_key(device).hex(),
        "session": 9,
        "signal_key": keys.signal_key(device, 9).hex(),
        "store_key": store_key.expose().hex(),
        "local_key": keys.local_key(store_key, device).hex(),
        "account": person.keys.account.hex(),
        "account_kem_private": person.keys.kem.private_bytes_raw().hex(),
        "wrapped": hpke_reference.seal(ephemeral, person.keys.kem_pk, keys.member_key.expose(), info).hex(),
    }
    mismatch = {"error": "key_mismatch"}
    reject: list[dict[str, object]] = [
        {**case, "name": "another member key", "member_key": bytes(32).hex(), **mismatch},
        {**case, "name": "another service key", "service_key": bytes(32).hex(), **mismatch},
        {**case, "name": "another epoch", "epoch": 4, **mismatch},
        {**case, "name": "another space", "space": bytes(16).hex(), **mismatch},
        {**case, "name": "another drop key", "drop_pk": bytes(32).hex(), **mismatch},
    ]
    return vector("epoch_keys", "sealing.md, section 3", [case], reject)


def links() -> Vector:
    """From the member key of an epoch to that of the epoch before."""
    entropy = SeededEntropy("vectors link")
    space, epoch = SpaceId(entropy(16)), Epoch(2)
    keys = EpochKeys(space, epoch, MemberKey.make(entropy), ServiceKey.make(entropy))
    earlier = MemberKey.make(entropy)
    link = make_link(keys, earlier, entropy)
    case: dict[str, object] = {
        "name": "epoch 2",
        "space": space.hex(),
        "epoch": epoch,
        "member_key": keys.member_key.expose().hex(),
        "link": link.hex(),
        "earlier": earlier.expose().hex(),
    }
    refused = {"error": "open_failed"}
    reject: list[dict[str, object]] = [
        {**case, "name": "altered", "link": flipped(link, 20).hex(), **refused},
        {**case, "name": "another epoch", "epoch": 3, **refused},
        {**case, "name": "another member key", "member_key": bytes(32).hex(), **refused},
        {**case, "name": "too short", "link": link[:27].hex(), **refused},
    ]
    return vector("link", "sealing.md, section 3", [case], reject)


def store_records() -> Vector:
    """Records of a device's own store."""
    entropy = SeededEntropy("vectors store")
    store_key = StoreKey.make(entropy)
    sealed = seal_record(store_key, "device", b"private keys", entropy)
    case: dict[str, object] = {
        "name": "record",
        "store_key": store_key.expose().hex(),
        "record": "device",
        "plaintext": b"private keys".hex(),
        "sealed": sealed.hex(),
        "title": "home",
        "title_index": title_index(store_key, "home").hex(),
    }
    damaged = {"error": "store_damaged"}
    reject: list[dict[str, object]] = [
        {**case, "name": "altered", "sealed": flipped(sealed, 15).hex(), **damaged},
        {**case, "name": "under another name", "record": "account", **damaged},
        {**case, "name": "of another store", "store_key": bytes(32).hex(), **damaged},
    ]
    return vector("store_record", "sealing.md, section 9", [case], reject)


def signed_proofs() -> Vector:
    """What is signed to open a session and to ask for keys; the info of a lease; the commitment to B."""
    entropy = SeededEntropy("vectors proofs")
    server, incarnation, first, second = entropy(32), Incarnation(entropy(16)), entropy(32), entropy(32)
    account, device, space = AccountId(entropy(16)), DeviceId(entropy(16)), SpaceId(entropy(16))
    epoch, time_ms, origin = Epoch(2), 1_700_000_000_000, "wss://sync.example.org:443"
    messages = {
        "hello": proofs.hello_message(server, origin, incarnation, account, device, first, second),
        "welcome": proofs.welcome_message(server, incarnation, first, second, device),
        "welcome, anonymous": proofs.welcome_message(server, incarnation, first, second, b""),
        "lease-request": proofs.lease_message(space, [Epoch(1), epoch], first, time_ms, account, device),
        "pending-request": proofs.pending_message(space, epoch, first, time_ms, account, device),
    }
    given: dict[str, object] = {
        "server_id": server.hex(),
        "origin": origin,
        "incarnation": incarnation.hex(),
        "account": account.hex(),
        "device": device.hex(),
        "server_nonce": first.hex(),
        "client_nonce": second.hex(),
        "space": space.hex(),
        "epoch": epoch,
        "epochs": [1, 2],
        "time_ms": time_ms,
    }
    key = Ed25519PrivateKey.from_private_bytes(entropy(32))
    sign_pk = key.public_key().public_bytes_raw().hex()
    accept: list[dict[str, object]] = [
        {"name": name, **given, "message": made.hex(), "sign_pk": sign_pk, "signature": key.sign(made).hex()}
        for name, made in messages.items()
    ]
    token = "header.claims.signature"
    shown = proofs.with_token(messages["hello"], token)
    with_token: dict[str, object] = {
        "name": "hello with a token",
        **given,
        "token": token,
        "message": shown.hex(),
        "sign_pk": sign_pk,
        "signature": key.sign(shown).hex(),
    }
    accept.append(with_token)
    taking = proofs.pairing_take_message(server, device)
    signed: dict[str, object] = {"message": taking.hex(), "sign_pk": sign_pk, "signature": key.sign(taking).hex()}
    accept.append({"name": "pairing-take", **given, **signed})
    lease = proofs.lease_info(space, epoch, device, time_ms, incarnation, first).hex()
    accept.append({"name": "lease", **given, "message": lease})
    accept.append({"name": "b-commit", **given, "message": proofs.b_commit(space, epoch, server).hex()})
    hello = accept[0]
    signature = key.sign(messages["hello"])
    refused = {"error": "signature_refused"}
    reject: list[dict[str, object]] = [
        {**hello, "name": "altered signature", "signature": flipped(signature, 3).hex(), **refused},
        {**hello, "name": "another message", "message": messages["welcome"].hex(), **refused},
        {**hello, "name": "another key", "sign_pk": bytes(32).hex(), **refused},
        {**hello, "name": "a short signature", "signature": signature[:63].hex(), **refused},
        {**with_token, "name": "a token that was taken out", "message": messages["hello"].hex(), **refused},
    ]
    return vector("proofs", "sealing.md, sections 6 and 7", accept, reject)


def _sloppy(text: str) -> str:
    return text.lower().replace("-", " ").replace("1", "l").replace("0", "O")


MAKERS = {
    "labels": labels,
    "kdf": derivation,
    "ids": ids,
    "padding": padding,
    "hpke": hpke,
    "recovery_kit": recovery_kits,
    "unlocker": unlockers,
    "epoch_keys": epoch_keys,
    "link": links,
    "store_record": store_records,
    "proofs": signed_proofs,
}
