"""A space with several accounts, for the server's tests: every entry is signed here, every row wrapped here."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import pytest

from tests.server_kit import CallFailed, Wire, World, now_ms
from twinlock.contracts import Directory, KeyService
from twinlock.errors import KeyServiceError, StoreError
from twinlock.ids import AccountId, Epoch
from twinlock.protocol import proofs
from twinlock.protocol.calls import AppendLog, KeyringRow, LogHead, SignedEntry
from twinlock.protocol.frames import LOG_GROWN, Attach, Lease, Leases, Notice
from twinlock.protocol.membership_calls import Join, OpenInvite, OpenInviteResult, ReadHeads, ReadHeadsResult
from twinlock.protocol.space_log import Role, SpaceLogState
from twinlock.protocol.space_rules import replay_space
from twinlock.sealing.invites import (
    InviteKeys,
    InviteLink,
    InviteTerms,
    invite_entry,
    invite_proof,
    join_entry,
    make_invite,
)
from twinlock.sealing.space_entries import NextEpoch, epoch_entry, remove_entry
from twinlock.sealing.space_keys import make_epoch, wrap_member_key
from twinlock.server import Server

DAY_MS = 86_400_000


async def make_person(server: Server) -> World:
    """Sign up an account without a space."""
    person = World(server)
    await person.sign_up()
    return person


class House:
    """A space: its log as it should be, and its owner's keys and connection."""

    def __init__(self, owner: World, wire: Wire) -> None:
        self.owner = owner
        self.wire = wire
        self.log = owner.log
        self.keys = owner.keys

    @property
    def space(self) -> Any:
        return self.log.space

    def row(self, name: bytes, kem_pk: bytes) -> KeyringRow:
        """Wrap the newest member key."""
        return KeyringRow(name, self.keys.epoch, wrap_member_key(self.keys, name, kem_pk))

    def rows(self, log: SpaceLogState) -> list[KeyringRow]:
        """Wrap it to everybody who reads."""
        return [self.row(name, kem_pk) for name, kem_pk in log.key_holders.items()]

    async def append(
        self, *entries: SignedEntry, rows: list[KeyringRow] | None = None, wire: Wire | None = None
    ) -> None:
        """Append entries, by default as the owner."""
        params = AppendLog(self.space, self.log.seq, list(entries), rows or [])
        await (wire or self.wire).call("space.append", params, LogHead)
        self.log = replay_space(entries, self.log)

    async def invite(self, role: Role = Role.EDITOR, **terms: Any) -> InviteLink:
        """Open an invite."""
        link = make_invite(self.space, os.urandom)
        keys = InviteKeys.of(self.space, link.secret)
        chosen = InviteTerms(role, **{"expires_ms": now_ms() + DAY_MS, **terms})
        rows = [self.row(keys.id, keys.kem_pk)] if role.may_lease and not chosen.needs_approval else []
        await self.append(invite_entry(self.owner.account, self.log, keys, chosen), rows=rows)
        return link

    async def join(self, person: World, wire: Wire, link: InviteLink) -> None:
        """Join by an invite, with the row that goes with its role."""
        keys = InviteKeys.of(self.space, link.secret)
        invite = self.log.invites[keys.id]
        account = person.account
        row = self.row(account.account, account.kem_pk) if invite.takes_key else None
        entry = join_entry(account, self.log, keys)
        await wire.call("space.join", Join(self.space, self.log.seq, entry, row), LogHead)
        self.log = replay_space([entry], self.log)

    async def admit(self, person: World, role: Role = Role.EDITOR, **terms: Any) -> Wire:
        """Bring a person in, and return their open connection."""
        wire = await person.open()
        await self.join(person, wire, await self.invite(role, **terms))
        return wire

    async def heads(self, account: AccountId, wire: Wire | None = None) -> Mapping[bytes, int]:
        """Read where an account's chains stand."""
        asked = ReadHeads(self.space, account)
        return (await (wire or self.wire).call("space.heads", asked, ReadHeadsResult)).counters

    async def removal(self, account: AccountId, counters: Mapping[bytes, int]) -> AppendLog:
        """Make the request that removes a member; what it changes here is to be taken over by `took`."""
        number = Epoch(self.log.epoch + 1)
        service_key = await self.owner.pending(self.wire, self.space, number)
        keys = make_epoch(self.space, number, service_key, os.urandom)
        epoch = NextEpoch(keys, self.keys.member_key, os.urandom)
        entry = remove_entry(self.owner.account, self.log, account, counters, epoch)
        self.keys = keys
        return AppendLog(self.space, self.log.seq, [entry], self.rows(replay_space([entry], self.log)))

    async def remove(self, account: AccountId) -> None:
        """Remove a member."""
        request = await self.removal(account, await self.heads(account))
        await self.wire.call("space.append", request, LogHead)
        self.took(request)

    def took(self, request: AppendLog) -> None:
        """Go on from what a request has changed."""
        self.log = replay_space(request.entries, self.log)


