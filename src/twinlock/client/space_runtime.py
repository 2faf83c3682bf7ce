"""One space of an open database: its keys, its replica while it can be read, its side file while it cannot."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Sequence
from typing import Any
from weakref import WeakValueDictionary

import msgspec

from twinlock.client.device_context import DeviceContext
from twinlock.client.endings import SpaceEnd
from twinlock.client.file_staging import Staging
from twinlock.client.local_store import LocalStore
from twinlock.client.private_files import make_private_folder
from twinlock.client.replica_file import ReplicaFile
from twinlock.client.sender_file import SenderFile
from twinlock.client.sender_space import SenderSpace, may_write_changes
from twinlock.client.side_file import SideFile
from twinlock.client.subscriptions import Subscriptions
from twinlock.client.writes import Write
from twinlock.errors import LeaseExpiredError, OpenError, RoleError, TwinlockError, error_from_code
from twinlock.ids import Epoch, SpaceId
from twinlock.protocol.account_log import replay_account
from twinlock.protocol.calls import SignedEntry
from twinlock.protocol.space_log import NEEDS_KEYSTORE, Role
from twinlock.protocol.space_rules import replay_space
from twinlock.replica.batch import Batch
from twinlock.replica.events import ReplicaEvent, WritesConfirmed, WritesRefused
from twinlock.replica.keyring import LEASE_RENEWAL_MS, Keyring
from twinlock.replica.locked import LockedOutbox, open_records
from twinlock.replica.replica import Replica
from twinlock.replica.sender import Sender
from twinlock.replica.store import RefusedWrite
from twinlock.sealing.space_entries import open_title, title_index
from twinlock.sealing.space_keys import EpochKeys

logger = logging.getLogger(__name__)

RENEWAL_SPREAD_MS = 5 * 60_000
"""Devices that got their leases in the same moment ask for the next ones in different minutes."""


class SpaceRuntime:
    """What this device does with a space. Synchronous; the courier calls it from the event loop."""

    __slots__ = (
        "_context",
        "_entries",
        "_file",
        "_folder",
        "_locked_writes",
        "_sender",
        "_side",
        "_store",
        "_writes",
        "accounts_seq",
        "attached",
        "end",
        "is_refused",
        "keyring",
        "lease_failures",
        "lease_nonce",
        "lease_retry_ms",
        "log_turn",
        "on_end",
        "replica",
        "rotation_ms",
        "space",
        "staging",
        "subscriptions",
        "title",
        "was_open",
    )

    def __init__(self, context: DeviceContext, entries: Sequence[SignedEntry]) -> None:
        state, device_keys = context.state, context.state.device_keys
        log = replay_space(entries)
        self._context = context
        self._entries = list(entries)
        self.space: SpaceId = log.space
        self.keyring = Keyring(log, state.account_kem, device_keys, LEASE_RENEWAL_MS - _spread_ms(context))
        folder = self._folder = context.profile.space_folder(self.space)
        self._file = ReplicaFile(folder, device_keys.device, state.store_key, context.entropy)
        self._side = SideFile(folder)
        self.staging = Staging(folder, self.space, state.store_key, context.entropy)
        self._store: LocalStore | None = None
        self._sender: SenderSpace | None = None
        self._locked_writes: list[Write] = []
        self._writes: WeakValueDictionary[int, Write] = WeakValueDictionary()
        self.replica: Replica | None = None
        self.subscriptions = Subscriptions()
        self.attached = False
        self.lease_nonce = b""
        self.lease_retry_ms = 0
        self.lease_failures = 0
        self.log_turn = asyncio.Lock()
        """Held by whoever reads or grows the space's log: two at a time would each see half of it."""

        self.accounts_seq = 0
        """Up to which entry of the log the logs of those were read whom it speaks of."""

        self.rotation_ms: int | None = None
        self.end: SpaceEnd | None = None
        self.on_end: list[Callable[[SpaceEnd], None]] = []
        self.is_refused = False
        self.title: str | None = None
        self.was_open = self._file.wrapped_epoch > 0

    # Keys

    @property
    def entries(self) -> list[SignedEntry]:
        """The space's signed log as far as it was read."""
        return self._entries

    def grow_log(self, entries: Sequence[SignedEntry]) -> None:
        """Take in entries of the signed log that follow those that are known."""
        log = replay_space(entries, after=self.keyring.log)
        self.keyring.install_log(log)
        self._entries.extend(entries)
        self._context.state.put_space_log(self.space, self._entries)

    def keep_keys(self) -> None:
        """Keep the keys that may be kept, sealed under the StoreKey."""
        if self.end is None:
            self._context.state.put_keyring(self.space, self.keyring.export(keeps_leases=self._may_keep_leases))

    @property
    def _may_keep_leases(self) -> bool:
        return not (self.keyring.log.offline_needs == NEEDS_KEYSTORE and self._context.is_weak)

    def take_keys(self, other: SpaceRuntime, now_ms: int) -> None:
        """Take over what another look at the same space found, and keep the keys of both."""
        self.keyring.restore(other.keyring.export())
        self.keys_changed(now_ms)

    def restore(self) -> None:
        """Take in the logs of those who are or were members, and the keys that were kept."""
        for account in (*self.keyring.log.members, *self.keyring.log.former):
            entries = self._context.state.account_log(account)
            if entries:
                self.keyring.install_account(replay_account(entries))
        exported = self._context.state.keyring(self.space)
        if exported is not None:
            self.keyring.restore(exported)

    @property
    def rotation_wanted(self) -> bool:
        """Whether the space needs a new epoch.

        Somebody who can derive the newest keys should no longer, or this device's key has sealed half of what it may.
        """
        is_worn = self.replica is not None and self.replica.rotation_wanted
        return self.keyring.log.wants_rotation or is_worn

    # Open and locked

    @property
    def is_locked(self) -> bool:
        """Tell whether the space cannot be read now, though this account may."""
        return self.replica is None and not self.is_sender

    @property
    def is_sender(self) -> bool:
        """Tell whether this account may only send."""
        return self.keyring.log.role_of(self.keyring.account) is Role.SENDER

    @property
    def links(self) -> list[Replica | Sender]:
        """What frames go to: the replica, and the sender while it has something to send; who pushes is the last."""
        links: list[Replica | Sender] = [] if self.replica is None else [self.replica]
        if self._sender is not None and (self.replica is None or self._sender.sender.is_busy):
            links.append(self._sender.sender)
        return links

    def open(self, now_ms: int) -> bool:
        """Open the replica if both keys are at hand; return whether it is open.

        Raises:
            StoreDamagedError: the replica file was altered.
        """
        if self.end is not None:
            return False
        self._open_sender()
        if self.is_sender:
            if self.keyring.holds_member_keys:
                self._become_sender(now_ms)
            return True
        if self.replica is None and self.keyring.locked(now_ms):
            # A lease that has ended stays no longer on the disk than in memory.
            self.keep_keys()
        elif self.replica is None:
            keys = self._keys()
            try:
                self._store = self._file.open(keys)
            except LeaseExpiredError:
                return False
            self._take_in_drops()
            self._make_replica()
            self.was_open = True
            self._absorb(now_ms)
            self._read_title(keys)
            self._reopen_subscriptions(now_ms)
        return self.replica is not None

    def renew(self, now_ms: int) -> None:
        """Make the replica anew from the store, after the disk refused what it holds in memory."""
        self.subscriptions.close()
        self._make_replica()
        self._reopen_subscriptions(now_ms)

    def _open_sender(self) -> None:
        """Open the file of drops if there is one, or may be one."""
        if self._sender is None and (self.is_sender or SenderFile.exists(self._folder)):
            make_private_folder(self._folder)
            self._sender = SenderSpace(self._context, self.keyring, self._folder)
        self._drop_used_up()

    def _drop_used_up(self) -> None:
        if self._sender is not None and not self.is_sender and self._sender.is_used_up:
            self._sender.remove()
            self._sender = None

    def _take_in_drops(self) -> None:
        """Make ordinary writes of the drops that wait; who may only read still sends them as they are."""
        assert self._store is not None
        if self._sender is not None and may_write_changes(self.keyring):
            self._writes.update(self._sender.hand_over(self._store))
            self._drop_used_up()

    def _become_sender(self, now_ms: int) -> None:
        """Seal what the server does not have as drops, and forget what this account may read no more.

        A replica that is locked at this moment stays as it is, unreadable: what waits in it comes back with the keys.
        So does what was written while locked.
        """
        self._open_sender()
        if self._store is None and self.was_open and not self.keyring.locked(now_ms):
            with contextlib.suppress(LeaseExpiredError):
                self._store = self._file.open(self._keys())
        if self._store is not None and self._sender is not None:
            self._sender.take_over(self._store, self._writes)
            self._close_replica()
            self._file.erase()
            self.was_open = False
        for write in self._locked_writes:
            write.settle(RoleError("written while locked: it waits until the account may write to the space again"))
        self._locked_writes.clear()
        self.keyring.forget()
        self.keep_keys()
        self._context.state.forget_keyring_row(self.space)
        self.title = None

    def _make_replica(self) -> None:
        assert self._store is not None
        self.replica = Replica(self.keyring, self._context.state.device_keys, self._store, self._context.entropy)

    def _reopen_subscriptions(self, now_ms: int) -> None:
        assert self.replica is not None
        assert self._store is not None
        self.subscriptions.open(self.replica, self._store, now_ms)

    def flush(self) -> None:
        """Commit what was received since the last time.

        Raises:
            StoreError: the disk refused; `renew` is needed.
        """
        if self._store is not None:
            self._store.flush()

    def lock(self) -> None:
        """Close the replica and drop every key that came by lease."""
        self._close_replica()
        self.keyring.lock()
        self.keep_keys()
        self.title = None

    def close(self) -> None:
        """Close everything of the space."""
        if self._sender is not None:
            self._sender.close()
            self._sender = None
        self._close_replica()

    def _close_replica(self) -> None:
        self.subscriptions.close()
        self.replica = None
        self.attached = False
        if self._store is not None:
            self._store.close()
            self._store = None

    def wipe(self, end: SpaceEnd) -> None:
        """Forget a space that has ended: its keys first, then everything that lies in its folder.

        Writes that the server never had are lost with it; those who hold their handles are told.
        """
        unsent = self.pending_count + len(self.staging.held) + len(self.refused())
        handles = self._handles
        self.end = msgspec.structs.replace(end, unsent_writes=unsent)
        logger.warning(
            "a space has ended",
            extra={"space": self.space.hex(), "reason": end.reason.value, "unsent_writes": unsent},
        )
        self._context.state.end_space(self.space, self.end)
        self.close()
        self.keyring.forget()
        self.title = None
        self._context.profile.erase_space(self.space)
        for write in handles:
            write.settle(end.error())
        for listener in self.on_end:
            listener(self.end)

    def abandon_writes(self, error: TwinlockError) -> None:
        """Tell those who wait for the server that they wait in vain."""
        for write in self._handles:
            write.abandon(error)

    @property
    def _handles(self) -> list[Write]:
        sent = [] if self._sender is None else self._sender.handles
        return [*self._writes.values(), *self._locked_writes, *sent]

    def keys_changed(self, now_ms: int) -> None:
        """The keyring knows more than before: keep it, open what it opens, wrap the file's key anew."""
        if self.end is not None:
            return
        if self.is_sender:
            self.open(now_ms)
            for link in self.links:
                link.keys_changed(now_ms)
            return
        self.keep_keys()
        if self.replica is None:
            self.open(now_ms)
        else:
            keys = self._keys()
            self._file.rewrap(keys)
            self._read_title(keys)
            self.replica.keys_changed(now_ms)

    def _keys(self) -> dict[Epoch, EpochKeys]:
        found = {epoch: self.keyring.keys(epoch) for epoch in self.keyring.log.epochs}
        return {epoch: keys for epoch, keys in found.items() if keys is not None}

    def _read_title(self, keys: dict[Epoch, EpochKeys]) -> None:
        sealed = self.keyring.log.title
        if sealed is None or sealed.epoch not in keys:
            return
        try:
            self.title = open_title(sealed.sealed, keys[sealed.epoch])
        except OpenError:
            logger.warning("a space's title does not open", extra={"space": self.space.hex()})
            return
        index = title_index(self._context.state.store_key, self.title)
        if self._context.state.title_index(self.space) != index:
            self._context.state.put_title_index(self.space, index)

    @property
    def store(self) -> LocalStore | None:
        """The replica's file while it is open."""
        return self._store

    def read(self, collection: str, id: str, now_ms: int) -> dict[str, Any] | None:
        """Return a document's value.

        Raises:
            LeaseExpiredError: the space is locked.
        """
        if self.replica is None or self.keyring.locked(now_ms):
            raise LeaseExpiredError
        return self.replica.get(collection, id, now_ms)

    # Writes

    @property
    def pending_count(self) -> int:
        """Writes and files that the server does not have."""
        if self.end is not None:
            return 0
        sent = self.staging.pending_count + (0 if self._sender is None else self._sender.sender.pending_count)
        if self.replica is not None:
            return sent + self.replica.pending_count
        # What was written while locked waits for a role that may write it.
        return sent if self.is_sender else sent + len(self._side.records())

    def refused(self) -> list[RefusedWrite]:
        """Return the writes that can never be sent."""
        sent = [] if self._sender is None else self._sender.sender.refused()
        return [*sent, *(self.replica.refused() if self.replica is not None else [])]

    def forget_refused(self) -> None:
        """Drop the refused writes, once the application has dealt with them."""
        keepers: list[Replica | Sender] = [] if self.replica is None else [self.replica]
        keepers += [] if self._sender is None else [self._sender.sender]
        for keeper in keepers:
            keeper.forget_refused([write.token for write in keeper.refused()])
        self._drop_used_up()

    @property
    def may_push(self) -> bool:
        """Tell whether anything waits for the server; without a look at the file."""
        if self._sender is not None and self._sender.sender.pending_count:
            return True
        return self._store is not None and bool(self._store.pending_count() or self._store.frozen_count())

    def write_all(self, writes: Sequence[tuple[Batch, Write]], now_ms: int) -> list[TwinlockError | None]:
        """Make writes durable on this device, all with one flush; return each one's error or None.

        Raises:
            StoreError: the disk refused; none of them was written.
        """
        if self.end is not None:
            raise self.end.error()
        if self.is_sender:
            self._open_sender()
            assert self._sender is not None
            return self._sender.write_all(writes, now_ms)
        if not may_write_changes(self.keyring):
            # Known without asking: the server would refuse it for good.
            return [RoleError("a reader writes nothing") for _ in writes]
        if self.replica is not None and self.keyring.locked(now_ms):
            self.lock()
        if self.replica is None or self._store is None:
            return [self._write_locked(batch, write, now_ms) for batch, write in writes]
        results: list[TwinlockError | None] = []
        with self._store.group():
            for batch, write in writes:
                try:
                    self._writes[self.replica.write(batch, now_ms)] = write
                    results.append(None)
                except TwinlockError as exc:
                    results.append(exc)
        return results

    def _write_locked(self, batch: Batch, write: Write, now_ms: int) -> TwinlockError | None:
        outbox = LockedOutbox(
            self.keyring.log, self.keyring.device, self._context.state.store_key, len(self._side.records())
        )
        try:
            self._side.append(outbox.seal(batch, now_ms))
        except TwinlockError as exc:
            return exc
        self._locked_writes.append(write)
        return None

    def _absorb(self, now_ms: int) -> None:
        """Make ordinary pending writes of what was written while locked."""
        records = self._side.records()
        if not records:
            return
        assert self._store is not None
        assert self.replica is not None
        try:
            opened = open_records(records, self.keyring, self._context.state.store_key)
        except OpenError:
            # Somebody altered the file. What was written before must stay readable, and the evidence must stay too.
            logger.exception("writes made while locked do not open", extra={"space": self.space.hex()})
            self._side.set_aside()
            return
        with self._store.group():
            tokens = self.replica.absorb(opened, now_ms)
        # Those of an earlier run of the application come first, and have no handles any more.
        count = min(len(tokens), len(self._locked_writes))
        for token, write in zip(tokens[len(tokens) - count :], self._locked_writes[-count:], strict=False):
            self._writes[token] = write
        self._locked_writes.clear()
        self._side.clear()

    def settle(self, event: ReplicaEvent, link: Replica | Sender | None = None) -> None:
        """Tell the handles of writes what became of them, as one of `links` says (by default the replica)."""
        if self._sender is not None and link is self._sender.sender:
            self._sender.settle(event)
            self._drop_used_up()
            return
        match event:
            case WritesConfirmed():
                for token in event.tokens:
                    self._settle(token, None)
            case WritesRefused():
                for token in event.tokens:
                    self._settle(token, error_from_code(event.code, event.detail))

    def _settle(self, token: int, error: TwinlockError | None) -> None:
        write = self._writes.pop(token, None)
        if write is not None:
            write.settle(error)


def _spread_ms(context: DeviceContext) -> int:
    return int.from_bytes(context.entropy(4), "big") * RENEWAL_SPREAD_MS >> 32
