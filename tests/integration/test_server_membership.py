"""Who goes, whose role changes, and what each of them is answered then, over a real socket."""

import asyncio

import msgspec
import pytest

from tests.membership_kit import (
    attach_refusal,
    identity,
    lease,
    make_person,
    notice,
    open_invite,
    refusal,
    rotate,
    stored_rows,
    written,
)
from tests.server_kit import CallFailed
from twinlock.ids import Epoch
from twinlock.protocol.calls import (
    AppendLog,
    CreateSpace,
    LogHead,
    ReadKeyring,
    ReadLog,
    ReadLogResult,
    Spaces,
    SpacesResult,
)
from twinlock.protocol.envelope import Kind
from twinlock.protocol.frames import LOG_GROWN, Entries, Reject, Signal, Signals
from twinlock.protocol.space_log import Role
from twinlock.sealing.space_entries import (
    config_lease_entry,
    cutoff_entry,
    leave_entry,
    lower_entry,
    member_entry,
    shred_entry,
)

# Going out


async def test_whoever_is_removed_hears_it_reads_that_entry_and_gets_nothing_after_it(server, stores, house, ben):
    wire, away = await house.admit(ben), await ben.open()
    await wire.attach(house.space)
    chain = await written(ben, wire, house)
    assert await house.heads(ben.account.account) == {ben.device.device: 3}
    await house.remove(ben.account.account)
    ended = house.log.seq
    await rotate(house)

    await notice(wire, house.space, LOG_GROWN)
    await notice(wire, house.space, "removed")
    await notice(away, house.space, "removed")
    assert await attach_refusal(wire, house.space) == "removed"
    await wire.push(house.space, chain.next(epoch=Epoch(3)))
    assert (await wire.next(Reject)).code == "removed"
    assert (await lease(ben, wire, house, 1)).code == "removed"
    assert await refusal(wire, "space.keyring", ReadKeyring(house.space)) == "removed"
    page = await wire.call("space.log", ReadLog(house.space), ReadLogResult)
    assert (page.seq, len(page.entries)) == (ended, ended)
    mine = await wire.call("account.spaces", Spaces(), SpacesResult)
    assert (mine.spaces, mine.former) == ([], [house.space])
    assert not any(ben.account.account.hex() in key for key in await stored_rows(stores, house))
    await house.wire.call("account.log", ReadLog(ben.account.account), ReadLogResult)
    stranger = await make_person(server)
    assert await refusal(await stranger.open(), "space.log", ReadLog(house.space)) == "unknown_space"


async def test_nothing_is_delivered_to_whoever_was_removed(house, ben):
    wire = await house.admit(ben)
    await wire.attach(house.space)
    await house.remove(ben.account.account)

    await written(house.owner, house.wire, house, epoch=Epoch(2))

    await notice(wire, house.space, "removed")
    await wire.call("account.spaces", Spaces(), SpacesResult)
    assert not any(isinstance(frame, Entries) for frame in wire.waiting)


@pytest.mark.parametrize("named", [{}, {"own": 2}, {"own": 4}, {"own": 3, "other": 0}, {"own": 3, "foreign": 0}])
async def test_a_cutoff_stands_exactly_where_the_chains_do(house, ben, named):
    wire = await house.admit(ben)
    await written(ben, wire, house)
    other = await ben.add_device(wire)
    devices = {"own": ben.device.device, "other": other.device, "foreign": house.owner.device.device}
    counters = {devices[name]: counter for name, counter in named.items()}
    before = house.log.seq

    request = await house.removal(ben.account.account, counters)

    if named == {"own": 3, "other": 0}:
        await house.wire.call("space.append", request, LogHead)
        return
    code = "invalid_call" if "foreign" in named else "cutoff_conflict"
    assert await refusal(house.wire, "space.append", request) == code
    assert (await house.wire.call("space.log", ReadLog(house.space), ReadLogResult)).seq == before
    await wire.attach(house.space)


