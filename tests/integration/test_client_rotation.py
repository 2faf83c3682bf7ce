"""Rotation through the SDK: removal, new epochs, and that nobody who stays notices more than a new key."""

import asyncio
import shutil
import time

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

import twinlock
from tests.client_kit import PASSWORD, until, values
from twinlock.client.epochs import wrapped_for
from twinlock.errors import RemovedError
from twinlock.ids import Epoch, SpaceId
from twinlock.protocol.frames import Notice
from twinlock.sealing.space_keys import EpochKeys
from twinlock.sealing.suite import MemberKey, ServiceKey
from twinlock.testing.workload import open_database


@pytest.fixture
def world(account_world):
    return account_world


async def three(world):
    """Return the views of ann's "home" of ann, who owns it, and of ben and cleo, who are editors."""
    ann = await world.unlocked("a")
    home = ann.space("home")
    link = await home.invite(uses=2)
    return home, *[await (await world.unlocked(name)).join(link) for name in ("ben", "cleo")]


async def everybody_has(count, *spaces):
    """Wait until all show so many notes, the same to all."""
    for space in spaces:
        sizes = []
        ended = space.collection("notes").on_snapshot(lambda snap, sizes=sizes: sizes.append(len(snap)))
        await until(lambda sizes=sizes: sizes and sizes[-1] == count)
        ended()
    found = [values(await space.collection("notes").order_by("n").get()) for space in spaces]
    assert all(each == found[0] for each in found)


def epoch_of(space):
    return space._runtime.keyring.log.epoch


def raw(folder):
    return b"".join(path.read_bytes() for path in folder.glob("**/*") if path.is_file())


async def test_writing_goes_on_while_a_space_is_rotated_again_and_again(world):
    home, ben, cleo = await three(world)

    async def write(space, first):
        for n in range(first, first + 40):
            await space.collection("notes").doc(str(n)).set({"n": n})
            await asyncio.sleep(0)

    async def rotate():
        for _ in range(3):
            await home.rotate()

    await asyncio.gather(write(home, 0), write(ben, 100), write(cleo, 200), rotate())
    await asyncio.gather(*[db.synced() for db in world.open])

    await everybody_has(120, home, ben, cleo)
    assert epoch_of(home) == epoch_of(ben) == epoch_of(cleo) == 4
    assert [db.refused for db in world.open] == [{}, {}, {}]
    assert home.title == ben.title == cleo.title == "home"


async def test_what_was_written_offline_before_the_epoch_ended_arrives_in_order(world):
    home, ben, _ = await three(world)
    await ben.collection("notes").doc("x").set({"n": 0, "log": []})
    await world.open[1].synced()
    await world.stop()
    await until(lambda: all(db.status == "reconnecting" for db in world.open))
    for n in range(1, 11):
        await ben.collection("notes").doc("x").update({"n": n, "log": twinlock.array_union(n)})
    await world.open[1].close()
    await world.restart()
    await until(lambda: world.open[0].is_connected)
    await home.rotate()

    away = await world.device("ben")
    await away.synced()
    await world.open[0].synced()

    assert epoch_of(away.space(home.id)) == epoch_of(home) == 2
    assert await home.collection("notes").doc("x").get() == {"n": 10, "log": list(range(1, 11))}


async def test_a_removed_member_keeps_nothing_and_those_who_stay_go_on(world):
    home, ben, cleo = await three(world)
    await (await ben.collection("notes").doc("1").set({"n": 1, "text": "a secret of ours"})).durable()
    await everybody_has(1, home, ben, cleo)
    folder = world.folder / "ben"
    before = raw(folder)
    watched = []

    async def watch():
        async for snap in ben.collection("notes").watch():
            watched.append(len(snap))

    watching = asyncio.ensure_future(watch())
    await until(lambda: watched)
    await home.remove("ben")
    await home.remove("ben")
    await until(lambda: world.open[1].ended_spaces())
    await watching

    (end,) = world.open[1].ended_spaces()
    assert (end.space, str(end.reason)) == (home.id, "removed")
    assert not (folder / "spaces" / home.id).exists()
    assert len(raw(folder)) < len(before)
    for use in (ben.collection("notes").get(), ben.collection("notes").add({}), ben.members()):
        with pytest.raises(RemovedError):
            await use
    await cleo.collection("notes").doc("2").set({"n": 2})
    await everybody_has(2, home, cleo)
    assert epoch_of(home) == epoch_of(cleo) == 2
    assert world.open[1].status == "connected"


async def test_who_was_removed_while_away_learns_it_from_the_log_and_is_told_what_was_lost(world):
    home, ben, _ = await three(world)
    away = world.open[1]
    await ben.collection("notes").doc("1").set({"n": 1})
    await away.synced()
    await away.close()
    await home.remove("ben")
    await world.stop()
    away = await world.device("ben")
    lost = await away.space(home.id).collection("notes").doc("2").set({"n": 2})

    await world.restart()
    with pytest.raises(RemovedError):
        async with asyncio.timeout(20):
            await lost.durable()

    (end,) = away.ended_spaces()
    assert end.unsent_writes == 1
    assert [info.title for info in away.spaces()] == ["home"]
    await away.close()
    again = await world.device("ben")
    assert [info.title for info in again.spaces()] == ["home"]
    assert again.ended_spaces() == [end]


