"""Who comes into a space and what that takes: invites, approval, keyring rows; over a real socket."""

import os

import pytest

from tests.membership_kit import (
    attach_refusal,
    lease,
    make_person,
    notice,
    open_invite,
    refusal,
    rotate,
    stored_rows,
)
from tests.server_kit import CallFailed, now_ms
from twinlock.ids import Epoch
from twinlock.protocol.calls import (
    AppendLog,
    KeyringRow,
    LogHead,
    ReadKeyring,
    ReadLog,
    ReadLogResult,
    Spaces,
    SpacesResult,
)
from twinlock.protocol.frames import LOG_GROWN
from twinlock.protocol.membership_calls import Join, OpenInvite
from twinlock.protocol.proofs import invite_open_message
from twinlock.protocol.space_log import Role
from twinlock.protocol.space_rules import replay_space
from twinlock.sealing.identity import AccountKeys
from twinlock.sealing.invites import InviteKeys, join_entry, uninvite_entry
from twinlock.sealing.space_entries import (
    member_entry,
    member_kem_entry,
)
from twinlock.sealing.space_keys import unwrap_member_key
from twinlock.server import Server, Settings
from twinlock.server.stores import open_stores

# Coming in


async def test_an_invite_opens_the_log_and_the_member_key_and_joining_leaves_an_own_row(house, ben):
    link = await house.invite(Role.EDITOR)
    wire = await ben.open()

    opened = await open_invite(house, ben, wire, link)
    keys = InviteKeys.of(link.space, link.secret)
    member_key = unwrap_member_key(opened.row.wrapped, keys.kem, link.space, Epoch(1), keys.id)
    await notice(house.wire, link.space, LOG_GROWN)
    await house.join(ben, wire, link)

    assert replay_space(opened.entries).seq == opened.seq == house.log.seq - 1
    assert member_key.expose() == house.keys.member_key.expose()
    row = await wire.call("space.keyring", ReadKeyring(link.space), KeyringRow)
    assert row.account == ben.account.account
    await notice(house.wire, link.space, LOG_GROWN)
    assert (await wire.attach(link.space)).log_seq == house.log.seq
    assert [grant.epoch for grant in (await lease(ben, wire, house, 1)).grants] == [1]
    assert (await wire.call("account.spaces", Spaces(), SpacesResult)).spaces == [link.space]
    await wire.call("account.log", ReadLog(house.owner.account.account), ReadLogResult)


@pytest.mark.parametrize("fault", ["withdrawn", "used up", "expired", "other secret", "other space", "other account"])
async def test_an_invite_that_is_not_open_says_no_more_than_that(server, house, ben, fault):
    link = await house.invite(Role.EDITOR, expires_ms=1 if fault == "expired" else now_ms() + 60_000)
    wire, account = await ben.open(), ben.account.account
    if fault == "withdrawn":
        await house.append(uninvite_entry(house.owner.account, house.log, link.invite))
    elif fault == "used up":
        other = await make_person(server)
        await house.join(other, await other.open(), link)
    elif fault == "other account":
        account = house.owner.account.account
    keys = InviteKeys.of(link.space, os.urandom(32) if fault == "other secret" else link.secret)
    space = os.urandom(16) if fault == "other space" else link.space
    proof = keys.sign.sign(invite_open_message(ben.server_id, space, link.invite, account))

    assert await refusal(wire, "invite.open", OpenInvite(space, link.invite, proof)) == "invite_refused"
    if fault in ("withdrawn", "used up", "expired", "other space"):
        join = Join(space, house.log.seq, join_entry(ben.account, house.log, keys), None)
        assert await refusal(wire, "space.join", join) == "invite_refused"


async def test_invites_are_opened_so_often_a_minute_and_not_more():
    stores = await open_stores(Settings(engine="memory:"))
    running = Server(Settings(engine="memory:", port=0, unlocker_tries_per_min=1), stores)
    await running.start()
    person = await make_person(running)
    wire = await person.open()

    codes = [await refusal(wire, "invite.open", OpenInvite(os.urandom(16), b"", b"")) for _ in range(11)]

    await running.stop()
    assert codes == ["invite_refused"] * 10 + ["rate_limited"]


async def test_a_join_comes_by_its_own_call_from_its_own_account_and_with_its_row(server, house, ben):
    link = await house.invite(Role.EDITOR)
    keys, wire = InviteKeys.of(link.space, link.secret), await ben.open()
    entry, other = join_entry(ben.account, house.log, keys), await make_person(server)
    row = house.row(ben.account.account, ben.account.kem_pk)
    foreign = KeyringRow(house.owner.account.account, row.epoch, row.wrapped)

    for broken in (None, foreign, KeyringRow(row.account, Epoch(2), row.wrapped)):
        assert await refusal(wire, "space.join", Join(link.space, house.log.seq, entry, broken)) == "invalid_call"
    assert (
        await refusal(await other.open(), "space.join", Join(link.space, house.log.seq, entry, row)) == "role_forbids"
    )
    params = AppendLog(link.space, house.log.seq, [entry])
    assert await refusal(house.wire, "space.append", params) == "invalid_call"
    assert await refusal(wire, "space.append", params) == "unknown_space"
    params = Join(link.space, house.log.seq, entry, row)
    assert await wire.call("space.join", params, LogHead) == await wire.call("space.join", params, LogHead)


