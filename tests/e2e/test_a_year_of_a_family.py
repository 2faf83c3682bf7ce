"""A year of a family: each month somebody comes, goes, loses or finds something, and files are raided from outside.

The server and the key service are processes of their own, and so is the partner's phone, which is killed. What can be
read is not asked of the SDK: `tests.e2e.raider` takes the folders as they lie on the disk and tries to open them by
the formulas of the specification. Behind each claim that something does not open stands a control: the same raid with
the one piece that was missing does open it.
"""

import asyncio
import shutil
from contextlib import AsyncExitStack

import pytest

import twinlock
from tests.e2e.family_kit import (
    CHILD,
    LEASE_HOURS,
    MOTHER,
    NOWHERE,
    PARTNER,
    PASSWORD,
    SENSOR,
    Year,
    hears,
    plant,
    shows,
    signed_in_by,
    tell,
)
from tests.e2e.formulas import digits
from tests.e2e.raider import Kit, Link, forge, ledger_events, vault_rows
from twinlock.errors import DeviceRevokedError, LeaseExpiredError, RoleError, SafetyCodeError
from twinlock.keyservice import LocalKeyService
from twinlock.protocol.frames import Ack, Reject

pytestmark = pytest.mark.e2e
NEW_PASSWORD = "another horse entirely"
NOTHING: set[str] = set()


@pytest.fixture
async def year(tmp_path, monkeypatch):
    # A test must not put keys into the keyring of whoever runs it.
    monkeypatch.setenv("PYTHON_KEYRING_BACKEND", "keyring.backends.fail.Keyring")
    monkeypatch.setattr("twinlock.client.pairing.POLL_INTERVAL_S", 0.02)
    async with AsyncExitStack() as stack:
        world = Year(tmp_path, stack)
        await world.begin()
        yield world


async def test_a_year_of_a_family(year):
    await january_the_mother_signs_up(year)
    await february_a_second_phone(year)
    await march_the_partner(year)
    await april_the_child_and_the_sensor(year)
    await may_everyday_life_and_a_blackout(year)
    await july_a_phone_is_stolen(year)
    await september_the_partner_is_removed(year)
    await october_all_devices_are_lost(year)
    await november_the_diary_is_shredded(year)
    await december_everybody_who_stayed_reads_everything(year)


async def january_the_mother_signs_up(year):
    phone = await year.sign_up("phone", MOTHER)
    year.kit = Kit(phone.recovery_kit(), MOTHER)
    family, diary = await phone.create_space("family", LEASE_HOURS), await phone.create_space("diary", LEASE_HOURS)
    year.family, year.diary = family.id, diary.id
    await tell(family, "first-steps", plan={"monday": {"cook": "mia"}})
    await tell(diary, "diary-one")
    await phone.synced()
    written = {"first-steps", "diary-one"}

    # The operator has every envelope and every service key, and opens nothing.
    operator = year.raid("server", "keys")
    assert operator.secrets == NOTHING
    assert len(operator.envelopes_of(family.id)) > 0
    assert operator.service_keys_of(family.id) == operator.service_keys_of(diary.id) == {1}
    assert operator.member_keys == {}
    assert year.raid("server").service_keys == {}
    assert year.raid("keys").secrets == NOTHING
    # The kit gives the other key: with it everything opens, without the key service nothing.
    assert year.raid("server", year.kit).secrets == NOTHING
    assert year.raid("server", "keys", year.kit).opened["envelopes"] == written
    # While the lease lives, who has the phone and its StoreKey reads on it, as the threat model admits.
    await year.reads_by_itself("phone", written)
    assert year.raid("phone").opened["files"] == NOTHING


async def february_a_second_phone(year):
    request = await twinlock.pair_device(year.server.url, year.profile("tablet"), options=year.options("tablet"))
    shown_on_phone = await year["phone"].pair_device(request.qr)
    approval = await request.approved()
    assert approval.digits == shown_on_phone
    tablet = year.keep("tablet", await request.confirm())
    await tablet.synced()
    await hears(tablet.space("family"), "first-steps")
    await tell(tablet.space("family"), "from-the-tablet")

    assert year.raid("server", "keys").secrets == NOTHING
    await year.reads_by_itself("tablet", {"first-steps", "diary-one", "from-the-tablet"})
    # The digits are those of the account and of the very device whose keys lie in this folder.
    (device,) = year.raid("tablet").devices
    assert shown_on_phone == digits("pair-digits", bytes.fromhex(tablet.account) + device.id)
    # A folder whose StoreKey lies in a keystore is all sealed, whoever else helps.
    locked = year.copy("tablet")
    (locked / "store.key").unlink()
    assert year.raid(locked, "server", "keys").secrets == NOTHING


