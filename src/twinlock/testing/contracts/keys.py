"""What every key service must do. Subclass with a fixture `keys`: an empty one."""

from __future__ import annotations

import asyncio
import os

import msgspec
import pytest

from twinlock.contracts.keys import KeyService
from twinlock.errors import (
    ChallengeError,
    ClockSkewError,
    InvalidCallError,
    LeaseRefusedError,
    LimitExceededError,
    LogConflictError,
    LogInvalidError,
    OpenError,
    SignatureError,
    UpdateNeededError,
)
from twinlock.ids import Epoch, Incarnation, LogId, SpaceId
from twinlock.protocol.calls import SignedEntry
from twinlock.protocol.frames import Leases
from twinlock.protocol.limits import LEASE_EPOCHS_MAX, LEASE_REQUEST_SKEW_MS_MAX, LOG_PAGE_ENTRIES_MAX
from twinlock.protocol.signed_log import encode_body
from twinlock.protocol.space_log import Role
from twinlock.sealing.identity import DeviceKeys, device_entry, sign_entry
from twinlock.sealing.space_entries import config_lease_entry
from twinlock.sealing.space_keys import EpochKeys
from twinlock.testing.contracts.key_requests import lease, opened, registered
from twinlock.testing.contracts.keys_of_members import MembershipContract
from twinlock.testing.contracts.members import INCARNATION, NOW_MS, OwnedSpace, Person, asking_as

HOUR_MS = 3_600_000


class SignedLogContract:
    """The authority over signed logs."""

    async def test_a_log_is_read_back_as_it_was_appended(self, keys: KeyService) -> None:
        """The exact bytes, from any entry on; a log that nobody appended to is empty."""
        person = Person()
        head = await keys.append_log(LogId(person.keys.account), 0, person.entries)

        assert (head.seq, head.head) == (2, person.state.head)
        assert await keys.read_log(LogId(person.keys.account), 0) == person.entries
        assert await keys.read_log(LogId(person.keys.account), 1) == person.entries[1:]
        assert await keys.read_log(LogId(person.keys.account), 2) == []
        assert await keys.read_log(LogId(os.urandom(16)), 0) == []

    async def test_who_took_a_turn_later_keeps_the_earlier_one_from_appending(self, keys: KeyService) -> None:
        """Nothing is stored of what came too late; an append without a turn, and other logs, are nobody's concern."""
        person, other = await registered(keys), await registered(keys)
        log = LogId(person.keys.account)
        stalled = await keys.take_turn(log)
        await keys.append_log(log, 2, [], stalled)
        turn = await keys.take_turn(log)
        elsewhere = await keys.take_turn(LogId(other.keys.account))
        person.certify(DeviceKeys.make(os.urandom))

        for late in (stalled, elsewhere, turn + 1_000):
            with pytest.raises(LogConflictError):
                await keys.append_log(log, 2, person.entries[2:], late)
        assert await keys.read_log(log, 2) == []

        assert (await keys.append_log(log, 2, person.entries[2:], turn)).seq == 3
        assert (await keys.append_log(log, 3, [], 0)).seq == 3

    async def test_a_log_grows_by_what_is_new(self, keys: KeyService) -> None:
        """What is already there may come along or be repeated."""
        person = await registered(keys)
        log = LogId(person.keys.account)
        person.certify(DeviceKeys.make(os.urandom))

        assert (await keys.append_log(log, 1, person.entries[1:])).seq == 3
        assert (await keys.append_log(log, 0, person.entries[:1])).seq == 3
        assert (await keys.append_log(log, 3, [])).seq == 3
        assert await keys.read_log(log, 0) == person.entries

    async def test_another_entry_in_the_same_place_is_a_conflict(self, keys: KeyService) -> None:
        """Also when it is well signed; the log never becomes shorter or different."""
        person = await registered(keys)
        log = LogId(person.keys.account)
        device = DeviceKeys.make(os.urandom)
        other = device_entry(person.keys, person.state, device.sign_pk, device.kem_pk)
        person.certify(DeviceKeys.make(os.urandom))
        await person.register(keys)

        with pytest.raises(LogConflictError):
            await keys.append_log(log, 2, [other])
        with pytest.raises(LogConflictError):
            await keys.append_log(log, 4, [other])
        assert await keys.read_log(log, 0) == person.entries

    async def test_an_entry_that_breaks_a_rule_is_refused_with_all_that_came_along(self, keys: KeyService) -> None:
        """A forged signature, an unknown type, a foreign id, no genesis."""
        person, other = await registered(keys), Person()
        log, good = LogId(person.keys.account), person.certify(DeviceKeys.make(os.urandom))
        forged = SignedEntry(good.body, bytes(64))
        unknown = sign_entry(person.keys, log, person.state.position, encode_body("wish", {}))

        with pytest.raises(SignatureError):
            await keys.append_log(log, 2, [forged])
        with pytest.raises(UpdateNeededError):
            await keys.append_log(log, 2, [good, unknown])
        with pytest.raises(LogInvalidError):
            await keys.append_log(LogId(os.urandom(16)), 0, OwnedSpace(other).entries)
        with pytest.raises((LogInvalidError, SignatureError)):
            await keys.append_log(LogId(os.urandom(16)), 0, other.entries)
        with pytest.raises(LogInvalidError):
            await keys.append_log(LogId(os.urandom(16)), 0, [])
        with pytest.raises(LogInvalidError):
            await keys.append_log(LogId(other.keys.account), 0, other.entries[1:])
        assert len(await keys.read_log(log, 0)) == 2

    async def test_limit_of_entries_at_once(self, keys: KeyService) -> None:
        """The last number that is taken, and the first that is not."""
        person = Person()
        while len(person.entries) <= LOG_PAGE_ENTRIES_MAX:
            person.certify(DeviceKeys.make(os.urandom))
        log = LogId(person.keys.account)

        with pytest.raises(LimitExceededError):
            await keys.append_log(log, 0, person.entries)
        assert (await keys.append_log(log, 0, person.entries[:-1])).seq == LOG_PAGE_ENTRIES_MAX