async def test_who_waits_for_approval_reads_the_log_and_nothing_else_until_it_comes(house, ben):
    wire = await house.admit(ben, Role.READER, needs_approval=True)
    account = ben.account.account

    assert await attach_refusal(wire, house.space) == "approval_pending"
    assert (await lease(ben, wire, house, 1)).code == "approval_pending"
    assert await refusal(wire, "space.keyring", ReadKeyring(house.space)) == "approval_pending"
    assert (await wire.call("space.log", ReadLog(house.space), ReadLogResult)).seq == house.log.seq
    await notice(wire, house.space, LOG_GROWN)
    await house.wire.call("account.log", ReadLog(account), ReadLogResult)
    keys = ben.account
    entry = member_entry(house.owner.account, house.log, keys.sign_pk, keys.kem_pk, account, Role.READER)
    await house.append(entry, rows=[house.row(account, keys.kem_pk)])

    await notice(wire, house.space, LOG_GROWN)
    await wire.attach(house.space)
    assert (await wire.call("space.keyring", ReadKeyring(house.space), KeyringRow)).epoch == 1


async def test_who_is_looked_at_first_gets_no_key_before(server, house, ben):
    """Whoever was turned away or removed still knows the link: it must not lead to the keys of new epochs."""
    link, wire = await house.invite(Role.READER, needs_approval=True, uses=2), await ben.open()
    keys = ben.account
    entry = join_entry(keys, house.log, InviteKeys.of(house.space, link.secret))

    assert (await open_invite(house, ben, wire, link)).row is None
    row = house.row(keys.account, keys.kem_pk)
    assert await refusal(wire, "space.join", Join(house.space, house.log.seq, entry, row)) == "invalid_call"
    await house.join(ben, wire, link)
    await house.remove(keys.account)
    other = await make_person(server)
    assert (await open_invite(house, other, await other.open(), link)).row is None


async def test_an_applicant_is_let_in_with_a_row_only(house, ben):
    await house.admit(ben, Role.READER, needs_approval=True)
    await rotate(house)
    keys, account = ben.account, ben.account.account
    entry = member_entry(house.owner.account, house.log, keys.sign_pk, keys.kem_pk, account, Role.READER)

    params = AppendLog(house.space, house.log.seq, [entry])
    assert await refusal(house.wire, "space.append", params) == "invalid_call"
    await house.append(entry, rows=[house.row(account, keys.kem_pk)])


# Rows


async def test_a_new_epoch_brings_a_row_for_everybody_who_reads_and_for_nobody_else(server, stores, house, ben):
    await house.admit(ben)
    sender = await make_person(server)
    await house.admit(sender, Role.SENDER)
    link, account = await house.invite(Role.READER), ben.account.account

    for missing in (account, link.invite, house.owner.account.account):
        keys = house.keys
        with pytest.raises(CallFailed, match="invalid_call"):
            await rotate(house, leave_out=(missing,))
        house.keys = keys
    await rotate(house)

    row = await (await ben.open()).call("space.keyring", ReadKeyring(house.space), KeyringRow)
    assert (row.epoch, row.account) == (2, account)
    other = await make_person(server)
    opened = await open_invite(house, other, await other.open(), link, house.log.seq)
    assert (opened.entries, opened.row.epoch) == ([], 2)
    holders = (account, link.invite, house.owner.account.account)
    assert await stored_rows(stores, house) == {f"00000002/{name.hex()}" for name in holders}


async def test_only_owners_and_admins_store_the_rows_of_others(server, house, ben):
    wire, other = await house.admit(ben), await make_person(server)
    await house.admit(other)
    foreign = house.row(other.account.account, other.account.kem_pk)
    fresh = AccountKeys(ben.account.sign.private_bytes_raw() + os.urandom(32))
    own = house.row(fresh.account, fresh.kem_pk)

    for rows, is_taken in (([own, foreign], False), ([], False), ([own], True)):
        params = AppendLog(house.space, house.log.seq, [member_kem_entry(fresh, house.log)], rows)
        if is_taken:
            await wire.call("space.append", params, LogHead)
        else:
            assert await refusal(wire, "space.append", params) == "invalid_call"


async def test_an_account_appends_only_what_it_signed(house, ben):
    wire = await house.admit(ben)
    entry = uninvite_entry(house.owner.account, house.log, b"x" * 16)

    assert await refusal(wire, "space.append", AppendLog(house.space, house.log.seq, [entry])) == "role_forbids"
    lost = AppendLog(house.space, house.log.seq, [entry], is_lost=True)
    assert await refusal(wire, "space.append", lost) == "log_conflict"
