"""The keys of one space on this device: member keys, leased service keys, and when reading is locked. Sans-I/O.

See spec/sealing.md, sections 3 and 7. The shell keeps what `export` returns as a record sealed under the StoreKey,
since these keys are what opens the replica's own file.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

import msgspec
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from twinlock.errors import (
    KeyMismatchError,
    LeaseExpiredError,
    LeaseRefusedError,
    LogForkError,
    OpenError,
    error_from_code,
)
from twinlock.ids import AccountId, DeviceId, Epoch, Incarnation, SpaceId
from twinlock.protocol import hpke
from twinlock.protocol.account_log import AccountState
from twinlock.protocol.calls import KeyringRow
from twinlock.protocol.frames import Grant, Leases
from twinlock.protocol.leased import Leased
from twinlock.protocol.limits import LEASE_EPOCHS_MAX
from twinlock.protocol.proofs import lease_info
from twinlock.protocol.signed_log import LogPosition, check_continuation
from twinlock.protocol.space_log import SpaceLogState
from twinlock.sealing.identity import DeviceKeys
from twinlock.sealing.space_keys import EpochKeys, check_service_key, open_epoch, open_link, unwrap_member_key
from twinlock.sealing.suite import MemberKey, ServiceKey

LEASE_RENEWAL_MS = 30 * 60_000
"""A lease is renewed at the latest this long after it was given, while online."""

EARLIER_EPOCHS_MAX = 16
"""Epochs beyond the newest ones that are leased because somebody reads what lies under them."""

CLOCK_BACK_MS_MAX = 60_000
"""How far the clock may fall behind the newest time seen before leases count as ended."""


class _Cached(msgspec.Struct, frozen=True, array_like=True):
    epoch: Epoch
    key: bytes
    not_after_ms: int
    leased_ms: int

    def __repr__(self) -> str:
        return f"_Cached(epoch {self.epoch}, hidden)"


class _Exported(msgspec.Struct, frozen=True, array_like=True):
    member_keys: dict[int, bytes]
    leases: list[_Cached]
    newest_ms: int

    def __repr__(self) -> str:
        return "_Exported(hidden)"


class _Held(msgspec.Struct, frozen=True):
    key: ServiceKey
    not_after_ms: int
    leased_ms: int


class LeaseOutcome(NamedTuple):
    """What an answer of the key service tells of the logs.

    `has_grown`: the space's log has entries that are not known here. `is_stale`: the key service was kept from entries
    that were known here when it was asked, such as a revocation.
    """

    has_grown: bool
    is_stale: bool


class AccountReader(Protocol):
    """The half of an account's keys that reads: a device holds the signing half only while the person is at it."""

    @property
    def account(self) -> AccountId:
        """The account."""

    @property
    def kems(self) -> Sequence[X25519PrivateKey]:
        """The keys to which the account's member keys were ever wrapped, the newest first."""


