"""Members and keys of a space change at one node, and it holds at all of them, whatever one of them does meanwhile."""

import asyncio

import pytest

from tests.membership_kit import House, attach_refusal, make_person, notice, open_invite, refusal, rotate, written
from tests.nodes_kit import Town, metric
from tests.server_kit import CallFailed, make_world
from twinlock.errors import LogConflictError
from twinlock.ids import LogId
from twinlock.protocol.calls import Cut, ReadLog, ReadLogResult
from twinlock.protocol.frames import LOG_GROWN, Ack, Reject
from twinlock.protocol.space_log import Role
from twinlock.sealing.invites import InviteKeys, uninvite_entry
from twinlock.sealing.space_entries import shred_entry


@pytest.fixture
async def house(town, here):
    owner = await make_world(here)
    wire = await town.open(here, owner)
    await wire.attach(owner.space)
    return House(owner, wire)


async def admitted(town, server, house, role=Role.EDITOR):
    """Bring a new account in by a node, attached there."""
    person = await make_person(server)
    wire = await town.open(server, person)
    await house.join(person, wire, await house.invite(role))
    await wire.attach(house.space)
    return person, wire


def answers(frame, counter):
    return isinstance(frame, Reject) or counter in dict(frame.acked)


async def answer_to(wire, space, envelope):
    """Push, again if that is asked for; return what it was refused with for good, or None, and what it waited for."""
    counter, waits = int.from_bytes(envelope[40:48], "big"), []
    async with asyncio.timeout(20):
        while True:
            await wire.push(space, envelope)
            answer = await wire.next(
                (Ack, Reject), lambda frame: isinstance(frame, Reject) or counter in dict(frame.acked)
            )
            if isinstance(answer, Ack):
                return None, waits
            if not answer.retry_after_ms:
                return answer.code, waits
            waits.append(answer.code)
            await asyncio.sleep(0.02)


async def test_who_is_invited_at_one_node_joins_and_writes_at_the_other(town, here, there, house):
    person, wire = await admitted(town, there, house)
    await notice(house.wire, house.space, LOG_GROWN)

    await written(person, wire, house)
    entries = await house.wire.entries(house.space, 3)

    assert len(entries) == 3
    assert (await wire.call("space.log", ReadLog(house.space, 0), ReadLogResult)).seq == house.log.seq


async def test_a_withdrawn_invite_opens_nothing_at_any_node(town, there, house):
    person = await make_person(there)
    wire = await town.open(there, person)
    link = await house.invite()
    assert (await open_invite(house, person, wire, link)).seq == house.log.seq
    invite = InviteKeys.of(house.space, link.secret).id
    await house.append(uninvite_entry(house.owner.account, house.log, invite))

    with pytest.raises(CallFailed, match="invite_refused"):
        await open_invite(house, person, wire, link)


async def test_who_is_removed_at_one_node_is_out_at_all(town, there, house):
    person, wire = await admitted(town, there, house)
    other = await town.open(there, person)
    await written(person, wire, house)
    await house.remove(person.account.account)

    for each in (wire, other):
        await notice(each, house.space, "removed")

    assert (await answer_to(wire, house.space, person.chain_in(house.space).next()))[0] == "removed"
    assert await attach_refusal(await town.open(there, person), house.space) == "removed"


async def write_until(is_over, wire, house, chain):
    """Push one envelope after the other."""
    while not is_over.is_set():
        await wire.push(house.space, chain.next(epoch=house.log.epoch))
        await asyncio.sleep(0.001)


async def removed_in_the_end(house, person):
    """Remove an account, again and again if it wrote meanwhile."""
    while True:
        try:
            return await house.remove(person.account.account)
        except CallFailed as failure:
            if failure.code != "cutoff_conflict":
                raise


async def test_no_push_slips_past_a_removal_whose_cutoffs_it_would_break(town, here, there, house):
    """A writer at the other node pushes all the time: what it was told is stored stays below the cutoff."""
    for _ in range(4):
        person, wire = await admitted(town, there, house)
        chain, device = person.chain_in(house.space), person.device.device
        is_over = asyncio.Event()
        writing = asyncio.create_task(write_until(is_over, wire, house, chain))
        await removed_in_the_end(house, person)
        await notice(wire, house.space, "removed")
        is_over.set()
        await writing

        cutoffs = house.log.former[person.account.account].cutoffs
        heads = (await town.nodes[here].log.state(house.space)).heads
        counter = heads[device].counter if device in heads else 0
        assert [cutoff.counters.get(device, 0) for cutoff in cutoffs] == [counter]


async def test_from_a_rotation_on_every_node_takes_only_the_new_epoch(town, there, house):
    person, wire = await admitted(town, there, house)
    chain = await written(person, wire, house, count=1)
    await rotate(house)
    await notice(wire, house.space, LOG_GROWN)

    refused, _ = await answer_to(wire, house.space, chain.make(2, chain.prev))
    taken, _ = await answer_to(wire, house.space, chain.next(epoch=house.log.epoch))

    assert (refused, taken) == ("stale_epoch", None)


async def test_what_names_an_epoch_that_the_node_does_not_know_yet_is_taken_in_the_end(town, here, there, house):
    """The device went to the other node at once, which had not been told of the rotation."""
    person, _ = await admitted(town, here, house)
    far = await town.open(there, person)
    await far.attach(house.space)
    chain = await written(person, far, house, count=1)
    for _ in range(10):
        await rotate(house)
        envelope = chain.next(epoch=house.log.epoch, log_head=house.log.head[:8])
        assert (await answer_to(far, house.space, envelope))[0] is None


