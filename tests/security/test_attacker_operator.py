"""Whoever runs server and key service, live and dishonest: they hold B, and can withhold; the rest is tried here."""

import os

import msgspec
import pytest

from tests.client_kit import until
from tests.security.attackers import (
    FAMILY,
    SECRET,
    Between,
    Hand,
    chain_head,
    change,
    delivered,
    found_in,
    log_that_says,
    plant,
    put,
    put_record,
    reasons,
    records,
    replace_service_key,
    service_keys,
    shows,
    signed_log,
    text_of,
    texts,
)
from tests.security.dishonest import database
from tests.security.raid import stored, windows
from twinlock.errors import KeyMismatchError, LeaseExpiredError, LogForkError, LogInvalidError, RoleError
from twinlock.ids import NO_ENVELOPE, Counter, EnvelopeId, Epoch
from twinlock.protocol.calls import KeyringRow, SignedEntry
from twinlock.protocol.envelope import Kind
from twinlock.protocol.proofs import b_commit
from twinlock.protocol.space_log import Role
from twinlock.protocol.space_rules import replay_space
from twinlock.sealing import (
    AccountKeys,
    DeviceKeys,
    EpochKeys,
    MemberKey,
    Sealer,
    ServiceKey,
    epoch_entry,
    make_epoch,
    member_entry,
    open_payload,
    wrap_member_key,
)
from twinlock.sealing.invites import InviteKeys, InviteTerms, invite_entry
from twinlock.testing.workload import open_database

TRUE = {"shed": SECRET, "list": "milk"}


@pytest.fixture
async def ann(household):
    """Ann's device, which has read everything."""
    ann = await household.unlocked("a")
    assert await texts(ann) == TRUE
    return ann


async def newcomer(world):
    """A device of ann's that reads the family for the first time."""
    db = await world.device("b")
    await until(lambda: any(info.title == FAMILY for info in db.spaces()))
    return db


async def test_server_and_key_service_hold_b_and_metadata_and_open_nothing(household, ann):
    hand = Hand(ann)
    true = hand.keys[Epoch(1)]
    b = service_keys(household, hand.space)[Epoch(1)]
    # What they get: B itself, who is who, and how much was written when.
    assert b == true.service_key.expose()
    log = replay_space(signed_log(household, hand.space))
    assert sorted(member.role for member in log.members.values()) == ["editor", "owner", "reader"]
    envelopes = delivered(household, hand.space)
    assert len({each.header.device for each in envelopes}) == 2

    # What they do not get: any other key, wherever one looks, and hence no word.
    secrets = {name: secret for name, secret in hand.secrets().items() if not name.startswith("B_")}
    assert found_in(household.folder / "server", secrets) == []
    commit = log.epochs[Epoch(1)].dk_commit
    for guess in windows(stored(household.folder / "server" / "keyservice")) | {b, bytes(32)}:
        keys = EpochKeys(hand.space, Epoch(1), MemberKey(guess), ServiceKey(b))
        assert keys.dk_commit != commit
    assert any(SECRET.encode() in open_payload(each, true) for each in envelopes), "the control: both keys open it"


async def test_an_operator_adds_no_ghost_member_no_invite_and_no_epoch(household, ann):
    """Entries of the log signed by keys of the operator's, in their own name and in ann's."""
    hand, ghost = Hand(ann), AccountKeys.make(os.urandom)
    account = hand.account
    await ann.close()
    b = ServiceKey(service_keys(household, hand.space)[Epoch(1)])
    own_epoch = make_epoch(hand.space, Epoch(2), b, os.urandom)
    invite = InviteKeys.of(hand.space, os.urandom(32))
    signed = [
        member_entry(ghost, hand.log, ghost.sign_pk, ghost.kem_pk, ghost.account, Role.READER),
        invite_entry(ghost, hand.log, invite, InviteTerms(Role.READER, 1 << 45)),
        epoch_entry(ghost, hand.log, own_epoch, MemberKey.make(os.urandom), os.urandom),
    ]
    in_anns_name = [SignedEntry(e.body.replace(text_of(ghost.account), text_of(account)), e.sig) for e in signed]

    for forged in (*signed, *in_anns_name):
        between = Between()
        log_that_says(between, hand.space, hand.entries, [forged])
        ann = await household.unlocked("a", dial=between.dial)
        # The person is told, without having asked for anything.
        await until(lambda ann=ann: isinstance(ann.last_error, LogForkError | LogInvalidError))
        with pytest.raises((LogForkError, LogInvalidError)):
            await ann.space(FAMILY).members()
        log = ann.space(FAMILY)._handle.runtime.keyring.log
        assert (len(log.members), log.epoch, len(log.invites)) == (3, 1, 0)
        # Nothing is wrapped to a ghost: the owner's next epoch is made from the log that she believes.
        with pytest.raises((LogForkError, LogInvalidError, RoleError)):
            await ann.space(FAMILY).rotate()
        await ann.close()

    # A device that has nothing yet believes it just as little.
    between = Between()
    log_that_says(between, hand.space, hand.entries, [signed[0]])
    b_device = await household.device("b", dial=between.dial)
    await until(lambda: between.calls("space.log"))
    await b_device._connection.first_try()
    assert FAMILY not in [info.title for info in b_device.spaces()]