async def march_the_partner(year):
    family = year["phone"].space("family")
    link = await family.invite("editor")
    there = {"first-steps", "from-the-tablet"}
    # An unused link is worth its role: the member key. Without the key service that opens nothing.
    assert year.raid("server", Link(link)).secrets == NOTHING
    assert year.raid("server", "keys", Link(link)).secrets == there

    paul = await year.program("paul")
    await paul.tell("sign_up", url=year.server.url, name=PARTNER, password=PASSWORD, profile=str(year.profile("paul")))
    await paul.tell("join", link=link)
    await paul.tell("synced")
    code = await paul.tell("safety_code", member=MOTHER)
    assert code == await family.safety_code(PARTNER)
    with pytest.raises(SafetyCodeError):
        await family.verify(PARTNER, code[:-1] + str(9 - int(code[-1])))
    await family.verify(PARTNER, code)
    await paul.tell("verify", member=MOTHER, code=await family.safety_code(PARTNER))
    await paul.tell("put", collection="notes", id="from-paul", data={"text": "secret:from-paul"})
    await hears(family, "from-paul")

    assert year.raid("server", "keys").secrets == NOTHING
    # He reads what he was invited to, the past too, and of the diary not even with the operator's help.
    await year.reads_by_itself("paul", there | {"from-paul"})
    assert year.raid("paul", "server", "keys").secrets == there | {"from-paul"}
    assert year.raid("paul", "server", "keys", "phone").secrets == there | {"from-paul", "diary-one"}


async def april_the_child_and_the_sensor(year):
    phone = year["phone"]
    family, diary = phone.space("family"), phone.space("diary")
    kim = await year.sign_up("kim", CHILD)
    for space in (family, diary):
        await kim.join(await space.invite("reader"))
    await kim.synced()
    await hears(kim.space("family"), "from-paul")
    await hears(kim.space("diary"), "diary-one")
    await year.close("kim")
    sensor = await year.open_sensor(is_new=True)
    sent = await sensor.join(await family.invite("sender"))
    reading = await sent.collection("notes").add({"text": "secret:warm-in-here", "celsius": 21})
    await reading.durable()
    await shows(family.collection("notes").doc(reading.id), celsius=21, text="secret:warm-in-here")
    with pytest.raises(RoleError):
        await sent.collection("notes").get()

    # The sensor's own drops lie in its folder; with all that it has, and all that the operator has, none opens.
    box = year.raid("sensor", year.sensor_kit, "server", "keys")
    assert (box.secrets, box.member_keys) == (NOTHING, {})
    assert len(year.raid("sensor").envelopes_of(year.family)) > 0
    # With a member key they do.
    assert "warm-in-here" in year.raid("sensor", "keys", "phone").opened["envelopes"]
    assert year.raid("kim").secrets == {"first-steps", "from-the-tablet", "from-paul", "diary-one"}
    await the_child_cannot_write(year)


async def the_child_cannot_write(year):
    """The child's device has every key that a change is sealed and signed with; its role is what forbids it."""
    await year.programs["paul"].kill()
    read = year.raid("kim", "paul", "server")
    kim, paul = (device for device in read.devices)
    change = next(each for each in read.envelopes_of(year.family) if b"from-paul" in (read.content_of(each) or b""))
    content = read.content_of(change)
    by_hand = forge(read, year.family, paul, content.replace(b"from-paul", b"from-hand"))
    content = content.replace(b"from-paul", b"the-child").replace(b"secret:", b"forged:")
    forged = forge(read, year.family, kim, content)

    # An honest server takes it from an editor, made by hand as it is, and not from the child.
    async with signed_in_by(paul, year.server.url) as wire:
        assert isinstance(await wire.push(bytes.fromhex(year.family), by_hand), Ack)
    await hears(year["phone"].space("family"), "from-hand")
    async with signed_in_by(kim, year.server.url) as wire:
        assert (await wire.push(bytes.fromhex(year.family), forged)).code == RoleError.code
    # A dishonest one puts it into its log, and every reader turns it away.
    await year.close("phone", "tablet", "sensor")
    year.server.kill()
    plant(year.server.data / "twinlock.db", forged)
    await asyncio.to_thread(year.server.start)
    for name in ("phone", "tablet"):
        await (await year.open(name)).synced()
        assert [kept.reason for kept in year[name].quarantine[year.family]] == ["role"]
        assert {doc.id for doc in await year[name].space("family").collection("notes").get()} > {"from-hand"}
        assert await year[name].space("family").collection("notes").doc("the-child").get() is None


