"""A device as a process of its own: `python device_program.py`. Takes orders and answers them, see `DeviceProcess`."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

import twinlock
from twinlock.errors import TwinlockError

SPACE = "home"


class Device:
    """One device with one profile, used through the public SDK alone."""

    def __init__(self) -> None:
        self._db: Any = None
        self._space = SPACE
        self._tasks: set[asyncio.Task[None]] = set()

    async def sign_up(self, url: str, name: str, password: str, profile: str) -> str:
        """Make the account, with its first space; return its kit."""
        self._db = await twinlock.sign_up(url, name, password, profile=Path(profile))
        await self._db.synced()
        return str(self._db.recovery_kit())

    async def recover(self, url: str, name: str, kit: str, profile: str) -> None:
        """Add this device to the account."""
        self._db = await twinlock.recover(url, name, kit, profile=Path(profile))
        await self._db.synced()

    async def open(self, profile: str) -> None:
        """Open a profile that is there."""
        self._db = await twinlock.connect(profile=Path(profile))

    async def join(self, link: str) -> None:
        """Join the space of an invite link, and go on in it."""
        await self.use((await self._db.join(link)).id)

    async def use(self, space: str) -> None:
        """Go on in another space."""
        self._space = space

    async def safety_code(self, member: str) -> str:
        """Return the digits that a member must see too."""
        return str(await self._db.space(self._space).safety_code(member))

    async def verify(self, member: str, code: str) -> None:
        """Compare the digits that a member reads out."""
        await self._db.space(self._space).verify(member, code)

    async def ended(self) -> list[str]:
        """Return why spaces are no longer here."""
        return [str(end.reason) for end in self._db.ended_spaces()]

    async def put(self, collection: str, id: str, data: dict[str, Any]) -> None:
        """Write a document."""
        await self._collection(collection).doc(id).set(data)

    async def read(self, collection: str) -> dict[str, Any]:
        """Return all documents of a collection, by id."""
        return {document.id: dict(document.data) for document in await self._collection(collection).get()}

    async def synced(self) -> int:
        """Wait until the server has everything."""
        await self._db.synced()
        return int(self._db.pending_count)

    async def pending(self) -> int:
        """Return how many writes the server does not have."""
        return int(self._db.pending_count)

    async def status(self) -> str:
        """Return the status."""
        return str(self._db.status)

    async def follow(self, collection: str) -> None:
        """Tell every change of a collection as an event, from now on."""

        def tell_changes(snap: Any) -> None:
            for change in snap.changes:
                tell({"seen": change.doc.id, "data": dict(change.doc.data)})

        self._collection(collection).on_snapshot(tell_changes)

    async def write_on(self, collection: str, first: int) -> None:
        """Write one document after the other and tell of each as soon as the write has returned."""
        self._start(self._write_on(collection, first))

    async def close(self) -> None:
        """Close the profile."""
        await self._db.close()

    async def _write_on(self, collection: str, first: int) -> None:
        place, number = self._collection(collection), first
        while True:
            batch = self._db.batch()
            batch.set(place.doc(f"{number:06}"), {"number": number})
            batch.set(place.doc("tally"), {"total": twinlock.increment(1)}, merge=True)
            await batch.commit()
            tell({"returned": number})
            number += 1

    def _collection(self, name: str) -> Any:
        return self._db.space(self._space).collection(name)

    def _start(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def tell(message: dict[str, Any]) -> None:
    """Write one line to whoever started this device."""
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


async def obey(device: Device, order: dict[str, Any]) -> None:
    """Carry out one order and answer it."""
    number, job = order.pop("number"), order.pop("job")
    try:
        tell({"number": number, "result": await getattr(device, job)(**order)})
    except TwinlockError as exc:
        tell({"number": number, "code": exc.code, "error": str(exc)})


async def main() -> None:
    """Take orders until the input ends."""
    device, reader = Device(), asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    async with asyncio.TaskGroup() as group:
        while line := await reader.readline():
            group.create_task(obey(device, json.loads(line)))


if __name__ == "__main__":
    asyncio.run(main())