async def test_a_member_is_removed_in_the_middle_of_its_writing_and_nothing_lies_above_the_cutoff(stores, house, ben):
    wire, account = await house.admit(ben), ben.account.account
    chain, is_over = ben.chain_in(house.space), asyncio.Event()

    async def write():
        while not is_over.is_set():
            await wire.push(house.space, chain.next(100))
            await asyncio.sleep(0)

    async def remove():
        while True:
            before = house.keys
            request = await house.removal(account, await house.heads(account))
            try:
                await house.wire.call("space.append", request, LogHead)
            except CallFailed as failed:
                if failed.code != "cutoff_conflict":
                    raise
                house.keys = before
                # Somebody who writes without a pause is cut off as soon as one breath holds.
                await asyncio.sleep(0.01)
            else:
                house.took(request)
                is_over.set()
                return

    async with asyncio.TaskGroup() as group:
        writing = group.create_task(write())
        await asyncio.wait_for(remove(), 20)
        await writing

    [cutoff] = house.log.former[account].cutoffs
    state = await stores.log.state(house.space)
    # It has not read most of its answers, and would not see the end.
    wire.socket.transport.abort()
    assert state.heads[ben.device.device].counter == cutoff.counters[ben.device.device] > 0


async def test_who_leaves_is_out_at_once_and_comes_back_by_a_new_invite(house, ben):
    wire, account = await house.admit(ben), ben.account.account
    await written(ben, wire, house)
    counters = await house.heads(account, wire)

    await house.append(leave_entry(ben.account, house.log, counters), wire=wire)

    assert house.log.wants_rotation
    await notice(house.wire, house.space, LOG_GROWN)
    await notice(wire, house.space, "removed")
    assert await attach_refusal(wire, house.space) == "removed"
    await house.join(ben, wire, await house.invite())
    assert (await wire.attach(house.space)).own_counter == 3
    mine = await wire.call("account.spaces", Spaces(), SpacesResult)
    assert (mine.spaces, mine.former) == ([house.space], [])


async def test_a_repeated_leave_is_answered_like_the_first(house, ben):
    wire = await house.admit(ben)
    params = AppendLog(house.space, house.log.seq, [leave_entry(ben.account, house.log, {})])

    assert await wire.call("space.append", params, LogHead) == await wire.call("space.append", params, LogHead)


async def test_the_chains_of_revoked_devices_are_cut_off_and_those_of_others_go_on(house, ben):
    wire, account = await house.admit(ben), ben.account.account
    chain = await written(ben, wire, house)
    lost = await ben.add_device(wire)

    for counters, is_taken in (({lost.device: 1}, False), ({lost.device: 0}, True)):
        entry = cutoff_entry(ben.account, house.log, account, counters)
        params = AppendLog(house.space, house.log.seq, [entry])
        if is_taken:
            await wire.call("space.append", params, LogHead)
        else:
            assert await refusal(wire, "space.append", params) == "cutoff_conflict"
    house.took(params)
    await wire.push(house.space, chain.next(log_head=house.log.head_prefix))
    await wire.acked(house.space, 4)


async def test_heads_are_told_to_the_account_itself_and_to_those_who_admit(server, house, ben):
    wire, other = await house.admit(ben), await make_person(server)
    await house.admit(other)

    assert await house.heads(ben.account.account, wire) == {}
    for account, asking, code in (
        (other.account.account, wire, "role_forbids"),
        (b"x" * 16, house.wire, "invalid_call"),
        (ben.account.account, await (await make_person(server)).open(), "unknown_space"),
    ):
        with pytest.raises(CallFailed, match=code):
            await house.heads(account, asking)


# Roles


async def test_a_lowered_role_holds_from_that_moment_on(house, ben):
    wire, account = await house.admit(ben), ben.account.account
    await wire.attach(house.space)
    chain = await written(ben, wire, house)
    await wire.entries(house.space, 3)

    await house.append(lower_entry(house.owner.account, house.log, account, Role.READER, await house.heads(account)))

    await wire.push(house.space, chain.next())
    assert (await wire.next(Reject)).code == "role_forbids"
    await written(house.owner, house.wire, house)
    assert len(await wire.entries(house.space, 3)) == 3


