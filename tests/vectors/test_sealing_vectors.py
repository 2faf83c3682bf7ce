"""The vectors of sealing, read as another implementation would read them."""

import json
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from twinlock.errors import CredentialsError, SignatureError, TwinlockError
from twinlock.ids import AccountId, Counter, DeviceId, EnvelopeId, Epoch, Incarnation, Seq, SpaceId
from twinlock.protocol import hpke, proofs
from twinlock.protocol.account_log import (
    AccountState,
    DeviceRecord,
    account_id_of,
    device_id_of,
    replay_account,
)
from twinlock.protocol.calls import SignedEntry, UnlockerParamsResult
from twinlock.protocol.envelope import Header, Kind, envelope_id, parse
from twinlock.protocol.frames import Entry
from twinlock.protocol.labels import label, prefixed
from twinlock.protocol.space_log import EpochRecord, Member, Role, SpaceLogState, space_id_of
from twinlock.protocol.space_rules import replay_space
from twinlock.sealing import (
    ChainHead,
    ChainReader,
    MemberKey,
    RecoveryKit,
    ServiceKey,
    StoreKey,
    open_epoch,
    open_link,
    open_locked_write,
    open_payload,
    open_record,
    open_title,
    open_wrapped,
    title_index,
    unlock,
    unwrap_member_key,
)
from twinlock.sealing.cipher import envelope_message
from twinlock.sealing.derive import kdf, store_mac
from twinlock.sealing.padding import pad, padded_bytes, unpad
from twinlock.sealing.space_keys import EpochKeys

FOLDER = Path(__file__).parents[2] / "spec" / "vectors"
CONSTRUCTS = [
    "account_log",
    "chain",
    "envelope",
    "epoch_keys",
    "hpke",
    "ids",
    "kdf",
    "labels",
    "link",
    "locked_write",
    "padding",
    "proofs",
    "recovery_kit",
    "space_log",
    "store_record",
    "unlocker",
]


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


def check_labels(case):
    made = prefixed(of(case, "data")) if "data" in case else label(case["label"], of(case, "context"))
    assert made == of(case, "output")


def check_kdf(case):
    context = of(case, "context")
    if "store_key" in case:
        made = store_mac(StoreKey(of(case, "store_key")), case["label"], context)
    else:
        made = kdf(of(case, "ikm"), of(case, "salt"), case["label"], context)
    assert made == of(case, "output")


def check_ids(case):
    made = {
        "account": lambda: account_id_of(of(case, "sign_pk")),
        "device": lambda: device_id_of(of(case, "sign_pk"), of(case, "kem_pk")),
        "space": lambda: space_id_of(case["partition"], of(case, "genesis_head")),
        "envelope": lambda: envelope_id(of(case, "header"), of(case, "ciphertext")),
        "server": lambda: proofs.server_id_of(of(case, "server_pk")),
    }
    assert made[case["name"]]() == of(case, "output")


def check_padding(case):
    if "payload_bytes" in case:
        assert padded_bytes(case["payload_bytes"]) == case["padded_bytes"]
        return
    payload = unpad(of(case, "padded"))
    assert payload == of(case, "payload")
    assert pad(payload) == of(case, "padded")


def check_hpke(case):
    private = X25519PrivateKey.from_private_bytes(of(case, "private_key"))
    assert hpke.open_sealed(private, of(case, "sealed"), of(case, "info")) == of(case, "plaintext")


def check_recovery_kit(case):
    kit = RecoveryKit.parse(case["typed"])
    assert (kit.expose(), str(kit)) == (of(case, "raw"), case["text"])


def check_unlocker(case):
    secret = RecoveryKit.parse(case["secret"]) if case["kind"] == "recovery_kit" else case["secret"]
    params = UnlockerParamsResult(case["kdf"], of(case, "salt"), case["iterations"])
    keys = unlock(params, secret, case["account_name"], of(case, "server_id"), iterations_min=1000)
    account = AccountId(of(case, "account"))
    opened = open_wrapped(keys, secret, account, of(case, "wrapped"))
    if (keys.auth_key, keys.wrap_key) != (of(case, "auth_key"), of(case, "wrap_key")):
        raise CredentialsError
    assert opened.expose() == of(case, "account_keys")


