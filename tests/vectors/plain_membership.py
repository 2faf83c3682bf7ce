"""A space's log replayed by its page: spec/sealing.md, section 4, rule by rule.

Slow and simple on purpose, and without a line of the package: what the vectors say is not only what the code does.
"""

from __future__ import annotations

import base64
import copy
import hashlib
import json

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

RANKS = ["sender", "reader", "editor", "admin", "owner"]
ADMITTERS = ("owner", "admin")
READERS = ("owner", "admin", "editor", "reader")
BY_ADMITTERS = ("epoch", "member", "invite", "uninvite", "remove", "config")
TYPES = (*BY_ADMITTERS, "genesis", "join", "leave", "cutoff", "rekem", "shred")
ANY_KEY = X25519PrivateKey.generate()


class RefusedError(Exception):
    """The code of a refusal."""


def replay(entries: list[tuple[bytes, bytes]]) -> dict:
    """Return what a log says, or raise the code of its refusal."""
    state: dict = {}
    for seq, (body, sig) in enumerate(entries, 1):
        state = _step(copy.deepcopy(state), seq, body, sig)
    _check(bool(state))
    state["key_holders"] = {name: each["kem"] for name, each in state["members"].items() if each["role"] in READERS}
    state["key_holders"] |= {
        name: each["kem"] for name, each in state["invites"].items() if each["role"] in READERS and not each["approve"]
    }
    return state


