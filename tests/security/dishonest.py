"""Hands on the files of a server whose devices wrote something, and what those devices show of it."""

import asyncio

import twinlock
from tests.client_kit import until
from twinlock.testing.workload import open_database


def database(world):
    """The server's own file."""
    return world.folder / "server" / "twinlock.db"


def key_service(world):
    """The key service's own file."""
    return world.folder / "server" / "keyservice" / "keyservice.db"


def stored(world) -> list[tuple[int, bytes]]:
    """The server's log: seq and envelope."""
    with open_database(database(world)) as connection:
        return connection.execute("SELECT seq, envelope FROM log ORDER BY seq").fetchall()


def alter(world, seq: int, place: int) -> None:
    """Flip one bit of a stored envelope."""
    with open_database(database(world)) as connection:
        (data,) = connection.execute("SELECT envelope FROM log WHERE seq = ?", (seq,)).fetchone()
        changed = bytearray(data)
        changed[place] ^= 1
        connection.execute("UPDATE log SET envelope = ? WHERE seq = ?", (bytes(changed), seq))


async def write(db, *ids: str) -> None:
    """Write documents, each in an envelope of its own."""
    for id in ids:
        await (await db.space("home").collection("notes").doc(id).set({"text": id})).durable()


async def seen(db) -> set[str]:
    """The ids of the documents that a device shows."""
    return {doc.id for doc in await db.space("home").collection("notes").get()}


def reasons(db) -> list[str]:
    """Why a device could not merge what it could not merge."""
    return [kept.reason for found in db.quarantine.values() for kept in found]


async def shown(db, id: str, text: str | None = None) -> None:
    """Wait until a device shows a document, with a text if one is given."""
    found = []
    ended = db.space("home").collection("notes").doc(id).on_snapshot(lambda snap: found.append(snap.doc))
    await until(lambda: found[-1] is not None and text in (None, found[-1]["text"]))
    ended()


async def caught_up(db) -> None:
    """Wait until a device has read everything that the server delivers."""
    async with asyncio.timeout(10):
        await db.synced()


async def write_all(world) -> None:
    """Let the devices write, and close everything."""
    await world.start()
    a, b = await world.device("a"), await world.device("b")
    await write(a, "a1")
    await b.synced()
    await b.close()
    await write(a, "a2")
    c = await twinlock.recover(world.url, "ann", world.kit, profile=world.folder / "c")
    world.open.append(c)
    await write(c, "c1")
    await write(a, "a3")
    for db in (a, c):
        await db.synced()
    await world.close()


async def write_locally(db, id: str) -> None:
    """Write without waiting for the server."""
    await db.space("home").collection("notes").doc(id).set({"text": id})