async def may_everyday_life_and_a_blackout(year):
    week = year["phone"].space("family").collection("calendar").doc("week")
    await week.set({"monday": {"cook": "mia", "guests": {"count": 1}}, "chores": 0})
    for name in ("phone", "tablet"):
        await year[name].synced()
    paul = await year.start_paul()
    await paul.tell("synced")
    year.server.kill()
    # In the dark everybody goes on, each with the part of the plan that is theirs.
    await week.update({"monday.cook": PARTNER, "chores": twinlock.increment(1)})
    await year["phone"].space("family").collection("notes").doc("by-candlelight").set({"text": "secret:by-candlelight"})
    chores = year["tablet"].space("family").collection("calendar").doc("week")
    await chores.update({"monday.guests.count": twinlock.increment(2), "chores": twinlock.increment(1)})
    await paul.tell("write_on", collection="log", first=0)
    while len(paul.events) < 5:
        await paul.event(len(paul.events))
    await paul.kill()
    await year.close("phone", "tablet")
    sensor = await year.open_sensor(NOWHERE)
    await sensor.space(year.family).collection("notes").add({"text": "secret:cold-at-night"})
    await year.close("sensor")
    assert year.raid("sensor", year.sensor_kit, "server", "keys").secrets == NOTHING
    await the_tablets_lease_ends_in_the_dark(year)

    await asyncio.to_thread(year.server.start)
    for name in ("tablet", "phone", "kim"):
        await (await year.open(name)).synced()
    await (await year.open_sensor()).synced()
    paul = await year.start_paul()
    await paul.tell("synced")
    plan = {"monday": {"cook": PARTNER, "guests": {"count": 3}}, "chores": 12}
    for name in ("phone", "tablet", "kim"):
        await hears(year[name].space("family"), "by-candlelight", "written-locked")
        await shows(year[name].space("family").collection("calendar").doc("week"), **plan)
    assert (await paul.tell("read", collection="calendar"))["week"] == plan
    log = await year["phone"].space("family").collection("log").get()
    assert {event["returned"] for event in paul.events} <= {doc["number"] for doc in log if doc.id != "tally"}
    await year.close("kim")
    year.shared = {"first-steps", "from-the-tablet", "from-paul", "from-hand"}
    year.shared |= {"warm-in-here", "cold-at-night", "by-candlelight", "written-locked"}


async def the_tablets_lease_ends_in_the_dark(year):
    tablet = await year.open_later("tablet", LEASE_HOURS + 1)
    family = tablet.space("family")
    assert (tablet.status, family.locked) == ("locked", True)
    with pytest.raises(LeaseExpiredError):
        await family.collection("notes").get()
    await family.collection("notes").doc("written-locked").set({"text": "secret:written-locked"})
    await family.collection("calendar").doc("week").update({"chores": twinlock.increment(10)})
    await year.close("tablet")

    # Its own folder, StoreKey and all, opens nothing any more: not the past, not what was written a moment ago.
    assert year.raid("tablet").secrets == year.raid("tablet", "server").secrets == NOTHING
    assert len(year.raid("tablet").member_keys) == 3
    lit = year.raid("tablet", "keys")
    assert lit.opened["side files"] == {"written-locked"}
    assert lit.opened["replicas"] >= {"first-steps", "from-the-tablet", "from-paul", "warm-in-here", "diary-one"}


