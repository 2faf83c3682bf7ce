"""A device as a process of its own: `python -m demo.device NAME`. It is told what to do and tells what it sees.

Orders come as JSON lines on the standard input, answers and events go as JSON lines to the standard output. Everything
is done through the public SDK, as an application would.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import twinlock
from twinlock.errors import TwinlockError

SPACE, HOME = "atlas", "home"
HOUR_MS = 3_600_000
EVENTS_PER_S = 20


class Device:
    """One device with one profile."""

    def __init__(self) -> None:
        self._db: Any = None
        self._pairing: Any = None
        self._acknowledged: list[str] = []
        self._acked_at_ns: list[int] = []
        self._tell_at: list[int] = []
        self._latencies_ms: list[float] = []
        self._tasks: set[asyncio.Task[None]] = set()

    async def sign_up(self, url: str, name: str, password: str, profile: str) -> dict[str, Any]:
        """Make the account, this device as its first, and the space."""
        self._db = await twinlock.sign_up(url, name, password, profile=Path(profile))
        kit = self._db.recovery_kit()
        # With 0 hours a lease is never stored: a device that was switched off has to ask the key service again.
        await self._db.create_space(SPACE, lease_hours=0)
        return {"kit": kit}

    async def recover(self, url: str, name: str, kit: str, profile: str, called: str = "") -> dict[str, Any]:
        """Add this device to the account by the recovery kit."""
        options = twinlock.Options(device_name=called or None)
        self._db = await twinlock.recover(url, name, kit, profile=Path(profile), options=options)
        return {}

    async def open(self, url: str, profile: str, hours_ahead: int = 0) -> dict[str, Any]:
        """Open a profile that is there, by a clock that may be ahead; one that is open is closed."""
        await self.close()
        options = twinlock.Options(wall_ms=lambda: time.time_ns() // 1_000_000 + hours_ahead * HOUR_MS)
        self._db = await twinlock.connect(url=url, profile=Path(profile), options=options)
        return {}

    async def synced(self) -> dict[str, Any]:
        """Wait until the server has everything."""
        await self._db.synced()
        return {"pending": self._db.pending_count}

    async def status(self) -> dict[str, Any]:
        """Tell how things stand."""
        return {"status": str(self._db.status), "pending": self._db.pending_count}

    async def follow(self) -> dict[str, Any]:
        """Begin to tell of every earthquake that arrives, with the time it took from the other device's write."""
        self._quakes().on_snapshot(self._on_snapshot)
        self._start(self._tell_arrivals())
        return {}

    async def load(self, path: str, per_second: float, most: int) -> dict[str, Any]:
        """Write every earthquake of the catalogue as a document of its own, at a steady pace."""
        features = json.loads(Path(path).read_text(encoding="utf-8"))["features"][:most]  # noqa: ASYNC240
        quakes, started = self._quakes(), time.perf_counter()
        for index, feature in enumerate(features):
            ahead = started + index / per_second - time.perf_counter()
            if ahead > 0:
                await asyncio.sleep(ahead)
            await quakes.doc(feature["id"]).set({**feature, "sent_ns": time.time_ns()})
        await self._db.synced()
        return {"count": len(features), "seconds": time.perf_counter() - started}

    async def edit(self, id: str, changes: dict[str, Any]) -> dict[str, Any]:
        """Change some fields of an earthquake."""
        await self._quakes().doc(id).update(changes)
        return {"pending": self._db.pending_count}

    async def read(self, id: str) -> dict[str, Any]:
        """Return an earthquake and what lost against its present fields."""
        document = self._quakes().doc(id)
        return {"value": await document.get(), "conflicts": dict(await document.conflicts())}

    async def count(self, space: str = SPACE) -> dict[str, Any]:
        """Return how many earthquakes there are."""
        return {"count": await self._db.space(space).collection("quakes").count()}

    async def digest(self) -> dict[str, Any]:
        """Return the SHA-256 of all documents, in the order of their ids, and how many there are."""
        total, count = hashlib.sha256(), 0
        for name in ("quakes", "burst"):
            docs = await self._space().collection(name).get()
            for document in sorted(docs, key=lambda document: document.id):
                total.update(json.dumps([name, document.id, document.data], sort_keys=True).encode())
                count += 1
        return {"digest": total.hexdigest(), "count": count}

    async def burst(self, count: int, tell_at: list[int], per_second: float = 0.0) -> dict[str, Any]:
        """Write many changes, each of which also adds one to a counter, and note which the server acknowledges.

        `tell_at` says of which numbers of acknowledged changes to tell; without a pace they are written at once.
        """
        self._tell_at = tell_at
        burst = self._space().collection("burst")
        await burst.doc("tally").set({"total": 0})
        started = time.perf_counter()
        for index in range(count):
            ahead = started + index / per_second - time.perf_counter() if per_second else 0.0
            if ahead > 0:
                await asyncio.sleep(ahead)
            batch = self._db.batch()
            batch.set(burst.doc(f"change-{index:04}"), {"index": index})
            batch.update(burst.doc("tally"), {"total": twinlock.increment(1)})
            self._start(self._note_ack(f"change-{index:04}", await batch.commit()))
            await asyncio.sleep(0)
        return {"count": count}

    async def acknowledged(self) -> dict[str, Any]:
        """Return which changes of the burst the server has acknowledged so far."""
        return {"ids": list(self._acknowledged), "at_ns": list(self._acked_at_ns)}

    async def burst_result(self) -> dict[str, Any]:
        """Return which changes of the burst are here, and what the counter says."""
        docs = await self._space().collection("burst").get()
        values = {document.id: document.data for document in docs}
        tally = values.pop("tally", {"total": 0})
        return {"ids": sorted(values), "total": tally["total"]}

    async def keep_at_home(self, path: str, most: int) -> dict[str, Any]:
        """Write some earthquakes into the account's first space."""
        features = json.loads(Path(path).read_text(encoding="utf-8"))["features"][:most]  # noqa: ASYNC240
        batch = self._db.batch()
        for feature in features:
            batch.set(self._db.space(HOME).collection("quakes").doc(feature["id"]), feature)
        await batch.commit()
        await self._db.synced()
        return {"count": len(features)}

    async def sign_up_alone(self, url: str, name: str, password: str, profile: str) -> dict[str, Any]:
        """Make an account of somebody else, who has no space of this story yet."""
        self._db = await twinlock.sign_up(url, name, password, profile=Path(profile))
        return {}

    async def put_file(self, size: int) -> dict[str, Any]:
        """Put a file of random bytes, name it in a document, and wait until the server has it."""
        content = os.urandom(size)
        ref = await self._space().files.put(content, name="photo.raw")
        await self._space().collection("photos").doc("one").set({"file": ref})
        await self._space().files.uploaded(ref)
        return {"digest": hashlib.sha256(content).hexdigest()}

    async def read_file(self) -> dict[str, Any]:
        """Read the file that the document names, from whoever has it."""
        found = await self._space().collection("photos").doc("one").get()
        content = await self._space().files.get(found["file"]) if found else b""
        return {"digest": hashlib.sha256(content).hexdigest()}

    async def invite(self, role: str) -> dict[str, Any]:
        """Make a link that lets somebody into the space."""
        return {"link": await self._space().invite(role)}

    async def join(self, link: str) -> dict[str, Any]:
        """Join the space of a link."""
        await self._db.join(link)
        return {}

    async def members(self) -> dict[str, Any]:
        """Return who is in the space, and as what."""
        return {member.name: str(member.role) for member in await self._space().members()}

    async def remove(self, name: str) -> dict[str, Any]:
        """Remove a member from the space."""
        await self._space().remove(name)
        return {}

    async def spaces(self) -> dict[str, Any]:
        """Return the ids of the spaces by their names."""
        return {info.title: info.id for info in self._db.spaces()}

    async def tell_cut(self) -> dict[str, Any]:
        """Begin to tell when the connection ends for good."""

        def on_status(status: str) -> None:
            tell({"event": "status", "status": str(status), "at_ns": time.time_ns()})

        self._db.on_status(on_status)
        return {}

    async def revoke(self, device: str) -> dict[str, Any]:
        """Call a device of the account stolen."""
        began_ns = time.time_ns()
        await self._db.revoke(device, stolen=True)
        return {"began_ns": began_ns, "ended_ns": time.time_ns(), "kit": self._db.recovery_kit()}

    async def ask_to_pair(self, url: str, profile: str) -> dict[str, Any]:
        """Ask to be added to an account by one of its devices, and show the code for it."""
        self._pairing = await twinlock.pair_device(url, Path(profile), device_name="new phone")
        return {"code": self._pairing.code}

    async def paired(self) -> dict[str, Any]:
        """Wait to be approved, and show the digits."""
        return {"digits": (await self._pairing.approved()).digits}

    async def confirm(self) -> dict[str, Any]:
        """Go on, as the person has seen the same digits on both devices."""
        self._db = await self._pairing.confirm()
        return {}

    async def approve(self, code: str) -> dict[str, Any]:
        """Add the device that shows a code, and show the digits."""
        return {"digits": await self._db.pair_device(code)}

    async def close(self) -> dict[str, Any]:
        """Close the profile, if one is open."""
        db, self._db = self._db, None
        if db is not None:
            await db.close()
        return {}

    def _space(self) -> Any:
        return self._db.space(SPACE)

    def _quakes(self) -> Any:
        return self._space().collection("quakes")

    def _on_snapshot(self, snap: Any) -> None:
        now_ns = time.time_ns()
        for change in snap.changes:
            if change.kind == "added" and "sent_ns" in change.doc.data:
                self._latencies_ms.append((now_ns - change.doc.data["sent_ns"]) / 1e6)

    async def _tell_arrivals(self) -> None:
        while True:
            await asyncio.sleep(1 / EVENTS_PER_S)
            latencies_ms, self._latencies_ms = self._latencies_ms, []
            if latencies_ms:
                tell({"event": "arrived", "latencies_ms": latencies_ms})

    async def _note_ack(self, name: str, write: Any) -> None:
        await write.durable()
        self._acknowledged.append(name)
        self._acked_at_ns.append(time.time_ns())
        if len(self._acknowledged) in self._tell_at:
            tell({"event": "acknowledged", "count": len(self._acknowledged)})

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
    number, job, details = order["number"], order["job"], order["details"]
    try:
        tell({"number": number, "result": await getattr(device, job)(**details)})
    except TwinlockError as exc:
        tell({"number": number, "code": exc.code, "error": str(exc)})


async def main() -> None:
    """Take orders until the input ends."""
    device = Device()
    reader = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    async with asyncio.TaskGroup() as group:
        while line := await reader.readline():
            order = json.loads(line)
            if order["job"] == "close":
                await obey(device, order)
                break
            group.create_task(obey(device, order))


if __name__ == "__main__":
    asyncio.run(main())
