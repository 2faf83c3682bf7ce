"""One space on this device: documents, outbox and cursor, from writes and delivered entries to shown results. Sans-I/O.

The shell owns the clock, the socket and the file; it calls in, and takes out envelopes, events and snapshots of live
queries. `now_ms` is always the corrected time (the device's clock plus the offset learnt at `welcome`).
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Sequence
from typing import Any

import msgspec

from twinlock.document.conflicts import Conflict
from twinlock.document.document import Document
from twinlock.document.query import Query
from twinlock.errors import LeaseExpiredError, RoleError, error_from_code
from twinlock.ids import Counter, EnvelopeId, Seq
from twinlock.protocol.calls import CutResult
from twinlock.protocol.frames import Ack, Attach, Attached, Entries, Reject
from twinlock.replica.batch import Batch
from twinlock.replica.documents import Shown, WorkingSet
from twinlock.replica.events import (
    CaughtUp,
    KeyringRowsWanted,
    LogsWanted,
    PushHeld,
    ReplicaEvent,
    WritesConfirmed,
    WritesRefused,
)
from twinlock.replica.inbox import Inbox
from twinlock.replica.intents import decode_locked
from twinlock.replica.keyring import Keyring
from twinlock.replica.live import LiveQueries, LiveQuery, QuerySnapshot
from twinlock.replica.outbox import Outbox
from twinlock.replica.rebase import is_read
from twinlock.replica.retries import RETRY_MS_MIN, ROLE_RETRY_MS, StaleSeals
from twinlock.replica.store import OwnEnvelope, QuarantinedEnvelope, RefusedWrite, ReplicaStore, decode_value
from twinlock.replica.upkeep import DEFAULT_UPKEEP, Upkeep, UpkeepSettings
from twinlock.replica.wear import DEFAULT_WEAR, WearLimits
from twinlock.sealing.cipher import Sealer
from twinlock.sealing.identity import DeviceKeys
from twinlock.sealing.suite import Entropy


class Replica:
    """A space's state on this device.

    Made with an unlocked `Keyring` and an open store. When the lease ends, the shell closes the store and lets go of
    the replica; writes then go to a `LockedOutbox` (twinlock.replica.locked) until there is a lease again. After a
    `StoreError` it must be made anew from the store, since what it holds in memory may be ahead of it.
    """

    __slots__ = (
        "_acks",
        "_attaches",
        "_awaited",
        "_doubts_role",
        "_events",
        "_held_until_ms",
        "_inbox",
        "_is_attached",
        "_is_caught_up",
        "_keyring",
        "_live",
        "_outbox",
        "_own_at_attach",
        "_server_head",
        "_stale",
        "_store",
        "_target",
        "_upkeep",
    )

    def __init__(
        self,
        keyring: Keyring,
        device_keys: DeviceKeys,
        store: ReplicaStore,
        entropy: Entropy,
        upkeep: UpkeepSettings = DEFAULT_UPKEEP,
        wear: WearLimits = DEFAULT_WEAR,
    ) -> None:
        self._keyring = keyring
        self._store = store
        self._outbox = Outbox(store, keyring, Sealer(device_keys, entropy), wear)
        self._inbox = Inbox(store, keyring, self._outbox)
        self._upkeep = Upkeep(store, keyring, self._outbox, self._inbox, entropy, upkeep)
        self._live = LiveQueries()
        self._events: list[ReplicaEvent] = []
        self._acks: deque[tuple[Counter, Seq]] = deque()
        self._attaches = 0
        self._awaited: tuple[Counter, EnvelopeId] | None = None
        self._own_at_attach = Counter(0)
        self._is_attached = False
        self._is_caught_up = False
        self._doubts_role = False
        self._target = Seq(0)
        self._held_until_ms = 0
        self._stale = StaleSeals()
        self._server_head: tuple[Counter, EnvelopeId] | None = None

    # Writing

    def write(self, batch: Batch, now_ms: int) -> int:
        """Store a batch durably as one atomic change, show it at once, and return its token.

        The token comes back in `WritesConfirmed` or `WritesRefused`. While connected, and with room in the window,
        the change is sealed and frozen in the same transaction.

        Raises:
            InvalidDataError, NotFoundError, DocumentTooLargeError: nothing was written.
            LeaseExpiredError: locked; write through a `LockedOutbox`.
            StoreError: the disk refused; nothing was written.
        """
        self._check_unlocked(now_ms)
        token, shown = self._outbox.write(batch, now_ms)
        self._live.apply(shown)
        return token

    def absorb(self, opened: Sequence[bytes], now_ms: int) -> list[int]:
        """Make what was written while locked ordinary pending writes; return their tokens, in order.

        Each is durable when this returns, so the side file may be removed then. What was absorbed before a crash
        that came in between is not absorbed again. `opened` comes from `locked.open_records`.
        """
        self._check_unlocked(now_ms)
        marks = [hashlib.sha256(data).digest() for data in opened]
        absorbed = self._outbox.absorbed_mark
        done = marks.index(absorbed) + 1 if absorbed in marks else 0
        tokens = []
        for data, mark in zip(opened[done:], marks[done:], strict=True):
            stamp, intents = decode_locked(data)
            token, shown = self._outbox.write(intents, now_ms, at=stamp, mark=mark)
            self._live.apply(shown)
            tokens.append(token)
        return tokens

    # Connection

    def attach_request(self) -> Attach:
        """Return the frame that asks for delivery from this device's cursor on.

        Now and then it asks again for what came altered or not at all: at the first attachment, the second, the fourth
        and so on, so that what stays broken costs little.
        """
        self._attaches += 1
        back = self._inbox.reread_from() if self._attaches.bit_count() == 1 else None
        if back is not None and back < self.cursor:
            with self._store.transaction(durable=False):
                self._inbox.go_back(back)
        place = self._inbox.place
        return Attach(self._keyring.space, place.incarnation, place.cursor)

    def on_attached(self, frame: Attached, now_ms: int) -> None:
        """Take note of the server's state: adopt or heal the own chain, begin to push and to catch up."""
        with self._store.transaction(durable=True):
            self._move(frame)
            self._align(frame.own_counter)
            self._outbox.thaw_late(frame.own_counter, frame.own_id, now_ms)
        self._target = frame.head
        self._is_attached = True
        self._is_caught_up = False
        self._held_until_ms = 0
        self._doubts_role = False
        self._outbox.connect()
        self._upkeep.reset(frame.log_bytes, frame.start)
        self._server_head = (frame.own_counter, frame.own_id)
        self._own_at_attach = frame.own_counter
        self._await(frame.own_counter, frame.own_id)
        self._adopt_if_behind()
        if frame.log_seq > self._keyring.log.seq:
            self._events.append(LogsWanted())
        self._note_caught_up()

    def _move(self, frame: Attached) -> None:
        """Follow the server to another incarnation, and over a part of the log that was cut unread."""
        place = self._inbox.place
        if place.incarnation and place.incarnation != frame.incarnation:
            self._follow_restore(frame)
            place = self._inbox.place
        cursor, read_from = place.cursor, place.read_from
        if frame.start > cursor + 1:
            # Chains may have gone on in the part that was cut: they begin anew where delivery does.
            self._inbox.drop(Seq(frame.head))
            self._inbox.forget_chains(Seq(-1))
            cursor, read_from = Seq(frame.start - 1), frame.start
        else:
            self._inbox.drop(Seq(1 << 62))
        incarnation = frame.incarnation
        changed = msgspec.structs.replace(place, incarnation=incarnation, cursor=cursor, read_from=read_from)
        self._inbox.move(changed)

    def _follow_restore(self, frame: Attached) -> None:
        """Go on from `resume`: what lay above it may or may not come back. See spec/sealing.md, section 6."""
        place = self._inbox.place
        resume = min(frame.resume, place.cursor)
        self._inbox.drop(resume)
        lost = self._inbox.forget_chains(resume)
        self._store.mark_lost_above(resume)
        self._store.refreeze(frame.own_counter)
        # A head that is still awaited from an earlier restore lies further along its chain.
        expected = {**lost, **place.expected}
        newest = {epoch: min(seq, resume) for epoch, seq in place.newest_of_epoch.items()}
        read_from = min(place.read_from, Seq(resume + 1))
        self._inbox.move(
            msgspec.structs.replace(
                place, cursor=resume, read_from=read_from, newest_of_epoch=newest, expected=expected, is_healing=True
            )
        )
        self._events.append(KeyringRowsWanted())

    def _align(self, own_counter: Counter) -> None:
        """Make the frozen envelopes continue the server's chain, with kept ones if it has lost some."""
        frozen = self._outbox.lowest_frozen()
        newest = self._outbox.chain.counter
        if (frozen or Counter(newest + 1)) > own_counter + 1:
            self._store.refreeze(own_counter)

    def _adopt_if_behind(self) -> None:
        """Take over the server's head of the own chain, once nothing frozen could still be known to it.

        Behind the server is a device that was restored from a backup; what it had sent since then it reads again.
        """
        if self._server_head is None or self._outbox.lowest_frozen() is not None:
            return
        counter, identifier = self._server_head
        self._server_head = None
        chain = self._outbox.chain
        if counter > chain.counter or (counter == chain.counter and identifier != chain.id) or counter < chain.counter:
            if counter < chain.counter and self._store.own_envelope(chain.counter) is not None:
                return
            with self._store.transaction(durable=True):
                self._outbox.adopt(counter, identifier)

    def _await(self, counter: Counter, identifier: EnvelopeId) -> None:
        """Seal nothing before the own chain was read up to an envelope: what waits is laid on top of it."""
        read = self._inbox.heads.get(self._keyring.device)
        # What the log does not hold of the own chain any more, once everything was read, was in packs.
        is_packed = self._is_caught_up and counter <= self._own_at_attach
        is_behind = not (is_packed or is_read(self._store, self._keyring.device, read, counter, identifier))
        self._awaited = (counter, identifier) if is_behind else None
        self._outbox.is_behind = is_behind

    def on_disconnected(self) -> None:
        """The connection ended: what was sent and not acknowledged will be sent again, the same bytes."""
        self._is_attached = False
        self._is_caught_up = False
        self._acks.clear()
        self._server_head = None
        self._outbox.disconnect()

    def on_entries(self, frame: Entries, now_ms: int) -> None:
        """Take in a page of entries; `work` merges it."""
        self._inbox.add(frame.entries)
        self._upkeep.log_bytes += sum(len(entry.envelope) for entry in frame.entries)

    def work(self, now_ms: int) -> bool:
        """Do a bounded slice of what there is to do; return whether more is left.

        Confirms, merges (some hundred edits a slice, a change is never divided), packs, heals. Call it until it
        returns False after every frame, and at `wake_ms`, yielding to the loop in between.
        """
        if self._keyring.locked(now_ms):
            return False
        if self._acks:
            self._confirm(now_ms)
        elif self._inbox.work(now_ms):
            self._after_merge()
        if self._acks or not self._inbox.is_idle:
            return True
        if self._is_attached and self._is_caught_up and self._upkeep.work(now_ms):
            self._events += self._upkeep.events
            self._upkeep.events.clear()
            return True
        return False

    def wake_ms(self) -> int | None:
        """Return when `work` or `outgoing` should be called again without news, None if never."""
        moments = [moment for moment in (self._upkeep.wake_ms(), self._held_until_ms or None) if moment is not None]
        return min(moments, default=None)

    def _after_merge(self) -> None:
        self._events += self._inbox.events
        self._inbox.events.clear()
        self._show(self._inbox.shown)
        self._inbox.shown = []
        if self._awaited is not None:
            self._await(*self._awaited)
        self._note_caught_up()

    def _show(self, shown: list[Shown]) -> None:
        if shown:
            self._live.apply(shown)

    def _note_caught_up(self) -> None:
        if not self._is_caught_up and self._is_attached and self._inbox.is_idle and self.cursor >= self._target:
            self._is_caught_up = True
            if self._awaited is not None:
                self._await(*self._awaited)
            self._events.append(CaughtUp())

    def _confirm(self, now_ms: int) -> None:
        """Confirm one acknowledged envelope."""
        counter, seq = self._acks.popleft()
        # Where the entry has been cleaned away its place is not known any more; it was read or will be, in a pack.
        place = seq or Seq(max(1, self.cursor))
        with self._store.transaction(durable=False):
            work = WorkingSet(self._store)
            tokens = self._outbox.confirm(counter, place, now_ms, work)
            shown = work.flush()
        if tokens:
            self._events.append(WritesConfirmed(tokens))
        self._show(shown)
        self._adopt_if_behind()

    # Pushing

    def outgoing(self, now_ms: int, pushes_max: int = 64) -> list[list[bytes]]:
        """Return the pushes that may be sent now, each within the limits of a push; counts them as sent."""
        if not self._is_attached or now_ms < self._held_until_ms or self._keyring.locked(now_ms):
            return []
        self._held_until_ms = 0
        self._adopt_if_behind()
        if self._server_head is None and self._stale.are_over(self._keyring.log):
            self._show(self._outbox.seal_waiting(now_ms))
        return self._outbox.outgoing(pushes_max)

    def on_ack(self, frame: Ack, now_ms: int) -> None:
        """These envelopes are durable on the server; `work` confirms what is more than one."""
        self._acks.extend(frame.acked)
        if len(self._acks) == 1 and not self._keyring.locked(now_ms):
            self._confirm(now_ms)

    def on_reject(self, frame: Reject, now_ms: int) -> None:
        """An envelope was refused: keep its bytes for later, seal again, or move its writes to the refused list."""
        while self._acks:
            self._confirm(now_ms)
        sealed = self._store.own_envelope(frame.counter)
        if sealed is None or sealed.seq:
            # Not ours any more: confirmed meanwhile, or about a push that was overtaken.
            self._outbox.resend_after(frame.own_counter)
            return
        error = error_from_code(frame.code, frame.detail, frame.retry_after_ms)
        match error.retry:
            case "later" | "now":
                self._hold(now_ms + max(frame.retry_after_ms, RETRY_MS_MIN), frame.code)
            case "reseal":
                self._reseal(frame, sealed)
            case _ if frame.code == RoleError.code and not self._doubts_role:
                # Whether the role has changed is for the signed log to say: then these writes may go another way.
                self._doubts_role = True
                self._events.append(LogsWanted())
                self._hold(now_ms + ROLE_RETRY_MS, frame.code)
            case _:
                self._refuse(frame)
        self._outbox.resend_after(Counter(min(frame.counter - 1, frame.own_counter)))

    def _hold(self, until_ms: int, code: str) -> None:
        self._held_until_ms = until_ms
        self._events.append(PushHeld(until_ms, code))

    def _reseal(self, frame: Reject, sealed: OwnEnvelope) -> None:
        """Seal again what the server does not have, on top of the head that it has."""
        self._events += self._stale.note(frame.code, sealed.data)
        with self._store.transaction(durable=True):
            if frame.counter > frame.own_counter + 1 and self._outbox.lowest_frozen() != frame.counter:
                # Envelopes below it are still on their way, or lost: they come first, as they are.
                if frame.code == "counter_gap":
                    return
                head = self._outbox.head_before(frame.counter)
            elif frame.counter > frame.own_counter + 1 and self._store.refreeze(frame.own_counter):
                return
            else:
                head = None
            self._outbox.thaw(frame.counter)
            self._outbox.adopt(*(head or (frame.own_counter, frame.own_id)))
        self._server_head = None
        self._await(frame.own_counter, frame.own_id)

    def _refuse(self, frame: Reject) -> None:
        with self._store.transaction(durable=True):
            head = self._outbox.head_before(frame.counter) or (frame.own_counter, frame.own_id)
            if frame.own_counter >= frame.counter:
                head = (frame.own_counter, frame.own_id)
            tokens, shown = self._outbox.refuse(frame.counter, frame.code, frame.detail)
            self._outbox.adopt(*head)
        self._server_head = None
        self._await(*head)
        self._show(shown)
        if tokens:
            self._events.append(WritesRefused(tokens, frame.code, frame.detail))

    def on_cut(self, result: CutResult | None, now_ms: int) -> None:
        """The call asked for by `CutWanted` succeeded, or (None) failed."""
        self._upkeep.on_cut(result, now_ms)

    def keys_changed(self, now_ms: int) -> None:
        """The keyring has newer logs or a lease: what lies in quarantine is judged again."""
        self._stale.forget()
        if self._doubts_role:
            self._held_until_ms = 0
        if not self._keyring.locked(now_ms):
            self._inbox.retry(now_ms)
            self._after_merge()

    # Reading

    def _check_unlocked(self, now_ms: int) -> None:
        if self._keyring.locked(now_ms):
            raise LeaseExpiredError

    def get(self, collection: str, id: str, now_ms: int) -> dict[str, Any] | None:
        """Return a document's shown value, or None; like every read it raises `LeaseExpiredError` while locked."""
        self._check_unlocked(now_ms)
        stored = self._store.get_document(collection, id)
        return decode_value(stored.value) if stored is not None and stored.value is not None else None

    def query(self, query: Query, now_ms: int) -> list[tuple[str, dict[str, Any]]]:
        """Return ids and values in the query's order."""
        self._check_unlocked(now_ms)
        return self._store.query(query)

    def count(self, query: Query, now_ms: int) -> int:
        """Return how many documents match the query."""
        self._check_unlocked(now_ms)
        return self._store.count(query)

    def document(self, collection: str, id: str, now_ms: int) -> Document:
        """Return a document with all that can be asked of it, as this device's own copy."""
        self._check_unlocked(now_ms)
        stored = self._store.get_document(collection, id)
        state = (stored.overlay or stored.confirmed) if stored is not None else b""
        return Document.decode(state) if state else Document.empty()

    def conflicts(self, collection: str, id: str, now_ms: int) -> list[Conflict]:
        """Return the writes to a document that concurrent writes overrode."""
        return self.document(collection, id, now_ms).conflicts()

    def live(self, query: Query, now_ms: int) -> LiveQuery:
        """Open a live query; its first snapshot comes with the next `take_snapshots`."""
        self._check_unlocked(now_ms)
        return self._live.open(query)

    def take_snapshots(self, now_ms: int) -> list[tuple[LiveQuery, QuerySnapshot]]:
        """Return a snapshot for every live query whose result or flags changed since the last call."""
        if self._keyring.locked(now_ms):
            return []
        return self._live.take(self._store, from_cache=not self._is_caught_up, syncing=self.syncing)

    def take_events(self) -> list[ReplicaEvent]:
        """Return what happened since the last call."""
        events, self._events = [*self._events, *self._outbox.rotation_news()], []
        return events

    @property
    def pending_count(self) -> int:
        """Writes that the server has not confirmed."""
        return self._store.pending_count()

    @property
    def rotation_wanted(self) -> bool:
        """Whether this device's key of the newest epoch has borne half of what it may."""
        return self._outbox.wants_rotation

    @property
    def syncing(self) -> bool:
        """Whether the head told by `attached` is still being read."""
        return self._is_attached and not self._is_caught_up

    @property
    def caught_up(self) -> bool:
        """Whether everything that the server had at `attached` is here."""
        return self._is_caught_up

    @property
    def knows_all(self) -> bool:
        """Whether the head was reached, and all that was read was understood and merged."""
        return self._is_caught_up and self._upkeep.may_compact

    @property
    def cursor(self) -> Seq:
        """The newest entry that was read."""
        return self._inbox.place.cursor

    def refused(self) -> list[RefusedWrite]:
        """Return the writes that the server refused for good."""
        return self._store.refused_writes()

    def forget_refused(self, tokens: Sequence[int]) -> None:
        """Drop refused writes that the application has dealt with."""
        with self._store.transaction(durable=True):
            self._store.forget_refused(tokens)

    def quarantined(self) -> list[QuarantinedEnvelope]:
        """Return the entries that could not be merged, with their reasons."""
        return self._store.quarantined()
