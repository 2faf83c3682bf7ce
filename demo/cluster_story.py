"""The scenes of the cluster's story: the demo's own across two nodes, then machines that die in the middle of it."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Sequence
from typing import Any

from demo.cluster_stage import ClusterStage
from demo.device import SPACE
from demo.device_process import DeviceFailedError
from demo.screen import Screen
from demo.stage import ACCOUNT, agree, until
from demo.story import BURST_CHANGES, live_import, offline, same_document
from twinlock.engines.jetstream_format import Names, partition_of
from twinlock.ids import SpaceId

GUEST = "ben"
FILE_MIB = 5
WRITES_PER_S = 80
KILL_NATS_AFTER = 200
KILL_NODE_AFTER = 600
PATIENCE_SECONDS = 60.0


async def play(screen: Screen, stage: ClusterStage, quakes: int | None = None) -> None:
    """Show everything, in order; with `quakes` only so many are imported."""
    await begin(screen, stage)
    await live_import(screen, stage, quakes)
    await same_document(screen, stage)
    await offline(screen, stage)
    await files(screen, stage)
    await members(screen, stage)
    await machines_killed(screen, stage)
    await machines_back(screen, stage)


async def begin(screen: Screen, stage: ClusterStage) -> None:
    """Start the cluster and two devices of one account, each at a node of its own."""
    screen.scene(
        "A cluster on this machine",
        "Three NATS servers that sync each message to disk, a key service, two sync nodes, two devices.",
    )
    started = time.perf_counter()
    await asyncio.to_thread(stage.nats.start_all)
    seconds_nats = time.perf_counter() - started
    seconds_keys = await stage.keys.start()
    seconds = [await node.start() for node in stage.nodes]
    for cable in stage.cables:
        await cable.plug_in()
    await asyncio.gather(stage.a.start(), stage.b.start())
    made = await stage.a.tell(
        "sign_up", url=stage.cable_a.url, name=ACCOUNT, password=stage.password, profile=str(stage.a.profile)
    )
    stage.kit = made["kit"]
    await stage.b.tell(
        "recover", url=stage.cable_b.url, name=ACCOUNT, kit=stage.kit, profile=str(stage.b.profile), called="phone"
    )
    rows = [(node.name, str(node.pid), node.url) for node in stage.nats.nodes]
    rows += [("key service", str(stage.keys.pid), f"one for the cluster, answers after {seconds_keys:.1f} s")]
    rows += [
        (f"sync node {place + 1}", str(node.pid), f"{stage.url_of(place)}, answers after {seconds[place]:.1f} s")
        for place, node in enumerate(stage.nodes)
    ]
    rows += [("device A", str(stage.a.pid), "at node 1"), ("device B", str(stage.b.pid), "at node 2")]
    screen.table(("", "process", "what it is"), rows)
    screen.note(f"the three NATS servers stood together after {seconds_nats:.1f} s")


async def files(screen: Screen, stage: ClusterStage) -> None:
    """Put a file at one node and read it at the other."""
    screen.scene("Files", f"A puts {FILE_MIB} MiB on node 1; the nodes share a folder for them, as a bucket would be.")
    put = (await stage.a.tell("put_file", size=FILE_MIB << 20))["digest"]

    async def is_read() -> bool:
        try:
            return bool((await stage.b.tell("read_file"))["digest"] == put)
        except DeviceFailedError:
            return False  # It is not there yet.

    screen.check(await until(is_read), f"B reads the same bytes on node 2, SHA-256 {put[:16]}…")


async def members(screen: Screen, stage: ClusterStage) -> None:
    """Let somebody else in at one node, and out again at the other."""
    screen.scene("Members", f"A invites {GUEST} on node 1, who joins on node 2; A removes {GUEST} again.")
    await stage.guest.start()
    # An account of somebody else, made for this one run.
    await stage.guest.tell(
        "sign_up_alone",
        url=stage.cable_b.url,
        name=GUEST,
        password=os.urandom(12).hex(),
        profile=str(stage.guest.profile),
    )
    link = (await stage.a.tell("invite", role="reader"))["link"]
    await stage.guest.tell("join", link=link)
    wanted: int = (await stage.a.tell("count"))["count"]

    async def has_read() -> bool:
        return await _count(stage.guest) == wanted

    screen.check(await until(has_read), f"{GUEST} has joined on node 2 and reads all {wanted:,} documents")

    async def b_knows() -> bool:
        return any(name == GUEST for name in await stage.b.tell("members"))

    screen.check(await until(b_knows), f"B sees {GUEST} among the members")
    await stage.a.tell("remove", name=GUEST)

    async def is_out() -> bool:
        return await _fails_with(stage.guest, "count") in ("removed", "unknown_space")

    screen.check(await until(is_out), f"removed on node 1, {GUEST} is out on node 2 as well")


async def machines_killed(screen: Screen, stage: ClusterStage) -> None:
    """Kill a NATS server and a sync node in the middle of a burst of counted writes."""
    stream = Names().log_stream(partition_of(await _space(stage)))
    leader = await asyncio.to_thread(stage.nats.leader_of, stream) or 0
    screen.scene(
        "Machines die",
        f"{BURST_CHANGES:,} changes from A, {WRITES_PER_S} a second, each adds one to a counter. In the middle of them "
        f"SIGKILL to {stage.nats.nodes[leader].name}, which leads {stream}, then to sync node 1, at which A is.",
    )
    killed_ns: list[int] = []

    def kill(event: dict[str, Any]) -> None:
        if event["event"] != "acknowledged":
            return
        killed_ns.append(time.time_ns())
        if event["count"] == KILL_NATS_AFTER:
            stage.nats.kill(leader)
        else:
            stage.nodes[0].kill()

    stage.a.on_event = kill
    await stage.a.tell(
        "burst", count=BURST_CHANGES, tell_at=[KILL_NATS_AFTER, KILL_NODE_AFTER], per_second=WRITES_PER_S
    )
    acks: dict[str, Any] = {}

    async def all_acknowledged() -> bool:
        acks.update(await stage.a.tell("acknowledged"))
        return len(acks["ids"]) == BURST_CHANGES

    done = await until(all_acknowledged, PATIENCE_SECONDS)
    screen.check(
        done, f"{len(acks['ids']):,} of {BURST_CHANGES:,} changes were acknowledged, with one machine of each less"
    )
    screen.check(len(killed_ns) == 2, "both were killed in the middle of it")
    for at, what in zip(killed_ns, ("the NATS server", "the sync node"), strict=False):
        until_ns = next((later for later in killed_ns if later > at), time.time_ns())
        screen.note(
            f"after {what} died, the longest wait for an ack was {_longest_gap_s(acks['at_ns'], at, until_ns):.1f} s"
        )
    await _look_with_new_device(screen, stage)


async def _look_with_new_device(screen: Screen, stage: ClusterStage) -> None:
    """What A still has must not help: its cable is out while a stranger looks."""
    await stage.cable_a.cut()
    await stage.c.start()
    await stage.c.tell("recover", url=stage.cable_c.url, name=ACCOUNT, kit=stage.kit, profile=str(stage.c.profile))
    result: dict[str, Any] = {"ids": [], "total": 0}

    async def all_there() -> bool:
        try:
            result.update(await stage.c.tell("burst_result"))
        except DeviceFailedError:
            return False  # C has not read of the space yet.
        return len(result["ids"]) == BURST_CHANGES

    there = await until(all_there, PATIENCE_SECONDS)
    screen.check(there, f"none lost: device C, new, finds {len(result['ids']):,} of {BURST_CHANGES:,} on what is left")
    screen.check(result["total"] == BURST_CHANGES, f"none twice: the counter says {result['total']:,}")


async def machines_back(screen: Screen, stage: ClusterStage) -> None:
    """Start again what was killed, and see that all agree."""
    screen.scene("Machines come back", "Both are started again on their files; A is plugged in and is at node 1 again.")
    started = time.perf_counter()
    dead = [place for place, node in enumerate(stage.nats.nodes) if not node.is_running]
    for place in dead:
        await asyncio.to_thread(stage.nats.start, place)
    screen.note(f"the NATS server has caught up and serves after {time.perf_counter() - started:.1f} s")
    screen.note(f"sync node 1 answers after {await stage.nodes[0].start():.1f} s")
    await stage.cable_a.plug_in()
    await stage.a.tell("edit", id="ci37868143", changes={"checked": "after the storm"})
    await stage.a.tell("synced")
    agreed, digest, count = await agree(stage.a, stage.b, stage.c)
    screen.check(agreed, f"A on node 1, B and C on node 2 agree on all {count:,} documents, SHA-256 {digest[:16]}…")


async def _space(stage: ClusterStage) -> SpaceId:
    return SpaceId(bytes.fromhex((await stage.a.tell("spaces"))[SPACE]))


async def _count(device: Any) -> int:
    try:
        count: int = (await device.tell("count"))["count"]
    except DeviceFailedError:
        return -1  # It has not read of the space yet.
    return count


async def _fails_with(device: Any, job: str) -> str:
    try:
        await device.tell(job)
    except DeviceFailedError as exc:
        return exc.code
    return ""


def _longest_gap_s(at_ns: Sequence[int], from_ns: int, until_ns: int) -> float:
    """Return the longest wait between two acks of which the later one came within a span of time."""
    pairs = zip([at_ns[0], *at_ns], at_ns, strict=False)
    return max((after - before for before, after in pairs if from_ns < after <= until_ns), default=0) / 1e9
