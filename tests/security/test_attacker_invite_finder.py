"""Somebody who finds an invite link that was not used: they get its role, and no way to more."""

import os

import pytest

from tests.client_kit import until
from tests.security.attackers import (
    FAMILY,
    SECRET,
    Between,
    Hand,
    log_that_says,
    records,
    signed_log,
    texts,
)
from tests.security.raid import stored, windows
from twinlock.errors import (
    ApprovalPendingError,
    InvalidCallError,
    InviteError,
    LogConflictError,
    LogForkError,
    LogInvalidError,
    RoleError,
    SignatureError,
    TwinlockError,
)
from twinlock.ids import Epoch
from twinlock.protocol.calls import AppendLog, KeyringRow, LogHead, ReadKeyring
from twinlock.protocol.membership_calls import Join, OpenInvite, OpenInviteResult
from twinlock.protocol.space_log import Role
from twinlock.protocol.space_rules import replay_space
from twinlock.sealing import AccountKeys, member_entry
from twinlock.sealing.invites import InviteKeys, InviteTerms, invite_entry, invite_proof, join_entry, parse_link
from twinlock.sealing.space_keys import wrap_bare

OTHER = "garden"
"""A space of ann's of which nobody is a member yet."""


class Find:
    """A link and the account of its finder: cleo, who is no member of the garden."""

    def __init__(self, world, ann, cleo, link) -> None:
        self.world, self.ann, self.cleo = world, ann, cleo
        self.garden = ann.space(OTHER)
        self.link = parse_link(link)
        self.text = link
        self.keys = InviteKeys.of(self.link.space, self.link.secret)
        self.account = AccountKeys((world.folder / "cleo.keys").read_bytes())

    async def open(self, account=None) -> OpenInviteResult:
        """Show the secret, with a client of one's own making."""
        account = account or self.account.account
        proof = invite_proof(self.keys, self.cleo._context.state.home.server_id, self.link.space, account)
        request = OpenInvite(self.link.space, self.link.invite, proof)
        return await self.cleo._connection.call("invite.open", request, OpenInviteResult)

    async def join(self, log, row=None) -> None:
        """Join without any check of one's own."""
        request = Join(self.link.space, log.seq, join_entry(self.account, log, self.keys), row)
        await self.cleo._connection.call("space.join", request, LogHead)

    def log(self):
        """The garden's log as it is now."""
        return replay_space(signed_log(self.world, self.link.space))


@pytest.fixture
async def found(household):
    """Return what makes a link of some terms and lets cleo find it."""
    ann, cleo = await household.unlocked("a"), await household.unlocked("cleo")
    garden = await ann.create_space(OTHER)
    await (await garden.collection("notes").doc("shed").set({"text": SECRET})).durable()

    async def find(role="reader", **terms):
        return Find(household, ann, cleo, await garden.invite(role, **terms))

    return find


async def test_the_finder_of_an_unused_link_gets_its_role_and_sees_who_is_there_and_no_more(found):
    find = await found("reader")
    garden = await find.cleo.join(find.text)
    # What they get: the role of the link, and who is in the space.
    assert await texts(find.cleo, OTHER) == {"shed": SECRET}
    assert {member.name: member.role for member in await garden.members()} == {"ann": "owner", "cleo": "reader"}

    # What they do not get: any right beyond it, by their own signature or by that of the link.
    log, keys = find.log(), find.account
    as_the_link = AccountKeys(find.keys.expose())
    other = InviteKeys.of(find.link.space, os.urandom(32))
    forged = [
        member_entry(keys, log, keys.sign_pk, keys.kem_pk, keys.account, Role.ADMIN),
        member_entry(as_the_link, log, keys.sign_pk, keys.kem_pk, keys.account, Role.ADMIN),
        invite_entry(keys, log, other, InviteTerms(Role.EDITOR, 1 << 45)),
        join_entry(keys, log, find.keys),
    ]
    for entry in forged:
        request = AppendLog(find.link.space, log.seq, [entry])
        with pytest.raises(TwinlockError):
            await find.cleo._connection.call("space.append", request, LogHead)
        between = Between()
        log_that_says(between, find.link.space, signed_log(find.world, find.link.space), [entry])
        await find.ann.close()
        ann = await find.world.device("a", dial=between.dial)
        with pytest.raises((LogForkError, LogInvalidError, RoleError, SignatureError, InviteError)):
            await ann.space(OTHER).members()
        assert ann.space(OTHER)._handle.runtime.keyring.log.role_of(keys.account) is Role.READER
        await ann.close()
    with pytest.raises(RoleError):
        await (await garden.collection("notes").doc("mine").set({"text": "x"})).durable()


