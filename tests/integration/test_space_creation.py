"""A space that this device makes is looked after by one replica, however the account's list of spaces is read."""

import asyncio

import pytest

import twinlock
from twinlock.server.app import Server
from twinlock.server.settings import Settings


@pytest.mark.parametrize("turns", range(0, 12, 3))
async def test_a_space_found_while_it_is_made_has_one_replica(tmp_path, monkeypatch, turns):
    monkeypatch.setenv("PYTHON_KEYRING_BACKEND", "keyring.backends.fail.Keyring")
    server = Server(Settings(data=str(tmp_path / "data"), port=0))
    await server.start()
    try:
        url, profile = server.url, tmp_path / "profile"
        async with await twinlock.sign_up(url, "ada", "correct horse", profile=profile) as db:
            making = asyncio.create_task(db.create_space("work"))
            # The list is read again and again, as after every reconnect, at whatever moment of the making.
            while not making.done():
                for _ in range(turns):
                    await asyncio.sleep(0)
                await db._courier._read_account()
            space = await making

            write = await space.collection("notes").doc("one").set({"n": 1})
            async with asyncio.timeout(10):
                await write.durable()
                await db.synced()

            assert db.pending_count == 0
            assert await db.space("work").collection("notes").doc("one").get() == {"n": 1}
        await server.stop()
        # Whoever found the space first, the lease that came with its making is on the disk.
        async with await twinlock.connect(profile=profile) as offline:
            assert await offline.space("work").collection("notes").doc("one").get() == {"n": 1}
    finally:
        await server.stop()


async def test_a_space_found_while_it_is_made_is_attached_by_its_makers_keys(account_world, monkeypatch):
    """Its lease is asked for a second time when it is found, but the keys of the making come before the answer."""
    db = await account_world.unlocked()
    call = db._connection.call

    async def finding(method, params, result):
        found = await call(method, params, result)
        if method == "space.create":
            await db._courier._read_account()
        return found

    monkeypatch.setattr(db._connection, "call", finding)
    monkeypatch.setattr("twinlock.client.leases.LeaseKeeper.renew", lambda self, runtime: None)

    space = await db.create_space("work")

    write = await space.collection("notes").doc("one").set({"n": 1})
    async with asyncio.timeout(10):
        await write.durable()
