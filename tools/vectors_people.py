"""The vectors of people and their devices: invites, digits, pairing, parcels and device names."""

from __future__ import annotations

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from tests.unit.sealing_world import Person, SeededEntropy, flipped
from tools import hpke_reference
from tools.vectors_keys import Case, Vector, vector
from twinlock.ids import Epoch, SpaceId
from twinlock.protocol import proofs
from twinlock.protocol.account_log import AccountState, replay_account
from twinlock.protocol.labels import label, u32
from twinlock.sealing import DeviceKeys, rekem_entry
from twinlock.sealing.digits import safety_digits
from twinlock.sealing.invites import InviteKeys, InviteLink, make_invite
from twinlock.sealing.pairing import pairing_code, pairing_digits, pairing_qr, seal_device_name

ORIGIN = "wss://sync.example.org:443"


def invites() -> Vector:
    """Links, the keys that follow from them, A wrapped to them, and what their keys sign."""
    entropy, person = SeededEntropy("vectors invite links"), Person("vectors invited")
    space, server_id, member_key = SpaceId(entropy(16)), entropy(32), entropy(32)
    link = make_invite(space, entropy)
    keys, account, epoch = InviteKeys.of(space, link.secret), person.keys, Epoch(4)
    ephemeral = X25519PrivateKey.from_private_bytes(entropy(32))
    info = label("wrap-a", space + u32(epoch) + keys.id)
    opening = proofs.invite_open_message(server_id, space, keys.id, account.account)
    joining = proofs.join_message(space, keys.id, account.account, account.sign_pk, account.kem_pk)
    case: Case = {
        "name": "a link",
        "link": f"https://app.example/#{link}",
        "space": space.hex(),
        "secret": link.secret.hex(),
        "invite": keys.id.hex(),
        "sign_private": keys.sign.private_bytes_raw().hex(),
        "kem_private": keys.kem.private_bytes_raw().hex(),
        "sign_pk": keys.sign_pk.hex(),
        "kem_pk": keys.kem_pk.hex(),
        "epoch": epoch,
        "wrapped": hpke_reference.seal(ephemeral, keys.kem_pk, member_key, info).hex(),
        "member_key": member_key.hex(),
        "server_id": server_id.hex(),
        "account": account.account.hex(),
        "account_sign_pk": account.sign_pk.hex(),
        "account_kem_pk": account.kem_pk.hex(),
        "open_message": opening.hex(),
        "open_signature": keys.sign.sign(opening).hex(),
        "join_message": joining.hex(),
        "join_signature": keys.sign.sign(joining).hex(),
    }
    text = str(link)
    links = {
        "another mark": text.replace("tl1", "tl2"),
        "no secret": text.rpartition(".")[0],
        "cut short": text[:-1],
        "another secret": str(InviteLink(space, link.invite, flipped(link.secret, 31))),
        "another invite": str(InviteLink(space, flipped(link.invite, 0), link.secret)),
        "another space": str(InviteLink(SpaceId(flipped(space, 0)), link.invite, link.secret)),
        "empty": "",
    }
    refused = {"error": "signature_refused"}
    reject: list[Case] = [{**case, "name": name, "link": bad, "error": "invite_refused"} for name, bad in links.items()]
    reject += [
        {**case, "name": "opened by another account", "open_signature": keys.sign.sign(joining).hex(), **refused},
        {**case, "name": "joined with the signature of opening", "join_signature": case["open_signature"], **refused},
        {**case, "name": "A wrapped for another epoch", "epoch": 5, "error": "open_failed"},
        {**case, "name": "A wrapped to a member", "invite": account.account.hex(), "error": "open_failed"},
    ]
    accept: list[Case] = [case, {**case, "name": "its fragment alone", "link": text}]
    return vector("invite", "sealing.md, section 4", accept, reject)


def digits() -> Vector:
    """Sixty digits that two people compare."""
    entropy = SeededEntropy("vectors digits")
    accept: list[Case] = []
    for number in range(3):
        one, other = entropy(32), entropy(32)
        made = safety_digits(one, other)
        case: Case = {"name": f"safety {number}", "sign_pk": one.hex(), "other_sign_pk": other.hex(), "digits": made}
        accept += [case, {**case, "name": f"safety {number}, seen by the other", **_swapped(one, other)}]
    person = Person("vectors digits")
    account, device = person.keys.account, person.device.device
    shown = pairing_digits(account, device)
    accept.append({"name": "pairing", "account": account.hex(), "device": device.hex(), "digits": shown})
    return vector("digits", "sealing.md, sections 2 and 4", accept, [])


def _swapped(one: bytes, other: bytes) -> Case:
    return {"sign_pk": other.hex(), "other_sign_pk": one.hex()}


# Devices of one account


