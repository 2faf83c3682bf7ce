"""Many accounts, each with one device, made by the project's own sealing: members of a large space."""

from __future__ import annotations

import os
from collections.abc import Sequence

import msgspec

from bench.raw_client import RawClient
from twinlock.contracts.keys import Asking
from twinlock.ids import Epoch, Incarnation, SpaceId
from twinlock.protocol.account_log import replay_account
from twinlock.protocol.calls import SignedEntry
from twinlock.protocol.frames import Lease
from twinlock.protocol.proofs import lease_message
from twinlock.protocol.space_log import Role, SpaceLogState
from twinlock.protocol.space_rules import replay_space
from twinlock.sealing.account_requests import sign_up_request
from twinlock.sealing.identity import AccountKeys, DeviceKeys, account_genesis, device_entry
from twinlock.sealing.space_entries import member_entry
from twinlock.sealing.vault import RecoveryKit, make_unlocker

NONCE_BYTES = 32


class Person(msgspec.Struct, frozen=True):
    """An account, its only device, and the account's signed log."""

    account: AccountKeys
    device: DeviceKeys
    entries: list[SignedEntry]

    def lease_request(self, space: SpaceId, time_ms: int) -> Lease:
        """Sign a request for the key of a space's first epoch."""
        epochs, nonce = [Epoch(1)], os.urandom(NONCE_BYTES)
        message = lease_message(space, epochs, nonce, time_ms, self.account.account, self.device.device)
        return Lease(space, epochs, nonce, time_ms, self.device.sign.sign(message))

    def asking(self, incarnation: Incarnation, now_ms: int) -> Asking:
        """Return who asks, as the server tells the key service."""
        return Asking(self.account.account, self.device.device, incarnation, now_ms)


def make_person(account: AccountKeys | None = None, device: DeviceKeys | None = None) -> Person:
    """Make an account with one device, or the log of one whose keys are given."""
    account, device = account or AccountKeys.make(os.urandom), device or DeviceKeys.make(os.urandom)
    genesis = account_genesis(account, os.urandom)
    certified = device_entry(account, replay_account([genesis]), device.sign_pk, device.kem_pk)
    return Person(account, device, [genesis, certified])


async def sign_up(client: RawClient, person: Person, server_id: bytes) -> str:
    """Create a person's account with a recovery kit as its only unlocker; return its name."""
    name = f"bench-{os.urandom(6).hex()}"
    unlocker = make_unlocker(RecoveryKit.make(os.urandom), name, server_id, os.urandom, person.account)
    request = sign_up_request(person.account, server_id, name, person.entries, [unlocker])
    await client.call("account.create", request, msgspec.Raw)
    return name


def admit(owner: AccountKeys, log: SpaceLogState, people: Sequence[Person]) -> tuple[list[SignedEntry], SpaceLogState]:
    """Sign the entries that make people readers of a space; return them and the state that they lead to."""
    entries: list[SignedEntry] = []
    for person in people:
        keys = person.account
        entry = member_entry(owner, log, keys.sign_pk, keys.kem_pk, keys.account, Role.READER)
        log = replay_space([entry], log)
        entries.append(entry)
    return entries, log
