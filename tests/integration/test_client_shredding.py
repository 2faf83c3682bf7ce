"""Shredding through the SDK: the keys go, on the key service and on every device that hears of it."""

import pytest

from tests.client_kit import until
from twinlock.errors import InviteError, LeaseExpiredError, RoleError, ShreddedError
from twinlock.testing.workload import open_database


@pytest.fixture
def world(account_world):
    return account_world


async def shared(world):
    """Return ann's and ben's view of ann's "home", where both have read a secret."""
    ann, ben = await world.unlocked("a"), await world.unlocked("ben")
    home = ann.space("home")
    joined = await ben.join(await home.invite())
    await home.collection("notes").doc("x").set({"text": "a secret of ours"})
    await ann.synced()
    await until(lambda: joined._runtime.replica is not None and joined._runtime.replica.caught_up)
    await ben.synced()
    return home, joined


def service_keys(world, space):
    path = world.folder / "server" / "keyservice" / "keyservice.db"
    with open_database(path) as connection:
        return connection.execute("SELECT count(*) FROM keys WHERE space = ?", (bytes.fromhex(space),)).fetchone()[0]


async def test_shredding_destroys_the_keys_and_every_copy_that_is_online(world):
    home, joined = await shared(world)
    ann, ben = world.open
    assert service_keys(world, home.id) == 1

    await home.shred()
    await until(lambda: ben.ended_spaces())

    assert service_keys(world, home.id) == 0
    for db, profile, space in ((ann, "a", home), (ben, "ben", joined)):
        (end,) = db.ended_spaces()
        assert (end.space, str(end.reason)) == (home.id, "shredded")
        assert not (world.folder / profile / "spaces" / home.id).exists()
        assert home.id not in [info.id for info in db.spaces()]
        with pytest.raises(ShreddedError):
            db.space(home.id)
        for use in (space.collection("notes").get(), space.collection("notes").add({}), space.invite()):
            with pytest.raises(ShreddedError):
                await use
    assert ann.status == ben.status == "connected"


async def test_a_device_that_was_away_wipes_its_copy_when_it_comes_back(world):
    home, _ = await shared(world)
    await world.open[1].close()
    second = await world.device("b")
    await second.synced()
    await second.close()
    await home.shred()
    await world.stop()
    away = await world.device("ben")
    # Its lease lives on: nobody has told it yet.
    assert await away.space(home.id).collection("notes").doc("x").get() == {"text": "a secret of ours"}
    lost = await away.space(home.id).collection("notes").add({"text": "never sent"})

    await world.restart()
    with pytest.raises(ShreddedError):
        await lost.durable()
    second = await world.device("b")
    await until(lambda: second.ended_spaces())

    assert [end.unsent_writes for end in away.ended_spaces()] == [1]
    for profile in ("b", "ben"):
        assert not (world.folder / profile / "spaces" / home.id).exists()


async def test_shredding_is_for_owners_and_doing_it_again_is_fine(world):
    home, joined = await shared(world)
    await home.set_role("ben", "admin")
    with pytest.raises(RoleError):
        await joined.shred()
    link = await home.invite("reader")
    await home.shred()

    await home.shred()
    cleo = await world.unlocked("cleo")
    with pytest.raises(InviteError):
        await cleo.join(link)


async def test_a_copy_whose_lease_has_ended_stays_dark(world):
    home, joined = await shared(world)
    ben = world.open[1]
    folder = world.folder / "ben"
    await home.set_lease_hours(0)
    await until(lambda: joined._runtime.keyring.log.lease_hours == 0)
    await ben.close()
    await home.shred()
    await world.stop()

    # The thief has a copy of the disk that was made when no lease was stored any more.
    thief = await world.device("ben")

    with pytest.raises(LeaseExpiredError):
        await thief.space(home.id).collection("notes").get()
    raw = b"".join(path.read_bytes() for path in folder.glob("**/*") if path.is_file())
    assert b"a secret of ours" not in raw
