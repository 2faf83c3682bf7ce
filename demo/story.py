"""The scenes of the story, one function each; every claim is checked, none is only said."""

from __future__ import annotations

import asyncio
import json
import math
import sqlite3
from typing import Any

from demo.device_process import DeviceFailedError
from demo.lost_phone import lose_the_phone
from demo.plaintext import search, words_of
from demo.screen import Screen
from demo.stage import ACCOUNT, CATALOGUE, Stage, TwoDevices, agree, until

QUAKES_PER_S = 300
BURST_CHANGES = 1_000
KILL_AFTER_ACKS = 200


async def play(screen: Screen, stage: Stage, quakes: int | None = None) -> None:
    """Show everything, in order; with `quakes` only so many are imported."""
    await begin(screen, stage)
    await live_import(screen, stage, quakes)
    await same_document(screen, stage)
    await offline(screen, stage)
    await server_killed(screen, stage)
    await two_keys(screen, stage)
    await lose_the_phone(screen, stage)


async def begin(screen: Screen, stage: Stage) -> None:
    """Start the server and two devices of one account."""
    screen.scene(
        "A server, a key service and two devices",
        "Each is a process of its own with files of its own; the server on SQLite keeps what is sealed, never a key.",
    )
    seconds_keys = await stage.keys.start()
    seconds = await stage.server.start()
    await stage.cable_a.plug_in()
    await asyncio.gather(stage.a.start(), stage.b.start())
    made = await stage.a.tell(
        "sign_up", url=stage.cable_a.url, name=ACCOUNT, password=stage.password, profile=str(stage.a.profile)
    )
    stage.kit = made["kit"]
    await stage.b.tell(
        "recover", url=stage.url, name=ACCOUNT, kit=stage.kit, profile=str(stage.b.profile), called="old phone"
    )
    screen.table(
        ("", "process", "what it is"),
        (
            ("key service", str(stage.keys.pid), f"holds key B of every space, answers after {seconds_keys:.1f} s"),
            ("server", str(stage.server.pid), f"{stage.url}, answers after {seconds:.1f} s"),
            ("device A", str(stage.a.pid), f"signed up as {ACCOUNT}, connected by a cable that can be cut"),
            ("device B", str(stage.b.pid), "added with the recovery kit"),
        ),
    )


async def live_import(screen: Screen, stage: TwoDevices, quakes: int | None) -> None:
    """Import the catalogue on A while B shows it arriving."""
    total = len(json.loads(CATALOGUE.read_text(encoding="utf-8"))["features"][:quakes])
    screen.scene(
        "Live sync",
        f"A writes {total:,} real earthquakes, {QUAKES_PER_S} a second, each a document; B sees them arrive.",
    )
    latencies_ms: list[float] = []
    await _first_sync(stage)
    with screen.bar() as bar:
        arriving = bar.add_task("on device B", total=total, latency="")

        def show(event: dict[str, Any]) -> None:
            latencies_ms.extend(event["latencies_ms"])
            latency = f"p50 {quantile(latencies_ms, 0.5):.1f} ms  p99 {quantile(latencies_ms, 0.99):.1f} ms"
            bar.update(arriving, completed=len(latencies_ms), latency=latency)

        stage.b.on_event = show
        await stage.b.tell("follow")
        loaded = await stage.a.tell("load", path=str(CATALOGUE), per_second=QUAKES_PER_S, most=total)

        async def all_arrived() -> bool:
            return len(latencies_ms) >= total

        arrived = await until(all_arrived)
    screen.check(arrived, f"{len(latencies_ms):,} of {total:,} documents arrived on B, {loaded['seconds']:.1f} s")
    p50_ms, p99_ms = quantile(latencies_ms, 0.5), quantile(latencies_ms, 0.99)
    screen.note(f"from A's write to B's callback, sealing included: p50 {p50_ms:.1f} ms, p99 {p99_ms:.1f} ms")


