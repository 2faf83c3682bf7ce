"""The chapter "Lose the phone": device B is stolen, with all that lies on it; A revokes it; a new phone replaces it."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Awaitable
from pathlib import Path
from typing import Any, NamedTuple

from demo.accomplices import Helpers, ask_for_lease, epochs_after, last_seq, newest_keys, newest_log
from demo.device import HOME, SPACE
from demo.device_process import DeviceFailedError, DeviceProcess
from demo.plaintext import search, words_of
from demo.screen import Screen
from demo.stage import ACCOUNT, CATALOGUE, Stage, agree, until
from demo.thief import find, open_loot, steal
from twinlock.ids import SpaceId

PHONE = "old phone"
HOME_QUAKES = 24
LEASE_HOURS = 24
LATE_HOURS = LEASE_HOURS + 1


class Theft(NamedTuple):
    """What the thief has: two copies of the phone's folder, on phones of their own, and one to be looked at."""

    early: DeviceProcess
    late: DeviceProcess
    copy: Path
    spaces: dict[str, str]
    helpers: Helpers

    def id_of(self, name: str) -> SpaceId:
        """Return the id of a space."""
        return SpaceId(bytes.fromhex(self.spaces[name]))


async def lose_the_phone(screen: Screen, stage: Stage) -> None:
    """Steal device B; show what the thief gets before and after A revokes it; add a new phone."""
    screen.scene(
        "Lose the phone",
        "B is stolen, and nothing guards its disk: the thief has its folder and its StoreKey. A revokes it.",
    )
    newcomers = [stage.newcomer(name) for name in ("thief", "thief-later", "D", "E")]
    await asyncio.gather(*(device.start() for device in newcomers))
    early, late, new_phone, tablet = newcomers
    theft = await _steal(stage, early, late)
    await _while_the_lease_lives(screen, stage, theft)
    kit = await _revoke(screen, stage, theft)
    await _no_lease_again(screen, stage, theft)
    await _after_the_lease(screen, stage, theft)
    await _new_epoch(screen, stage, theft)
    await _new_phone(screen, stage, new_phone)
    await _kits(screen, stage, tablet, kit)


async def _steal(stage: Stage, early: DeviceProcess, late: DeviceProcess) -> Theft:
    await stage.a.tell("keep_at_home", path=str(CATALOGUE), most=HOME_QUAKES)
    await until(lambda: _counts(stage.b, HOME, HOME_QUAKES))
    # A device commits what arrives a little later, or together with a write of its own.
    await stage.b.tell("keep_at_home", path=str(CATALOGUE), most=1)
    copy = stage.folder / "stolen"
    for folder in (copy, early.profile, late.profile):
        await asyncio.to_thread(steal, stage.b.profile, folder)
    helpers = Helpers(stage.server.data, stage.keys.data, f"http://127.0.0.1:{stage.keys.port}")
    return Theft(early, late, copy, await stage.a.tell("spaces"), helpers)


async def _while_the_lease_lives(screen: Screen, stage: Stage, theft: Theft) -> None:
    """Say honestly what a lease that is alive opens, and what it does not."""
    await theft.early.tell("open", url=stage.nowhere, profile=str(theft.early.profile))
    opened = await _outcome(theft.early, HOME)
    text = f"'home' lets leases be kept {LEASE_HOURS} hours: until then a thief's copy of B opens there, offline"
    screen.check(opened == f"{HOME_QUAKES} earthquakes", f"{text}: {opened}")
    strict = await _outcome(theft.early, SPACE)
    screen.check(strict == "lease_expired", f"'atlas' lets none be kept: there the same copy opens nothing: {strict}")


async def _revoke(screen: Screen, stage: Stage, theft: Theft) -> str:
    """Revoke B from A; return the new recovery kit."""
    seen: list[dict[str, Any]] = []
    stage.b.on_event = lambda event: seen.append(event) if event["event"] == "status" else None
    await stage.b.tell("tell_cut")
    told = await stage.a.tell("revoke", device=PHONE)
    seconds = (told["ended_ns"] - told["began_ns"]) / 1e9
    screen.note(f'await db.revoke("{PHONE}", stolen=True)    on A: all done in {seconds:.1f} s')

    async def is_dark() -> bool:
        return any(event["status"] == "disconnected" for event in seen)

    dark = await until(is_dark)
    ms = [(event["at_ns"] - told["began_ns"]) / 1e6 for event in seen]
    left = sorted(path.name for path in stage.b.profile.rglob("*") if path.is_file())
    screen.check(
        dark, f"B is cut off {ms[0] if ms else 0:.0f} ms after that call began, and dark after {ms[-1]:.0f} ms"
    )
    wiped = left == ["lock", "revoked.json"]
    screen.check(wiped, f"B has wiped itself: of its files are left {', '.join(left)}")
    kit: str = told["kit"]
    return kit


async def _no_lease_again(screen: Screen, stage: Stage, theft: Theft) -> None:
    """Try to get a lease with the thief's copy, by the front door and with the server's own help."""
    code = await _refusal(theft.early.tell("open", url=stage.url, profile=str(theft.early.profile)))
    screen.check(code == "device_revoked", f"the thief's copy calls the server and is turned away: {code}")
    loot = await asyncio.to_thread(open_loot, theft.copy)
    refusal = await ask_for_lease(loot, theft.id_of(HOME), theft.helpers)
    screen.check(bool(refusal), f"even asked by the server itself, the key service gives B no lease: {refusal}")
    record = await _newest_record(stage, loot.device.device.hex())
    text = "that refusal stands in the key service's ledger, for good:  twinlock ledger show --device …"
    screen.check(bool(record.get("refused")), text)
    when = time.strftime("%H:%M:%S", time.gmtime(record["time_ms"] / 1000))
    row = (str(record["number"]), when, record["event"], record["device"][:12], f"refused: {record.get('refused')}")
    screen.table(("no", "time", "event", "device", "outcome"), (row,))


