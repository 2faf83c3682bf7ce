"""A reader whom the server helps to write: it stores and delivers all that they sign, and every reader refuses it."""

import os

import pytest

from tests.client_kit import until
from tests.security.attackers import (
    FAMILY,
    SECRET,
    Between,
    Hand,
    chain_head,
    change,
    log_that_says,
    plant,
    posing_as,
    put,
    reasons,
    shows,
    texts,
)
from twinlock.errors import LogForkError, LogInvalidError, RoleError
from twinlock.ids import Epoch
from twinlock.protocol.calls import AppendLog, Cut, CutResult, LogHead
from twinlock.protocol.envelope import Kind
from twinlock.protocol.frames import Reject
from twinlock.protocol.space_log import Role
from twinlock.sealing import AccountKeys, config_lease_entry, epoch_entry, make_epoch, member_entry

TRUE = {"shed": SECRET, "list": "milk"}


@pytest.fixture
async def reader(household):
    """Cleo's hand: she reads everything, which is what her role gives her."""
    cleo = await household.device("cleo")
    assert await texts(cleo) == TRUE
    hand = Hand(cleo)
    assert hand.log.role_of(hand.account) == "reader"
    return hand


async def test_a_reader_with_a_dishonest_server_writes_nothing_that_a_reader_takes(household, reader):
    world, hand = household, reader
    ann = await world.device("a")
    await texts(ann)
    anns = Hand(ann)
    await world.stop()
    own = hand.seal(change("shed", "by cleo"))
    follow = hand.seal(change("shed", "again"), (1, own.id))
    packed = hand.seal(change("shed", "packed"), (2, follow.id), kind=Kind.SNAPSHOT)
    drop = hand.seal(change(hand.account.hex(), "dropped"), (3, packed.id), kind=Kind.DROP)
    anns_head = chain_head(world, hand.space, anns.device.device)
    # She has the data key, so that the envelope opens; ann's signature is all that she lacks.
    in_anns_name = posing_as(anns.device.device, hand.seal(change("shed", "ann?"), anns_head))
    sealed_as_ann = hand.sealed_in_the_name_of(anns.device.device, change("shed", "ann!"), anns_head)
    plant(world, hand.space, own.data, follow.data, packed.data, drop.data, in_anns_name, sealed_as_ann)
    await world.restart()

    cleo = world.open[0]
    there = {"a": ann, "cleo": cleo, "ben": await world.device("ben"), "b": await world.device("b")}
    for profile, db in there.items():
        db._connection.reconnect_now()
        await until(lambda db=db: db.status == "connected")
        await until(lambda db=db: any(info.title == FAMILY for info in db.spaces()))
        assert await texts(db) == TRUE, profile
        assert set(reasons(db)) <= {"role", "signature"}, profile
        assert len(reasons(db)) >= 5, profile
    # Nothing of it stands in the way of those who may write.
    await put(ann, "shed", "moved")
    await shows(there["ben"], "shed", "moved")


async def test_an_honest_server_does_not_even_store_what_a_reader_writes(household, reader):
    async with reader.wire(household.url) as wire:
        for kind in (Kind.CHANGE, Kind.SNAPSHOT, Kind.DROP):
            refusal = await wire.push(reader.space, reader.seal(change("shed", "mine"), kind=kind).data)
            assert isinstance(refusal, Reject)
            assert refusal.code == "role_forbids"
        attached = await wire.attach(reader.space)
        for method in ("space.cut", "space.uncut"):
            with pytest.raises(RoleError):
                await wire.call(method, Cut(reader.space, attached.incarnation, attached.head), CutResult)


async def test_a_reader_cannot_make_a_writer_of_themselves(household, reader):
    """By an entry of their own: refused by the server, and by every member if the server takes their side."""
    world, hand = household, reader
    keys = AccountKeys((world.folder / "cleo.keys").read_bytes())
    ghost = AccountKeys.make(os.urandom)
    new = make_epoch(hand.space, Epoch(2), hand.keys[Epoch(1)].service_key, os.urandom)
    forged = [
        member_entry(keys, hand.log, keys.sign_pk, keys.kem_pk, keys.account, Role.EDITOR),
        member_entry(keys, hand.log, ghost.sign_pk, ghost.kem_pk, ghost.account, Role.EDITOR),
        config_lease_entry(keys, hand.log, 8000),
        epoch_entry(keys, hand.log, new, hand.keys[Epoch(1)].member_key, os.urandom),
    ]
    async with hand.wire(world.url) as wire:
        for entry in forged:
            with pytest.raises((RoleError, LogInvalidError)):
                await wire.call("space.append", AppendLog(hand.space, hand.log.seq, [entry]), LogHead)

    for entry in forged:
        between = Between()
        log_that_says(between, hand.space, hand.entries, [entry])
        ann = await world.device("a", dial=between.dial)
        with pytest.raises((LogForkError, LogInvalidError, RoleError)):
            await ann.space(FAMILY).members()
        log = ann.space(FAMILY)._handle.runtime.keyring.log
        assert (log.role_of(hand.account), log.epoch, len(log.members)) == ("reader", 1, 3)
        await ann.close()
