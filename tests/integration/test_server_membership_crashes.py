"""Changes of members while stores fail: at every step, before or after it is done, with and without a restart."""

import asyncio
import itertools
import os

import msgspec
import pytest

from tests.membership_kit import FrailDirectory, FrailKeys, House, Trouble, lease, make_person
from tests.server_kit import CallFailed, make_world
from twinlock.engines.memory import MemoryLog
from twinlock.ids import Epoch
from twinlock.protocol.calls import (
    AppendLog,
    KeyringRow,
    LogHead,
    ReadKeyring,
    ReadLog,
    ReadLogResult,
    Spaces,
    SpacesResult,
)
from twinlock.protocol.frames import Attach, Notice, Reject
from twinlock.protocol.membership_calls import Join
from twinlock.protocol.space_log import Role
from twinlock.protocol.space_rules import replay_space
from twinlock.sealing.invites import InviteKeys, join_entry
from twinlock.sealing.space_entries import epoch_entry, leave_entry, shred_entry
from twinlock.sealing.space_keys import make_epoch
from twinlock.server import Server, Settings, space_changes
from twinlock.server.stores import open_stores

UNCLEAR = ("store_failed", "key_service_unavailable")


class Town:
    """A server on frail stores that can be killed and started again, and two accounts."""

    def __init__(self, stores):
        self.trouble = Trouble()
        self.inner = stores
        self.stores = msgspec.structs.replace(
            stores,
            directory=FrailDirectory(stores.directory, self.trouble),
            keys=FrailKeys(stores.keys, self.trouble),
            close=self._leave_open,
        )

    async def _leave_open(self):
        pass

    async def start(self):
        self.server = Server(
            Settings(engine="memory:", port=0, unlocker_tries_per_min=0, clean_interval_s=0.1), self.stores
        )
        await self.server.start()

    async def restart(self):
        """Kill the server while its stores are down, then go on with what they hold."""
        await self.server.stop()
        self.trouble.mend()
        await self.start()
        for person in (self.owner, self.ben):
            person.port = self.server.port

    async def furnish(self, change):
        """Make a space for a change, with the member or the invite that it needs."""
        wire = await self.owner.open()
        await self.owner.create_space(wire)
        house = House(self.owner, wire)
        if change == "join":
            house.link = await house.invite(Role.EDITOR)
        else:
            await house.admit(self.ben)
        return house


@pytest.fixture
async def town():
    stores = await open_stores(Settings(engine="memory:"))
    town = Town(stores)
    await town.start()
    town.owner = await make_world(town.server)
    town.ben = await make_person(town.server)
    yield town
    town.trouble.mend()
    await town.server.stop()
    await stores.close()


async def request_of(change, town, house):
    """Return who calls which method with what, for a change."""
    owner, account, log = house.owner.account, town.ben.account, house.log
    if change == "remove":
        return town.owner, "space.append", await house.removal(account.account, {})
    if change == "leave":
        return town.ben, "space.append", AppendLog(house.space, log.seq, [leave_entry(account, log, {})])
    if change == "shred":
        return town.owner, "space.append", AppendLog(house.space, log.seq, [shred_entry(owner, log)])
    if change == "join":
        keys = InviteKeys.of(house.space, house.link.secret)
        row = house.row(account.account, account.kem_pk)
        return town.ben, "space.join", Join(house.space, log.seq, join_entry(account, log, keys), row)
    service_key = await town.owner.pending(house.wire, house.space, 2)
    before, house.keys = house.keys.member_key, make_epoch(house.space, Epoch(2), service_key, os.urandom)
    entry = epoch_entry(owner, log, house.keys, before, os.urandom)
    return town.owner, "space.append", AppendLog(house.space, log.seq, [entry], house.rows(log))


async def call(person, method, request):
    """Call on a connection of its own; return the code of a refusal."""
    wire = await person.open()
    try:
        await wire.call(method, request, LogHead)
    except CallFailed as failed:
        return failed.code
    finally:
        await wire.close()
    return ""