def epoch_of(case) -> EpochKeys:
    space, epoch = SpaceId(of(case, "space")), Epoch(case.get("epoch", 1))
    return EpochKeys(space, epoch, MemberKey(of(case, "member_key")), ServiceKey(of(case, "service_key")))


def check_epoch_keys(case):
    space, epoch = SpaceId(of(case, "space")), Epoch(case["epoch"])
    record = EpochRecord(
        of(case, "b_commit"), of(case, "dk_commit"), of(case, "drop_pk"), b"", AccountId(of(case, "account"))
    )
    member_key = MemberKey(of(case, "member_key"))
    keys = open_epoch(space, epoch, member_key, ServiceKey(of(case, "service_key")), record)
    device = DeviceId(of(case, "device"))
    kem = X25519PrivateKey.from_private_bytes(of(case, "account_kem_private"))
    assert keys.data_key.expose() == of(case, "data_key")
    assert keys.drop_private.private_bytes_raw() == of(case, "drop_private")
    assert keys.device_key(device) == of(case, "device_key")
    assert keys.signal_key(device, case["session"]) == of(case, "signal_key")
    assert keys.local_key(StoreKey(of(case, "store_key")), device) == of(case, "local_key")
    assert unwrap_member_key(of(case, "wrapped"), kem, space, epoch, AccountId(of(case, "account"))) == member_key


def check_link(case):
    space, epoch, newest = SpaceId(of(case, "space")), Epoch(case["epoch"]), MemberKey(of(case, "member_key"))
    assert open_link(space, epoch, newest, of(case, "link")).expose() == of(case, "earlier")


def check_store_record(case):
    store_key = StoreKey(of(case, "store_key"))
    assert open_record(store_key, case["record"], of(case, "sealed")) == of(case, "plaintext")
    assert title_index(store_key, case["title"]) == of(case, "title_index")


def check_proofs(case):
    server, incarnation = of(case, "server_id"), Incarnation(of(case, "incarnation"))
    account, device, space = AccountId(of(case, "account")), DeviceId(of(case, "device")), SpaceId(of(case, "space"))
    first, second, epoch = of(case, "server_nonce"), of(case, "client_nonce"), Epoch(case["epoch"])
    hello = proofs.hello_message(server, case["origin"], incarnation, account, device, first, second)
    made = {
        "hello": lambda: hello,
        "hello with a token": lambda: proofs.with_token(hello, case["token"]),
        "pairing-take": lambda: proofs.pairing_take_message(server, device),
        "welcome": lambda: proofs.welcome_message(server, incarnation, first, second, device),
        "welcome, anonymous": lambda: proofs.welcome_message(server, incarnation, first, second, b""),
        "lease-request": lambda: proofs.lease_message(space, case["epochs"], first, case["time_ms"], account, device),
        "pending-request": lambda: proofs.pending_message(space, epoch, first, case["time_ms"], account, device),
        "lease": lambda: proofs.lease_info(space, epoch, device, case["time_ms"], incarnation, first),
        "b-commit": lambda: proofs.b_commit(space, epoch, server),
    }
    if case["name"] in made:
        assert made[case["name"]]() == of(case, "message")
    if "signature" in case:
        proofs.verify(of(case, "sign_pk"), of(case, "signature"), of(case, "message"))


def entries_of(case) -> list[SignedEntry]:
    return [SignedEntry(of(entry, "body"), of(entry, "sig")) for entry in case["entries"]]


def check_account_log(case):
    state = replay_account(entries_of(case))
    assert (state.account, state.sign_pk, state.kem_pk) == (
        of(case, "account"),
        of(case, "sign_pk"),
        of(case, "kem_pk"),
    )
    assert sorted(device.hex() for device in state.devices) == case["devices"]
    assert sorted(device.hex() for device in state.revoked) == case["revoked"]
    assert (state.seq, state.head) == (case["seq"], of(case, "head"))


