"""Accounts with devices, and spaces of theirs, as a key service meets them."""

from __future__ import annotations

import os

from twinlock.contracts.keys import Asking, KeyService
from twinlock.ids import AccountId, DeviceId, Epoch, Incarnation, LogId, SpaceId
from twinlock.protocol import hpke
from twinlock.protocol.account_log import AccountState, replay_account
from twinlock.protocol.calls import CreatePending, CreatePendingResult, SignedEntry
from twinlock.protocol.frames import Grant, Lease
from twinlock.protocol.leased import KEY_BYTES, Leased
from twinlock.protocol.proofs import lease_info, lease_message, pending_message
from twinlock.protocol.space_log import Role, SpaceLogState
from twinlock.protocol.space_rules import replay_space
from twinlock.sealing.identity import AccountKeys, DeviceKeys, account_genesis, device_entry, revoke_entry
from twinlock.sealing.invites import InviteKeys, InviteTerms, invite_entry, join_entry
from twinlock.sealing.space_entries import (
    NextEpoch,
    epoch_entry,
    leave_entry,
    member_entry,
    remove_entry,
    shred_entry,
    space_genesis,
)
from twinlock.sealing.space_keys import EpochKeys, make_epoch
from twinlock.sealing.suite import MemberKey, ServiceKey

NOW_MS = 1_700_000_000_000
INCARNATION = Incarnation(bytes(range(16)))
NONCE_BYTES = 16


def asking_as(account: AccountId, device: DeviceId, now_ms: int = NOW_MS) -> Asking:
    """Return who asks, as the server tells the key service."""
    return Asking(account, device, INCARNATION, now_ms)


class Person:
    """An account with one device, and the entries of its log."""

    def __init__(self) -> None:
        self.keys = AccountKeys.make(os.urandom)
        self.device = DeviceKeys.make(os.urandom)
        self.entries: list[SignedEntry] = []
        self.state = self._grow(account_genesis(self.keys, os.urandom))
        self.certify(self.device)

    def certify(self, device: DeviceKeys) -> SignedEntry:
        """Add a device to the log."""
        self.state = self._grow(device_entry(self.keys, self.state, device.sign_pk, device.kem_pk))
        return self.entries[-1]

    def revoke(self, device: DeviceKeys) -> SignedEntry:
        """Revoke a device in the log."""
        self.state = self._grow(revoke_entry(self.keys, self.state, device.device))
        return self.entries[-1]

    def _grow(self, entry: SignedEntry) -> AccountState:
        state = replay_account([entry], self.state if self.entries else None)
        self.entries.append(entry)
        return state

    async def register(self, keys: KeyService) -> None:
        """Hand the key service whatever it does not have of the log."""
        await keys.append_log(LogId(self.keys.account), 0, self.entries)

    def asking(self, now_ms: int = NOW_MS) -> Asking:
        """Return this device as the one that asks."""
        return asking_as(self.keys.account, self.device.device, now_ms)

    def pending_request(
        self, space: SpaceId, epoch: int, genesis: SignedEntry | None = None, time_ms: int = NOW_MS
    ) -> CreatePending:
        """Ask for the service key of a coming epoch."""
        nonce, account, device = os.urandom(NONCE_BYTES), self.keys.account, self.device.device
        message = pending_message(space, Epoch(epoch), nonce, time_ms, account, device)
        return CreatePending(space, Epoch(epoch), nonce, time_ms, self.device.sign.sign(message), genesis)

    def lease_request(self, space: SpaceId, *epochs: int, time_ms: int = NOW_MS, nonce: bytes | None = None) -> Lease:
        """Ask for the service keys of some epochs."""
        wanted = [Epoch(epoch) for epoch in epochs]
        nonce = os.urandom(NONCE_BYTES) if nonce is None else nonce
        message = lease_message(space, wanted, nonce, time_ms, self.keys.account, self.device.device)
        return Lease(space, wanted, nonce, time_ms, self.device.sign.sign(message))

    def leased(self, space: SpaceId, grant: Grant, nonce: bytes, incarnation: Incarnation = INCARNATION) -> Leased:
        """Return what a lease holds for this device."""
        info = lease_info(space, grant.epoch, self.device.device, grant.not_after_ms, incarnation, nonce)
        return Leased.unpack(hpke.open_sealed(self.device.kem, grant.sealed, info))

    def open(self, space: SpaceId, grant: Grant, nonce: bytes, incarnation: Incarnation = INCARNATION) -> bytes:
        """Return the service key that a grant holds for this device."""
        info = lease_info(space, grant.epoch, self.device.device, grant.not_after_ms, incarnation, nonce)
        return hpke.open_sealed(self.device.kem, grant.sealed, info)[:KEY_BYTES]