async def test_an_operator_forges_no_change_with_all_public_bytes_and_b(household, ann):
    """All that a server knows is in them: ids, heads, counters, B; under a device of its own, and under true ones."""
    hand = Hand(ann)
    await household.stop()
    b = ServiceKey(service_keys(household, hand.space)[Epoch(1)])
    keys = EpochKeys(hand.space, Epoch(1), MemberKey.make(os.urandom), b)
    own = DeviceKeys.make(os.urandom)
    head = chain_head(household, hand.space, hand.device.device)
    sealer, log_head = Sealer(own, os.urandom), hand.log.head_prefix
    place = (Counter(head[0] + 1), EnvelopeId(head[1]), log_head)
    first = sealer.seal(Kind.CHANGE, change("shed", "x"), keys, Counter(1), NO_ENVELOPE, log_head)
    under_ann = sealer.seal(Kind.CHANGE, change("shed", "x"), keys, *place).data
    under_ann = under_ann[:24] + hand.device.device + under_ann[40:]
    drop_pk = hand.log.epochs[Epoch(1)].drop_pk
    drop = sealer.seal_drop(change("shed", "x"), hand.space, Epoch(1), drop_pk, place).data
    drop = drop[:24] + hand.device.device + drop[40:]
    true = delivered(household, hand.space)[0].data
    # A true signature under another ciphertext, and a true envelope once more.
    mixed = under_ann[:-64] + true[-64:]
    plant(household, hand.space, first.data, under_ann, drop, mixed, true)
    await household.restart()

    b_device = await newcomer(household)

    assert await texts(b_device) == TRUE
    assert set(reasons(b_device)) <= {"device", "signature", "replay", "role", "kind"}
    assert len(reasons(b_device)) >= 4
    ann._connection.reconnect_now()
    await until(lambda: ann.status == "connected")
    await put(ann, "shed", "moved")
    await shows(b_device, "shed", "moved")


async def test_a_member_key_that_the_operator_chose_is_not_used(household, ann):
    """HPKE does not tell who sealed: the server wraps an A of its own to ann, so that it would hold both keys."""
    hand = Hand(ann)
    await household.stop()
    b = ServiceKey(service_keys(household, hand.space)[Epoch(1)])
    chosen = EpochKeys(hand.space, Epoch(1), MemberKey.make(os.urandom), b)
    wrapped = wrap_member_key(chosen, hand.account, hand.log.members[hand.account].kem_pk)
    (key,) = records(household, f"keyring/{hand.space.hex()}/{1:08x}/{hand.account.hex()}")
    put_record(household, key, msgspec.msgpack.encode(KeyringRow(hand.account, Epoch(1), wrapped)))
    await household.restart()

    victim = await household.device("b")
    await until(lambda: hand.space in victim._courier.runtimes)
    runtime = victim._courier.runtimes[hand.space]
    await until(lambda: runtime.keyring.member_key(Epoch(1)) is not None)

    assert runtime.keyring.member_key(Epoch(1)).expose() == chosen.member_key.expose(), "what it was given"
    assert not runtime.keyring.can_seal
    with pytest.raises((KeyMismatchError, LeaseExpiredError)):
        await victim.space(hand.space).collection("notes").get()
    assert [e for e in delivered(household, hand.space) if e.header.device == runtime.keyring.device] == []


async def test_a_service_key_that_the_operator_exchanged_is_refused_loudly(household, ann):
    hand = Hand(ann)
    await ann.close()
    await household.stop()
    exchanged = os.urandom(32)
    replace_service_key(household, hand.space, exchanged)
    assert b_commit(hand.space, Epoch(1), exchanged) != hand.log.epochs[Epoch(1)].b_commit
    await household.restart()

    victim = await household.device("b")
    await until(lambda: isinstance(victim.last_error, KeyMismatchError))

    runtime = victim._courier.runtimes[hand.space]
    assert runtime.keyring.keys(Epoch(1)) is None
    assert runtime.is_locked
    # Who has a lease goes on with the true key.
    ann = await household.device("a")
    assert await texts(ann) == TRUE


async def test_an_operator_can_withhold_and_delete_and_those_who_have_read_keep_it(household, ann):
    """What the row says that they get: nobody can tell a newcomer of what nobody delivers."""
    space = Hand(ann).space
    await household.stop()
    with open_database(database(household)) as connection:
        connection.execute("DELETE FROM log WHERE seq = (SELECT min(seq) FROM log WHERE space = ?)", (space,))
    await household.restart()

    b_device = await newcomer(household)

    assert await texts(b_device) == {"list": "milk"}
    ann._connection.reconnect_now()
    await until(lambda: ann.status == "connected")
    assert await texts(ann) == TRUE
