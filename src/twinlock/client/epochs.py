"""Opening epochs: a pending service key, a new member key, its wraps for all who stay. See spec/sealing.md, 3 and 4.

Those who stay go on without interruption: their devices read the log, fetch their rows, and seal again what they had
sealed under the epoch that has ended.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

from twinlock.client.connection import Connection
from twinlock.client.device_context import DeviceContext
from twinlock.client.log_writer import Draft, OpenedEpoch, check_admits
from twinlock.client.space_runtime import SpaceRuntime
from twinlock.errors import LeaseExpiredError
from twinlock.ids import AccountId, Counter, DeviceId, Epoch, Incarnation, SpaceId
from twinlock.protocol import hpke
from twinlock.protocol.calls import CreatePending, CreatePendingResult, KeyringRow, SignedEntry
from twinlock.protocol.proofs import lease_info, pending_message
from twinlock.protocol.space_log import SpaceLogState
from twinlock.protocol.space_rules import replay_space
from twinlock.sealing.identity import AccountKeys
from twinlock.sealing.invites import uninvite_entry
from twinlock.sealing.space_entries import NextEpoch, config_title_entry, epoch_entry, remove_entry
from twinlock.sealing.space_keys import EpochKeys, check_service_key, make_epoch, wrap_bare, wrap_member_key
from twinlock.sealing.suite import MemberKey, ServiceKey

NONCE_BYTES = 32
WRAPS_PER_TURN = 64
"""Wraps made without a pause, about 10 ms: an application goes on while a large space is rotated."""


class Epochs:
    """Makes what the entries that open epochs need."""

    __slots__ = ("_connection", "_context")

    def __init__(self, context: DeviceContext, connection: Connection) -> None:
        self._context = context
        self._connection = connection

    async def pending_key(
        self, space: SpaceId, epoch: Epoch, incarnation: Incarnation, genesis: SignedEntry | None = None
    ) -> tuple[ServiceKey, int]:
        """Have the key service make the key of a coming epoch; return it and until when this device may use it.

        Raises:
            KeyMismatchError, OpenError: what came is not what the key service has committed to.
        """
        state, now_ms = self._context.state, self._context.clock.now_ms()
        nonce = self._context.entropy(NONCE_BYTES)
        device, account = state.device_keys.device, state.home.account
        message = pending_message(space, epoch, nonce, now_ms, account, device)
        request = CreatePending(space, epoch, nonce, now_ms, state.device_keys.sign.sign(message), genesis)
        result = await self._connection.call("space.pending", request, CreatePendingResult)
        grant = result.grant
        info = lease_info(space, epoch, device, grant.not_after_ms, incarnation, nonce)
        service_key = ServiceKey(hpke.open_sealed(state.device_keys.kem, grant.sealed, info))
        check_service_key(space, epoch, service_key, result.b_commit)
        return service_key, grant.not_after_ms

    async def rotation(
        self, runtime: SpaceRuntime, signer: AccountKeys, log: SpaceLogState, incarnation: Incarnation
    ) -> Draft:
        """Draft a new epoch for all who are members now.

        Raises:
            RoleError: the account may not open epochs.
            LeaseExpiredError: the present member key is not at hand.
        """
        check_admits(log, signer.account)
        earlier = member_key_of(runtime, log)
        keys, not_after_ms = await self._next_keys(log, incarnation)
        expired, present = without_expired(signer, log, self._context.clock.now_ms())
        entry = epoch_entry(signer, present, keys, earlier, self._context.entropy)
        return await self._draft(runtime, signer, log, [*expired, entry], OpenedEpoch(keys, not_after_ms))

    async def removal(
        self,
        runtime: SpaceRuntime,
        signer: AccountKeys,
        log: SpaceLogState,
        incarnation: Incarnation,
        leaver: tuple[AccountId, Mapping[DeviceId, Counter]],
    ) -> Draft:
        """Draft the removal of an account, whose chains end at the given counters, with the epoch that it needs."""
        check_admits(log, signer.account)
        earlier = member_key_of(runtime, log)
        keys, not_after_ms = await self._next_keys(log, incarnation)
        account, cutoff = leaver
        expired, present = without_expired(signer, log, self._context.clock.now_ms())
        entry = remove_entry(signer, present, account, cutoff, NextEpoch(keys, earlier, self._context.entropy))
        return await self._draft(runtime, signer, log, [*expired, entry], OpenedEpoch(keys, not_after_ms))

    async def _next_keys(self, log: SpaceLogState, incarnation: Incarnation) -> tuple[EpochKeys, int]:
        epoch = Epoch(log.epoch + 1)
        service_key, not_after_ms = await self.pending_key(log.space, epoch, incarnation)
        return make_epoch(log.space, epoch, service_key, self._context.entropy), not_after_ms

    async def _draft(
        self,
        runtime: SpaceRuntime,
        signer: AccountKeys,
        log: SpaceLogState,
        entries: Sequence[SignedEntry],
        opened: OpenedEpoch,
    ) -> Draft:
        after = replay_space(entries, log)
        rows = await wrapped_for(opened.keys, after.key_holders)
        drafted = list(entries)
        if runtime.title is not None:
            # Who joins from now on must not depend on an old epoch's key to read the name.
            drafted.append(config_title_entry(signer, after, opened.keys, runtime.title, self._context.entropy))
        return Draft(drafted, rows, opened)


def without_expired(signer: AccountKeys, log: SpaceLogState, now_ms: int) -> tuple[list[SignedEntry], SpaceLogState]:
    """Withdraw the invites that have expired, and return the entries and what the log says after them.

    The log's rules know no clock: until then a new member key is wrapped to them too.
    """
    entries: list[SignedEntry] = []
    for name in [name for name, invite in log.invites.items() if invite.expires_ms <= now_ms]:
        entries.append(uninvite_entry(signer, log, name))
        log = replay_space(entries[-1:], log)
    return entries, log


async def wrapped_for(keys: EpochKeys, holders: Mapping[bytes, bytes]) -> list[KeyringRow]:
    """Wrap a new member key to all who are to have it, in slices between which others have their turn."""
    rows: list[KeyringRow] = []
    for name, kem_pk in holders.items():
        if rows and len(rows) % WRAPS_PER_TURN == 0:
            await asyncio.sleep(0)
        account = AccountId(name)
        rows.append(KeyringRow(account, keys.epoch, wrap_member_key(keys, account, kem_pk)))
    return rows


def wrapped_row(runtime: SpaceRuntime, log: SpaceLogState, name: bytes, kem_pk: bytes) -> KeyringRow:
    """Wrap the present member key to one more account or invite; it takes no lease.

    Raises:
        LeaseExpiredError: the member key is not at hand.
    """
    account = AccountId(name)
    wrapped = wrap_bare(member_key_of(runtime, log), log.space, log.epoch, account, kem_pk)
    return KeyringRow(account, log.epoch, wrapped)


def member_key_of(runtime: SpaceRuntime, log: SpaceLogState) -> MemberKey:
    """Return the present member key.

    Raises:
        LeaseExpiredError: it is not at hand.
    """
    key = runtime.keyring.member_key(log.epoch)
    if key is None:
        raise LeaseExpiredError(f"the member key of epoch {log.epoch} has not come yet")
    return key