async def july_a_phone_is_stolen(year):
    """The one of February, with its StoreKey readable and a lease that lives."""
    phone = year["phone"]
    known = year.shared | {"diary-one"}
    await year.close("tablet")
    stolen = year.copy("tablet")
    await phone.unlock(PASSWORD)
    await phone.revoke("tablet", stolen=True)
    old_kit, year.kit = year.kit, Kit(phone.recovery_kit(), MOTHER)
    await tell(phone.space("family"), "after-the-theft")
    await tell(phone.space("diary"), "diary-two")
    await phone.synced()
    new = {"after-the-theft", "diary-two"}

    # While the lease lives, the thief reads what was there, and with the whole operator's help nothing that came after.
    assert year.raid(stolen).secrets == known
    helped = year.raid(stolen, "server", "keys")
    assert helped.secrets == known
    assert helped.epochs_of(year.family) == helped.epochs_of(year.diary) == {1}
    assert helped.service_keys_of(year.family) == {1, 2}
    assert year.raid(stolen, "server", "keys", year.kit).secrets == known | new
    assert year.raid("server", "keys", old_kit).secrets & new == NOTHING
    # The lease ends, on the thief's own table.
    thief = await year.open_later("tablet", LEASE_HOURS + 1)
    with pytest.raises(LeaseExpiredError):
        await thief.space("family").collection("notes").get()
    await year.close("tablet")
    dark = year.copy("tablet")
    assert year.raid(dark).secrets == year.raid(dark, "server").secrets == NOTHING
    assert year.raid(dark, "keys").secrets == known
    # Nor does the file hold the records any more that the leases lay in, between those that are there.
    assert left_of(stolen, dark, "keyring/") == 0
    assert left_of(stolen, stolen, "keyring/") == 3
    # The server has no session for the device's keys, in no client. At the first contact everything goes.
    (device,) = year.raid(stolen).devices
    with pytest.raises(DeviceRevokedError):
        async with signed_in_by(device, year.server.url):
            pass
    with pytest.raises(DeviceRevokedError):
        await year.open("tablet", year.server.url)
    assert year.raid("tablet", "server", "keys").secrets == NOTHING
    assert not (year.profile("tablet") / "vault.db").exists()
    year.shared.add("after-the-theft")


async def september_the_partner_is_removed(year):
    phone, known = year["phone"], set(year.shared)
    family = phone.space("family")
    paul = year.programs["paul"]
    await paul.tell("synced")
    await year.reads_by_itself("paul", known)
    await paul.kill()
    kept = year.copy("paul")
    await family.remove(PARTNER)
    await tell(family, "without-paul")
    await phone.synced()

    # He keeps what he had read. A dishonest server and key service give him the keys up to his end, and none since.
    assert year.raid(kept).opened["replicas"] == known
    helped = year.raid(kept, "server", "keys")
    assert helped.secrets == known
    assert helped.epochs_of(year.family) == {1, 2}
    assert helped.service_keys_of(year.family) == {1, 2, 3}
    assert year.raid(kept, "server", "keys", "phone").epochs_of(year.family) == {1, 2, 3}
    assert "without-paul" in year.raid(kept, "server", "keys", "phone").opened["envelopes"]
    # What he still has the keys to seal, nobody takes.
    (device,) = year.raid(kept).devices
    change = next(each for each in helped.envelopes_of(year.family) if b"from-paul" in (helped.content_of(each) or b""))
    forged = forge(helped, year.family, device, helped.content_of(change).replace(b"from-paul", b"from-afar"))
    async with asyncio.timeout(10), signed_in_by(device, year.server.url) as wire:
        assert isinstance(await wire.push(bytes.fromhex(year.family), forged), Reject)
    # His phone reads the entry that removed him, and forgets the space.
    paul = await year.start_paul()
    await year.is_told_of_the_end(paul, "removed")
    await paul.kill()
    assert year.raid("paul").secrets == NOTHING
    assert left_of(kept, year.profile("paul"), f"keyring/{year.family}", f"keyring-row/{year.family}") == 0
    assert not (year.profile("paul") / "spaces" / year.family).exists()
    assert year.raid("paul", "server", "keys").epochs_of(year.family) <= {1, 2}
    year.shared.add("without-paul")


async def october_all_devices_are_lost(year):
    """The tablet was stolen in July, now the phone is gone too; what is left is a sheet of paper."""
    known = year.shared | {"diary-one", "diary-two"}
    await year.close("phone")
    lost = year.copy("phone")
    assert year.raid(lost).secrets == known
    assert year.raid("server", year.kit).secrets == NOTHING
    assert year.raid("server", "keys", year.kit).secrets == known

    options, profile = year.options("laptop"), year.profile("laptop")
    again = await twinlock.recover(year.server.url, MOTHER, year.kit.letters, NEW_PASSWORD, profile, options=options)
    laptop = year.keep("laptop", again)
    await laptop.synced()
    await hears(laptop.space("family"), "first-steps", "without-paul")
    await hears(laptop.space("diary"), "diary-one")
    await laptop.revoke("phone", stolen=True)
    old_kit, year.kit = year.kit, Kit(laptop.recovery_kit(), MOTHER)
    await tell(laptop.space("family"), "after-recovery")
    await laptop.synced()

    assert year.raid(lost, "server", "keys", old_kit).secrets == known
    assert year.raid(lost, "server", "keys").epochs_of(year.family) == {1, 2, 3}
    assert year.raid("server", "keys", year.kit).secrets == known | {"after-recovery"}
    await year.reads_by_itself("laptop", known | {"after-recovery"})
    year.shared.add("after-recovery")


