"""The vectors of signed logs: account logs and space logs that replay, and those that stop a replay."""

from __future__ import annotations

from tests.unit.sealing_world import Person, SeededEntropy, flipped
from tools.vectors_keys import Vector, vector
from twinlock.ids import Epoch
from twinlock.protocol.account_log import device_id_of, replay_account
from twinlock.protocol.calls import SignedEntry
from twinlock.protocol.signed_log import FieldValue, encode_body
from twinlock.protocol.space_log import Role, SpaceLogState
from twinlock.protocol.space_rules import replay_space
from twinlock.sealing import (
    DeviceKeys,
    ServiceKey,
    account_genesis,
    config_lease_entry,
    config_title_entry,
    device_entry,
    epoch_entry,
    make_epoch,
    member_entry,
    rekem_entry,
    revoke_entry,
    space_genesis,
)
from twinlock.sealing.identity import sign_entry

Case = dict[str, object]


def account_log() -> Vector:
    """An account with two devices, one revoked, and a new wrap key."""
    person, entropy = Person("vectors account log"), SeededEntropy("vectors account log entries")
    second = DeviceKeys.make(entropy)
    entries = [account_genesis(person.keys, entropy)]
    state = replay_account(entries)

    def grow(entry: SignedEntry) -> None:
        nonlocal state
        entries.append(entry)
        state = replay_account([entry], state)

    for device in (person.device, second):
        grow(device_entry(person.keys, state, device.sign_pk, device.kem_pk))
    grow(revoke_entry(person.keys, state, person.device.device))
    grow(rekem_entry(person.keys, state, entropy(32)))
    accept: list[Case] = [
        {
            "name": "two devices, one revoked, a new wrap key",
            "entries": entry_cases(entries),
            "account": state.account.hex(),
            "sign_pk": state.sign_pk.hex(),
            "kem_pk": state.kem_pk.hex(),
            "devices": sorted(device.hex() for device in state.devices),
            "revoked": sorted(device.hex() for device in state.revoked),
            "seq": state.seq,
            "head": state.head.hex(),
        }
    ]
    stranger = Person("vectors stranger")

    def forged(kind: str, fields: dict[str, FieldValue], by: Person = person) -> list[SignedEntry]:
        return [*entries, sign_entry(by.keys, state.account, state.position, encode_body(kind, fields))]

    bad: dict[str, tuple[list[SignedEntry], str]] = {
        "empty": ([], "log_invalid"),
        "no genesis": (entries[1:], "log_invalid"),
        "an entry left out": ([entries[0], *entries[2:]], "signature_refused"),
        "two entries swapped": ([entries[0], entries[2], entries[1]], "signature_refused"),
        "a signature altered": (
            [entries[0], SignedEntry(entries[1].body, flipped(entries[1].sig, 5))],
            "signature_refused",
        ),
        "signed by a stranger": (forged("rekem", {"kem": bytes(32)}, stranger), "signature_refused"),
        "a device id of other keys": (
            forged("device", {"device": bytes(16), "sign": bytes(32), "kem": bytes(32)}),
            "log_invalid",
        ),
        "a revoked device again": (
            forged(
                "device",
                {"device": person.device.device, "sign": person.device.sign_pk, "kem": person.device.kem_pk},
            ),
            "log_invalid",
        ),
        "a device key of small order": (
            forged(
                "device", {"device": device_id_of(second.sign_pk, bytes(32)), "sign": second.sign_pk, "kem": bytes(32)}
            ),
            "log_invalid",
        ),
        "an unknown type": (forged("shout", {}), "update_needed"),
        "an unknown field": (forged("rekem", {"kem": bytes(32), "later": 1}), "update_needed"),
        "a key of another length": (forged("rekem", {"kem": bytes(31)}), "log_invalid"),
    }
    for name, body in {
        "spaces in a body": b'{"kem": "' + b"A" * 43 + b'","type":"rekem"}',
        "keys out of order": b'{"type":"rekem","kem":"' + b"A" * 43 + b'"}',
        "a key twice": b'{"kem":"' + b"A" * 43 + b'","kem":"' + b"A" * 43 + b'","type":"rekem"}',
        "spare bits in base64": b'{"kem":"' + b"A" * 42 + b'B","type":"rekem"}',
        "padded base64": b'{"kem":"' + b"A" * 43 + b'=","type":"rekem"}',
        "not an object": b"[]",
    }.items():
        bad[name] = ([*entries, sign_entry(person.keys, state.account, state.position, body)], "log_invalid")
    return vector("account_log", "sealing.md, sections 2 and 4", accept, _rejects(bad))