@pytest.mark.parametrize("fate", ["withdrawn", "expired", "used up"])
async def test_a_link_that_is_not_open_any_more_gives_nothing(found, fate):
    find = await found("editor", hours=-1 if fate == "expired" else 72)
    before = find.log()
    if fate == "withdrawn":
        await find.garden.uninvite(find.text)
    if fate == "used up":
        ben = await find.world.unlocked("ben")
        await ben.join(find.text)

    with pytest.raises(InviteError):
        await find.cleo.join(find.text)
    # Nor with a client that checks nothing: not the log, not the key, not the space.
    with pytest.raises(InviteError):
        await find.open()
    a = find.garden._handle.runtime.keyring.member_key(Epoch(1))
    row = KeyringRow(
        find.account.account,
        Epoch(1),
        wrap_bare(a, find.link.space, Epoch(1), find.account.account, find.account.kem_pk),
    )
    for log in (before, find.log()):
        for own_row in (row, None):
            with pytest.raises((InviteError, InvalidCallError, LogConflictError, LogInvalidError)):
                await find.join(log, own_row)
    assert find.account.account not in find.log().members
    assert OTHER not in [info.title for info in find.cleo.spaces()]


async def test_with_approval_nothing_is_given_before_it(found):
    """The finder has applied: with the link's keys, their own, and all that the server answers, nothing opens."""
    find = await found("editor", approve=True)
    with pytest.raises(ApprovalPendingError):
        await find.cleo.join(find.text)
    hand_keys = find.garden._handle.runtime.keyring.newest_keys()
    wanted = {"A": hand_keys.member_key.expose(), "B": hand_keys.service_key.expose()}

    rows = records(find.world, f"keyring/{find.link.space.hex()}/")
    assert len(rows) == 1, "ann's own: nothing is wrapped to the invite, or to the applicant"
    hand = Hand(find.cleo)
    hand.space = find.link.space
    async with hand.wire(find.world.url) as wire:
        with pytest.raises(ApprovalPendingError):
            await wire.call("space.keyring", ReadKeyring(find.link.space), KeyringRow)
        with pytest.raises(TwinlockError) as refused:
            await wire.lease(hand.lease_request(1))
        assert refused.value.code in ("approval_pending", "lease_refused")
        with pytest.raises(ApprovalPendingError):
            await wire.attach(find.link.space)
    there = windows(stored(find.world.folder / "cleo"))
    assert [name for name, key in wanted.items() if key in there] == []

    # The control: once ann has let them in, both are there.
    await find.garden.approve("cleo")
    await until(lambda: OTHER in [info.title for info in find.cleo.spaces()])
    assert await texts(find.cleo, OTHER) == {"shed": SECRET}


async def test_a_proof_that_somebody_else_made_opens_no_link(found):
    """Who only heard the link being used, and has neither its secret nor that account's session."""
    find = await found("reader")
    proof = invite_proof(find.keys, find.cleo._context.state.home.server_id, find.link.space, find.account.account)
    ben = await find.world.unlocked("ben")
    for account, server in ((find.account.account, None), (bytes.fromhex(ben.account), os.urandom(32))):
        used = proof if server is None else invite_proof(find.keys, server, find.link.space, account)
        request = OpenInvite(find.link.space, find.link.invite, used)
        with pytest.raises((InviteError, SignatureError)):
            await ben._connection.call("invite.open", request, OpenInviteResult)
    assert FAMILY in [info.title for info in ben.spaces()]
