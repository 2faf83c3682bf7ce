"""A sender through the SDK: it writes and reads nothing, and its role comes and goes without a loss."""

import shutil

import pytest

from tests.client_kit import until
from twinlock import array_union, increment
from twinlock.errors import RoleError
from twinlock.protocol.envelope import Kind, parse


@pytest.fixture
def world(account_world):
    return account_world


async def shared(world, role="sender"):
    """Return ann's space "home", and that of ben, who has joined it."""
    ann, ben = await world.unlocked("a"), await world.unlocked("ben")
    joined = await ben.join(await ann.space("home").invite(role))
    return ann.space("home"), ben, joined


async def shows(space, expected):
    """Wait until a space shows these readings: their values by id, or only their ids."""
    found = [{}]
    ended = space.collection("readings").on_snapshot(
        lambda snap: found.append({doc.id: dict(doc.data) for doc in snap.docs})
    )
    await until(lambda: (found[-1] if isinstance(expected, dict) else set(found[-1])) == expected)
    ended()


async def offline_writes(world, db, space, *names):
    """Write while there is no server, close, and bring the server back."""
    await world.stop()
    await until(lambda: not db.is_connected)
    for name in names:
        await space.collection("readings").doc(name).set({"name": name})
    count = db.pending_count
    await db.close()
    await world.restart()
    return count


async def test_what_a_sender_writes_is_read_by_members_and_by_itself_never(world):
    home, ben, sent = await shared(world)

    first = await sent.collection("readings").add({"celsius": 20})
    await first.durable()
    doc = sent.collection("readings").doc(sent.own_prefix)
    await doc.set({"tags": array_union("a")}, merge=True)
    await doc.set({"tags": array_union("b")}, merge=True)
    await doc.update({"battery": 93})
    await ben.synced()

    assert first.id.startswith(sent.own_prefix + "-")
    await shows(
        home,
        {
            first.id: {"celsius": 20},
            sent.own_prefix: {"tags": ["a", "b"], "battery": 93},
        },
    )
    assert ben.pending_count == 0
    assert (sent.locked, sent.title) == (False, None)
    assert [(info.role, info.locked) for info in ben.spaces() if info.id == sent.id] == [("sender", False)]
    assert ben.status == "connected"


async def test_a_sender_reads_nothing_and_is_told_so(world):
    _, _, sent = await shared(world)
    readings = sent.collection("readings")
    await readings.add({"celsius": 20})

    for read in (readings.doc(sent.own_prefix).get, readings.get, readings.count, readings.doc("x").conflicts):
        with pytest.raises(RoleError, match="a sender reads nothing"):
            await read()
    with pytest.raises(RoleError, match="a sender reads nothing"):
        readings.on_snapshot(print)
    with pytest.raises(RoleError, match="a sender reads nothing"):
        readings.doc("x").on_snapshot(print)
    with pytest.raises(RoleError, match="ids begin with"):
        await readings.doc("shared").set({"a": 1})
    with pytest.raises(RoleError, match="increment"):
        await readings.doc(sent.own_prefix).update({"n": increment(1)})


async def test_a_sender_holds_no_key_and_keeps_nothing_that_it_could_read(world):
    _, ben, sent = await shared(world)
    await world.stop()
    await until(lambda: not ben.is_connected)
    await sent.collection("readings").add({"text": "under the third stone"})

    runtime = ben._courier.runtimes[bytes.fromhex(sent.id)]
    assert not runtime.keyring.has_member_key
    assert runtime.keyring.keys(runtime.keyring.log.epoch) is None
    files = [file for file in (world.folder / "ben").rglob("*") if file.is_file()]
    assert any(file.name == "sender.log" for file in files)
    assert not any(file.name == "replica.db" and sent.id in str(file) for file in files)
    assert not any(b"third stone" in file.read_bytes() for file in files)


async def test_what_was_written_offline_is_sent_by_the_next_run(world):
    home, ben, sent = await shared(world)
    own = sent.own_prefix

    assert await offline_writes(world, ben, sent, own + "-1", own + "-2") == 2
    again = await world.device("ben")
    write = await again.space(sent.id).collection("readings").add({"name": "third"})
    await again.synced()
    await write.durable()

    await shows(home, {own + "-1", own + "-2", write.id})
    assert again.pending_count == 0


async def test_a_device_restored_from_a_backup_loses_nothing_that_it_writes(world):
    home, ben, sent = await shared(world)
    own = sent.own_prefix
    await sent.collection("readings").doc(own + "-1").set({"n": 1})
    await ben.synced()
    await ben.close()
    shutil.copytree(world.folder / "ben", world.folder / "backup")
    ben = await world.device("ben")
    await ben.space(sent.id).collection("readings").doc(own + "-2").set({"n": 2})
    await ben.synced()
    await ben.close()

    restored = await world.device("backup")
    await restored.space(sent.id).collection("readings").doc(own + "-3").set({"n": 3})
    await restored.synced()

    await shows(home, {own + "-1", own + "-2", own + "-3"})
    assert restored.refused == {}


async def test_a_new_epoch_does_not_stop_a_sender(world):
    home, ben, sent = await shared(world)
    own = sent.own_prefix
    await offline_writes(world, ben, sent, own + "-1")
    await until(lambda: home._handle.runtime.attached)
    await home.rotate()

    again = await world.device("ben")
    await again.synced()
    await again.space(sent.id).collection("readings").doc(own + "-2").set({"n": 2})
    await again.synced()

    await shows(home, {own + "-1", own + "-2"})