def _step(state: dict, seq: int, body: bytes, sig: bytes) -> dict:
    _check(len(body) <= 65_536)
    fields = _object(body)
    kind = fields.pop("type", None)
    _check(isinstance(kind, str))
    _check(kind in TYPES, "update_needed")
    _check((kind == "genesis") == (not state))
    _check(not state.get("is_shredded"))
    by = _octets(fields, "by", 16)
    if kind == "genesis":
        state.update(members={}, former={}, applicants={}, invites={}, epochs=[], lease_hours=24, offline_needs="")
        state.update(wants_rotation=False, is_shredded=False, head=bytes(32), space=bytes(16))
    member = state["members"].get(by.hex())
    _check(member is not None or kind in ("join", "genesis"))
    sign = member["sign"] if member else _octets(dict(fields), "sign", 32)
    _check(member is not None or _account_of(sign) == by)
    inside = _label("log", state["space"] + seq.to_bytes(4, "big") + state["head"] + hashlib.sha256(body).digest())
    state["head"], state["seq"] = hashlib.sha256(inside).digest(), seq
    _verify(sign, sig, _label("log-sig", state["head"]), "signature_refused")
    _check(kind not in BY_ADMITTERS or member["role"] in ADMITTERS)
    _check(kind != "shred" or member["role"] == "owner")
    RULES[kind](state, fields, by.hex())
    _check(not fields, "update_needed")
    _check(json.dumps(json.loads(body), sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode() == body)
    return state


def _genesis(state: dict, fields: dict, by: str) -> None:
    _octets(fields, "nonce", 16)
    partition = _integer(fields, "partition", 0xFFFF)
    sign, kem = _octets(fields, "sign", 32), _recipient(fields, "kem")
    tail = hashlib.sha256(_label("space", state["head"])).digest()[:14]
    state["space"] = partition.to_bytes(2, "big") + tail
    _admit(state, by, sign, kem, "owner")


def _epoch(state: dict, fields: dict, by: str) -> None:
    number = _integer(fields, "n", 0xFFFF_FFFF)
    _check(number == len(state["epochs"]) + 1)
    for name in ("b_commit", "dk_commit"):
        _octets(fields, name, 32)
    _recipient(fields, "drop_pk")
    _octets(fields, "link", 60 if number > 1 else 0)
    state["epochs"].append(number)
    state["wants_rotation"] = False


def _member(state: dict, fields: dict, by: str) -> None:
    account, sign, kem, role = _account(fields)
    present, applicant = state["members"].get(account), state["applicants"].get(account)
    _check_rank(state, by, role, present["role"] if present else role)
    known = present or applicant
    _check(known is None or known["kem"] == kem)
    is_lower = present is not None and RANKS.index(role) < RANKS.index(present["role"])
    if is_lower:
        cutoff = _counters(fields, "cutoff")
    if present is not None and role != "owner":
        _check_owner_stays(state, account)
    if present and present["role"] in READERS and role not in READERS:
        state["wants_rotation"] = True
    came_by = applicant["invite"] if applicant else None
    _admit(state, account, sign, kem, role)
    if is_lower:
        _cut(state, account, cutoff, is_whole=True)
        _lose_way_back(state, account)
        state["members"][account]["barred_seq"] = state["seq"]
    if came_by:
        state["members"][account]["invite"] = came_by
    _keep_invites_of_admitters(state)


def _invite(state: dict, fields: dict, by: str) -> None:
    name = _octets(fields, "id", 16)
    sign, kem = _octets(fields, "sign", 32), _recipient(fields, "kem")
    role = _role(fields)
    made = {"sign": sign, "kem": kem, "role": role, "seq": state["seq"], "by": by}
    made["expires"] = _integer(fields, "expires", (1 << 53) - 1)
    made["uses"] = _integer(fields, "uses", 10_000)
    made["approve"] = _integer(fields, "approve", 1)
    _check(name == hashlib.sha256(_label("invite", sign + kem)).digest()[:16])
    _check(name.hex() not in state["invites"] and len(state["invites"]) < 256)
    _check(role not in ADMITTERS and made["uses"] >= 1)
    state["invites"][name.hex()] = made


def _uninvite(state: dict, fields: dict, by: str) -> None:
    name = _octets(fields, "id", 16).hex()
    _check(name in state["invites"])
    del state["invites"][name]


def _join(state: dict, fields: dict, by: str) -> None:
    name = _octets(fields, "invite", 16)
    sign, kem = _octets(fields, "sign", 32), _recipient(fields, "kem")
    _check(_account_of(sign).hex() == by)
    isig, invite = _octets(fields, "isig", 64), state["invites"].get(name.hex())
    _check(invite is not None)
    message = _label("join", state["space"] + name + bytes.fromhex(by) + sign + kem)
    _verify(invite["sign"], isig, message, "log_invalid")
    _check(by not in state["members"] and by not in state["applicants"])
    before = state["former"].get(by)
    _check(before is None or before["barred_seq"] < invite["seq"])
    invite["uses"] -= 1
    if not invite["uses"]:
        del state["invites"][name.hex()]
    if invite["approve"]:
        state["applicants"][by] = {"sign": sign, "kem": kem, "role": invite["role"], "invite": name.hex()}
        return
    _admit(state, by, sign, kem, invite["role"])
    state["members"][by]["invite"] = name.hex()


def _leave(state: dict, fields: dict, by: str) -> None:
    cutoff = _counters(fields, "cutoff")
    _check_owner_stays(state, by)
    if state["members"][by]["role"] in READERS:
        state["wants_rotation"] = True
    _end(state, by, cutoff)
    _keep_invites_of_admitters(state)


def _remove(state: dict, fields: dict, by: str) -> None:
    account, cutoff = _octets(fields, "account", 16).hex(), _counters(fields, "cutoff")
    _check(account != by)
    if account in state["applicants"]:
        gone = state["applicants"].pop(account)
        before = state["former"].get(account, {"roles": [], "cutoffs": []})
        kept = {"roles": before["roles"], "cutoffs": before["cutoffs"], "barred_seq": 0}
        state["former"][account] = {**gone, **kept}
        _end(state, account, cutoff, state["former"])
    else:
        _check(account in state["members"])
        _check_rank(state, by, state["members"][account]["role"])
        _check_owner_stays(state, account)
        _lose_way_back(state, account)
        _end(state, account, cutoff)
        _keep_invites_of_admitters(state)
    for name in ("removed_seq", "barred_seq"):
        state["former"][account][name] = state["seq"]
    epoch = fields.pop("epoch", None)
    _check(isinstance(epoch, dict))
    _epoch(state, epoch, by)
    _check(not epoch, "update_needed")


def _cutoff(state: dict, fields: dict, by: str) -> None:
    account, counters = _octets(fields, "account", 16).hex(), _counters(fields, "counters")
    record = state["members"].get(account) or state["former"].get(account)
    _check(record is not None)
    if account != by:
        _check(state["members"][by]["role"] in ADMITTERS)
        _check_rank(state, by, record["role"])
        record["barred_seq"] = state["seq"]
    record["cutoffs"].append({"seq": state["seq"], "counters": counters, "is_whole": False})


def _rekem(state: dict, fields: dict, by: str) -> None:
    state["members"][by]["kem"] = _recipient(fields, "kem")
    if state["members"][by]["role"] in READERS:
        state["wants_rotation"] = True


def _config(state: dict, fields: dict, by: str) -> None:
    if "title" in fields:
        _octets(fields, "title", 1, 1024)
        _check(_integer(fields, "epoch", 0xFFFF_FFFF) in state["epochs"])
    if "lease_hours" in fields:
        state["lease_hours"] = _integer(fields, "lease_hours", 8784)
    if "offline_needs" in fields:
        state["offline_needs"] = _text(fields, "offline_needs")
        _check(state["offline_needs"] in ("", "keystore"), "update_needed")


def _shred(state: dict, fields: dict, by: str) -> None:
    state["is_shredded"] = True


RULES = {
    "genesis": _genesis,
    "epoch": _epoch,
    "member": _member,
    "invite": _invite,
    "uninvite": _uninvite,
    "join": _join,
    "leave": _leave,
    "remove": _remove,
    "cutoff": _cutoff,
    "rekem": _rekem,
    "config": _config,
    "shred": _shred,
}


# What the rules share


def _admit(state: dict, account: str, sign: bytes, kem: bytes, role: str) -> None:
    _check(account in state["members"] or len(state["members"]) < 10_000)
    fresh = {"roles": [], "cutoffs": [], "barred_seq": 0, "invite": ""}
    before = state["members"].get(account) or state["former"].pop(account, fresh)
    state["applicants"].pop(account, None)
    kept = {"sign": sign, "kem": kem, "role": role, "removed_seq": 0}
    state["members"][account] = {**before, **kept, "roles": [*before["roles"], [state["seq"], role]]}


def _end(state: dict, account: str, cutoff: dict, place: dict | None = None) -> None:
    record = (place if place is not None else state["members"]).pop(account)
    record["roles"] = [*record["roles"], [state["seq"], None]]
    record["removed_seq"] = 0
    state["former"][account] = record
    record["cutoffs"].append({"seq": state["seq"], "counters": cutoff, "is_whole": True})


def _cut(state: dict, account: str, counters: dict, *, is_whole: bool) -> None:
    cutoff = {"seq": state["seq"], "counters": counters, "is_whole": is_whole}
    state["members"][account]["cutoffs"].append(cutoff)


def _lose_way_back(state: dict, account: str) -> None:
    name = state["members"][account]["invite"]
    if name in state["invites"] and not state["invites"][name]["approve"]:
        del state["invites"][name]


def _keep_invites_of_admitters(state: dict) -> None:
    admitters = [account for account, each in state["members"].items() if each["role"] in ADMITTERS]
    state["invites"] = {name: each for name, each in state["invites"].items() if each["by"] in admitters}


def _check_rank(state: dict, by: str, *roles: str) -> None:
    _check(state["members"][by]["role"] == "owner" or not set(roles) & set(ADMITTERS))


def _check_owner_stays(state: dict, account: str) -> None:
    owners = [name for name, each in state["members"].items() if each["role"] == "owner"]
    _check(owners != [account])


# Fields


def _object(body: bytes) -> dict:
    try:
        fields = json.loads(body)
    except (ValueError, RecursionError) as exc:
        raise RefusedError("log_invalid") from exc
    _check(isinstance(fields, dict))
    return fields


def _account(fields: dict) -> tuple[str, bytes, bytes, str]:
    account, sign, kem = _octets(fields, "account", 16), _octets(fields, "sign", 32), _recipient(fields, "kem")
    _check(_account_of(sign) == account)
    return account.hex(), sign, kem, _role(fields)


def _account_of(sign: bytes) -> bytes:
    return hashlib.sha256(_label("account", sign)).digest()[:16]


def _role(fields: dict) -> str:
    role = _text(fields, "role")
    _check(role in RANKS, "update_needed")
    return role


def _recipient(fields: dict, name: str) -> bytes:
    key = _octets(fields, name, 32)
    try:
        ANY_KEY.exchange(X25519PublicKey.from_public_bytes(key))
    except ValueError as exc:
        raise RefusedError("log_invalid") from exc
    return key


def _counters(fields: dict, name: str) -> dict:
    found = fields.pop(name, None)
    _check(isinstance(found, dict))
    return {_decoded(key, 16, 16).hex(): _number(value, (1 << 53) - 1) for key, value in found.items()}


def _text(fields: dict, name: str) -> str:
    value = fields.pop(name, None)
    _check(isinstance(value, str))
    return value


def _integer(fields: dict, name: str, most: int) -> int:
    return _number(fields.pop(name, None), most)


def _number(value: object, most: int) -> int:
    _check(type(value) is int and 0 <= value <= most)
    return value


def _octets(fields: dict, name: str, least: int, most: int | None = None) -> bytes:
    return _decoded(_text(fields, name), least, most if most is not None else least)


def _decoded(text: str, least: int, most: int) -> bytes:
    try:
        data = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    except ValueError as exc:
        raise RefusedError("log_invalid") from exc
    # Spare bits, padding and other letters are seen in that they are not written again.
    _check(base64.urlsafe_b64encode(data).decode().rstrip("=") == text and least <= len(data) <= most)
    return data


def _label(name: str, context: bytes) -> bytes:
    return b"twinlock/1 " + name.encode() + b"\0" + context


def _verify(sign: bytes, sig: bytes, message: bytes, code: str) -> None:
    try:
        Ed25519PublicKey.from_public_bytes(sign).verify(sig, message)
    except (InvalidSignature, ValueError) as exc:
        raise RefusedError(code) from exc


def _check(holds: bool, code: str = "log_invalid") -> None:
    if not holds:
        raise RefusedError(code)
