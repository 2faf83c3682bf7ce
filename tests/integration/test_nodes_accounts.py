"""What nodes tell one another of accounts, devices and rates, and what they do when news are lost."""

import asyncio
import os
import time

import pytest

from tests.membership_kit import notice
from tests.nodes_kit import Town, metric
from tests.server_kit import CallFailed, World, hello_to, make_world, open_anonymous, open_wire
from twinlock.errors import StoreError
from twinlock.protocol import proofs
from twinlock.protocol.account_log import replay_account
from twinlock.protocol.calls import AppendLog, OpenUnlocker, ReadLog, UnlockerParams, UnlockerParamsResult
from twinlock.protocol.device_calls import (
    ApprovePairing,
    AskPairing,
    Devices,
    DevicesResult,
    FindPairing,
    FindPairingResult,
    TakePairing,
    TakePairingResult,
)
from twinlock.protocol.frames import LOG_GROWN, Attach, Attached, Challenge, Notice, Reject
from twinlock.sealing.identity import DeviceKeys, device_entry, revoke_entry
from twinlock.sealing.vault import RecoveryKit, make_unlocker, unlock
from twinlock.server.chores import CHORES_KEY, Chores
from twinlock.server.settings import Settings, SettingsError
from twinlock.server.stores import check_identity


@pytest.fixture
async def world(town, here):
    return await make_world(here)


async def grow(world, wire, entry):
    await wire.call("account.append", AppendLog(world.account.account, world.account_log.seq, [entry]))
    world.account_log = replay_account([entry], world.account_log)


async def test_a_device_that_is_revoked_at_one_node_is_cut_off_at_another_at_once(town, here, there, world):
    wire = await town.open(here, world)
    lost = await world.add_device(wire)
    far = [await town.open(there, world, lost) for _ in range(2)]
    stays = await town.open(there, world)

    started_s = time.monotonic()
    await grow(world, wire, revoke_entry(world.account, world.account_log, lost.device))
    codes = [await each.refused() for each in far]
    took_s = time.monotonic() - started_s
    await notice(stays, world.account.account, LOG_GROWN)
    again = await open_wire(there.port)
    await again.send(hello_to(await again.next(Challenge), there.port, world.account, lost))

    assert codes == ["device_revoked"] * 2
    assert took_s < 1.0
    assert await again.refused() == "device_revoked"


async def test_a_device_certified_at_one_node_comes_in_at_another(town, here, there, world):
    far = await town.open(there, world)
    wire = await town.open(here, world)
    device = await world.add_device(wire)

    new = await town.open(there, world, device)

    assert await new.call("account.log", ReadLog(world.account.account, 0))
    await notice(far, world.account.account, LOG_GROWN)


async def test_a_revocation_whose_news_was_lost_is_found_once_nodes_hear_one_another_again(town, here, there, world):
    wire = await town.open(here, world)
    lost = await world.add_device(wire)
    far, stays = await town.open(there, world, lost), await town.open(there, world)
    broker = town.nodes[there].broker
    broker.cut_off()
    await grow(world, wire, revoke_entry(world.account, world.account_log, lost.device))
    space = (await world.create_space(wire)).space

    broker.mend()

    assert await far.refused() == "device_revoked"
    await notice(stays, world.account.account, LOG_GROWN)
    await notice(stays, space, LOG_GROWN)
    assert metric(there, "broker_gaps") == 1


async def test_a_new_space_is_told_to_its_owners_devices_everywhere(town, here, there, world):
    far = await town.open(there, world)
    wire = await town.open(here, world)

    await world.create_space(wire)

    assert await notice(far, world.space, LOG_GROWN)
    assert await far.attach(world.space)


async def test_the_device_list_tells_who_is_at_which_node(town, here, there, world):
    wire = await town.open(here, world)
    second, third = await world.add_device(wire), await world.add_device(wire)
    await town.acquainted()
    await town.open(there, world, second)
    gone = await town.open(there, world, third)
    await gone.close()
    async with asyncio.timeout(10):
        while True:
            notes = {
                each.device: each for each in (await wire.call("account.devices", Devices(), DevicesResult)).devices
            }
            if not notes[third.device].is_online:
                break

    assert notes[world.device.device].is_online
    assert notes[second.device].is_online
    assert notes[third.device].last_seen_ms > 0


async def test_a_device_that_asks_at_one_node_is_approved_at_another(town, here, there, world):
    stranger, challenge = await open_anonymous(there.port)
    town.wires.append(stranger)
    new = DeviceKeys.make(os.urandom)
    await stranger.call("pairing.ask", AskPairing(new.sign_pk, new.kem_pk))
    wire = await town.open(here, world)

    found = await wire.call("pairing.find", FindPairing(new.device[:10]), FindPairingResult)
    await grow(world, wire, device_entry(world.account, world.account_log, found.sign_pk, found.kem_pk))
    await wire.call("pairing.approve", ApprovePairing(new.device, b"sealed"))
    message = proofs.pairing_take_message(proofs.server_id_of(challenge.server_pk), new.device)
    taken = await stranger.call("pairing.take", TakePairing(new.device, new.sign.sign(message)), TakePairingResult)

    assert (taken.account, taken.sealed, len(taken.entries)) == (world.account.account, b"sealed", 3)


async def test_a_name_is_given_once_over_all_nodes(here, there):
    people = [World(server) for server in (here, there) * 3]
    for person in people:
        person.name = "anna"

    outcomes = await asyncio.gather(*(person.sign_up() for person in people), return_exceptions=True)

    assert sum(1 for each in outcomes if each is None) == 1
    assert {each.code for each in outcomes if isinstance(each, CallFailed)} == {"name_taken"}


