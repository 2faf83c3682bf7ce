"""Who gets keys after a membership has changed: the part of the key service's contract that guards rotation."""

from __future__ import annotations

import os

import pytest

from twinlock.contracts.keys import KeyService
from twinlock.errors import LeaseRefusedError, LogInvalidError
from twinlock.protocol.space_log import Role
from twinlock.sealing.space_entries import NextEpoch, remove_entry
from twinlock.sealing.space_keys import EpochKeys
from twinlock.testing.contracts.key_requests import lease, opened, registered


class MembershipContract:
    """Who gets keys after the membership has changed."""

    async def test_a_removed_member_gets_none_and_the_others_get_the_new_epoch(self, keys: KeyService) -> None:
        """The entry that removes opens the epoch; no earlier epoch is left to the removed one either."""
        space, removed, reader = await opened(keys), await registered(keys), await registered(keys)
        await space.admit(keys, removed, Role.EDITOR)
        await space.admit(keys, reader, Role.READER)
        assert len((await lease(keys, removed, space.id, 1)).grants) == 1

        await space.remove(keys, removed)

        for epochs in ((1,), (2,), (1, 2)):
            with pytest.raises(LeaseRefusedError):
                await lease(keys, removed, space.id, *epochs)
        for person in (space.owner, reader):
            assert len((await lease(keys, person, space.id, 1, 2)).grants) == 2

    async def test_a_removal_needs_a_key_that_was_made_here(self, keys: KeyService) -> None:
        """Like any epoch; without it nobody is removed."""
        space, member = await opened(keys), await registered(keys)
        await space.admit(keys, member, Role.EDITOR)
        own, _ = await space.pend(keys)
        made_up = EpochKeys(space.id, own.epoch, own.member_key, type(own.service_key)(os.urandom(32)))
        following = NextEpoch(made_up, space.epochs[1].member_key, os.urandom)
        entry = remove_entry(space.owner.keys, space.state, member.keys.account, {}, following)

        with pytest.raises(LogInvalidError):
            await space.append(keys, entry)
        assert len((await lease(keys, member, space.id, 1)).grants) == 1

    async def test_a_member_that_left_gets_none(self, keys: KeyService) -> None:
        """At once, though no new epoch was opened yet; an admin among them opens none either."""
        space, reader, admin = await opened(keys), await registered(keys), await registered(keys)
        for person, role in ((reader, Role.READER), (admin, Role.ADMIN)):
            await space.admit(keys, person, role)
            await space.let_go(keys, person)

        for person in (reader, admin):
            with pytest.raises(LeaseRefusedError):
                await lease(keys, person, space.id, 1)
        with pytest.raises(LeaseRefusedError):
            await keys.create_pending(admin.asking(), admin.pending_request(space.id, 2))

    async def test_an_applicant_gets_none_until_it_is_let_in(self, keys: KeyService) -> None:
        """Whoever joins by an invite without approval gets keys at once."""
        space, applicant, joiner = await opened(keys), await registered(keys), await registered(keys)
        await space.join(keys, joiner, await space.invite(keys))
        await space.join(keys, applicant, await space.invite(keys, needs_approval=True))

        assert len((await lease(keys, joiner, space.id, 1)).grants) == 1
        with pytest.raises(LeaseRefusedError):
            await lease(keys, applicant, space.id, 1)
        await space.admit(keys, applicant, Role.READER)
        assert len((await lease(keys, applicant, space.id, 1)).grants) == 1

    async def test_a_shredded_space_gives_no_key_to_anybody(self, keys: KeyService) -> None:
        """From the append on; its log stays, other spaces go on, and the append may be repeated."""
        space, reader, other = await opened(keys, 2), await registered(keys), await opened(keys)
        await space.admit(keys, reader, Role.READER)
        await space.pend(keys)

        await space.shred(keys)

        for person in (space.owner, reader):
            with pytest.raises(LeaseRefusedError):
                await lease(keys, person, space.id, 1)
        with pytest.raises(LeaseRefusedError):
            await space.pend(keys)
        head = await keys.append_log(space.log, len(space.entries) - 1, space.entries[-1:])
        assert head.seq == len(space.entries)
        assert await keys.read_log(space.log, 0) == space.entries
        assert len((await lease(keys, other.owner, other.id, 1)).grants) == 1