async def _after_the_lease(screen: Screen, stage: Stage, theft: Theft) -> None:
    """Open another copy when the lease has ended, then search what is left of it for words and keys."""
    await theft.late.tell("open", url=stage.nowhere, profile=str(theft.late.profile), hours_ahead=LATE_HOURS)
    codes = {await _outcome(theft.late, space) for space in (HOME, SPACE)}
    screen.check(
        codes == {"lease_expired"}, f"{LATE_HOURS} hours later the thief's other copy is refused: {codes.pop()}"
    )
    await theft.late.tell("close")
    words = await asyncio.to_thread(search, [theft.late.profile], words_of(CATALOGUE))
    text = f"no word of the catalogue in its raw files ({words.files} files, {words.size / 1e6:.1f} MB)"
    screen.check(words.files > 0 and not words.found, text, ", ".join(word for _, word in words.found))
    before, after = [await asyncio.to_thread(find, folder) for folder in (theft.copy, theft.late.profile)]
    text = f"none of {after.tried:,} values in it is a service key or opens a replica file"
    screen.check(not after.service_keys and not after.replica_keys, text)
    # The control: while the lease lives, the same search does find the one service key that is to be had.
    text = "searched in the same way, the copy with the living lease gives one such key, that of 'home'"
    screen.check((before.service_keys, before.replica_keys) == (1, 1), f"{text}")
    screen.note("so who opens that copy with a program of his own need not obey the end: what he could read, he keeps;")
    screen.note("lease_hours=0, as in 'atlas', or a StoreKey that the phone's keystore does not give away, forbid it")


async def _new_epoch(screen: Screen, stage: Stage, theft: Theft) -> None:
    """Write on A, and look for the keys of that in all that the thief has, with the help of both services."""
    seq = last_seq(theft.helpers)
    for quake in ("ci37868143", "ci37868135"):
        await stage.a.tell("edit", id=quake, changes={"place": "where the thief must not look"})
    await stage.a.tell("synced")
    logs = [newest_log(theft.helpers, theft.id_of(name)) for name in (HOME, SPACE)]
    epochs = epochs_after(theft.helpers, seq)
    screen.check(
        epochs == {2} and all(log.epoch == 2 for log in logs),
        f"a new epoch was opened in each space; what A writes now is sealed under epoch {', '.join(map(str, epochs))}",
    )
    loot = await asyncio.to_thread(open_loot, theft.copy)
    found = [await asyncio.to_thread(newest_keys, loot, log, theft.helpers) for log in logs]
    text = f"none of {len(loot.candidates):,} values of the thief's copy is the member key of it"
    screen.check(not any(found), f"{text}, even with the key service's own files at hand")


async def _new_phone(screen: Screen, stage: Stage, phone: DeviceProcess) -> None:
    """Pair a new device by the code that it shows."""
    asked = await phone.tell("ask_to_pair", url=stage.url, profile=str(phone.profile))
    approved, shown = await asyncio.gather(stage.a.tell("approve", code=asked["code"]), phone.tell("paired"))
    screen.note(f"a new phone, D, shows the code {asked['code']}, which is typed on A; then both show")
    for name, digits in (("A", approved["digits"]), ("D", shown["digits"])):
        screen.note(f"  {name}  {digits}")
    same = approved["digits"] == shown["digits"]
    screen.check(same, "the digits are the same on both: the person confirms on D")
    if not same:
        return
    await phone.tell("confirm")
    await until(lambda: _counts(phone, HOME, HOME_QUAKES))
    await until(lambda: _counts(phone, SPACE, 1))
    agreed, digest, count = await agree(stage.a, stage.c, phone)
    screen.check(agreed, f"D shows all {count:,} documents, as A and C do, which went on: SHA-256 {digest[:16]}…")


async def _kits(screen: Screen, stage: Stage, tablet: DeviceProcess, kit: str) -> None:
    """Try the recovery kit of before and the one that A was given."""
    place = {"url": stage.url, "name": ACCOUNT, "profile": str(tablet.profile)}
    code = await _refusal(tablet.tell("recover", kit=stage.kit, **place))
    screen.check(code == "wrong_credentials", f"the recovery kit from before opens nothing any more: {code}")
    await tablet.tell("recover", kit=kit, **place)
    opened = await until(lambda: _counts(tablet, HOME, HOME_QUAKES))
    screen.check(opened, "the new one, which A showed, opens the account on a new device E")
    stage.kit = kit


async def _outcome(device: DeviceProcess, space: str) -> str:
    """Return what a device says when it is asked for the earthquakes of a space."""
    try:
        return f"{(await device.tell('count', space=space))['count']} earthquakes"
    except DeviceFailedError as exc:
        return exc.code


async def _counts(device: DeviceProcess, space: str, least: int) -> bool:
    try:
        return bool((await device.tell("count", space=space))["count"] >= least)
    except DeviceFailedError:
        return False  # It has not read of the space yet.


async def _refusal(order: Awaitable[Any]) -> str:
    """Return the code with which an order was refused, empty if it was not."""
    try:
        await order
    except DeviceFailedError as exc:
        return exc.code
    return ""


async def _newest_record(stage: Stage, device: str) -> dict[str, Any]:
    """Return the newest record of a device in the ledger, as the operator's command shows it."""
    options = ["--data", str(stage.keys.data), "--device", device, "--json"]
    command = [sys.executable, "-m", "twinlock", "ledger", "show", *options]
    child = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    output, _ = await child.communicate()
    record: dict[str, Any] = json.loads(output.splitlines()[-1])
    return record