def space_log() -> Vector:
    """A space with two epochs, members, a raised role, a title and a setting."""
    owner, entropy = Person("vectors space owner"), SeededEntropy("vectors space log")
    admin, writer = Person("vectors space admin"), Person("vectors space writer")
    entries = [space_genesis(owner.keys, 3, entropy)]
    state = replay_space(entries)

    def grow(entry: SignedEntry) -> None:
        nonlocal state
        entries.append(entry)
        state = replay_space([entry], state)

    first = make_epoch(state.space, Epoch(1), ServiceKey.make(entropy), entropy)
    grow(epoch_entry(owner.keys, state, first, None, entropy))
    grow(config_title_entry(owner.keys, state, first, "home", entropy))
    grow(_member(owner, state, admin, Role.ADMIN))
    grow(_member(admin, state, writer, Role.READER))
    grow(_member(admin, state, writer, Role.EDITOR))
    second = make_epoch(state.space, Epoch(2), ServiceKey.make(entropy), entropy)
    grow(epoch_entry(admin.keys, state, second, first.member_key, entropy))
    grow(config_lease_entry(owner.keys, state, 0))
    assert state.title is not None
    accept: list[Case] = [
        {
            "name": "members, two epochs, a title and a setting",
            "entries": entry_cases(entries),
            "space": state.space.hex(),
            "partition": state.partition,
            "members": {account.hex(): str(member.role) for account, member in state.members.items()},
            "epoch": state.epoch,
            "commits": [[record.b_commit.hex(), record.dk_commit.hex()] for record in state.epochs.values()],
            "title": "home",
            "title_member_key": first.member_key.expose().hex(),
            "title_service_key": first.service_key.expose().hex(),
            "lease_hours": state.lease_hours,
            "seq": state.seq,
            "head": state.head.hex(),
        }
    ]
    return vector("space_log", "sealing.md, section 4", accept, _rejects(_bad_space_logs(entries, state)))


def _bad_space_logs(entries: list[SignedEntry], state: SpaceLogState) -> dict[str, tuple[list[SignedEntry], str]]:
    owner, admin = Person("vectors space owner"), Person("vectors space admin")
    writer, ghost = Person("vectors space writer"), Person("vectors ghost")

    def forged(by: Person, kind: str, **fields: FieldValue) -> list[SignedEntry]:
        body = encode_body(kind, {"by": by.keys.account, **fields})
        return [*entries, sign_entry(by.keys, state.space, state.position, body)]

    epoch: dict[str, FieldValue] = {"b_commit": bytes(32), "dk_commit": bytes(32), "drop_pk": bytes(32)}
    in_the_owner_s_name = encode_body("config", {"by": owner.keys.account, "lease_hours": 1})
    return {
        "empty": ([], "log_invalid"),
        "no genesis": (entries[1:], "log_invalid"),
        "an entry left out": ([*entries[:2], *entries[3:]], "signature_refused"),
        "a ghost member": ([*entries, _member(ghost, state, ghost, Role.EDITOR)], "log_invalid"),
        "signed by a ghost in the owner's name": (
            [*entries, sign_entry(ghost.keys, state.space, state.position, in_the_owner_s_name)],
            "signature_refused",
        ),
        "an editor writes the log": (forged(writer, "config", lease_hours=1), "log_invalid"),
        "an admin makes an admin": ([*entries, _member(admin, state, ghost, Role.ADMIN)], "log_invalid"),
        "an admin changes the owner": ([*entries, _member(admin, state, owner, Role.OWNER)], "log_invalid"),
        "a lower role without a cutoff": ([*entries, _member(owner, state, writer, Role.READER)], "log_invalid"),
        "an epoch is skipped": (forged(owner, "epoch", n=4, link=bytes(60), **epoch), "log_invalid"),
        "an epoch again": (forged(owner, "epoch", n=2, link=bytes(60), **epoch), "log_invalid"),
        "an epoch without a link": (forged(owner, "epoch", n=3, link=b"", **epoch), "log_invalid"),
        "a title of no epoch": (forged(owner, "config", title=bytes(40), epoch=3), "log_invalid"),
        "an unknown type": (forged(owner, "dance"), "update_needed"),
        "an unknown role": (
            forged(
                owner,
                "member",
                account=ghost.keys.account,
                sign=ghost.keys.sign_pk,
                kem=ghost.keys.kem_pk,
                role="emperor",
            ),
            "update_needed",
        ),
    }


def _member(signer: Person, state: SpaceLogState, person: Person, role: Role) -> SignedEntry:
    keys = person.keys
    return member_entry(signer.keys, state, keys.sign_pk, keys.kem_pk, keys.account, role)


def entry_cases(entries: list[SignedEntry]) -> list[Case]:
    """Return the entries of a log as they stand in a vector."""
    return [{"body": entry.body.hex(), "sig": entry.sig.hex()} for entry in entries]


def _rejects(bad: dict[str, tuple[list[SignedEntry], str]]) -> list[Case]:
    return [{"name": name, "entries": entry_cases(entries), "error": error} for name, (entries, error) in bad.items()]


MAKERS = {"account_log": account_log, "space_log": space_log}