@pytest.mark.parametrize("change", ["remove", "leave", "join", "epoch", "shred"])
async def test_a_change_that_breaks_off_anywhere_leaves_nothing_wrong_and_passes_the_next_time(town, change):
    for step in itertools.count(1):
        is_done, is_killed = bool(step % 2), bool(step // 2 % 2)
        house = await town.furnish(change)
        caller, method, request = await request_of(change, town, house)
        town.trouble.plan(step, is_done=is_done)
        code = await call(caller, method, request)
        if not town.trouble.is_down:
            assert (code, step > 5) == ("", True)
            break
        assert code in ("", *UNCLEAR)
        if is_killed:
            await town.restart()
        town.trouble.mend()

        has_happened = await check_keys(town, house, change)
        if not has_happened:
            assert await call(caller, method, request) == ""
        await check_outcome(town, house, change)
        assert await call(caller, method, request) == ""


async def check_keys(town, house, change):
    """Check that everybody who reads has a row of the log's epoch; tell whether the change has happened."""
    wire = await town.owner.open()
    page = await wire.call("space.log", ReadLog(house.space), ReadLogResult)
    log = replay_space(page.entries)
    for person in (town.owner, town.ben):
        # A space that is in doubt may turn out to be shredded at any moment.
        if change != "shred" and person.account.account in log.members:
            row = await (await person.open()).call("space.keyring", ReadKeyring(house.space), KeyringRow)
            assert row.epoch == log.epoch
    if change == "join":
        listed = await (await town.ben.open()).call("account.spaces", Spaces(), SpacesResult)
        assert (house.space in listed.spaces) == (log.seq > house.log.seq)
    return log.seq > house.log.seq


async def check_outcome(town, house, change):
    """Check what the accounts are answered after a change, and what is left in the stores."""
    wire = await town.ben.open()
    codes = {"remove": "removed", "leave": "removed", "shred": "shredded"}
    if change in codes:
        assert await attach_code(town.ben, house) == codes[change]
    else:
        await wire.attach(house.space)
        assert (await wire.call("space.keyring", ReadKeyring(house.space), KeyringRow)).epoch == (change == "epoch") + 1
    if change == "shred":
        await swept(town, house)
    await wire.close()


async def swept(town, house):
    """Wait until a shredded space has left nothing but its log."""
    changes = town.inner.directory.watch("shredding/")
    while await town.inner.directory.list("shredding/"):
        await asyncio.wait_for(anext(changes), 5)
    assert await town.inner.directory.list(f"keyring/{house.space.hex()}/") == {}


async def test_a_removal_whose_answer_was_lost_holds_the_members_pushes_until_it_is_known(town, monkeypatch):
    monkeypatch.setattr(space_changes, "DOUBT_RETRY_S_MIN", 0.02)
    house = await town.furnish("remove")
    wire, chain = await town.ben.open(), town.ben.chain_in(house.space)
    await wire.attach(house.space)
    request = await house.removal(town.ben.account.account, {})
    # Two rows and the mark come before the key service.
    town.trouble.plan(3, is_done=True)

    assert await call(town.owner, "space.append", request) in UNCLEAR
    envelope = chain.next()
    await wire.push(house.space, envelope)
    assert (await wire.next(Reject)).code == "overloaded"
    town.trouble.mend()

    await wire.next(Notice, lambda frame: frame.code == "removed")
    await wire.push(house.space, envelope)
    assert (await wire.next(Reject)).code == "removed"
    assert (await town.inner.log.state(house.space)).head == 0


async def test_nothing_is_served_from_a_copy_that_may_lack_a_removal(town):
    house = await town.furnish("remove")
    request = await house.removal(town.ben.account.account, {})
    town.trouble.plan(4, is_done=True)
    assert await call(town.owner, "space.append", request) in UNCLEAR
    await town.restart()
    town.stores.keys.trouble = Trouble()
    town.stores.keys.trouble.is_down = True

    wire = await town.ben.open()
    await wire.send(Attach(house.space, b"", 0))
    assert (await wire.next(Notice)).code == "key_service_unavailable"
    assert (await lease(town.ben, wire, house, 1)).code == "key_service_unavailable"
    town.stores.keys.trouble = town.trouble
    await wire.send(Attach(house.space, b"", 0))
    assert (await wire.next(Notice)).code == "removed"


class ForgetfulKeys(FrailKeys):
    """A key service that was restored to an older state of one log, until it is given back what it lacks."""

    def __init__(self, inner, trouble, forgotten, after_seq):
        super().__init__(inner, trouble)
        self.forgotten, self.after_seq = forgotten, after_seq

    async def append_log(self, log, expect_seq, entries, turn=0):
        head = await super().append_log(log, expect_seq, entries, turn)
        self.after_seq += len(entries)
        return head

    async def read_log(self, log, after_seq):
        entries = await super().read_log(log, after_seq)
        return entries[: max(0, self.after_seq - after_seq)] if log == self.forgotten else entries


async def test_a_restored_server_takes_back_a_removal_that_it_lost_without_a_look_at_its_chains(town):
    house = await town.furnish("remove")
    wire, chain = await town.ben.open(), town.ben.chain_in(house.space)
    await wire.push(house.space, chain.next(), chain.next())
    await wire.acked(house.space, 2)
    kept, before = house.log.seq, house.log
    request = await house.removal(town.ben.account.account, {town.ben.device.device: 2})
    await house.wire.call("space.append", request, LogHead)

    keys = ForgetfulKeys(town.inner.keys, town.trouble, house.space, kept)
    town.stores = msgspec.structs.replace(town.stores, log=MemoryLog(), keys=keys)
    await town.inner.directory.delete(f"log/{house.space.hex()}/{kept + 1:08d}")
    await town.restart()
    wire = await town.owner.open()
    assert (await wire.call("space.log", ReadLog(house.space), ReadLogResult)).seq == kept
    lost = AppendLog(house.space, before.seq, request.entries, is_lost=True)
    await wire.call("space.append", lost, LogHead)

    assert await attach_code(town.ben, house) == "removed"


async def attach_code(person, house):
    """Attach in vain and return why."""
    wire = await person.open()
    await wire.send(Attach(house.space, b"", 0))
    return (await wire.next(Notice, lambda frame: frame.code != "log_grown")).code


async def test_a_gap_in_the_copy_of_a_log_is_mended_from_the_key_service(town):
    house = await town.furnish("leave")
    log = f"log/{house.space.hex()}/"
    await town.inner.directory.delete(f"{log}00000002")
    await town.restart()

    page = await (await town.owner.open()).call("space.log", ReadLog(house.space), ReadLogResult)

    assert replay_space(page.entries).head == house.log.head
    assert len(await town.inner.directory.list(log)) == house.log.seq


async def test_a_change_while_the_key_service_is_down_leaves_nothing_in_doubt(town):
    house = await town.furnish("leave")
    caller, method, request = await request_of("leave", town, house)
    town.stores.keys.trouble = Trouble()
    town.stores.keys.trouble.is_down = True

    assert await call(caller, method, request) == "key_service_unavailable"
    wire, chain = await town.ben.open(), town.ben.chain_in(house.space)
    await wire.push(house.space, chain.next())
    await wire.acked(house.space, 1)
    assert await town.inner.directory.list("appending/") == {}
    # Not even a server that starts now needs it.
    await town.restart()
    await (await town.ben.open()).attach(house.space)
