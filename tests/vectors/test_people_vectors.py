"""The vectors of people, devices and membership, read as another implementation would read them."""

import json
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from tests.vectors import plain_membership
from twinlock.errors import TwinlockError
from twinlock.ids import AccountId, Counter, DeviceId, Epoch, Seq, SpaceId
from twinlock.protocol import proofs
from twinlock.protocol.account_log import AccountState, DeviceRecord, account_id_of
from twinlock.protocol.calls import SignedEntry
from twinlock.protocol.frames import Entry
from twinlock.protocol.space_log import Cutoff, EpochRecord, Member, Role, SpaceLogState
from twinlock.protocol.space_rules import replay_space
from twinlock.sealing import (
    AccountKeys,
    ChainHead,
    ChainReader,
    DeviceKeys,
    MemberKey,
    ServiceKey,
    check_device_keys,
    open_account_keys,
    open_device_name,
    open_parcel,
    pairing_code,
    pairing_digits,
    pairing_qr,
    parse_pairing,
    unwrap_member_key,
)
from twinlock.sealing.digits import safety_digits
from twinlock.sealing.invites import InviteKeys, invite_proof, parse_link
from twinlock.sealing.space_keys import EpochKeys

FOLDER = Path(__file__).parents[2] / "spec" / "vectors"
CONSTRUCTS = ["cutoff", "device_name", "digits", "invite", "membership", "pairing", "parcel"]


def of(case, name: str) -> bytes:
    """Return a field that is written in hexadecimal."""
    return bytes.fromhex(case[name])


def read(construct: str) -> dict:
    return json.loads((FOLDER / f"{construct}.json").read_text(encoding="utf-8"))


CASES = [
    pytest.param(construct, part, case, id=f"{construct}: {case['name']}")
    for construct in CONSTRUCTS
    for part in ("accept", "reject")
    for case in read(construct)[part]
]


@pytest.mark.parametrize(("construct", "part", "case"), CASES)
def test_a_vector_is_read_as_the_spec_says(construct, part, case):
    check = globals()[f"check_{construct}"]
    if part == "accept":
        check(case)
        return
    with pytest.raises(TwinlockError) as refused:
        check(case)
    assert refused.value.code == case["error"]


def test_every_refused_log_is_taken_but_for_its_last_entry():
    """So the rule that the case names is what refuses it."""
    for case in read("membership")["reject"]:
        entries = [SignedEntry(of(entry, "body"), of(entry, "sig")) for entry in case["entries"]]
        replay_space(entries[:-1])


# Membership


@pytest.mark.parametrize("construct", ["membership", "space_log"])
def test_the_page_alone_says_the_same_of_logs(construct):
    for case in read(construct)["accept"]:
        state = plain_membership.replay(pairs_of(case))
        assert (state["seq"], state["head"], len(state["epochs"])) == (case["seq"], of(case, "head"), case["epoch"])
        if construct == "membership":
            members = {name: plainly(each) for name, each in state["members"].items()}
            assert members == {name: plainly(each) for name, each in case["members"].items()}
            former = {name: plainly(each) for name, each in state["former"].items()}
            assert former == {name: plainly(each) for name, each in case["former"].items()}
            assert set(state["invites"]) == set(case["invites"])
            assert set(state["applicants"]) == set(case["applicants"])
            assert {name: kem.hex() for name, kem in state["key_holders"].items()} == case["key_holders"]
            for name in ("wants_rotation", "is_shredded", "offline_needs", "lease_hours"):
                assert state[name] == case[name]
    for case in read(construct)["reject"]:
        with pytest.raises(plain_membership.RefusedError, match=case["error"]):
            plain_membership.replay(pairs_of(case))


def pairs_of(case) -> list[tuple[bytes, bytes]]:
    return [(of(entry, "body"), of(entry, "sig")) for entry in case["entries"]]


