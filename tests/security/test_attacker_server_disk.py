"""Somebody has the server's disk, its database, or a backup of it, from days on which everything happened."""

import pytest

import twinlock
from tests.client_kit import until
from tests.security.attackers import (
    FAMILY,
    SECRET,
    Hand,
    copied,
    delivered,
    found_in,
    put_record,
    records,
    service_keys,
    signed_log,
    texts,
)
from tests.security.raid import database_values, stored, windows
from twinlock.client import pairing
from twinlock.ids import Epoch
from twinlock.protocol.account_log import replay_account
from twinlock.protocol.proofs import b_commit
from twinlock.protocol.space_rules import replay_space
from twinlock.sealing import RecoveryKit
from twinlock.sealing.invites import InviteKeys, parse_link


@pytest.fixture
async def lived_in(household, monkeypatch):
    """Invites are open, a pairing stands approved, a device was stolen, keys were rotated: then all of it is copied."""
    monkeypatch.setattr(pairing, "POLL_INTERVAL_S", 0.02)
    ann, ben, b = await household.unlocked("a"), await household.unlocked("ben"), await household.device("b")
    assert (await texts(ann))["shed"] == SECRET
    await until(lambda: any(info.title == FAMILY for info in b.spaces()))
    await ben.rename_device("ben's own telephone")
    stolen = next(info.id for info in await b.devices() if info.this)
    await b.close()
    before = Hand(ann)
    await ann.revoke(stolen, stolen=True)
    request = await twinlock.pair_device(household.url, household.folder / "new")
    await ann.pair_device(request.code)
    link = parse_link(await ann.space(FAMILY).invite("editor"))
    await ann.synced()
    await until(lambda: ann.space(FAMILY)._handle.runtime.keyring.log.epoch == 2)
    await until(lambda: ann.space(FAMILY)._handle.runtime.keyring.keys(Epoch(2)) is not None)
    secrets = {f"{name} before": secret for name, secret in before.secrets().items()}
    secrets |= {f"{name} after": secret for name, secret in Hand(ann).secrets().items()}
    secrets |= {f"ben's {name}": secret for name, secret in Hand(ben).secrets().items()}
    keys = InviteKeys.of(link.space, link.secret)
    secrets |= {"link": link.secret, "link's sign": keys.expose()[:32], "link's kem": keys.expose()[32:]}
    secrets |= {"account_sign": (household.folder / "ann.keys").read_bytes()[:32]}
    new = request._new.device_keys.expose()
    secrets |= {"new device_sign": new[:32], "new device_kem": new[32:]}
    kits = [RecoveryKit.parse(household.kit).expose(), RecoveryKit.parse(ann.recovery_kit()).expose()]
    space = Hand(ann).space
    copied(household.folder / "server", household.folder / "backup")
    await request.reject()
    return household, space, secrets, kits


async def test_whoever_has_the_servers_disk_gets_metadata_and_wrapped_keys_and_no_data(lived_in):
    world, space, secrets, kits = lived_in
    backup = world.folder / "backup"
    # What they get: who is in which space with which role, how much was written when, and B as it is wrapped.
    log = replay_space(signed_log(world, space))
    assert sorted(member.role for member in log.members.values()) == ["editor", "owner", "reader"]
    accounts = [replay_account(signed_log(world, account)) for account in log.members]
    assert sorted(len(state.devices) for state in accounts) == [1, 1, 2]
    values = stored(backup)
    assert any(b"cleo" in value for value in values), "names of accounts"
    assert len(delivered(world, space)) >= 2
    wrapped = set(database_values(backup / "keyservice" / "keyservice.db"))
    assert len(wrapped) > 50

    # What they do not get: a single key of anybody, an invite's or a kit's secret, or a word; nor B, without the root
    # key, which lies in no backup of the database.
    (backup / "keyservice" / "root.key").unlink()
    assert found_in(backup, secrets) == []
    everything = b"".join(stored(backup))
    assert not any(kit in everything for kit in kits)
    for word in (SECRET, FAMILY, "ben's own telephone"):
        assert word.encode() not in everything
    candidates = windows(stored(backup))
    commits = {number: record.b_commit for number, record in log.epochs.items()}
    assert len(candidates) > 10_000
    assert not any(b_commit(space, n, key) == commits[n] for key in candidates for n in (Epoch(2),))


async def test_with_the_root_key_beside_it_the_disk_gives_b_and_still_no_data(lived_in):
    world, space, secrets, _ = lived_in
    keys = service_keys(world, space)

    assert {keys[Epoch(1)], keys[Epoch(2)]} == {secrets["B_1 after"], secrets["B_2 after"]}
    assert found_in(world.folder / "backup", {n: s for n, s in secrets.items() if "B_" not in n}) == []


async def test_a_key_that_had_leaked_to_the_disk_would_be_found(lived_in):
    """The control: one key in one record of the server's database."""
    world, _, secrets, _ = lived_in
    await world.stop()
    key = next(iter(records(world, "names/") or records(world, "")))
    put_record(world, key, b"prefix" + secrets["A_2 after"] + b"suffix")

    assert found_in(world.folder / "server", secrets) == ["A_2 after", "ben's A_2"], "the same key in two hands"