async def open_invite(
    house: House, person: World, wire: Wire, link: InviteLink, after_seq: int = 0
) -> OpenInviteResult:
    """Show an invite's secret."""
    keys = InviteKeys.of(link.space, link.secret)
    proof = invite_proof(keys, person.server_id, link.space, person.account.account)
    return await wire.call("invite.open", OpenInvite(link.space, link.invite, proof, after_seq), OpenInviteResult)


async def lease(person: World, wire: Wire, house: House, epoch: int) -> Leases:
    """Ask for a service key."""
    nonce, time_ms = os.urandom(32), now_ms()
    account, device = person.account.account, person.device.device
    message = proofs.lease_message(house.space, [Epoch(epoch)], nonce, time_ms, account, device)
    await wire.send(Lease(house.space, [Epoch(epoch)], nonce, time_ms, person.device.sign.sign(message)))
    return await wire.next(Leases)


async def refusal(wire, method, params):
    """Return the code with which a call is refused."""
    with pytest.raises(CallFailed) as caught:
        await wire.call(method, params)
    return caught.value.code


async def notice(wire, space, code):
    """Wait for a notice about a space."""
    return await wire.next(Notice, lambda frame: frame.space == space and frame.code == code)


async def attach_refusal(wire, space):
    """Attach in vain and return why."""
    await wire.send(Attach(space, b"", 0))
    return (await wire.next(Notice, lambda frame: frame.space == space and frame.code != LOG_GROWN)).code


async def rotate(house, leave_out=()):
    """Open the next epoch, with rows for all but some."""
    number = Epoch(house.log.epoch + 1)
    service_key = await house.owner.pending(house.wire, house.space, number)
    before, house.keys = house.keys, make_epoch(house.space, number, service_key, os.urandom)
    entry = epoch_entry(house.owner.account, house.log, house.keys, before.member_key, os.urandom)
    rows = [row for row in house.rows(house.log) if row.account not in leave_out]
    await house.append(entry, rows=rows)


async def stored_rows(stores, house):
    """Return the keys of all rows of a space, without their prefix."""
    prefix = f"keyring/{house.space.hex()}/"
    return {key.removeprefix(prefix) for key in await stores.directory.list(prefix)}


async def written(person, wire, house, count=3, **changes):
    """Write some envelopes and return the chain."""
    chain = person.chain_in(house.space)
    await wire.push(house.space, *(chain.next(**changes) for _ in range(count)))
    await wire.acked(house.space, count)
    return chain


def identity(person):
    return person.account.account, person.account.kem_pk


class Trouble:
    """Lets stores fail: at the n-th write, before or after it is done, and from then on until it is mended."""

    def __init__(self) -> None:
        self.writes = 0
        self.fails_at = 0
        self.is_done = False
        self.is_down = False

    def plan(self, fails_at: int, *, is_done: bool) -> None:
        self.writes, self.fails_at, self.is_done = 0, fails_at, is_done

    def mend(self) -> None:
        self.fails_at, self.is_down = 0, False

    async def write(self, call: Any, error: type[Exception]) -> Any:
        """Do a write, or fail."""
        self.writes += 1
        comes_now = self.writes == self.fails_at
        self.is_down = self.is_down or comes_now
        if self.is_down and not (comes_now and self.is_done):
            call.close()
            raise error("down")
        result = await call
        if comes_now:
            raise error("the answer was lost")
        return result

    async def read(self, call: Any, error: type[Exception]) -> Any:
        if self.is_down:
            call.close()
            raise error("down")
        return await call


class FrailDirectory(Directory):
    """A directory that fails as its trouble says."""

    def __init__(self, inner: Directory, trouble: Trouble) -> None:
        self.inner, self.trouble = inner, trouble

    async def get(self, key):
        return await self.trouble.read(self.inner.get(key), StoreError)

    async def put(self, key, value, expect_revision=None):
        return await self.trouble.write(self.inner.put(key, value, expect_revision), StoreError)

    async def delete(self, key, expect_revision=None):
        return await self.trouble.write(self.inner.delete(key, expect_revision), StoreError)

    async def list(self, prefix):
        return await self.trouble.read(self.inner.list(prefix), StoreError)

    def scan(self):
        return self.inner.scan()

    def watch(self, prefix):
        return self.inner.watch(prefix)


class FrailKeys(KeyService):
    """A key service that fails as its trouble says; closing it leaves it open for the next server."""

    def __init__(self, inner: KeyService, trouble: Trouble) -> None:
        self.inner, self.trouble = inner, trouble

    async def take_turn(self, log):
        return await self.trouble.read(self.inner.take_turn(log), KeyServiceError)

    async def append_log(self, log, expect_seq, entries, turn=0):
        return await self.trouble.write(self.inner.append_log(log, expect_seq, entries, turn), KeyServiceError)

    async def read_log(self, log, after_seq):
        return await self.trouble.read(self.inner.read_log(log, after_seq), KeyServiceError)

    async def create_pending(self, asking, request):
        return await self.trouble.read(self.inner.create_pending(asking, request), KeyServiceError)

    async def lease(self, asking, request):
        return await self.trouble.read(self.inner.lease(asking, request), KeyServiceError)

    async def tend(self, now_ms):
        return None

    async def close(self):
        return None