async def test_wiping_that_a_crash_interrupted_is_finished(world):
    home, ben, _ = await three(world)
    db = world.open[1]
    await db.synced()
    folder = world.folder / "ben" / "spaces" / home.id
    shutil.copytree(folder, world.folder / "kept")
    await ben.leave()
    await db.close()
    # As if the keys had been deleted and nothing else yet.
    shutil.copytree(world.folder / "kept", folder)

    await world.device("ben")

    assert not folder.exists()


async def test_a_removal_that_was_read_just_before_a_crash_is_acted_on_without_the_server(world):
    home, ben, _ = await three(world)
    await ben.collection("notes").doc("1").set({"n": 1})
    await world.open[1].synced()
    await world.open[1].close()
    await home.remove("ben")
    await world.stop()
    db = await world.device("ben")
    db._context.state.put_space_log(ben._runtime.space, home._runtime.entries)
    await db.close()

    db = await world.device("ben")

    assert [(end.space, str(end.reason)) for end in db.ended_spaces()] == [(home.id, "removed")]
    with pytest.raises(RemovedError):
        db.space(home.id)
    assert not (world.folder / "ben" / "spaces" / home.id).exists()


async def test_a_server_that_only_says_so_wipes_nothing(world):
    home, ben, _ = await three(world)
    db = world.open[1]
    await ben.collection("notes").doc("1").set({"n": 1})
    await db.synced()

    for code in ("removed", "shredded", "unknown_space"):
        db._courier.on_event(Notice(code, ben._runtime.space))
        await db._courier.settled()

    assert db.ended_spaces() == []
    assert values(await ben.collection("notes").get()) == [{"n": 1}]
    await world.stop()
    await world.restart()
    await home.collection("notes").doc("2").set({"n": 2})
    await everybody_has(2, home, ben)


async def test_a_space_is_rotated_by_the_next_admin_who_gives_the_password(world):
    home, ben, _ = await three(world)
    world.open[0]._sudo.drop()

    await ben.leave()
    await until(lambda: home.rotation_wanted)
    assert epoch_of(home) == 1
    await world.open[0].unlock(PASSWORD)

    await until(lambda: epoch_of(home) == 2)
    assert not home.rotation_wanted


async def test_who_becomes_a_sender_loses_the_next_epoch_at_once(world):
    home, ben, cleo = await three(world)
    await ben.collection("notes").doc("1").set({"n": 1})
    await world.open[1].synced()

    await home.set_role("ben", "sender")

    assert epoch_of(home) == 2
    assert not home.rotation_wanted
    await until(lambda: not (world.folder / "ben" / "spaces" / home.id / "replica.db").exists())
    await cleo.collection("notes").doc("2").set({"n": 2})
    await everybody_has(2, home, cleo)


async def test_several_admins_open_one_epoch_between_them(world):
    home, ben, cleo = await three(world)
    await home.set_role("cleo", "admin")
    await until(lambda: cleo._runtime.keyring.log.role_of(cleo._runtime.keyring.account) == "admin")

    await ben.leave()
    await until(lambda: epoch_of(home) == 2 and epoch_of(cleo) == 2)
    for db in (world.open[0], world.open[2]):
        db._courier.tend()
    await world.open[0].synced()

    assert epoch_of(home) == 2
    await cleo.collection("notes").doc("1").set({"n": 1})
    await everybody_has(1, home, cleo)


async def test_a_new_epoch_is_wrapped_to_a_thousand_members_without_holding_up_the_loop():
    keys = EpochKeys(SpaceId(bytes(16)), Epoch(2), MemberKey(bytes(32)), ServiceKey(bytes(32)))
    holders = {n.to_bytes(16, "big"): X25519PrivateKey.generate().public_key().public_bytes_raw() for n in range(1000)}
    pauses = []

    async def tick():
        while True:
            before = time.monotonic()
            await asyncio.sleep(0)
            pauses.append(time.monotonic() - before)

    ticking = asyncio.ensure_future(tick())
    began = time.process_time()
    rows = await wrapped_for(keys, holders)
    took_s = time.process_time() - began
    ticking.cancel()

    assert len(rows) == 1000
    assert took_s < 2
    assert sorted(pauses)[len(pauses) // 2] < 0.05


async def test_a_server_with_an_older_log_does_not_bring_a_removed_member_back(world):
    home, ben, _ = await three(world)
    seq = home._runtime.keyring.log.seq
    account = ben._runtime.keyring.account
    await home.remove("ben")
    await until(lambda: world.open[1].ended_spaces())
    for db in world.open:
        await db.close()
    await world.stop()
    with open_database(world.folder / "server" / "twinlock.db") as engine:
        engine.execute(
            "DELETE FROM records WHERE key LIKE ? AND key > ?", (f"log/{home.id}/%", f"log/{home.id}/{seq:08d}")
        )
        engine.execute("UPDATE records SET value = ? WHERE key = ?", (b"", f"member/{account.hex()}/{home.id}"))
    with open_database(world.folder / "server" / "keyservice" / "keyservice.db") as keys:
        keys.execute("DELETE FROM entries WHERE log = ? AND seq > ?", (bytes.fromhex(home.id), seq))
    await world.restart()

    again = await world.device("ben")
    await again._courier.settled()

    assert [info.title for info in again.spaces()] == ["home"]
    assert again.last_error.code == "log_fork"
    assert [str(end.reason) for end in again.ended_spaces()] == ["removed"]