class PendingContract:
    """Service keys of coming epochs."""

    async def test_a_pending_key_opens_an_epoch(self, keys: KeyService) -> None:
        """It comes sealed to the device that asked, and is what its commitment says."""
        space = OwnedSpace(await registered(keys))
        epoch_keys, result = await space.pend(keys)
        assert epoch_keys.b_commit == result.b_commit

        space.entries.append(space.epoch_entry(epoch_keys))
        head = await keys.append_log(space.log, 0, space.entries)

        assert (head.seq, head.head) == (2, space.state.head)

    async def test_every_request_gets_a_fresh_key(self, keys: KeyService) -> None:
        """Any of them may be taken up, the others are gone then."""
        space = OwnedSpace(await registered(keys))
        pending = [(await space.pend(keys))[0] for _ in range(3)]
        assert len({epoch_keys.b_commit for epoch_keys in pending}) == 3
        chosen, left = pending[1], pending[2]

        space.entries.append(space.epoch_entry(chosen))
        await keys.append_log(space.log, 0, space.entries)
        space.epochs[1] = chosen
        stale = EpochKeys(space.id, Epoch(2), left.member_key, left.service_key)

        with pytest.raises(LogInvalidError):
            await keys.append_log(space.log, 2, [space.epoch_entry(stale)])

    async def test_an_epoch_needs_a_key_that_was_made_here(self, keys: KeyService) -> None:
        """A commitment of the signer's own making is refused; the genesis that came along is not stored either."""
        space, elsewhere = OwnedSpace(await registered(keys)), OwnedSpace(Person())
        own, _ = await space.pend(keys)
        made_up = EpochKeys(space.id, Epoch(1), own.member_key, type(own.service_key)(os.urandom(32)))

        with pytest.raises(LogInvalidError):
            await keys.append_log(space.log, 0, [*space.entries, space.epoch_entry(made_up)])
        assert await keys.read_log(space.log, 0) == []
        assert elsewhere.id != space.id

    async def test_an_epoch_needs_its_signers_own_candidate(self, keys: KeyService) -> None:
        """Another admin's is not taken."""
        space, admin = await opened(keys), await registered(keys)
        await space.admit(keys, admin, Role.ADMIN)
        owners, _ = await space.pend(keys)

        with pytest.raises(LogInvalidError):
            await keys.append_log(space.log, len(space.entries), [space.epoch_entry(owners, signer=admin)])
        await keys.append_log(space.log, len(space.entries), [space.epoch_entry(owners)])

    async def test_only_owners_and_admins_get_one(self, keys: KeyService) -> None:
        """Of the space's present members; for a new space, its owner."""
        space = await opened(keys)
        for role in (Role.ADMIN, Role.EDITOR, Role.READER, Role.SENDER, None):
            person = await registered(keys)
            if role is not None:
                await space.admit(keys, person, role)
            request = person.pending_request(space.id, 2)
            work = keys.create_pending(person.asking(), request)
            if role is Role.ADMIN:
                await work
            else:
                with pytest.raises(LeaseRefusedError):
                    await work
        stranger, coming = await registered(keys), OwnedSpace(space.owner)
        request = stranger.pending_request(coming.id, 1, coming.entries[0])
        with pytest.raises(LeaseRefusedError):
            await keys.create_pending(stranger.asking(), request)

    async def test_only_the_next_epoch_is_prepared(self, keys: KeyService) -> None:
        """And only in the space that the genesis is of."""
        space = await opened(keys)
        owner, other = space.owner, OwnedSpace(space.owner)
        requests = [
            owner.pending_request(space.id, 1),
            owner.pending_request(space.id, 3),
            owner.pending_request(SpaceId(os.urandom(16)), 1),
            owner.pending_request(SpaceId(os.urandom(16)), 1, other.entries[0]),
            owner.pending_request(other.id, 2, other.entries[0]),
        ]

        for request in requests:
            with pytest.raises(LeaseRefusedError):
                await keys.create_pending(owner.asking(), request)

    async def test_a_pending_request_is_the_devices_own_and_of_now(self, keys: KeyService) -> None:
        """Not altered, not late, not repeated."""
        space = OwnedSpace(await registered(keys))
        account, device = space.owner.keys.account, space.owner.device.device
        request = space.request(1)

        with pytest.raises(SignatureError):
            await keys.create_pending(asking_as(account, device), msgspec.structs.replace(request, epoch=Epoch(2)))
        with pytest.raises(ClockSkewError):
            await keys.create_pending(asking_as(account, device, NOW_MS + LEASE_REQUEST_SKEW_MS_MAX + 1), request)
        await keys.create_pending(asking_as(account, device), request)
        with pytest.raises(ChallengeError):
            await keys.create_pending(asking_as(account, device), request)


