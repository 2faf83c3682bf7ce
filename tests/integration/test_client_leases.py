"""Leases through the SDK: a key service that is away, one that comes back, and devices that do not storm it."""

import msgspec
import pytest

from tests.client_kit import ShiftedClock, World, until, values
from twinlock.client.leases import RETRY_MS_MAX
from twinlock.client.space_runtime import RENEWAL_SPREAD_MS, SpaceRuntime
from twinlock.contracts import KeyService
from twinlock.errors import InvalidCallError, KeyServiceError, LeaseExpiredError
from twinlock.replica.keyring import LEASE_RENEWAL_MS
from twinlock.server.app import Server
from twinlock.server.settings import Settings
from twinlock.server.stores import open_stores

MINUTE_MS = 60_000
HOUR_MS = 60 * MINUTE_MS


class Distant(KeyService):
    """A key service that can be out of reach, and counts the leases that it is asked for."""

    def __init__(self, keys: KeyService) -> None:
        self.keys = keys
        self.is_away = False
        self.leases_count = 0

    def _reach(self) -> KeyService:
        if self.is_away:
            raise KeyServiceError
        return self.keys

    async def take_turn(self, log):
        return await self._reach().take_turn(log)

    async def append_log(self, log, expect_seq, entries, turn=0):
        return await self._reach().append_log(log, expect_seq, entries, turn)

    async def read_log(self, log, after_seq):
        return await self._reach().read_log(log, after_seq)

    async def create_pending(self, asking, request):
        return await self._reach().create_pending(asking, request)

    async def lease(self, asking, request):
        self.leases_count += 1
        return await self._reach().lease(asking, request)

    async def tend(self, now_ms):
        await self._reach().tend(now_ms)

    async def close(self):
        await self.keys.close()


@pytest.fixture
async def world(tmp_path, account_template):
    """A world whose key service a test can take away."""
    world = World(tmp_path, account_template)
    settings = Settings(data=str(tmp_path / "server"), port=0, log_level="error", drain_ms=200)
    stores = await open_stores(settings)
    world.keys = Distant(stores.keys)
    world.server = Server(settings, msgspec.structs.replace(stores, keys=world.keys))
    await world.start()
    yield world
    await world.close()


async def pass_time(db, clock, ms, step_ms):
    """Let time go by for a device, which looks at its clock at every step."""
    for _ in range(ms // step_ms):
        clock.shift_ms += step_ms
        db._courier.tend()
        await db._courier.settled()


async def reconnect(db):
    """Cut the connection, and wait for the next one."""
    await db._connection._transport._socket.close()
    await until(lambda: not db.is_connected)
    db._connection.reconnect_now()
    await until(lambda: db.is_connected)


async def test_a_key_service_that_is_away_for_a_day_locks_nothing_before_the_leases_end(world):
    clock = ShiftedClock()
    db = await world.device("a", wall_ms=clock)
    notes = db.space("home").collection("notes")
    await notes.doc("x").set({"n": 1})
    await db.synced()
    world.keys.is_away = True

    await pass_time(db, clock, 23 * HOUR_MS, HOUR_MS)
    assert values(await notes.get()) == [{"n": 1}]
    assert db.status == "connected"
    assert db.last_error.code == "key_service_unavailable"
    await pass_time(db, clock, 2 * HOUR_MS, HOUR_MS)
    assert db.status == "locked"
    with pytest.raises(LeaseExpiredError):
        await notes.get()
    late = await notes.doc("z").set({"n": 3})
    world.keys.is_away = False
    # The next welcome corrects the clock, which is a day ahead of the server's.
    await reconnect(db)

    await late.durable()
    assert db.status == "connected"
    assert [value["n"] for value in values(await notes.order_by("n").get())] == [1, 3]


async def test_a_device_asks_a_key_service_that_is_away_ever_less_often(world):
    clock = ShiftedClock()
    db = await world.device("a", wall_ms=clock)
    await db.synced()
    world.keys.is_away = True
    world.keys.leases_count = 0

    await pass_time(db, clock, HOUR_MS, MINUTE_MS)
    first = world.keys.leases_count
    await pass_time(db, clock, 3 * HOUR_MS, MINUTE_MS)

    # From the half hour on it tries; after the first minutes once in five to ten.
    assert 6 <= first <= 16
    assert 3 * HOUR_MS / RETRY_MS_MAX <= world.keys.leases_count - first <= 2 * 3 * HOUR_MS / RETRY_MS_MAX + 1


async def test_reconnecting_asks_for_no_key_that_is_still_good(world):
    db = await world.device("a")
    await db.synced()
    asked = world.keys.leases_count

    for _ in range(10):
        await reconnect(db)
        await db.synced()

    assert world.keys.leases_count == asked


async def test_reconnecting_to_a_key_service_that_is_away_does_not_ask_it_each_time(world):
    clock = ShiftedClock()
    db = await world.device("a", wall_ms=clock)
    await db.synced()
    world.keys.is_away = True
    await pass_time(db, clock, HOUR_MS, MINUTE_MS)
    asked = world.keys.leases_count
    # The correction of the clock at the next welcome must find it right.
    clock.shift_ms = 0
    db._context.clock.offset_ms += HOUR_MS

    for _ in range(5):
        await reconnect(db)
        await db._courier.settled()

    assert world.keys.leases_count <= asked + 1


async def test_the_renewals_of_devices_are_spread_over_minutes(world):
    db = await world.device("a")
    entries = db.space("home")._runtime.entries

    found = [SpaceRuntime(db._context, entries).keyring._renewal_ms for _ in range(20)]

    assert all(LEASE_RENEWAL_MS - RENEWAL_SPREAD_MS <= each <= LEASE_RENEWAL_MS for each in found)
    assert max(found) - min(found) > MINUTE_MS


async def test_a_space_that_needs_a_keystore_leaves_no_lease_on_a_weak_store(world):
    db = await world.unlocked("a")
    assert db.weak_storage
    strict = await db.create_space("strict")
    for space in (strict, db.space("home")):
        await space.collection("notes").doc("x").set({"n": 1})
    await strict.set_offline_needs("keystore")
    with pytest.raises(InvalidCallError):
        await strict.set_offline_needs("magic")
    await db.synced()
    await db.close()
    await world.stop()

    offline = await world.device("a")

    assert offline.space("strict").locked
    with pytest.raises(LeaseExpiredError):
        await offline.space("strict").collection("notes").get()
    assert values(await offline.space("home").collection("notes").get()) == [{"n": 1}]


async def test_leases_that_are_not_to_be_stored_leave_the_disk_when_the_space_says_so(world):
    db = await world.unlocked("a")
    space = await db.create_space("strict")
    await space.collection("notes").doc("x").set({"n": 1})
    await space.set_lease_hours(0)
    await space.set_lease_hours(0)
    with pytest.raises(InvalidCallError):
        await space.set_lease_hours(-1)
    await db.synced()
    await db.close()
    await world.stop()

    offline = await world.device("a")

    assert offline.space("strict").locked
    assert not offline.space("home").locked