async def test_whoever_guesses_a_password_at_one_node_has_no_more_tries_at_another(tmp_path):
    town = Town(tmp_path, unlocker_tries_per_min=5)
    here, there = await town.start(), await town.start()
    world = await make_world(here)
    near, _ = await open_anonymous(here.port)
    far, _ = await open_anonymous(there.port)
    town.wires += [near, far]
    guess = OpenUnlocker(world.name, "password", b"x" * 32)
    for _ in range(5):
        with pytest.raises(CallFailed, match="wrong_credentials"):
            await near.call("unlocker.open", guess)

    async with asyncio.timeout(5):
        codes = []
        while codes[-1:] != ["rate_limited"]:
            await asyncio.sleep(0.3)
            with pytest.raises(CallFailed) as caught:
                await far.call("unlocker.open", guess)
            codes.append(caught.value.code)

    assert len(codes) == 1
    await town.close()


async def test_who_spreads_over_the_nodes_gets_no_more_than_the_account_s_rate(tmp_path):
    town = Town(tmp_path, account_changes_per_s=40)
    here, there = await town.start(), await town.start()
    owner = await make_world(here)
    devices = [owner.device, *[await owner.add_device(await town.open(here, owner)) for _ in range(1)]]
    wires = [await town.open(server, owner, device) for server, device in zip((here, there), devices, strict=True)]
    for wire in wires:
        await wire.attach(owner.space)
    chains = [owner.chain(device) for device in devices]
    # Two seconds' worth, all at one node.
    await wires[0].push(owner.space, *[chains[0].next() for _ in range(60)])
    await wires[0].acked(owner.space, 60)
    await asyncio.sleep(0.35)

    await wires[1].push(owner.space, *[chains[1].next() for _ in range(60)])
    reject = await wires[1].next(Reject)

    assert reject.code == "quota_exceeded"
    assert reject.retry_after_ms > 0
    await town.close()


def about_attaching(frame):
    return isinstance(frame, Attached) or frame.code != LOG_GROWN


async def test_nodes_know_how_many_are_alive_and_share_what_the_engine_can_take(tmp_path):
    town = Town(tmp_path, catch_ups_per_s=1, catch_ups_burst=4)
    here, there = await town.start(), await town.start()
    owner = await make_world(here)
    wire = await town.open(here, owner)
    await wire.push(owner.space, owner.chain().next())
    await wire.acked(owner.space, 1)
    await town.acquainted()
    await asyncio.sleep(0.3)

    codes = []
    for _ in range(3):
        each = await town.open(there, owner)
        await each.send(Attach(owner.space, b"", 0))
        codes.append(await each.next((Attached, Notice), about_attaching))

    assert metric(here, "nodes_alive") == metric(there, "nodes_alive") == 2
    assert [isinstance(each, Attached) for each in codes] == [True, True, False]
    assert codes[-1].retry_after_ms > 0
    await there.stop()
    async with asyncio.timeout(5):
        while metric(here, "nodes_alive") > 1:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    await town.close()


async def test_chores_are_one_nodes_until_it_leaves_them_or_its_time_is_over(town, here):
    clock = {"ms": 1_000_000}
    first, second = (Chores(town.store.directory, name, lambda: clock["ms"]) for name in (b"first", b"second"))
    await town.store.directory.delete(CHORES_KEY)

    assert [await first.take(60_000), await second.take(60_000), await first.take(60_000)] == [True, False, True]
    clock["ms"] += 60_000
    assert [await second.take(60_000), await first.take(60_000)] == [True, False]
    await first.leave()
    assert not await first.take(60_000)
    await second.leave()
    assert await first.take(60_000)
    # A clock that was far ahead does not keep the chores from being done.
    clock["ms"] -= 900_000
    assert await second.take(60_000)


async def test_a_node_with_another_key_is_told_which_file_to_copy(town):
    await check_identity(town.store.directory, b"one")
    await check_identity(town.store.directory, b"one")

    with pytest.raises(StoreError, match=r"server\.key"):
        await check_identity(town.store.directory, b"another")


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"engine": "nats://a:4222"}, "keyservice_url"),
        ({"engine": "sqlite", "nats_ca_file": "ca.pem"}, "nats_"),
        ({"engine": "http://a"}, "engine"),
    ],
)
def test_settings_of_a_cluster_that_cannot_be_are_refused(values, named):
    with pytest.raises(SettingsError, match=named):
        Settings(**values).check()


async def test_who_came_in_by_a_secret_that_is_replaced_is_signed_out_at_every_node(town, here, there, world):
    far, _ = await open_anonymous(there.port)
    town.wires.append(far)
    params = await far.call("unlocker.params", UnlockerParams(world.name, "recovery_kit"), UnlockerParamsResult)
    keys = unlock(params, world.kit, world.name, world.server_id)
    await far.call("unlocker.open", OpenUnlocker(world.name, "recovery_kit", keys.auth_key))
    own = ReadLog(world.account.account, 0)
    assert await far.call("account.log", own)
    wire = await town.open(here, world)

    new = make_unlocker(RecoveryKit.make(os.urandom), world.name, world.server_id, os.urandom, world.account)
    await wire.call("unlocker.put", world.put(new))

    async with asyncio.timeout(5):
        while True:
            try:
                await far.call("account.log", own)
            except CallFailed as failure:
                assert failure.code == "not_signed_in"  # noqa: PT017
                break
            await asyncio.sleep(0.01)
