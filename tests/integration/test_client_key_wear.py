"""A device's key that has sealed enough: the application is told, and a new epoch lets writes go on."""

import pytest

from tests.client_kit import until
from twinlock.errors import KeyWornOutError
from twinlock.replica.wear import WearLimits


@pytest.fixture
def world(account_world):
    return account_world


def bear(space, seals_max):
    """Let a device's keys bear little."""
    space._handle.runtime.replica._outbox._wear_limits = WearLimits(seals_max=seals_max)


def epoch(space):
    return space._handle.runtime.keyring.log.epoch


async def test_half_of_a_keys_seals_ask_for_a_rotation_and_writes_wait_for_it_at_the_end(world):
    db = await world.device("a")
    home = db.space("home")
    notes = home.collection("notes")
    await until(lambda: home._handle.runtime.attached)
    bear(home, 8)

    for number in range(3):
        await (await notes.add({"n": number})).durable()
    assert not home.rotation_wanted
    await (await notes.add({"n": 3})).durable()
    assert home.rotation_wanted
    for number in range(4, 8):
        await (await notes.add({"n": number})).durable()
    last = await notes.add({"n": 8})
    await until(lambda: isinstance(db.last_error, KeyWornOutError))
    assert db.pending_count == 1
    assert await notes.doc(last.id).get() == {"n": 8}

    other = await world.unlocked("b")
    await other.space("home").rotate()
    await last.durable()
    assert epoch(home) == 2
    assert not home.rotation_wanted


async def test_an_unlocked_owner_rotates_by_itself(world):
    db = await world.unlocked("a")
    home = db.space("home")
    await until(lambda: home._handle.runtime.attached)
    bear(home, 100)

    for number in range(50):
        await home.collection("notes").add({"n": number})
        await db.synced()
    await until(lambda: epoch(home) == 2)

    assert not home.rotation_wanted
