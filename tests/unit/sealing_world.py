"""A small world for the tests of sealing: accounts, devices, a space with one epoch, and chains of envelopes."""

from __future__ import annotations

import hashlib

from twinlock.ids import NO_ENVELOPE, Counter, Epoch, Seq
from twinlock.protocol.account_log import AccountState, replay_account
from twinlock.protocol.envelope import Envelope, Kind
from twinlock.protocol.frames import Entry
from twinlock.protocol.space_log import Role, SpaceLogState
from twinlock.protocol.space_rules import replay_space
from twinlock.sealing import (
    AccountKeys,
    ChainReader,
    DeviceKeys,
    EpochKeys,
    Sealer,
    ServiceKey,
    account_genesis,
    device_entry,
    epoch_entry,
    make_epoch,
    member_entry,
    space_genesis,
)

RECEIVED_MS = 1_700_000_000_000


class SeededEntropy:
    """Chance that is the same in every run: SHA-256 of a seed and a counter."""

    def __init__(self, seed: str) -> None:
        self._seed = seed.encode()
        self._count = 0

    def __call__(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            self._count += 1
            data += hashlib.sha256(self._seed + self._count.to_bytes(8, "big")).digest()
        return data[:size]


class Person:
    """An account with one device."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.entropy = SeededEntropy(name)
        self.keys = AccountKeys.make(self.entropy)
        self.device = DeviceKeys.make(self.entropy)
        self.state: AccountState = replay_account([account_genesis(self.keys, self.entropy)])
        self.certify(self.device)

    def __str__(self) -> str:
        return self.name

    def certify(self, device: DeviceKeys) -> None:
        entry = device_entry(self.keys, self.state, device.sign_pk, device.kem_pk)
        self.state = replay_account([entry], self.state)


class World:
    """A space owned by one person, at epoch 1."""

    def __init__(self, owner: Person | None = None) -> None:
        self.owner = owner or Person("owner")
        self.entropy = SeededEntropy("space")
        self.people = [self.owner]
        self.log: SpaceLogState = replay_space([space_genesis(self.owner.keys, 3, self.entropy)])
        self.epochs: dict[Epoch, EpochKeys] = {}
        self.rotate()

    @property
    def keys(self) -> EpochKeys:
        return self.epochs[self.log.epoch]

    def rotate(self) -> None:
        earlier = self.epochs[self.log.epoch].member_key if self.epochs else None
        number = Epoch(self.log.epoch + 1)
        keys = make_epoch(self.log.space, number, ServiceKey.make(self.entropy), self.entropy)
        entry = epoch_entry(self.owner.keys, self.log, keys, earlier, self.entropy)
        self.log = replay_space([entry], self.log)
        self.epochs[number] = keys

    def admit(self, person: Person, role: Role) -> None:
        keys = person.keys
        entry = member_entry(self.owner.keys, self.log, keys.sign_pk, keys.kem_pk, keys.account, role)
        self.log = replay_space([entry], self.log)
        if person not in self.people:
            self.people.append(person)

    def chain(self, device: DeviceKeys, count: int, prefix: str = "edit") -> list[Envelope]:
        """Seal a chain of changes from counter 1 on."""
        return extend_chain(self, device, [], count, prefix)

    def reader(self, heads=None, decode=None, log=None) -> ChainReader:
        return ChainReader(
            log or self.log,
            [person.state for person in self.people],
            self.epochs.get,
            decode or (lambda payload, source: payload),
            heads or {},
        )


def extend_chain(world: World, device: DeviceKeys, before: list[Envelope], count: int, prefix: str) -> list[Envelope]:
    """Return a chain with more changes at its end."""
    sealer, chain = Sealer(device, world.entropy), list(before)
    for number in range(len(before) + 1, len(before) + count + 1):
        prev = chain[-1].id if chain else NO_ENVELOPE
        payload = f"{prefix} {number}".encode()
        chain.append(sealer.seal(Kind.CHANGE, payload, world.keys, Counter(number), prev, world.log.head_prefix))
    return chain


def entries(envelopes, first_seq: int = 1) -> list[Entry]:
    """Place envelopes, or their bytes, one after the other."""
    datas = [envelope.data if isinstance(envelope, Envelope) else envelope for envelope in envelopes]
    return [Entry(Seq(first_seq + index), RECEIVED_MS, data) for index, data in enumerate(datas)]


def flipped(data: bytes, position: int) -> bytes:
    """Return data with one byte altered."""
    return data[:position] + bytes([data[position] ^ 0x01]) + data[position + 1 :]


def contents(page) -> list[object]:
    """Return what a page opened, in order."""
    return [opened.content for opened in page.opened]


def reasons(page) -> list[str]:
    """Return why a page's quarantined entries were refused, in order."""
    return [str(kept.reason) for kept in page.quarantined]