async def _first_sync(stage: TwoDevices) -> None:
    async def can_count() -> bool:
        try:
            await stage.b.tell("count")
        except DeviceFailedError:
            return False  # B has not read of the space yet.
        return True

    await until(can_count)


async def same_document(screen: Screen, stage: TwoDevices) -> None:
    """Edit one document on both devices at the same time."""
    screen.scene(
        "The same document, at the same time",
        "Both devices edit one earthquake; different fields merge, one field collides.",
    )
    quake = "ci37868143"
    await asyncio.gather(
        stage.a.tell("edit", id=quake, changes={"properties.felt": 12, "note": "seen from A"}),
        stage.b.tell("edit", id=quake, changes={"properties.alert": "green", "note": "seen from B"}),
    )
    await asyncio.gather(stage.a.tell("synced"), stage.b.tell("synced"))
    agreed, _, _ = await agree(stage.a, stage.b)
    read_a, read_b = await stage.a.tell("read", id=quake), await stage.b.tell("read", id=quake)
    screen.check(agreed and read_a == read_b, "A and B hold the same document")
    properties = read_a["value"]["properties"]
    both = properties["felt"] == 12 and properties["alert"] == "green"
    screen.check(both, "both edits of different fields are in it: felt = 12, alert = green")
    winner, lost = read_a["value"]["note"], read_a["conflicts"].get("note")
    notes = {"seen from A", "seen from B"}
    if lost is None:
        screen.check(
            winner in notes, f"note = {winner!r}: the later edit had seen the earlier one, so nothing was lost"
        )
    else:
        screen.check({winner, lost} == notes, f"note = {winner!r}; the other, {lost!r}, stays readable as a conflict")


async def offline(screen: Screen, stage: TwoDevices) -> None:
    """Cut A's cable, edit on both sides, plug it in again."""
    screen.scene("Offline", "A's cable is cut; both go on working; the cable is plugged in again.")
    await stage.cable_a.cut()

    async def noticed() -> bool:
        return bool((await stage.a.tell("status"))["status"] != "connected")

    screen.check(await until(noticed), "A has noticed that it is offline")
    for index, quake in enumerate(("ci37868143", "ci37868135")):
        await stage.a.tell("edit", id=quake, changes={"checked": f"offline on A, {index}"})
    await stage.b.tell("edit", id="ci37868143", changes={"properties.status": "reviewed"})
    await stage.b.tell("synced")
    pending = (await stage.a.tell("status"))["pending"]
    screen.check(pending == 2, f"A wrote without a network: {pending} writes wait on its disk")
    digests = {(await device.tell("digest"))["digest"] for device in (stage.a, stage.b)}
    screen.check(len(digests) == 2, "meanwhile A and B differ")
    await stage.cable_a.plug_in()
    await stage.a.tell("synced")
    agreed, digest, count = await agree(stage.a, stage.b)
    screen.check(agreed, f"back online: A and B agree on all {count:,} documents, SHA-256 {digest[:16]}…")


async def server_killed(screen: Screen, stage: Stage) -> None:
    """Kill the server in the middle of a burst; ask a new device what the restarted server still has."""
    screen.scene(
        "The server is killed",
        f"SIGKILL in the middle of {BURST_CHANGES:,} changes; each adds one to a counter, so that a double would show.",
    )

    def kill(event: dict[str, Any]) -> None:
        if event["event"] == "acknowledged":
            stage.server.kill()

    stage.a.on_event = kill
    await stage.a.tell("burst", count=BURST_CHANGES, tell_at=[KILL_AFTER_ACKS])
    # What A still has must not help the server: its cable is out until a stranger has looked.
    await stage.cable_a.cut()
    acknowledged = set((await stage.a.tell("acknowledged"))["ids"])
    middle = KILL_AFTER_ACKS <= len(acknowledged) < BURST_CHANGES
    screen.check(middle, f"killed after {len(acknowledged):,} of {BURST_CHANGES:,} changes were acknowledged")
    seconds = await stage.server.start()
    screen.note(f"restarted on the same files, answers after {seconds:.1f} s")
    await _look_with_new_device(screen, stage, acknowledged)
    await stage.cable_a.plug_in()
    await stage.a.tell("synced")
    agreed, digest, _ = await agree(stage.a, stage.b, stage.c)
    result = await stage.c.tell("burst_result")
    complete = len(result["ids"]) == BURST_CHANGES
    screen.check(complete, f"A's other changes followed by themselves: {len(result['ids']):,} of {BURST_CHANGES:,}")
    screen.check(result["total"] == BURST_CHANGES, f"none twice: the counter says {result['total']:,}")
    screen.check(agreed, f"A, B and C agree, SHA-256 {digest[:16]}…")