def plainly(each) -> object:
    """Return what both tell of a member."""
    kem = each["kem"].hex() if "kem" in each else each["kem_pk"]
    return (kem, each["roles"], each["cutoffs"], each["removed_seq"], each["barred_seq"])


def check_membership(case):
    state = replay_space([SignedEntry(of(entry, "body"), of(entry, "sig")) for entry in case["entries"]])

    assert {account.hex(): written(member) for account, member in state.members.items()} == case["members"]
    assert {account.hex(): written(member) for account, member in state.former.items()} == case["former"]
    assert {account.hex(): str(each.role) for account, each in state.applicants.items()} == case["applicants"]
    invites = {
        name.hex(): [str(each.role), each.expires_ms, each.uses_left, int(each.needs_approval), each.by.hex()]
        for name, each in state.invites.items()
    }
    assert invites == case["invites"]
    assert {name.hex(): kem_pk.hex() for name, kem_pk in state.key_holders.items()} == case["key_holders"]
    names = ("epoch", "lease_hours", "offline_needs", "wants_rotation", "is_shredded", "seq")
    assert {name: getattr(state, name) for name in names} == {name: case[name] for name in names}
    assert (state.space, state.head) == (of(case, "space"), of(case, "head"))


def written(member: Member) -> dict:
    return {
        "kem_pk": member.kem_pk.hex(),
        "roles": [[seq, role and str(role)] for seq, role in member.granted],
        "cutoffs": [
            {
                "seq": cutoff.seq,
                "counters": {device.hex(): counter for device, counter in cutoff.counters.items()},
                "is_whole": cutoff.is_whole,
            }
            for cutoff in member.cutoffs
        ],
        "removed_seq": member.removed_seq,
        "barred_seq": member.barred_seq,
    }


# Cutoffs

GIVEN = read("cutoff")["given"]


def check_cutoff(case):
    reader = ChainReader(given_log(), given_accounts(), given_keys, lambda payload, source: payload, {})

    page = reader.read([Entry(Seq(index), 0, bytes.fromhex(data)) for index, data in enumerate(case["entries"], 1)])

    assert [[opened.source.seq, opened.content.hex()] for opened in page.opened] == case["opened"]
    assert [[kept.entry.seq, str(kept.reason)] for kept in page.quarantined] == case["quarantined"]
    heads = {device.hex(): [head.counter, head.id.hex()] for device, head in page.heads.items()}
    assert heads == case["heads"]
    assert all(isinstance(head, ChainHead) for head in page.heads.values())


def given_log() -> SpaceLogState:
    log = GIVEN["space_log"]
    record = EpochRecord(b"", b"", b"", b"", AccountId(b""))
    return SpaceLogState(
        space=SpaceId(of(log, "space")),
        partition=0,
        members={AccountId(of(member, "account")): given_member(member) for member in GIVEN["members"]},
        epochs={Epoch(number): record for number in log["epochs"]},
        epoch=Epoch(max(log["epochs"])),
        head_prefixes={bytes.fromhex(prefix): seq for prefix, seq in log["head_prefixes"].items()},
        seq=0,
        head=b"",
    )


def given_member(member) -> Member:
    granted = tuple((seq, role and Role(role)) for seq, role in member["roles"])
    cutoffs = tuple(
        Cutoff(
            cutoff["seq"],
            {DeviceId(bytes.fromhex(device)): Counter(counter) for device, counter in cutoff["counters"].items()},
            cutoff["is_whole"],
        )
        for cutoff in member["cutoffs"]
    )
    return Member(b"", b"", Role.READER, granted, cutoffs)


def given_accounts() -> list[AccountState]:
    states = []
    for member in GIVEN["members"]:
        devices = {
            DeviceId(bytes.fromhex(device)): DeviceRecord(bytes.fromhex(sign_pk), b"")
            for device, sign_pk in member["devices"].items()
        }
        revoked = {DeviceId(bytes.fromhex(device)) for device in member["revoked"]}
        present = {device: record for device, record in devices.items() if device not in revoked}
        retired = {device: devices[device] for device in revoked}
        states.append(AccountState(AccountId(of(member, "account")), b"", b"", present, retired, 0, b""))
    return states