async def test_a_sender_that_becomes_a_reader_reads_and_its_drops_still_arrive(world):
    home, ben, sent = await shared(world)
    own = sent.own_prefix
    await offline_writes(world, ben, sent, own + "-1", own + "-2")
    await until(lambda: home._handle.runtime.attached)
    await home.set_role("ben", "reader")

    again = await world.device("ben")
    space = again.space(sent.id)
    await again.synced()

    await shows(home, {own + "-1", own + "-2"})
    await shows(space, {own + "-1", own + "-2"})
    assert space.title == "home"
    assert again.refused == {}
    assert not list((world.folder / "ben").rglob("sender.log"))


async def test_a_sender_that_becomes_an_editor_writes_its_drops_anew(world):
    home, ben, sent = await shared(world)
    own = sent.own_prefix
    await offline_writes(world, ben, sent, own + "-1", own + "-2")
    await until(lambda: home._handle.runtime.attached)
    await home.set_role("ben", "editor")

    again = await world.device("ben")
    space = again.space(sent.id)
    await until(lambda: not space.locked)
    await space.collection("readings").doc("shared").set({"name": "shared"})
    await again.synced()

    await shows(home, {own + "-1", own + "-2", "shared"})
    await shows(space, {own + "-1", own + "-2", "shared"})
    assert again.refused == {}
    assert not list((world.folder / "ben").rglob("sender.log"))


async def test_roles_change_while_the_device_is_connected(world):
    home, ben, sent = await shared(world)
    own = sent.own_prefix
    await sent.collection("readings").doc(own + "-1").set({"n": 1})
    await ben.synced()

    await home.set_role("ben", "editor")
    await until(lambda: not sent.locked and sent._handle.runtime.replica is not None)
    await shows(sent, {own + "-1"})
    await sent.collection("readings").doc("shared").set({"n": 2})
    await ben.synced()

    await home.set_role("ben", "sender")
    await until(lambda: sent._handle.runtime.is_sender)
    await until(lambda: sent._handle.runtime.replica is None)
    with pytest.raises(RoleError):
        await sent.collection("readings").get()
    await sent.collection("readings").doc(own + "-3").set({"n": 3})
    await ben.synced()

    await shows(home, {own + "-1", "shared", own + "-3"})
    assert ben.refused == {}


async def test_an_editor_that_becomes_a_sender_sends_what_it_may_and_is_told_the_rest(world):
    home, ben, joined = await shared(world, "editor")
    own = joined.own_prefix
    await until(lambda: not joined.locked)
    await joined.collection("readings").doc("old").set({"n": 0})
    await ben.synced()
    await offline_writes(world, ben, joined, own + "-1", "shared")
    await until(lambda: home._handle.runtime.attached)
    await home.set_role("ben", "sender")

    again = await world.device("ben")
    await again.synced()

    await shows(home, {own + "-1", "old"})
    [refused] = again.refused[joined.id]
    assert refused.code == "role_forbids"
    assert parse(refused.payload).header.kind is Kind.DROP
    runtime = again.space(joined.id)._handle.runtime
    assert not runtime.keyring.has_member_key
    assert again._context.state.keyring_row(runtime.space) is None
    assert not list((world.folder / "ben" / "spaces" / joined.id).glob("replica.*"))
    with pytest.raises(RoleError):
        await again.space(joined.id).collection("readings").get()
    again.forget_refused()
    assert again.refused == {}


async def test_a_removed_sender_is_told_and_nothing_of_it_stays(world):
    home, ben, sent = await shared(world)
    await sent.collection("readings").add({"n": 1})
    await ben.synced()

    await home.remove("ben")
    await until(lambda: sent.id not in [info.id for info in ben.spaces()])

    assert not (world.folder / "ben" / "spaces" / sent.id).exists()
    with pytest.raises(Exception, match="removed"):
        await sent.collection("readings").add({"n": 2})


async def test_a_crash_between_the_new_role_and_what_follows_from_it_loses_nothing(world):
    home, ben, joined = await shared(world, "editor")
    own = joined.own_prefix
    await until(lambda: not joined.locked)
    await joined.collection("readings").doc("old").set({"n": 0})
    await ben.synced()
    await offline_writes(world, ben, joined, own + "-1")
    await until(lambda: home._handle.runtime.attached)
    await home.set_role("ben", "sender")
    await world.stop()
    crashed = await world.device("ben")
    crashed._context.state.put_space_log(home._handle.id, home._handle.runtime.entries)
    await crashed.close()

    again = await world.device("ben")
    runtime = again.space(joined.id)._handle.runtime
    assert (again.pending_count, runtime.replica, runtime.keyring.holds_member_keys) == (1, None, False)
    await world.restart()
    await again.synced()

    await shows(home, {own + "-1", "old"})


async def test_what_was_written_while_locked_waits_for_a_role_that_may_write_it(world):
    home, ben, joined = await shared(world, "editor")
    await until(lambda: not joined.locked)
    await ben.synced()
    await world.stop()
    await until(lambda: not ben.is_connected)
    joined._handle.runtime.lock()
    await joined.collection("readings").doc("shared").set({"n": 1})
    await ben.close()
    await world.restart()
    await until(lambda: home._handle.runtime.attached)
    await home.set_role("ben", "sender")

    again = await world.device("ben")
    await again.synced()
    assert again.pending_count == 0
    await home.set_role("ben", "editor")
    await until(lambda: again.space(joined.id)._handle.runtime.replica is not None)
    await again.synced()

    await shows(home, {"shared"})