class LeaseContract:
    """Releasing service keys."""

    async def test_a_lease_holds_the_keys_that_the_log_commits_to(self, keys: KeyService) -> None:
        """Of every epoch that was asked for, in that order, with the heads of the logs that it stands on."""
        space = await opened(keys, epochs=3)
        owner, state = space.owner, space.state
        request = owner.lease_request(space.id, 3, 1)

        leases = await keys.lease(owner.asking(), request)

        assert (leases.space, leases.nonce, leases.code) == (space.id, request.nonce, "")
        assert [grant.epoch for grant in leases.grants] == [3, 1]
        for grant in leases.grants:
            leased = owner.leased(space.id, grant, request.nonce)
            assert leased.service_key == space.epochs[grant.epoch].service_key.expose()
            # What is sealed beside the key is what the frame says, which anybody on the way could alter.
            assert (leased.space, leased.account) == (state.position, owner.state.position)
        assert (leases.space_log_seq, leases.space_log_head) == (state.seq, state.head)
        assert (leases.account_log_seq, leases.account_log_head) == (owner.state.seq, owner.state.head)

    async def test_a_lease_opens_only_as_it_was_given(self, keys: KeyService) -> None:
        """Not with a later end, another nonce or incarnation, nor on another device."""
        space = await opened(keys)
        owner, other = space.owner, Person()
        request = owner.lease_request(space.id, 1)
        leases = await keys.lease(owner.asking(), request)
        grant = leases.grants[0]
        later = msgspec.structs.replace(grant, not_after_ms=grant.not_after_ms + 1)

        for person, given, nonce, life in (
            (owner, later, request.nonce, INCARNATION),
            (owner, grant, bytes(16), INCARNATION),
            (owner, grant, request.nonce, Incarnation(bytes(16))),
            (other, grant, request.nonce, INCARNATION),
        ):
            with pytest.raises(OpenError):
                person.open(space.id, given, nonce, life)

    @pytest.mark.parametrize(("lease_hours", "lasts_hours"), [(None, 24), (0, 1), (1, 1), (48, 48)])
    async def test_how_long_a_lease_lasts(self, keys: KeyService, lease_hours: int | None, lasts_hours: int) -> None:
        """As long as the space says; with 0 for the hour that a device needs online."""
        space = await opened(keys)
        if lease_hours is not None:
            entry = config_lease_entry(space.owner.keys, space.state, lease_hours)
            await keys.append_log(space.log, len(space.entries), [entry])

        leases = await lease(keys, space.owner, space.id, 1)

        assert leases.grants[0].not_after_ms == NOW_MS + lasts_hours * HOUR_MS

    @pytest.mark.parametrize("role", [Role.ADMIN, Role.EDITOR, Role.READER])
    async def test_members_who_read_get_leases(self, keys: KeyService, role: Role) -> None:
        """Of the epochs before their time too."""
        space, person = await opened(keys, epochs=2), await registered(keys)
        await space.admit(keys, person, role)

        leases = await lease(keys, person, space.id, 1, 2)

        assert [grant.epoch for grant in leases.grants] == [1, 2]

    async def test_senders_and_strangers_get_none(self, keys: KeyService) -> None:
        """Nor does an account that the key service does not know."""
        space = await opened(keys)
        sender, stranger, unknown = await registered(keys), await registered(keys), Person()
        await space.admit(keys, sender, Role.SENDER)

        for person in (sender, stranger, unknown):
            with pytest.raises(LeaseRefusedError):
                await lease(keys, person, space.id, 1)

    async def test_a_revoked_device_gets_none(self, keys: KeyService) -> None:
        """From the moment its revocation is in the log; the account's other devices go on."""
        space = await opened(keys)
        owner, lost = space.owner, space.owner.device
        await lease(keys, owner, space.id, 1)
        kept = DeviceKeys.make(os.urandom)
        owner.certify(kept)
        owner.revoke(lost)
        await owner.register(keys)

        with pytest.raises(LeaseRefusedError):
            await lease(keys, owner, space.id, 1)
        request = space.owner.pending_request(space.id, 2)
        with pytest.raises(LeaseRefusedError):
            await keys.create_pending(asking_as(owner.keys.account, lost.device), request)
        owner.device = kept
        assert len((await lease(keys, owner, space.id, 1)).grants) == 1

    async def test_unknown_spaces_and_epochs_are_refused(self, keys: KeyService) -> None:
        """As a whole: no key of an epoch that does exist comes along."""
        space = await opened(keys)

        for wanted, epochs in ((space.id, (1, 2)), (SpaceId(os.urandom(16)), (1,))):
            with pytest.raises(LeaseRefusedError):
                await lease(keys, space.owner, wanted, *epochs)

    async def test_a_request_is_the_devices_own(self, keys: KeyService) -> None:
        """Nothing in it can be altered, nor can another device send it as its own."""
        space, editor = await opened(keys), await registered(keys)
        await space.admit(keys, editor, Role.EDITOR)
        request = editor.lease_request(space.id, 1)
        altered = [
            msgspec.structs.replace(request, epochs=[Epoch(1), Epoch(1)]),
            msgspec.structs.replace(request, nonce=os.urandom(16)),
            msgspec.structs.replace(request, time_ms=NOW_MS + 1),
            msgspec.structs.replace(request, signature=bytes(64)),
        ]

        for forged in altered:
            with pytest.raises(SignatureError):
                await keys.lease(editor.asking(), forged)
        with pytest.raises(SignatureError):
            await keys.lease(space.owner.asking(), request)
        with pytest.raises(LeaseRefusedError):
            await keys.lease(asking_as(space.owner.keys.account, editor.device.device), request)
        await keys.lease(editor.asking(), request)

    async def test_a_request_is_taken_once(self, keys: KeyService) -> None:
        """However long its time would still do."""
        space = await opened(keys)
        owner, ahead = space.owner, NOW_MS + LEASE_REQUEST_SKEW_MS_MAX
        request = owner.lease_request(space.id, 1, time_ms=ahead)
        await keys.lease(owner.asking(), request)

        for now_ms in (NOW_MS, ahead, ahead + LEASE_REQUEST_SKEW_MS_MAX):
            with pytest.raises(ChallengeError):
                await keys.lease(owner.asking(now_ms), request)
        with pytest.raises(ClockSkewError):
            await keys.lease(owner.asking(ahead + LEASE_REQUEST_SKEW_MS_MAX + 1), request)

    @pytest.mark.parametrize("sign", [1, -1])
    async def test_limit_of_a_requests_time(self, keys: KeyService, sign: int) -> None:
        """The last moment that is taken, and the first that is not, on both sides."""
        space = await opened(keys)
        owner = space.owner
        account, device = owner.keys.account, owner.device.device
        within = owner.lease_request(space.id, 1, time_ms=NOW_MS + sign * LEASE_REQUEST_SKEW_MS_MAX)
        beyond = owner.lease_request(space.id, 1, time_ms=NOW_MS + sign * (LEASE_REQUEST_SKEW_MS_MAX + 1))

        await keys.lease(asking_as(account, device), within)
        with pytest.raises(ClockSkewError):
            await keys.lease(asking_as(account, device), beyond)

    async def test_limits_of_epochs_and_nonces(self, keys: KeyService) -> None:
        """The last number that is taken, and the first that is not."""
        space = await opened(keys)
        owner = space.owner
        account, device = owner.keys.account, owner.device.device

        await lease(keys, owner, space.id, *[1] * LEASE_EPOCHS_MAX)
        for epochs in ([], [1] * (LEASE_EPOCHS_MAX + 1), [0], [1 << 32]):
            request = msgspec.structs.replace(owner.lease_request(space.id, 1), epochs=[Epoch(n) for n in epochs])
            with pytest.raises(LimitExceededError):
                await keys.lease(asking_as(account, device), request)
        for length in (16, 64):
            request = owner.lease_request(space.id, 1, nonce=os.urandom(length))
            await keys.lease(asking_as(account, device), request)
        for length in (0, 15, 65):
            request = owner.lease_request(space.id, 1, nonce=os.urandom(length))
            with pytest.raises(InvalidCallError):
                await keys.lease(asking_as(account, device), request)