def pairing() -> Vector:
    """The code and QR text of a device that waits, and the account's keys sealed to it."""
    person, entropy = Person("vectors pairing"), SeededEntropy("vectors pairing")
    device, server_id = DeviceKeys.make(entropy), entropy(32)
    person.certify(device)
    info = label("pair", person.keys.account + device.device)

    def sealed(plaintext: bytes, to: bytes = device.kem_pk, bound_to: bytes = info) -> str:
        return hpke_reference.seal(X25519PrivateKey.from_private_bytes(entropy(32)), to, plaintext, bound_to).hex()

    whole = person.keys.expose()
    code, qr = pairing_code(device.device), pairing_qr(ORIGIN, server_id, device.device)
    case: Case = {
        "name": "by code",
        "shown": code,
        "prefix": device.device[:10].hex(),
        "server_id": "",
        "origin": "",
        "sign_pk": device.sign_pk.hex(),
        "kem_pk": device.kem_pk.hex(),
        "device": device.device.hex(),
        "device_private": device.expose().hex(),
        **_account(person.state),
        "sealed": sealed(whole),
        "account_keys": whole.hex(),
    }
    by_qr: Case = {"shown": qr, "prefix": device.device.hex(), "server_id": server_id.hex(), "origin": ORIGIN}
    accept: list[Case] = [
        case,
        {**case, "name": "by code, as typed", "shown": code.lower().replace("-", " ").replace("0", "O")},
        {**case, "name": "by QR", **by_qr},
    ]
    stranger = Person("vectors pairing stranger")
    unknown, refused = {"error": "pairing_unknown"}, {"error": "pairing_refused"}
    reject: list[Case] = [
        {**case, "name": "a letter too few", "shown": code[:-1], **unknown},
        {**case, "name": "a letter that is never used", "shown": code[:-1] + "U", **unknown},
        {**case, "name": "a QR text without a server", "shown": qr.replace("server=", "s="), **unknown},
        {**case, "name": "the code of another device", "shown": pairing_code(person.device.device), **refused},
        {**case, "name": "another sign key", "sign_pk": stranger.device.sign_pk.hex(), **refused},
        {**case, "name": "another kem key", "kem_pk": stranger.device.kem_pk.hex(), **refused},
        {**case, "name": "another account's keys", "sealed": sealed(stranger.keys.expose()), **refused},
        {**case, "name": "another kem key of the account", "sealed": sealed(whole[:32] + entropy(32)), **refused},
        {**case, "name": "sealed for another device", "sealed": sealed(whole, bound_to=info[:-1] + b"x"), **refused},
        {**case, "name": "sealed to another key", "sealed": sealed(whole, stranger.device.kem_pk), **refused},
        {**case, "name": "not certified by the account's log", "devices": [], **refused},
    ]
    return vector("pairing", "sealing.md, section 2", accept, reject)


def parcels() -> Vector:
    """An account's new kem key on its way to one of its devices."""
    person, entropy = Person("vectors parcel"), SeededEntropy("vectors parcel")
    kem, other = (X25519PrivateKey.from_private_bytes(entropy(32)) for _ in range(2))
    entry = rekem_entry(person.keys, person.state, kem.public_key().public_bytes_raw())
    state, device = replay_account([entry], person.state), person.device
    info = label("rekem", state.account + device.device)

    def sealed(key: bytes, bound_to: bytes = info) -> str:
        ephemeral = X25519PrivateKey.from_private_bytes(entropy(32))
        return hpke_reference.seal(ephemeral, device.kem_pk, key, bound_to).hex()

    case: Case = {
        "name": "a parcel",
        **_account(state),
        "device": device.device.hex(),
        "device_private": device.expose().hex(),
        "sealed": sealed(kem.private_bytes_raw()),
        "kem_private": kem.private_bytes_raw().hex(),
    }
    refused = {"error": "open_failed"}
    reject: list[Case] = [
        {**case, "name": "another key than the log names", "sealed": sealed(other.private_bytes_raw()), **refused},
        {**case, "name": "the log names none yet", "account_kem_pk": person.state.kem_pk.hex(), **refused},
        {**case, "name": "for another device", "sealed": sealed(kem.private_bytes_raw(), info + b"x"), **refused},
        {**case, "name": "of another length", "sealed": sealed(kem.private_bytes_raw() + b"\0"), **refused},
        {**case, "name": "altered", "sealed": flipped(bytes.fromhex(str(case["sealed"])), 40).hex(), **refused},
    ]
    return vector("parcel", "sealing.md, section 2", [case], reject)


def device_names() -> Vector:
    """The names of an account's devices."""
    person, entropy = Person("vectors device name"), SeededEntropy("vectors device name")
    kem, account, device = person.keys.kem, person.keys.account, person.device.device
    accept: list[Case] = [
        {
            "name": name or "no name",
            "kem_private": kem.private_bytes_raw().hex(),
            "account": account.hex(),
            "device": device.hex(),
            "text": name,
            "sealed": seal_device_name(kem, account, device, name, entropy).hex(),
        }
        for name in ("Grandma\u2019s phone", "", "x" * 127)
    ]
    case, refused = accept[0], {"error": "open_failed"}
    reject: list[Case] = [
        {**case, "name": "of another device", "device": bytes(16).hex(), **refused},
        {**case, "name": "of another account", "account": bytes(16).hex(), **refused},
        {**case, "name": "under another key", "kem_private": entropy(32).hex(), **refused},
        {**case, "name": "altered", "sealed": flipped(bytes.fromhex(str(case["sealed"])), 20).hex(), **refused},
        {**case, "name": "too short", "sealed": str(case["sealed"])[:54], **refused},
    ]
    return vector("device_name", "sealing.md, section 2", accept, reject)


def _account(state: AccountState) -> Case:
    """Return what an account's log says that its devices check against."""
    return {
        "account": state.account.hex(),
        "account_sign_pk": state.sign_pk.hex(),
        "account_kem_pk": state.kem_pk.hex(),
        "devices": sorted(device.hex() for device in state.devices),
    }


MAKERS = {
    "invite": invites,
    "digits": digits,
    "pairing": pairing,
    "parcel": parcels,
    "device_name": device_names,
}