async def test_a_sender_attaches_pushes_drops_only_and_is_delivered_nothing(server, house, ben):
    wire, reader = await house.admit(ben, Role.SENDER), await house.owner.open()
    await reader.attach(house.space)
    await written(house.owner, house.wire, house)
    chain = ben.chain_in(house.space)

    attached = await wire.attach(house.space)
    await wire.push(house.space, chain.next(kind=Kind.DROP, nonce=bytes(12)))
    await wire.acked(house.space, 1)
    await rotate(house)
    await notice(wire, house.space, LOG_GROWN)
    await wire.push(house.space, chain.next(kind=Kind.DROP, nonce=bytes(12)))
    await wire.acked(house.space, 2)
    await wire.push(house.space, chain.make(3, chain.prev, epoch=Epoch(2)))
    assert (await wire.next(Reject)).code == "role_forbids"
    await reader.send(Signal(house.space, b"here"))
    await house.wire.next(Signals)

    assert (attached.own_counter, (await wire.attach(house.space)).own_counter) == (0, 2)
    assert (await lease(ben, wire, house, 1)).code == "lease_refused"
    assert not any(isinstance(frame, Entries | Signals) for frame in wire.waiting)
    await house.append(member_entry_of(house, ben, Role.READER), rows=[house.row(*identity(ben))])
    await notice(wire, house.space, LOG_GROWN)
    await wire.attach(house.space)
    assert len(await wire.entries(house.space, 5)) == 5


async def test_who_may_read_no_longer_is_delivered_nothing_more(house, ben):
    wire, account = await house.admit(ben), ben.account.account
    await wire.attach(house.space)

    await house.append(lower_entry(house.owner.account, house.log, account, Role.SENDER, {}))
    await written(house.owner, house.wire, house)

    await notice(wire, house.space, LOG_GROWN)
    await wire.call("account.spaces", Spaces(), SpacesResult)
    assert not any(isinstance(frame, Entries) for frame in wire.waiting)


def member_entry_of(house, person, role):
    keys = person.account
    return member_entry(house.owner.account, house.log, keys.sign_pk, keys.kem_pk, keys.account, role)


async def test_a_reader_pushes_nothing(house, ben):
    wire = await house.admit(ben, Role.READER)

    for kind in (Kind.CHANGE, Kind.SNAPSHOT, Kind.DROP):
        await wire.push(house.space, ben.chain_in(house.space).next(kind=kind))
        assert (await wire.next(Reject)).code == "role_forbids"


# Shredding


async def test_a_shredded_space_is_gone_but_for_its_log_and_everybody_learns_it(server, stores, house, ben):
    wire, late = await house.admit(ben), await make_person(server)
    await wire.attach(house.space)
    link = await house.invite()
    await written(ben, wire, house)

    await house.append(shred_entry(house.owner.account, house.log))

    for one in (wire, house.wire):
        await notice(one, house.space, LOG_GROWN)
        await notice(one, house.space, "shredded")
    for person in (ben, house.owner):
        again = await person.open()
        assert await attach_refusal(again, house.space) == "shredded"
        assert (await lease(person, again, house, 1)).code in ("shredded", "lease_refused")
        assert (await again.call("space.log", ReadLog(house.space), ReadLogResult)).seq == house.log.seq
        mine = await again.call("account.spaces", Spaces(), SpacesResult)
        assert (mine.spaces, mine.former) == ([], [house.space])
        await again.push(house.space, person.chain_in(house.space).next())
        assert (await again.next(Reject)).code == "shredded"
    with pytest.raises(CallFailed, match="invite_refused"):
        await open_invite(house, late, await late.open(), link)
    assert await stores.log.read(house.space, 0, 1 << 20) == []
    assert await stored_rows(stores, house) == set()
    assert await stores.directory.list("shredding/") == {}


# Creating


async def test_a_space_is_created_once_and_with_a_row_for_everybody(house):
    entries = (await house.wire.call("space.log", ReadLog(house.space), ReadLogResult)).entries
    row = house.row(*identity(house.owner))
    more = [*entries, shred_entry(house.owner.account, house.log)]

    again = CreateSpace(house.space, entries, [row])
    assert (await house.wire.call("space.create", again, LogHead)).seq == len(entries)
    assert await refusal(house.wire, "space.create", msgspec.structs.replace(again, keyring=[])) == "invalid_call"
    assert await refusal(house.wire, "space.create", msgspec.structs.replace(again, entries=more)) == "invalid_call"
    more = [*entries, config_lease_entry(house.owner.account, house.log, 1)]
    assert await refusal(house.wire, "space.create", msgspec.structs.replace(again, entries=more)) == "log_conflict"