async def november_the_diary_is_shredded(year):
    laptop = year["laptop"]
    pages = {"diary-one", "diary-two"}
    await (await year.open("kim")).synced()
    await hears(year["kim"].space("diary"), "diary-two")
    await year.close("kim")
    backup, before = year.copy("keys"), year.raid("keys", "server").service_keys_of(year.diary)
    (backup / "root.key").unlink()
    assert before == {1, 2, 3}
    await laptop.space("diary").shred()
    leased = year.copy("kim")

    # The key is gone from the key service, its deleted rows and its journal. A device that was away has its lease.
    assert year.raid("server", "keys").service_keys_of(year.diary) == set()
    assert year.raid(leased, "server", "keys").secrets & pages == pages
    away = await year.open_later("kim", LEASE_HOURS + 1)
    assert away.space("diary").locked
    await year.close("kim")
    dark = year.copy("kim")
    assert year.raid(dark, "laptop", "server", "keys").secrets & pages == NOTHING
    assert year.raid(dark, "laptop", "server", "keys").secrets >= year.shared
    # A backup of the key service, given to the one who also has the root key, opens what did not hear of it yet ...
    assert year.raid(dark, "keys", backup).secrets & pages == pages
    await a_restored_backup_gives_nothing(year, backup)
    # ... until that version of the root key is destroyed.
    await year.destroy_old_root_keys()
    assert year.raid(dark, "server", "keys", backup).secrets & pages == NOTHING
    assert year.raid(dark, "server", "keys", backup).service_keys_of(year.diary) == set()
    # The child comes home: its copy goes, and of the diary there is nothing anywhere.
    await (await year.open("kim")).synced()
    assert [str(end.reason) for end in year["kim"].ended_spaces()] == ["shredded"]
    assert left_of(dark, year.profile("kim"), f"keyring/{year.diary}", f"keyring-row/{year.diary}") == 0
    assert year.raid("kim", "laptop", "server", "keys", backup, year.kit).secrets == year.shared


def left_of(before, after, *records: str) -> int:
    """Count the records of an earlier copy of a device whose sealed bytes still lie in its file, in a table or not."""
    raw = (after / "vault.db").read_bytes()
    return sum(sealed in raw for name, sealed in vault_rows(before) if name.startswith(records))


async def a_restored_backup_gives_nothing(year, backup):
    """An honest operator brings the backup back: the deny list is applied before anything is answered."""
    restored = year.folder / "restored"
    shutil.copytree(backup, restored)
    for name in ("root.key", "denied.txt"):
        shutil.copy(year.keys.data / name, restored / name)
    assert year.raid("server", restored).service_keys_of(year.diary) == {1, 2, 3}
    await LocalKeyService.open(restored).close()
    assert year.raid("server", restored).service_keys_of(year.diary) == set()
    assert year.raid("server", restored).service_keys_of(year.family) == {1, 2, 3, 4}


async def december_everybody_who_stayed_reads_everything(year):
    texts = {f"secret:{secret}" for secret in year.shared}
    for name in ("laptop", "kim"):
        await year[name].synced()
        assert {doc["text"] for doc in await year[name].space("family").collection("notes").get()} == texts
        assert year[name].refused == {}
    members = {member.name: str(member.role) for member in await year["laptop"].space("family").members()}
    assert members == {MOTHER: "owner", CHILD: "reader", SENSOR: "sender"}
    assert year.raid("server", "keys").secrets == NOTHING
    assert year.raid("keys", "kim").opened["replicas"] == year.shared
    # The ledger tells of the shredding, and that nobody was given a key of the diary after it.
    events = ledger_events(year.copy("keys"), year.diary)
    denied = events.index("denied")
    assert "lease" in events[:denied]
    assert "lease" not in events[denied:]