class Keyring:
    """What this device knows of a space's keys and logs, and until when.

    `keys()` gives only keys that fit the signed log's commitments, and only while their lease lasts.
    """

    __slots__ = (
        "_account_keys",
        "_accounts",
        "_asked",
        "_device_keys",
        "_earlier",
        "_leases",
        "_log",
        "_member_keys",
        "_newest_ms",
        "_opened",
        "_renewal_ms",
        "account",
        "space",
    )

    def __init__(
        self,
        log: SpaceLogState,
        account_keys: AccountReader,
        device_keys: DeviceKeys,
        renewal_ms: int = LEASE_RENEWAL_MS,
    ) -> None:
        self.space: SpaceId = log.space
        self.account: AccountId = account_keys.account
        self._account_keys = account_keys
        self._device_keys = device_keys
        self._log = log
        self._accounts: dict[AccountId, AccountState] = {}
        self._member_keys: dict[Epoch, MemberKey] = {}
        self._leases: dict[Epoch, _Held] = {}
        self._opened: dict[Epoch, EpochKeys] = {}
        self._newest_ms = 0
        self._asked = (0, 0)
        self._earlier: list[Epoch] = []
        self._renewal_ms = renewal_ms

    # Logs

    @property
    def log(self) -> SpaceLogState:
        """The space's signed log, as far as this device has read it."""
        return self._log

    @property
    def accounts(self) -> Mapping[AccountId, AccountState]:
        """The account logs of the members, as far as they were read."""
        return self._accounts

    @property
    def device(self) -> DeviceId:
        """This device."""
        return self._device_keys.device

    def install_log(self, log: SpaceLogState) -> None:
        """Go on to a newer state of the space's log.

        Raises:
            LogForkError: it is not a continuation of what this device has read.
        """
        check_continuation(self._log.position, log.position)
        if self._log.head[:8] not in log.head_prefixes:
            raise LogForkError("it does not contain the head that this device has read")
        self._log = log
        self._follow_links()

    def install_account(self, account: AccountState) -> None:
        """Take in the account log of a member, from the start or newer than before.

        Raises:
            LogForkError: it is shorter than what this device has read.
        """
        known = self._accounts.get(account.account)
        if known is not None:
            check_continuation(known.position, account.position)
        self._accounts[account.account] = account

    # Member keys

    def install_row(self, row: KeyringRow) -> None:
        """Open the Keyring row of this account and, by the links in the log, all earlier member keys.

        Raises:
            OpenError: the row or a link is not meant for this account.
        """
        self.install_member_key(row.epoch, self._unwrap(row))

    def _unwrap(self, row: KeyringRow) -> MemberKey:
        # A row may have been wrapped before the account's key was replaced, and not been wrapped anew since.
        for kem in self._account_keys.kems:
            try:
                return unwrap_member_key(row.wrapped, kem, self.space, row.epoch, self.account)
            except OpenError:
                continue
        raise OpenError

    def install_member_key(self, epoch: Epoch, key: MemberKey) -> None:
        """Take in a member key (this device may have made it), and by the links all earlier ones."""
        self._member_keys[epoch] = key
        self._opened.pop(epoch, None)
        self._follow_links()

    @property
    def has_member_key(self) -> bool:
        """Whether the newest epoch's member key is here; without it the Keyring row must be fetched."""
        return self._log.epoch in self._member_keys

    @property
    def holds_member_keys(self) -> bool:
        """Whether a member key of any epoch is here."""
        return bool(self._member_keys)

    def member_key(self, epoch: Epoch) -> MemberKey | None:
        """Return the member key of an epoch, to be wrapped to somebody else, or None if it is not here."""
        return self._member_keys.get(epoch)

    def forget(self) -> None:
        """Drop every key, of both kinds: this account has no part in the space any more."""
        self.lock()
        self._member_keys.clear()

    def _follow_links(self) -> None:
        for epoch in sorted(self._member_keys, reverse=True):
            below = Epoch(epoch - 1)
            key = self._member_keys[epoch]
            while below >= 1 and below not in self._member_keys and Epoch(below + 1) in self._log.epochs:
                key = open_link(self.space, Epoch(below + 1), key, self._log.epochs[Epoch(below + 1)].link)
                self._member_keys[below] = key
                below = Epoch(below - 1)

    # Service keys

    def wanted_epochs(self, now_ms: int) -> list[Epoch]:
        """Return the epochs to lease now, newest first: never leased, ended, or given some time ago."""
        newest = sorted(self._log.epochs, reverse=True)[: LEASE_EPOCHS_MAX - len(self._earlier)]
        due = [*newest, *(epoch for epoch in self._earlier if epoch not in newest)]
        return [epoch for epoch in due if self._is_wanted(epoch, now_ms)]

    def want(self, epoch: Epoch) -> None:
        """Lease an epoch of long ago too, under which a file lies; the last few that were wanted are kept leased."""
        if epoch in self._log.epochs and epoch not in self._earlier:
            self._earlier = [*self._earlier, epoch][-EARLIER_EPOCHS_MAX:]

    def _is_wanted(self, epoch: Epoch, now_ms: int) -> bool:
        held = self._leases.get(epoch)
        return held is None or now_ms >= held.leased_ms + self._renewal_ms or self._has_ended(held, now_ms)

    def renew_at(self, now_ms: int) -> int:
        """Return when leases must be asked for again: now, if one is missing."""
        if self.wanted_epochs(now_ms):
            return now_ms
        return min(held.leased_ms for held in self._leases.values()) + self._renewal_ms

    def note_asked(self) -> None:
        """Leases are asked for now: what is known of the logs by now, the key service must stand on."""
        own = self._accounts.get(self.account)
        self._asked = (self._log.seq, own.seq if own is not None else 0)

    def on_leases(self, frame: Leases, nonce: bytes, incarnation: Incarnation, now_ms: int) -> LeaseOutcome:
        """Take in the answer to a request with that nonce, and tell what it says of the logs.

        Raises:
            LeaseRefusedError: the key service refused (revoked, removed, shredded); other codes raise their errors.
            KeyMismatchError, OpenError: a grant is not what the signed log commits to; nothing of it is used.
            LogForkError: the key service stands on another log than this device.
        """
        if frame.code:
            raise error_from_code(frame.code, frame.detail, frame.retry_after_ms)
        if frame.nonce != nonce:
            raise LeaseRefusedError("the answer is not to this request")
        told = LogPosition(frame.space_log_seq, frame.space_log_head)
        grown = told.seq > self._log.seq
        if not grown and self._log.head_prefixes.get(told.head[:8]) != told.seq:
            raise LogForkError("the key service stands on an entry that this device does not have")
        stale = [self._install_grant(grant, nonce, incarnation, now_ms) for grant in frame.grants]
        return LeaseOutcome(grown, any(stale))

    def _install_grant(self, grant: Grant, nonce: bytes, incarnation: Incarnation, now_ms: int) -> bool:
        """Take in a service key; return whether it was released on older logs than this device knew when it asked."""
        record = self._log.epochs.get(grant.epoch)
        if record is None:
            return False
        info = lease_info(self.space, grant.epoch, self.device, grant.not_after_ms, incarnation, nonce)
        leased = Leased.unpack(hpke.open_sealed(self._device_keys.kem, grant.sealed, info))
        self.install_service_key(grant.epoch, ServiceKey(leased.service_key), grant.not_after_ms, now_ms)
        space_seq, account_seq = self._asked
        return leased.space.seq < space_seq or leased.account.seq < account_seq

    def install_service_key(self, epoch: Epoch, key: ServiceKey, not_after_ms: int, now_ms: int) -> None:
        """Take in a service key that was released until a time.

        Raises:
            KeyMismatchError: it is not the one that the signed log commits to.
        """
        check_service_key(self.space, epoch, key, self._log.epochs[epoch].b_commit)
        self._leases[epoch] = _Held(key, not_after_ms, now_ms)

    # Time

    def note_trusted_time(self, server_ms: int) -> None:
        """Take the server's time, told at `welcome`, as the newest: it also mends a clock that was ahead by mistake."""
        self._newest_ms = server_ms

    def locked(self, now_ms: int) -> bool:
        """Tell whether reading is locked: the newest epoch's lease has ended, or the clock was set back.

        Once locked, every key that came by lease is dropped, with all that was derived from it.
        """
        held = self._leases.get(self._log.epoch)
        if held is not None and not self._has_ended(held, now_ms):
            self._newest_ms = max(self._newest_ms, now_ms)
            # A newest epoch that is not leased yet does not lock what the earlier ones can still read.
            return False
        earlier = [held for held in self._leases.values() if not self._has_ended(held, now_ms)]
        if earlier and self._log.epoch not in self._leases:
            return False
        self.lock()
        return True

    def lock(self) -> None:
        """Drop every service key and everything derived from one."""
        self._leases.clear()
        self._opened.clear()

    def _has_ended(self, held: _Held, now_ms: int) -> bool:
        return now_ms >= held.not_after_ms or now_ms < self._newest_ms - CLOCK_BACK_MS_MAX

    # Both together

    def keys(self, epoch: Epoch) -> EpochKeys | None:
        """Return an epoch's keys, or None where one of the two is missing.

        Raises:
            KeyMismatchError: the keys do not fit the signed epoch entry.
        """
        opened = self._opened.get(epoch)
        if opened is not None:
            return opened
        member_key, held, record = self._member_keys.get(epoch), self._leases.get(epoch), self._log.epochs.get(epoch)
        if member_key is None or held is None or record is None:
            return None
        opened = open_epoch(self.space, epoch, member_key, held.key, record)
        self._opened[epoch] = opened
        return opened

    def newest_keys(self) -> EpochKeys:
        """Return the keys that are sealed under now.

        Raises:
            LeaseExpiredError: one of the two keys of the newest epoch is missing.
        """
        keys = self.keys(self._log.epoch)
        if keys is None:
            raise LeaseExpiredError(f"epoch {self._log.epoch}")
        return keys

    @property
    def can_seal(self) -> bool:
        """Whether the newest epoch's keys are both here and right."""
        try:
            return self.keys(self._log.epoch) is not None
        except KeyMismatchError:
            return False

    # Keeping

    def export(self, *, keeps_leases: bool = True) -> bytes:
        """Return the keys as bytes, to be sealed under the StoreKey at once. Leases of 0 hours are left out.

        Args:
            keeps_leases: whether the store is good enough for leases, where the space makes demands on it.
        """
        leases = [
            _Cached(epoch, held.key.expose(), held.not_after_ms, held.leased_ms)
            for epoch, held in sorted(self._leases.items())
            if self._log.lease_hours > 0 and keeps_leases
        ]
        member_keys = {int(epoch): key.expose() for epoch, key in sorted(self._member_keys.items())}
        return msgspec.msgpack.encode(_Exported(member_keys, leases, self._newest_ms))

    def restore(self, exported: bytes) -> None:
        """Take in what `export` returned; leases that have ended are dropped at the next look at the clock."""
        kept = msgspec.msgpack.decode(exported, type=_Exported)
        self._newest_ms = max(self._newest_ms, kept.newest_ms)
        for number, raw in kept.member_keys.items():
            self._member_keys[Epoch(number)] = MemberKey(raw)
        for cached in kept.leases:
            if cached.epoch in self._log.epochs:
                self._leases[cached.epoch] = _Held(ServiceKey(cached.key), cached.not_after_ms, cached.leased_ms)
