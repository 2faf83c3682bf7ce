"""Somebody who photographed a pairing code, copied a key file, or carried off a backup of the key service."""

import json

import pytest

import twinlock
from tests.client_kit import until
from tests.security.attackers import (
    SECRET,
    Hand,
    copied,
    found_in,
    service_keys,
    texts,
)
from tests.security.raid import stored, windows
from twinlock.client import pairing
from twinlock.errors import KeyFileError, LastOwnerError, RoleError, StoreError
from twinlock.ids import Epoch
from twinlock.keyservice.service import LocalKeyService
from twinlock.protocol.proofs import b_commit

PLACE = "workshop"


@pytest.fixture(autouse=True)
def quick_polls(monkeypatch):
    """A person does not notice half a second; a test does."""
    monkeypatch.setattr(pairing, "POLL_INTERVAL_S", 0.02)


async def test_whoever_photographs_a_pairing_code_gets_a_chance_and_other_digits_and_no_keys(household):
    """Cleo saw the code on ann's new device, and is quicker."""
    ann, cleo = await household.unlocked("a"), await household.unlocked("cleo")
    request = await twinlock.pair_device(household.url, household.folder / "new")
    photograph = request.qr
    secrets = Hand(ann, "home").secrets()

    # What she gets: the device would come into her account; but it says whose, and the digits are hers alone.
    digits = await cleo.pair_device(photograph)
    approval = await request.approved()
    assert (approval.name, approval.digits) == ("cleo", digits)
    assert len(await cleo.devices()) == 2
    await request.reject()

    # What she does not get: anything of ann's account, by the code or by what lies on the device that was rejected.
    assert len(await ann.devices()) == 2
    assert not (household.folder / "new").exists()
    assert found_in(household.folder / "cleo", secrets) == []
    # Once more: now ann is first, and the digits are the same on both sides.
    again = await twinlock.pair_device(household.url, household.folder / "again")
    assert await ann.pair_device(again.code) == (await again.approved()).digits
    await again.reject()


async def test_whoever_copies_a_key_file_is_that_account_in_its_role_and_no_other(household):
    """A worker is an editor of one space of ann's; its key file is copied from the machine that it runs on."""
    ann = await household.unlocked("a")
    place = await ann.create_space(PLACE)
    await twinlock.create_service_account(household.url, "worker", household.folder / "worker.json")
    async with await twinlock.connect(
        key_file=household.folder / "worker.json", profile=household.folder / "worker"
    ) as worker:
        await worker.join(await place.invite("editor"))
        await (await place.collection("notes").doc("shed").set({"text": SECRET})).durable()
    stolen = household.folder / "stolen.json"
    stolen.write_bytes((household.folder / "worker.json").read_bytes())
    with pytest.raises(KeyFileError):
        await twinlock.connect(key_file=stolen, profile=household.folder / "mine")
    stolen.chmod(0o600)

    # What they get: the account, on a device of their own, with its role.
    async with await twinlock.connect(key_file=stolen, profile=household.folder / "mine") as thief:
        await until(lambda: any(info.title == PLACE for info in thief.spaces()))
        assert await texts(thief, PLACE) == {"shed": SECRET}
        assert (thief.name, [info.title for info in thief.spaces()]) == ("worker", [PLACE])

        # What they do not get: other spaces of those who invited it, or rights that the role has not.
        there = thief.space(PLACE)
        for refused in (there.invite("reader"), there.remove("ann"), there.set_role("ann", "reader"), there.shred()):
            with pytest.raises((RoleError, LastOwnerError)):
                await refused
        assert found_in(household.folder / "mine", Hand(ann).secrets()) == []
        assert json.loads(stolen.read_bytes())["name"] == "worker"
        await place.remove("worker")
        await until(lambda: thief.spaces() == [])


async def test_whoever_has_a_backup_of_the_key_service_has_wrapped_keys_and_no_b(household):
    ann = await household.device("a")
    hand = Hand(ann)
    backup = copied(household.folder / "server" / "keyservice", household.folder / "backup")
    (backup / "root.key").unlink()
    b = service_keys(household, hand.space)[Epoch(1)]
    commit = hand.log.epochs[Epoch(1)].b_commit

    candidates = windows(stored(backup))

    # What they get: the signed logs, and each B as it is wrapped, which is not B.
    assert any(hand.log.members[hand.account].sign_pk in value for value in stored(backup))
    assert b not in candidates
    assert len(candidates) > 2_000
    assert not any(b_commit(hand.space, Epoch(1), key) == commit for key in candidates)
    # The key service itself makes no other root key for it.
    (backup / "keyservice.db.lock").unlink(missing_ok=True)
    with pytest.raises(StoreError):
        LocalKeyService.open(backup)