class HostileContract:
    """Requests that no honest device makes."""

    async def test_senseless_values_harm_only_their_own_request(self, keys: KeyService) -> None:
        """Each is refused with an error of its own; what comes at the same time is answered."""
        space = await opened(keys)
        owner = space.owner
        account, device = owner.keys.account, owner.device.device
        good = owner.lease_request(space.id, 1)
        wrong = [
            msgspec.structs.replace(good, time_ms=-1),
            msgspec.structs.replace(good, time_ms=1 << 64),
            msgspec.structs.replace(good, nonce=bytes(70_000)),
            msgspec.structs.replace(good, space=SpaceId(b"")),
            msgspec.structs.replace(good, epochs=[Epoch(-1)]),
            msgspec.structs.replace(good, epochs=[Epoch(1 << 40)]),
            msgspec.structs.replace(good, signature=b""),
        ]
        pending = msgspec.structs.replace(owner.pending_request(space.id, 2), time_ms=-1)

        outcomes = await asyncio.gather(
            *(keys.lease(asking_as(account, device), request) for request in wrong),
            keys.create_pending(asking_as(account, device), pending),
            keys.append_log(space.log, -1, []),
            keys.append_log(space.log, 1 << 70, []),
            keys.read_log(space.log, 1 << 70),
            keys.read_log(space.log, -1),
            keys.lease(asking_as(account, device), good),
            return_exceptions=True,
        )

        refused = (InvalidCallError, LimitExceededError, SignatureError, LogConflictError)
        assert [outcome for outcome in outcomes[:10] if not isinstance(outcome, refused)] == []
        assert outcomes[10:12] == [[], space.entries]
        assert isinstance(outcomes[12], Leases)


class KeyServiceContract(SignedLogContract, PendingContract, LeaseContract, MembershipContract, HostileContract):
    """The whole of it."""
