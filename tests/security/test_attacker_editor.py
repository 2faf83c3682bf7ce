"""An editor who means harm: what they destroy is undone within the grace, shows who did it, and never others' names."""

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
    copied,
    delivered,
    log_that_says,
    plant,
    posing_as,
    put,
    reasons,
    shows,
    texts,
)
from tests.security.wire import now_ms
from twinlock.document.operations import CLEAR, Edit, decode_change, encode_change
from twinlock.document.stamps import NEVER
from twinlock.errors import LogForkError, LogInvalidError, RoleError
from twinlock.ids import Counter, DeviceId, Epoch, Seq
from twinlock.protocol.calls import AppendLog, Cut, CutResult, LogHead
from twinlock.protocol.clock import Hlc, pack
from twinlock.protocol.envelope import Kind
from twinlock.protocol.frames import Reject
from twinlock.protocol.space_log import Role
from twinlock.sealing import AccountKeys, member_entry, open_payload
from twinlock.sealing.space_entries import cutoff_entry, lower_entry, shred_entry

TRUE = {"shed": SECRET, "list": "milk"}


@pytest.fixture
async def editor(household):
    """Ben's hand, with ann at home and a copy of ann's second device, which has never seen the family."""
    copied(household.folder / "b", household.folder / "newer")
    ann, ben = await household.unlocked("a"), await household.device("ben")
    assert await texts(ben) == await texts(ann) == TRUE
    hand = Hand(ben)
    await ben.close()
    return hand, ann


async def newcomer(world, profile):
    """A device that reads the space for the first time."""
    db = await world.device(profile)
    await until(lambda: any(info.title == FAMILY for info in db.spaces()))
    return db


async def test_a_malicious_editor_cuts_the_history_away_and_the_owner_takes_the_cut_back(household, editor):
    """A cut without a pack before it: whoever reads the space for the first time then finds it empty."""
    hand, ann = editor
    async with hand.wire(household.url) as wire:
        attached = await wire.attach(hand.space)
        everything = Cut(hand.space, attached.incarnation, attached.head)
        nothing = msgspec.structs.replace(everything, upto=Seq(0))
        await wire.call("space.cut", everything, CutResult)
        # What they get: it is gone for newcomers. Only an owner or admin takes it back.
        with pytest.raises(RoleError):
            await wire.call("space.uncut", nothing, CutResult)
    b = await newcomer(household, "b")
    assert await texts(b) == {}

    await ann._connection.call("space.uncut", nothing, CutResult)

    assert await texts(await newcomer(household, "newer")) == TRUE
    assert await texts(ann) == TRUE, "who had read it never lost anything"


async def test_what_a_malicious_editor_overwrote_and_deleted_is_in_the_history_with_their_name(household, editor):
    """They may change and delete. Within the grace the owner finds the old text, and who took it away."""
    hand, ann = editor
    async with hand.wire(household.url) as wire:
        head = chain_head(household, hand.space, hand.device.device)
        wrong = hand.seal(change("shed", "burnt"), head)
        await wire.push(hand.space, wrong.data)
        gone = encode_change([Edit("notes", "shed", Hlc(pack(now_ms())), [[CLEAR, NEVER, ""]])])
        last = hand.seal(gone, (wrong.header.counter, wrong.id))
        await wire.push(hand.space, last.data)
    await until_gone(ann, "shed")

    history = [
        (each.header.device, edit.ops[0])
        for each in delivered(household, hand.space)
        if each.header.kind is Kind.CHANGE
        for edit in decode_change(open_payload(each, Hand(ann).keys[Epoch(1)])).edits
        if edit.id == "shed"
    ]
    assert [device == hand.device.device for device, _ in history] == [False, True, True]
    assert hand.device.device in ann.space(FAMILY)._handle.runtime.keyring.accounts[hand.account].devices
    old = next(text for text in strings(history[0][1]) if text == SECRET)
    await put(ann, "shed", old)
    await ann.space(FAMILY).set_role("ben", "reader")

    assert await texts(await newcomer(household, "b")) == TRUE
    async with hand.wire(household.url) as wire:
        refusal = await wire.push(hand.space, hand.seal(change("shed", "x"), (last.header.counter, last.id)).data)
        assert isinstance(refusal, Reject)


async def test_a_malicious_editor_never_writes_in_another_name_even_if_the_server_helps(household, editor):
    hand, ann = editor
    anns = Hand(ann).device.device
    head = chain_head(household, hand.space, anns)
    forged = [
        posing_as(anns, hand.seal(change("shed", "ann?"), head)),
        hand.sealed_in_the_name_of(anns, change("shed", "ann!"), head),
    ]
    async with hand.wire(household.url) as wire:
        for data in forged:
            refusal = await wire.push(hand.space, data)
            assert isinstance(refusal, Reject)
            assert refusal.code == "foreign_envelope"
    await household.stop()
    plant(household, hand.space, *forged)
    await household.restart()

    b = await newcomer(household, "b")

    assert await texts(b) == TRUE
    assert reasons(b) == ["signature", "signature"]
    # The true author's next write arrives all the same.
    ann._connection.reconnect_now()
    await until(lambda: ann.status == "connected")
    await put(ann, "shed", "moved")
    await shows(b, "shed", "moved")


async def test_a_malicious_editor_gets_no_say_in_who_is_a_member(household, editor):
    hand, ann = editor
    keys, friend = AccountKeys((household.folder / "ben.keys").read_bytes()), AccountKeys.make(os.urandom)
    cleo = AccountKeys((household.folder / "cleo.keys").read_bytes())
    zero = {DeviceId(device): Counter(0) for device in (hand.device.device,)}
    forged = [
        member_entry(keys, hand.log, keys.sign_pk, keys.kem_pk, keys.account, Role.ADMIN),
        member_entry(keys, hand.log, friend.sign_pk, friend.kem_pk, friend.account, Role.READER),
        lower_entry(keys, hand.log, cleo.account, Role.SENDER, {}),
        cutoff_entry(keys, hand.log, Hand(ann).account, zero),
        shred_entry(keys, hand.log),
    ]
    await ann.close()
    for entry in forged:
        async with hand.wire(household.url) as wire:
            with pytest.raises((RoleError, LogInvalidError)):
                await wire.call("space.append", AppendLog(hand.space, hand.log.seq, [entry]), LogHead)
        between = Between()
        log_that_says(between, hand.space, hand.entries, [entry])
        db = await household.device("cleo", dial=between.dial)
        with pytest.raises((LogForkError, LogInvalidError, RoleError)):
            await db.space(FAMILY).members()
        assert db.space(FAMILY)._handle.runtime.keyring.log.role_of(hand.account) is Role.EDITOR
        assert await db.space(FAMILY).collection("notes").doc("shed").get() == {"text": SECRET}
        await db.close()


async def until_gone(db, id):
    """Wait until a device shows a document no more."""
    found = []
    ended = db.space(FAMILY).collection("notes").doc(id).on_snapshot(lambda snap: found.append(snap.doc))
    await until(lambda: found and found[-1] is None)
    ended()


def strings(value):
    """Every text in an operation."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list | tuple):
        for inner in [*value.values(), *value.keys()] if isinstance(value, dict) else value:
            yield from strings(inner)
