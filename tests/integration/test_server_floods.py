"""What one account can ask of a server over and over: it is told to come later, and others go on."""

from collections import Counter

import msgspec

from tests.membership_kit import House, make_person
from tests.server_kit import CallFailed, World, make_world, open_anonymous
from twinlock.engines.memory import MemoryDirectory
from twinlock.ids import DeviceId
from twinlock.protocol.calls import (
    OpenUnlocker,
    OpenUnlockerResult,
    ReadLog,
    ReadLogResult,
    SignedEntry,
    UnlockerParams,
    UnlockerParamsResult,
)
from twinlock.protocol.space_log import Role
from twinlock.protocol.space_rules import replay_space
from twinlock.sealing.identity import AccountKeys
from twinlock.sealing.space_entries import cutoff_entry, member_kem_entry
from twinlock.sealing.vault import unlock
from twinlock.server import Server, Settings
from twinlock.server.stores import open_stores


async def serving(**values):
    server = Server(Settings(engine="memory:", port=0, **values))
    await server.start()
    return server


def rekems(account: AccountKeys, log, count: int) -> list[SignedEntry]:
    """Entries that any member may sign for itself, as often as it likes."""
    entries = []
    for _ in range(count):
        entries.append(member_kem_entry(account, log))
        log = replay_space(entries[-1:], log)
    return entries


async def signed_in_without_a_device(world: World):
    wire, _ = await open_anonymous(world.port)
    params = await wire.call("unlocker.params", UnlockerParams(world.name, "recovery_kit"), UnlockerParamsResult)
    keys = unlock(params, world.kit, world.name, world.server_id)
    await wire.call("unlocker.open", OpenUnlocker(world.name, "recovery_kit", keys.auth_key), OpenUnlockerResult)
    return wire


async def repeated(times: int, call) -> str:
    """Do something again and again until it is refused; return the code."""
    for _ in range(times):
        try:
            await call()
        except CallFailed as refused:
            return refused.code
    return ""


async def test_a_reader_does_not_grow_a_space_log_without_end():
    server = await serving(log_entries_per_hour=40)
    try:
        owner = await make_world(server)
        house = House(owner, await owner.open())
        reader = await make_person(server)
        wire = await house.admit(reader, Role.READER)
        rows = [house.row(reader.account.account, reader.account.kem_pk)]
        seq = house.log.seq

        code = await repeated(4, lambda: house.append(*rekems(reader.account, house.log, 20), rows=rows, wire=wire))

        assert code == "rate_limited"
        assert house.log.seq <= seq + 40
        # The others have rates of their own.
        await house.invite()
    finally:
        await server.stop()


async def test_an_account_does_not_grow_its_own_log_without_end():
    server = await serving(log_entries_per_hour=40)
    try:
        person = await make_person(server)
        wire = await person.open()

        assert await repeated(60, lambda: person.add_device(wire)) == "rate_limited"
        assert len(person.account_log.devices) <= 42
    finally:
        await server.stop()


async def test_who_only_signed_in_is_held_to_a_rate_and_uses_up_none_of_the_devices():
    server = await serving(calls_per_s=2)
    try:
        world = await make_world(server)
        stranger, wire = await signed_in_without_a_device(world), await world.open()
        read = ReadLog(world.account.account, 0)

        assert await repeated(60, lambda: stranger.call("account.log", read, ReadLogResult)) == "rate_limited"
        assert (await wire.call("account.log", read, ReadLogResult)).seq == 2
    finally:
        await server.stop()


class CountingDirectory(MemoryDirectory):
    """Counts how often all of something was asked for."""

    def __init__(self):
        super().__init__()
        self.listed = Counter()

    async def list(self, prefix):
        self.listed[prefix.partition("/")[0]] += 1
        return await super().list(prefix)


async def test_a_long_log_that_is_asked_for_again_and_again_is_fetched_once():
    settings = Settings(engine="memory:", port=0)
    directory = CountingDirectory()
    server = Server(settings, msgspec.structs.replace(await open_stores(settings), directory=directory))
    await server.start()
    try:
        owner = await make_world(server)
        house = House(owner, await owner.open())
        rows = [house.row(owner.account.account, owner.account.kem_pk)]
        await house.append(*rekems(owner.account, house.log, 100), rows=rows)
        listed = directory.listed["log"]

        for after in range(0, 100, 10):
            page = await house.wire.call("space.log", ReadLog(house.space, after), ReadLogResult)
            assert (len(page.entries), page.seq) == (102 - after, 102)
        assert directory.listed["log"] == listed + 1

        await house.append(*rekems(owner.account, house.log, 1), rows=rows)
        page = await house.wire.call("space.log", ReadLog(house.space, 100), ReadLogResult)
        assert (len(page.entries), page.seq) == (3, 103)
    finally:
        await server.stop()


async def test_long_entries_count_for_more():
    server = await serving(log_entries_per_hour=40)
    try:
        owner = await make_world(server)
        house = House(owner, await owner.open())
        counters = {DeviceId(number.to_bytes(16, "big")): 0 for number in range(1000)}
        entry = cutoff_entry(owner.account, house.log, owner.account.account, counters)

        # The first is refused for what it says; then there is no room for another.
        assert await repeated(1, lambda: house.append(entry)) == "invalid_call"
        assert await repeated(1, lambda: house.append(entry)) == "rate_limited"
    finally:
        await server.stop()