def check_space_log(case):
    state = replay_space(entries_of(case))
    assert (state.space, state.partition) == (of(case, "space"), case["partition"])
    assert {account.hex(): str(member.role) for account, member in state.members.items()} == case["members"]
    commits = [[record.b_commit.hex(), record.dk_commit.hex()] for record in state.epochs.values()]
    assert (state.epoch, commits, state.lease_hours) == (case["epoch"], case["commits"], case["lease_hours"])
    assert (state.seq, state.head) == (case["seq"], of(case, "head"))
    member_key, service_key = of(case, "title_member_key"), of(case, "title_service_key")
    keys = EpochKeys(state.space, state.title.epoch, MemberKey(member_key), ServiceKey(service_key))
    assert open_title(state.title.sealed, keys) == case["title"]


def check_envelope(case):
    envelope = parse(of(case, "envelope"))
    payload = open_payload(envelope, epoch_of(case))
    proofs.verify(of(case, "sign_pk"), envelope.signature, envelope_message(envelope.id))
    assert payload == of(case, "payload")
    assert envelope.id == of(case, "id")
    assert envelope.header == Header(
        Kind(case["kind"]),
        Epoch(case["epoch"]),
        SpaceId(of(case, "space")),
        DeviceId(of(case, "device")),
        Counter(case["counter"]),
        0,
        of(case, "log_head"),
        EnvelopeId(of(case, "prev")),
        of(case, "nonce"),
        len(envelope.ciphertext),
    )
    if envelope.header.kind is not Kind.DROP:
        cipher = epoch_of(case).device_cipher(envelope.header.device)
        again = cipher.encrypt(envelope.header.nonce, pad(payload), envelope.header.pack())
        assert again == envelope.ciphertext


def check_locked_write(case):
    store_key, device = StoreKey(of(case, "store_key")), DeviceId(of(case, "device"))
    opened = open_locked_write(of(case, "record"), epoch_of(case), device, store_key)
    assert opened == (case["number"], of(case, "payload"))


GIVEN = read("chain")["given"]


def check_chain(case):
    reader = ChainReader(given_log(), given_accounts(), given_keys, lambda payload, source: payload, {})

    page = reader.read([Entry(Seq(index), 0, bytes.fromhex(data)) for index, data in enumerate(case["entries"], 1)])

    assert [[opened.source.seq, opened.content.hex()] for opened in page.opened] == case["opened"]
    assert [[kept.entry.seq, str(kept.reason)] for kept in page.quarantined] == case["quarantined"]
    assert page.heads == {
        bytes.fromhex(device): ChainHead(counter, bytes.fromhex(name))
        for device, (counter, name) in case["heads"].items()
    }


def given_log() -> SpaceLogState:
    log = GIVEN["space_log"]
    members = {
        AccountId(of(member, "account")): Member(
            b"", b"", Role(member["roles"][-1][1]), tuple((seq, Role(role)) for seq, role in member["roles"])
        )
        for member in GIVEN["members"]
    }
    record = EpochRecord(b"", b"", b"", b"", AccountId(b""))
    prefixes = {bytes.fromhex(prefix): seq for prefix, seq in log["head_prefixes"].items()}
    epochs = {Epoch(number): record for number in log["epochs"]}
    return SpaceLogState(
        space=SpaceId(of(log, "space")),
        partition=0,
        members=members,
        epochs=epochs,
        epoch=max(epochs),
        head_prefixes=prefixes,
        seq=0,
        head=b"",
    )


def given_accounts() -> list[AccountState]:
    return [
        AccountState(
            AccountId(of(member, "account")),
            b"",
            b"",
            {
                DeviceId(bytes.fromhex(device)): DeviceRecord(bytes.fromhex(sign_pk), b"")
                for device, sign_pk in member["devices"].items()
            },
            {},
            0,
            b"",
        )
        for member in GIVEN["members"]
    ]


def given_keys(epoch: Epoch) -> EpochKeys:
    member_key, service_key = MemberKey(of(GIVEN, "member_key")), ServiceKey(of(GIVEN, "service_key"))
    return EpochKeys(SpaceId(of(GIVEN["space_log"], "space")), epoch, member_key, service_key)


def test_a_signature_that_is_no_signature_is_refused():
    with pytest.raises(SignatureError):
        proofs.verify(bytes(32), b"", b"")
