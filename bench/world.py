"""An account with devices and spaces for the raw load, made by the project's own sealing over the real calls."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence

import msgspec

from bench.envelopes import EnvelopeSource
from bench.people import make_person, sign_up
from bench.raw_client import RawClient, now_ms, open_client
from twinlock.ids import Epoch, SpaceId
from twinlock.protocol import hpke, proofs
from twinlock.protocol.account_log import AccountState, replay_account
from twinlock.protocol.calls import (
    AppendLog,
    CreatePending,
    CreatePendingResult,
    CreateSpace,
    KeyringRow,
    PartitionsResult,
    ReadPartitions,
    SignedEntry,
)
from twinlock.protocol.client import ClientIdentity
from twinlock.protocol.space_log import SpaceLogState
from twinlock.protocol.space_rules import replay_space
from twinlock.sealing.identity import AccountKeys, DeviceKeys, device_entry
from twinlock.sealing.space_entries import epoch_entry, space_genesis
from twinlock.sealing.space_keys import make_epoch, wrap_member_key
from twinlock.sealing.suite import ServiceKey

CALLS_AT_ONCE = 32
SPACES_A_DEVICE = 400
_FIRST = Epoch(1)
_ENTRIES_A_CALL = 32


class World(msgspec.Struct, frozen=True):
    """Who there is: one account, its devices, and the spaces that it owns."""

    port: int
    account: AccountKeys
    devices: Sequence[DeviceKeys]
    spaces: Sequence[SpaceLogState]

    def identity(self, device: int = 0) -> ClientIdentity:
        """Return how a device says hello."""
        return identity_of(self.account, self.devices[device])

    def source(self, space: int = 0, device: int = 0) -> EnvelopeSource:
        """Return what makes a device's envelopes of a space. Ask once for each pair: chains do not fork."""
        state = self.spaces[space]
        return EnvelopeSource(state.space, self.devices[device].device, state.head)

    def space_id(self, space: int = 0) -> SpaceId:
        """Return the id of a space."""
        return self.spaces[space].space

    def at(self, port: int) -> World:
        """Return the same world as seen from another node."""
        return msgspec.structs.replace(self, port=port)

    async def open(self, device: int = 0) -> RawClient:
        """Connect as a device."""
        return await open_client(self.port, self.identity(device))


def identity_of(account: AccountKeys, device: DeviceKeys) -> ClientIdentity:
    """Return how a device says hello."""
    return ClientIdentity(account.account, device.device, device.sign.sign)


async def make_world(port: int, devices_count: int = 1, spaces_count: int = 1) -> World:
    """Sign up an account, certify its devices and create its spaces."""
    account = AccountKeys.make(os.urandom)
    devices = [DeviceKeys.make(os.urandom) for _ in range(devices_count)]
    log = await _sign_up(port, account, devices[0])
    client = await open_client(port, identity_of(account, devices[0]))
    await _certify(client, account, log, devices[1:])
    client.close()
    spaces: list[SpaceLogState] = []
    # The key service limits how often one device may ask, so that many spaces are made by several devices.
    shares = devices[: 1 + spaces_count // SPACES_A_DEVICE]
    for number, device in enumerate(shares):
        maker = await open_client(port, identity_of(account, device))
        count = spaces_count // len(shares) + (number < spaces_count % len(shares))
        spaces += await _create_spaces(maker, account, device, count)
        maker.close()
    return World(port, account, devices, spaces)


async def _sign_up(port: int, account: AccountKeys, device: DeviceKeys) -> AccountState:
    person = make_person(account, device)
    anonymous = await open_client(port, ClientIdentity())
    await sign_up(anonymous, person, (await anonymous.welcomed).server_id)
    anonymous.close()
    return replay_account(person.entries)


async def _certify(client: RawClient, account: AccountKeys, log: AccountState, devices: Sequence[DeviceKeys]) -> None:
    for start in range(0, len(devices), _ENTRIES_A_CALL):
        entries: list[SignedEntry] = []
        before = log.seq
        for device in devices[start : start + _ENTRIES_A_CALL]:
            entries.append(device_entry(account, log, device.sign_pk, device.kem_pk))
            log = replay_account(entries[-1:], log)
        await client.call("account.append", AppendLog(account.account, before, entries), msgspec.Raw)


async def _create_spaces(
    client: RawClient, account: AccountKeys, device: DeviceKeys, count: int
) -> list[SpaceLogState]:
    states: list[SpaceLogState] = []
    partitions = (await client.call("space.partitions", ReadPartitions(), PartitionsResult)).open
    for start in range(0, count, CALLS_AT_ONCE):
        numbers = range(start, min(start + CALLS_AT_ONCE, count))
        chosen = (partitions[number % len(partitions)] for number in numbers)
        states += await asyncio.gather(*(_create_space(client, account, device, one) for one in chosen))
    return states


async def _create_space(client: RawClient, account: AccountKeys, device: DeviceKeys, partition: int) -> SpaceLogState:
    genesis = space_genesis(account, partition, os.urandom)
    state = replay_space([genesis])
    nonce, time_ms = os.urandom(32), now_ms()
    message = proofs.pending_message(state.space, _FIRST, nonce, time_ms, account.account, device.device)
    request = CreatePending(state.space, _FIRST, nonce, time_ms, device.sign.sign(message), genesis)
    pending = await client.call("space.pending", request, CreatePendingResult)
    incarnation = (await client.welcomed).incarnation
    info = proofs.lease_info(state.space, _FIRST, device.device, pending.grant.not_after_ms, incarnation, nonce)
    service_key = ServiceKey(hpke.open_sealed(device.kem, pending.grant.sealed, info))
    keys = make_epoch(state.space, _FIRST, service_key, os.urandom)
    entries = [genesis, epoch_entry(account, state, keys, None, os.urandom)]
    row = KeyringRow(account.account, _FIRST, wrap_member_key(keys, account.account, account.kem_pk))
    await client.call("space.create", CreateSpace(state.space, entries, [row]), msgspec.Raw)
    return replay_space(entries)
