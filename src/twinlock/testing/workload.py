"""Concurrent writers whose every acknowledged write is noted, and the checks of what came of them.

`Ledger` holds what was promised: a write that returned is safe on its device, one whose `durable()` returned is safe on
the server. `check_documents` compares that with what a reader sees, `check_log` looks at the server's own file.
"""

from __future__ import annotations

import asyncio
import random
import sqlite3
from collections import Counter as Tally
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from twinlock.document.fields import increment
from twinlock.ids import NO_ENVELOPE
from twinlock.protocol.envelope import Envelope, parse

if TYPE_CHECKING:
    from twinlock.client.client import Client
    from twinlock.client.writes import Write

COLLECTION = "workload"
TALLY_ID = "tally"
WAITING_MAX = 32
"""How many writes of one writer may wait for the server at once: a burst deep enough to be torn by a kill."""


class Promise(msgspec.Struct, frozen=True):
    """A write that returned: where it went and what it said."""

    space: str
    id: str
    number: int


class Ledger:
    """What the writers were promised."""

    __slots__ = ("acknowledged", "returned")

    def __init__(self) -> None:
        self.returned: dict[str, Promise] = {}
        self.acknowledged: set[str] = set()

    def note_returned(self, promise: Promise) -> None:
        """The write is safe on its device."""
        self.returned[promise.id] = promise

    def note_acknowledged(self, promise: Promise) -> None:
        """The write is safe on the server."""
        self.acknowledged.add(promise.id)

    def check_documents(self, seen: Mapping[str, Mapping[str, Mapping[str, object]]]) -> list[str]:
        """Return what is wrong with the documents that a reader sees, by space and id; nothing, if all is well.

        Every acknowledged write is there, nothing is there that was not written, and the counter of each space is
        exactly the number of its writes that are there: each change counted once, with the document it came with.
        """
        wrong: list[str] = []
        for promise in self.returned.values():
            value = seen.get(promise.space, {}).get(promise.id)
            if value is None and promise.id in self.acknowledged:
                wrong.append(f"{promise.id} was acknowledged and is lost")
            if value is not None and value.get("number") != promise.number:
                wrong.append(f"{promise.id} says {value} in place of {promise.number}")
        for space, documents in seen.items():
            written = [id for id in documents if id != TALLY_ID]
            wrong += [f"{id} was never written" for id in written if id not in self.returned]
            total = documents.get(TALLY_ID, {}).get("total", 0)
            if total != len(written):
                wrong.append(f"the counter of {space} says {total}, and {len(written)} writes are there")
        return wrong


class Writer:
    """One writer on one device: each write is a new document, and one more on the counter of the space."""

    __slots__ = ("_chance", "_client", "_ledger", "_name", "_room", "_space")

    def __init__(self, client: Client, space: str, name: str, ledger: Ledger, chance: random.Random) -> None:
        self._client = client
        self._space = space
        self._name = name
        self._ledger = ledger
        self._chance = chance
        self._room = asyncio.Semaphore(WAITING_MAX)

    async def run(self, stop: asyncio.Event) -> None:
        """Write until told to stop, then wait until the server has everything."""
        number = 0
        async with asyncio.TaskGroup() as waiting:
            while not stop.is_set():
                await self._room.acquire()
                promise = Promise(self._space, f"{self._name}-{number:06}", number)
                write = await self._write(promise)
                self._ledger.note_returned(promise)
                waiting.create_task(self._note_acknowledged(promise, write))
                number += 1
                # Pauses of chance make envelopes of one and of many writes.
                await asyncio.sleep(self._chance.choice((0, 0, 0, 0.001, 0.01)))

    async def _write(self, promise: Promise) -> Write:
        collection = self._client.space(self._space).collection(COLLECTION)
        batch = self._client.batch()
        batch.set(collection.doc(promise.id), {"number": promise.number})
        batch.set(collection.doc(TALLY_ID), {"total": increment(1)}, merge=True)
        return await batch.commit()

    async def _note_acknowledged(self, promise: Promise, write: Write) -> None:
        await write.durable()
        self._ledger.note_acknowledged(promise)
        self._room.release()


async def read_documents(client: Client, spaces: list[str]) -> dict[str, dict[str, Mapping[str, object]]]:
    """Return what a device has of the workload, by space and id."""
    seen: dict[str, dict[str, Mapping[str, object]]] = {}
    for space in spaces:
        documents = await client.space(space).collection(COLLECTION).get()
        seen[space] = {document.id: document.data for document in documents}
    return seen


class LogRow(msgspec.Struct, frozen=True):
    """One entry of the server's log, as it lies in its file."""

    space: bytes
    seq: int
    envelope: Envelope


def check_log(database: Path) -> list[str]:
    """Return what is wrong with a server's log of envelopes: nothing doubled, no gap, each chain unbroken.

    Looks at the raw rows of the SQLite engine's file. A log that was cut begins each chain where the cut left it.
    """
    with open_database(database) as connection:
        rows = [
            LogRow(space, seq, parse(data))
            for space, seq, data in connection.execute("SELECT space, seq, envelope FROM log ORDER BY seq")
        ]
        told = connection.execute("SELECT space, device, counter, id FROM heads").fetchall()
        cut = {space for (space,) in connection.execute("SELECT space FROM starts WHERE start > 1")}
    known = Tally((row.space, row.envelope.id) for row in rows)
    wrong = [f"envelope {name.hex()[:8]} is there {count} times" for (_, name), count in known.items() if count > 1]
    wrong_chains, ends = _check_chains(rows, cut)
    heads = {(space, device): (counter, identifier) for space, device, counter, identifier in told}
    missing = [
        f"a chain ends at {end[0]}, its head says {heads.get(key)}"
        for key, end in ends.items()
        if heads.get(key) != end
    ]
    return wrong + wrong_chains + missing


_Ends = dict[tuple[bytes, bytes], tuple[int, bytes]]


def _check_chains(rows: list[LogRow], cut: set[bytes]) -> tuple[list[str], _Ends]:
    wrong: list[str] = []
    ends: _Ends = {}
    for row in rows:
        header = row.envelope.header
        key = (row.space, header.device)
        if header.space != row.space:
            wrong.append(f"entry {row.seq} lies in another space")
        begun = (header.counter - 1, header.prev) if row.space in cut else (0, NO_ENVELOPE)
        counter, identifier = ends.get(key, begun)
        if (header.counter, header.prev) != (counter + 1, identifier):
            wrong.append(f"entry {row.seq} has counter {header.counter} after {counter}, or another predecessor")
        ends[key] = (header.counter, row.envelope.id)
    return wrong, ends


@contextmanager
def open_database(path: Path) -> Iterator[sqlite3.Connection]:
    """Open a SQLite file for a look, or for tampering; what was changed is committed at the end."""
    connection = sqlite3.connect(path)
    try:
        yield connection
        connection.commit()
        # The changes must be in the file itself before anyone copies it.
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    finally:
        connection.close()