def given_keys(epoch: Epoch) -> EpochKeys:
    member_key, service_key = MemberKey(of(GIVEN, "member_key")), ServiceKey(of(GIVEN, "service_key"))
    return EpochKeys(SpaceId(of(GIVEN["space_log"], "space")), epoch, member_key, service_key)


# Invites and digits


def check_invite(case):
    link = parse_link(case["link"])
    assert (link.space, link.secret) == (of(case, "space"), of(case, "secret"))
    keys, account, space = InviteKeys.of(link.space, link.secret), AccountId(of(case, "account")), link.space
    assert keys.sign.private_bytes_raw() + keys.kem.private_bytes_raw() == of(case, "sign_private") + of(
        case, "kem_private"
    )
    assert (keys.sign_pk, keys.kem_pk) == (of(case, "sign_pk"), of(case, "kem_pk"))
    name = of(case, "invite")
    opened = unwrap_member_key(of(case, "wrapped"), keys.kem, space, Epoch(case["epoch"]), AccountId(name))
    assert opened.expose() == of(case, "member_key")
    assert link.invite == keys.id == name
    opening = proofs.invite_open_message(of(case, "server_id"), space, name, account)
    joining = proofs.join_message(space, name, account, of(case, "account_sign_pk"), of(case, "account_kem_pk"))
    assert (opening, joining) == (of(case, "open_message"), of(case, "join_message"))
    proofs.verify(keys.sign_pk, of(case, "open_signature"), opening)
    proofs.verify(keys.sign_pk, of(case, "join_signature"), joining)
    assert invite_proof(keys, of(case, "server_id"), space, account) == of(case, "open_signature")


def check_digits(case):
    if "account" in case:
        made = pairing_digits(AccountId(of(case, "account")), DeviceId(of(case, "device")))
    else:
        made = safety_digits(of(case, "sign_pk"), of(case, "other_sign_pk"))
    assert made == case["digits"]


# Devices of one account


def account_of(case) -> AccountState:
    devices = {DeviceId(bytes.fromhex(device)): DeviceRecord(b"", b"") for device in case["devices"]}
    sign_pk, account = of(case, "account_sign_pk"), AccountId(of(case, "account"))
    assert account == account_id_of(sign_pk)
    return AccountState(account, sign_pk, of(case, "account_kem_pk"), devices, {}, 0, b"")


def check_pairing(case):
    ticket = parse_pairing(case["shown"])
    device = check_device_keys(ticket, of(case, "sign_pk"), of(case, "kem_pk"))
    keys = DeviceKeys(of(case, "device_private"))
    assert (ticket.prefix, ticket.server_id, ticket.origin) == (
        of(case, "prefix"),
        of(case, "server_id"),
        case["origin"],
    )
    assert device == keys.device == of(case, "device")
    assert case["shown"].upper().replace(" ", "-").replace("O", "0") == pairing_code(device) or case[
        "shown"
    ] == pairing_qr(ticket.origin, ticket.server_id, device)
    opened = open_account_keys(of(case, "sealed"), keys, account_of(case))
    assert opened.expose() == AccountKeys(of(case, "account_keys")).expose()


def check_parcel(case):
    keys = DeviceKeys(of(case, "device_private"))
    assert keys.device == of(case, "device")
    assert open_parcel(of(case, "sealed"), keys, account_of(case)).private_bytes_raw() == of(case, "kem_private")


def check_device_name(case):
    kem = X25519PrivateKey.from_private_bytes(of(case, "kem_private"))
    account, device = AccountId(of(case, "account")), DeviceId(of(case, "device"))
    assert open_device_name(kem, account, device, of(case, "sealed")) == case["text"]