async def test_a_shredded_space_is_shredded_at_every_node(town, there, house):
    person, wire = await admitted(town, there, house)
    await written(person, wire, house)
    await house.append(shred_entry(house.owner.account, house.log))

    await notice(wire, house.space, "shredded")

    assert (await answer_to(wire, house.space, person.chain_in(house.space).next()))[0] == "shredded"
    assert await town.store.log.read(house.space, 0, 1 << 20) == []
    assert await refusal(wire, "space.cut", Cut(house.space, house.owner.incarnation, 0)) == "shredded"


async def test_changes_of_both_nodes_at_the_same_time_leave_one_log(town, here, there, house):
    far_house = House(house.owner, await town.open(there, house.owner))
    for _ in range(6):
        far_house.log = house.log
        outcomes = await asyncio.gather(house.invite(), far_house.invite(), return_exceptions=True)
        refused = [each.code for each in outcomes if isinstance(each, CallFailed)]
        assert len(refused) >= 1
        assert set(refused) <= {"log_conflict"}
        entries = await town.keys.read_log(LogId(house.space), 0)
        page = await house.wire.call("space.log", ReadLog(house.space, 0), ReadLogResult)
        far_page = await far_house.wire.call("space.log", ReadLog(house.space, 0), ReadLogResult)
        assert page.entries == far_page.entries == entries
        house.log = far_house.log if far_house.log.seq == len(entries) else house.log
        assert house.log.seq == len(entries)


class Stalling:
    """A node's key service: the next append waits, as that of a process that was stopped."""

    def __init__(self, inner):
        self.inner = inner
        self.has_stalled, self.goes_on = asyncio.Event(), asyncio.Event()
        self.stalls = False

    def __getattr__(self, name):
        return getattr(self.inner, name)

    async def append_log(self, log, expect_seq, entries, turn=0):
        if self.stalls and entries:
            self.has_stalled.set()
            await self.goes_on.wait()
        return await self.inner.append_log(log, expect_seq, entries, turn)


async def test_a_change_that_stalls_is_ended_by_others_and_commits_nothing_late(town, there, monkeypatch):
    monkeypatch.setattr("twinlock.server.fences.PATIENCE_S", 0.3)
    keys = Stalling(town.keys)
    staller = await town.start(keys=keys)
    owner = await make_world(there)
    house = House(owner, await town.open(there, owner))
    await house.wire.attach(house.space)
    person, wire = await admitted(town, there, house)
    chain = await written(person, wire, house, count=1)
    stalled = House(owner, await town.open(staller, owner))
    stalled.log, keys.stalls = house.log, True

    change = asyncio.create_task(stalled.invite())
    await keys.has_stalled.wait()
    refused, waits = await answer_to(wire, house.space, chain.next())
    keys.goes_on.set()
    with pytest.raises(CallFailed, match="log_conflict"):
        await change
    keys.stalls = False
    await house.invite()

    assert refused is None
    assert set(waits) == {"overloaded"}
    assert metric(there, "take_overs") == 1
    assert len(await town.keys.read_log(LogId(house.space), 0)) == house.log.seq
    assert not await town.store.directory.list("changing/")
    with pytest.raises(LogConflictError):
        await town.keys.append_log(LogId(house.space), house.log.seq, [], 1)


async def test_a_node_that_dies_amid_a_change_holds_up_nobody_for_long(town, there, monkeypatch):
    monkeypatch.setattr("twinlock.server.fences.PATIENCE_S", 0.3)
    owner = await make_world(there)
    house = House(owner, await town.open(there, owner))
    await house.wire.attach(house.space)
    await town.store.directory.put(f"changing/{house.space.hex()}", b"dead")
    dead = town.store.node()
    await dead.log.fence(house.space)
    late = await town.start()

    chain = owner.chain()
    assert (await answer_to(house.wire, house.space, chain.next()))[0] is None
    far = await town.open(late, owner)
    await far.attach(house.space)
    assert (await answer_to(far, house.space, chain.next()))[0] is None
    await house.invite()

    assert not await town.store.directory.list("changing/")


class Holding:
    """A node's directory: whoever asks for one key is kept waiting."""

    def __init__(self, inner):
        self.inner = inner
        self.key = ""
        self.is_holding, self.goes_on = asyncio.Event(), asyncio.Event()

    def __getattr__(self, name):
        return getattr(self.inner, name)

    async def get(self, key):
        if key == self.key:
            self.is_holding.set()
            await self.goes_on.wait()
        return await self.inner.get(key)


async def test_a_space_in_which_a_change_begins_is_not_forgotten_for_others(tmp_path):
    town = Town(tmp_path, spaces_cached_max=1)
    try:
        directory = Holding(town.store.directory)
        here = await town.start(directory=directory)
        owner = await make_world(here)
        house = House(owner, await town.open(here, owner))
        directory.key = f"log/{house.space.hex()}/{house.log.seq + 1:08d}"
        change = asyncio.create_task(house.invite())
        await directory.is_holding.wait()
        other = await make_world(here)
        await (await town.open(here, other)).attach(other.space)
        reader = await town.open(here, owner)
        await reader.attach(house.space)

        directory.goes_on.set()
        await change

        await notice(reader, house.space, LOG_GROWN)
    finally:
        await town.close()