class OwnedSpace:
    """A space of one owner, epoch by epoch, as far as this side has made it; `now_ms` is when its owner asks."""

    def __init__(self, owner: Person, now_ms: int = NOW_MS) -> None:
        self.owner = owner
        self.now_ms = now_ms
        self.entries = [space_genesis(owner.keys, 0, os.urandom)]
        self.epochs: dict[int, EpochKeys] = {}

    @property
    def state(self) -> SpaceLogState:
        """What the space's log says."""
        return replay_space(self.entries)

    @property
    def id(self) -> SpaceId:
        """The space's id."""
        return self.state.space

    @property
    def log(self) -> LogId:
        """The id of its log."""
        return LogId(self.id)

    def request(self, epoch: int) -> CreatePending:
        """Ask for the service key of an epoch as the owner does."""
        return self.owner.pending_request(self.id, epoch, self.entries[0] if epoch == 1 else None, self.now_ms)

    async def pend(self, keys: KeyService) -> tuple[EpochKeys, CreatePendingResult]:
        """Have the key of the next epoch made, and join it with a member key."""
        epoch = self.state.epoch + 1
        request = self.request(epoch)
        result = await keys.create_pending(self.owner.asking(self.now_ms), request)
        service_key = ServiceKey(self.owner.open(self.id, result.grant, request.nonce))
        return make_epoch(self.id, Epoch(epoch), service_key, os.urandom), result

    def epoch_entry(self, epoch_keys: EpochKeys, signer: Person | None = None) -> SignedEntry:
        """Return the entry that opens an epoch; it is not added yet."""
        earlier: MemberKey | None = None
        if epoch_keys.epoch > 1:
            earlier = self.epochs[epoch_keys.epoch - 1].member_key
        return epoch_entry((signer or self.owner).keys, self.state, epoch_keys, earlier, os.urandom)

    async def open_epoch(self, keys: KeyService) -> EpochKeys:
        """Open the next epoch, at the key service and here."""
        epoch_keys, _ = await self.pend(keys)
        self.entries.append(self.epoch_entry(epoch_keys))
        await keys.append_log(self.log, 0, self.entries)
        self.epochs[epoch_keys.epoch] = epoch_keys
        return epoch_keys

    async def admit(self, keys: KeyService, person: Person, role: Role) -> None:
        """Add a member, at the key service and here."""
        member = person.keys
        entry = member_entry(self.owner.keys, self.state, member.sign_pk, member.kem_pk, member.account, role)
        self.entries.append(entry)
        await keys.append_log(self.log, len(self.entries) - 1, [entry])

    async def remove(self, keys: KeyService, person: Person) -> None:
        """Remove a member, with the next epoch, at the key service and here."""
        epoch_keys, _ = await self.pend(keys)
        following = NextEpoch(epoch_keys, self.epochs[epoch_keys.epoch - 1].member_key, os.urandom)
        await self.append(keys, remove_entry(self.owner.keys, self.state, person.keys.account, {}, following))
        self.epochs[epoch_keys.epoch] = epoch_keys

    async def let_go(self, keys: KeyService, person: Person) -> None:
        """Have a member leave."""
        await self.append(keys, leave_entry(person.keys, self.state, {}))

    async def invite(self, keys: KeyService, *, needs_approval: bool = False) -> InviteKeys:
        """Make an invite for a reader."""
        invite = InviteKeys.of(self.id, os.urandom(32))
        terms = InviteTerms(Role.READER, NOW_MS, needs_approval=needs_approval)
        await self.append(keys, invite_entry(self.owner.keys, self.state, invite, terms))
        return invite

    async def join(self, keys: KeyService, person: Person, invite: InviteKeys) -> None:
        """Have somebody join by an invite."""
        await self.append(keys, join_entry(person.keys, self.state, invite))

    async def shred(self, keys: KeyService) -> None:
        """Shred the space."""
        await self.append(keys, shred_entry(self.owner.keys, self.state))

    async def append(self, keys: KeyService, entry: SignedEntry) -> None:
        """Add an entry, at the key service and here."""
        await keys.append_log(self.log, len(self.entries), [entry])
        self.entries.append(entry)