async def _look_with_new_device(screen: Screen, stage: Stage, acknowledged: set[str]) -> None:
    await stage.cable_c.plug_in()
    await stage.c.start()
    await stage.c.tell("recover", url=stage.cable_c.url, name=ACCOUNT, kit=stage.kit, profile=str(stage.c.profile))
    missing = set(acknowledged)

    async def all_there() -> bool:
        try:
            missing.difference_update((await stage.c.tell("burst_result"))["ids"])
        except DeviceFailedError:
            return False  # C has not read of the space yet.
        return not missing

    await until(all_there)
    text = f"device C, new and with only the server to ask, finds all {len(acknowledged):,} acknowledged changes"
    screen.check(not missing, text, f"{len(missing)} are missing")


async def two_keys(screen: Screen, stage: Stage) -> None:
    """Search all that a thief could take, then open a device's file without and with the service key."""
    screen.scene("Two keys", "What the server, the network and a stolen disk hold; what it takes to open it.")
    words = words_of(CATALOGUE)
    await stage.c.stop()
    for place, folders in (
        ("the server's files: database, write-ahead log, logs", [stage.server.folder]),
        ("the key service's files", [stage.keys.folder]),
        ("all bytes that went over the cables of A and C", [stage.wire]),
        ("the disks of the devices", [stage.a.profile, stage.b.profile, stage.c.profile]),
    ):
        result = await asyncio.to_thread(search, folders, words)
        text = f"no word of the catalogue in {place} ({result.files} files, {result.size / 1e6:.1f} MB)"
        screen.check(
            result.files > 0 and not result.found,
            text,
            ", ".join(f"{path.name}: {word}" for path, word in result.found),
        )
    await _device_file(screen, stage)


async def _device_file(screen: Screen, stage: Stage) -> None:
    replicas = sorted(stage.c.profile.rglob("replica.db"))
    refused = bool(replicas) and not any(_opens_as_sqlite(str(path)) for path in replicas)
    screen.check(refused, "device C's replica file is no readable database")
    # In this space a lease is never stored, so that a device that was switched off needs the key service first.
    await stage.cable_c.cut()
    await stage.c.start()
    await stage.c.tell("open", url=stage.cable_c.url, profile=str(stage.c.profile))
    code = await _count_fails_with(stage)
    screen.check(
        code == "lease_expired", f"with its own keys but without a lease of the service key, C is refused: {code}"
    )
    await stage.cable_c.plug_in()

    async def opens() -> bool:
        return not await _count_fails_with(stage)

    opened = await until(opens)
    count = (await stage.c.tell("count"))["count"] if opened else 0
    screen.check(opened, f"with a lease from the key service, C opens the same file: {count:,} earthquakes")


async def _count_fails_with(stage: Stage) -> str:
    try:
        await stage.c.tell("count")
    except DeviceFailedError as exc:
        return exc.code
    return ""


def _opens_as_sqlite(path: str) -> bool:
    with sqlite3.connect(f"file:{path}?mode=ro", uri=True) as connection:
        try:
            connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
        except sqlite3.DatabaseError:
            return False
    return True


def quantile(values: list[float], fraction: float) -> float:
    """Return the value below which a fraction of all values lies; nan without values."""
    if not values:
        return math.nan
    ranked = sorted(values)
    return ranked[min(len(ranked) - 1, math.ceil(fraction * len(ranked)) - 1)]
