"""Writing to a space without reading it: each write is sealed at once as the next drop of the chain. Sans-I/O.

A sender holds neither key. What it has written it cannot open again, so a drop can take another place in the chain
only while its payload is still in this process's memory: up to `FRESH_BYTES_MAX`, until the server has it. What has to
take another place and cannot, goes to the refused ones. See spec/sealing.md, sections 4 and 7, and
docs/internals/sender.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from twinlock.document.stamps import Stamp
from twinlock.errors import RoleError, TwinlockError, error_from_code
from twinlock.ids import Counter, EnvelopeId, Seq
from twinlock.protocol.clock import milliseconds_of, pack
from twinlock.protocol.envelope import parse
from twinlock.protocol.frames import Ack, Attach, Attached, Reject
from twinlock.protocol.limits import CLOCK_SKEW_MS_MAX, PUSH_BYTES_MAX, PUSH_ENVELOPES_MAX
from twinlock.replica.batch import Batch
from twinlock.replica.drops import Acked, Drop, DropLog, Forgotten, Head, Lost, Record, Refused, SenderStore, Slot
from twinlock.replica.events import LogsWanted, PushHeld, ReplicaEvent, WritesConfirmed, WritesRefused
from twinlock.replica.keyring import Keyring
from twinlock.replica.outbox import CLOCK_AHEAD_MS_MAX
from twinlock.replica.retries import RETRY_MS_MIN, ROLE_RETRY_MS
from twinlock.replica.sender_writes import SenderWrites, is_own
from twinlock.replica.state import OwnChain
from twinlock.replica.store import RefusedWrite
from twinlock.replica.upkeep import KEEP_MS
from twinlock.sealing.cipher import Sealer
from twinlock.sealing.identity import DeviceKeys
from twinlock.sealing.suite import Entropy

KEPT_BYTES_MAX = 64 << 20
"""Acknowledged drops are kept to heal a restored server, up to this much and for `KEEP_MS`."""

BEYOND_ALL = Seq((1 << 53) - 1)
"""The cursor of whom nothing is to be delivered to, not even while it becomes a reader; a number in JavaScript too."""

FRESH_BYTES_MAX = 4 << 20
"""How much of what waits can still be sealed again; the oldest goes first."""

IN_FLIGHT_MAX = 4 * PUSH_ENVELOPES_MAX
"""Drops that are sent and not answered yet."""

HOLD_MS_MAX = 24 * 3_600_000
"""Drops that a wrong clock stamped ahead wait for their time up to so long; beyond it they are refused."""

ACKS_BETWEEN_CLEANINGS = 1_000
NOT_OWN = "written before this account became a sender, to documents that are not its own"


class Sender:
    """A sender's state of one space on this device: a chain of drops on their way.

    It takes the same frames and gives the same events as a `Replica`. After a `StoreError` nothing has changed.
    """

    __slots__ = (
        "_acks_count",
        "_doubts_role",
        "_drops",
        "_events",
        "_fresh",
        "_fresh_bytes",
        "_held_until_ms",
        "_is_attached",
        "_keyring",
        "_last_sent",
        "_sealer",
        "_server_head",
        "_writes",
    )

    def __init__(self, keyring: Keyring, device_keys: DeviceKeys, store: SenderStore, entropy: Entropy) -> None:
        self._keyring = keyring
        self._sealer = Sealer(device_keys, entropy)
        self._drops = DropLog(store)
        self._writes = SenderWrites(keyring.account, keyring.device, self._drops.chain.clock)
        self._fresh: dict[int, bytes] = {}
        self._fresh_bytes = 0
        self._events: list[ReplicaEvent] = []
        self._last_sent = Counter(0)
        self._held_until_ms = 0
        self._is_attached = False
        self._server_head: tuple[Counter, EnvelopeId] | None = None
        self._acks_count = 0
        self._doubts_role = False

    # Writing

    def write_all(self, batches: Sequence[Batch], now_ms: int) -> list[int | TwinlockError]:
        """Seal batches, each as one atomic change, durably and with one flush; return each one's token or error.

        Raises:
            StoreError: the disk refused; none of them was written.
        """
        results: list[int | TwinlockError] = []
        payloads: list[bytes] = []
        for batch in batches:
            try:
                payload = self._writes.payload(batch, now_ms)
                results.append(self._drops.next_token + len(payloads))
                payloads.append(payload)
            except TwinlockError as exc:
                results.append(exc)
        self._add(payloads)
        return results

    def take_over(self, payloads: Sequence[bytes], head: tuple[Counter, EnvelopeId]) -> list[int | None]:
        """Seal changes that were written while this account had another role, after the head that its chain had.

        Returns:
            their tokens, None for those that a sender may not write: they lie among the refused ones, sealed to the
            members of the space.
        """
        for payload in payloads:
            self._writes.observe(payload)
        chain, records = self._drops.chain, list[Record]()
        if head[0] > chain.counter:
            records.append(self._head(*head))
            chain = OwnChain(*head)
        tokens: list[int | None] = []
        for token, payload in enumerate(payloads, self._drops.next_token):
            if is_own(payload, self._keyring.account):
                drop, chain = self._seal(payload, token, chain)
                tokens.append(token)
            else:
                drop, _ = self._seal(payload, token, OwnChain())
                drop = msgspec.structs.replace(drop, code=RoleError.code, detail=NOT_OWN)
                tokens.append(None)
            records.append(drop)
        self._drops.add(records)
        for taken, payload in zip(tokens, payloads, strict=True):
            if taken is not None:
                self._remember(taken, payload)
        return tokens

    def keep_refused(self, refused: Sequence[RefusedWrite]) -> None:
        """Keep what was refused while this account had another role, sealed to the members of the space."""
        records: list[Record] = []
        for token, write in enumerate(refused, self._drops.next_token):
            drop, _ = self._seal(write.payload, token, OwnChain())
            records.append(msgspec.structs.replace(drop, code=write.code, detail=write.detail))
        self._drops.add(records)

    def give_up(self) -> None:
        """Keep what waits no longer: it goes another way."""
        for token in self._drops.pending:
            self._forget(token)
        if self._drops.pending:
            self._drops.add([Forgotten(list(self._drops.pending))])

    def refuse(self, tokens: Sequence[int], code: str, detail: str) -> None:
        """Move what waits to the refused ones."""
        self._drops.add([Refused(list(tokens), code, detail)])
        self._events.append(WritesRefused(tuple(tokens), code, detail))

    def _add(self, payloads: Sequence[bytes]) -> None:
        chain, records = self._drops.chain, []
        first = self._drops.next_token
        for token, payload in enumerate(payloads, first):
            drop, chain = self._seal(payload, token, chain)
            records.append(drop)
        self._drops.add(records)
        for token, payload in enumerate(payloads, first):
            self._remember(token, payload)

    def _seal(self, payload: bytes, token: int, chain: OwnChain) -> tuple[Drop, OwnChain]:
        """Seal a payload as the next drop of a chain, to the newest drop key of the signed log."""
        log = self._keyring.log
        place = (Counter(chain.counter + 1), chain.id, log.head_prefix)
        envelope = self._sealer.seal_drop(payload, log.space, log.epoch, log.epochs[log.epoch].drop_pk, place)
        return Drop(token, self._writes.latest, envelope.data), OwnChain(place[0], envelope.id, self._writes.latest)

    def _remember(self, token: int, payload: bytes) -> None:
        self._fresh[token] = payload
        self._fresh_bytes += len(payload)
        while self._fresh_bytes > FRESH_BYTES_MAX:
            self._forget(next(iter(self._fresh)))

    def _forget(self, token: int) -> None:
        self._fresh_bytes -= len(self._fresh.pop(token, b""))

    # Connection

    def attach_request(self) -> Attach:
        """Return the frame by which the server takes pushes and delivers nothing."""
        return Attach(self._keyring.space, b"", BEYOND_ALL)

    def on_attached(self, frame: Attached, now_ms: int) -> None:
        """Begin to push, with what the server has lost first."""
        self._is_attached = True
        self._held_until_ms = 0
        self._last_sent = Counter(0)
        self._server_head = (frame.own_counter, frame.own_id)
        self._drops.keep_only(now_ms - KEEP_MS, KEPT_BYTES_MAX)
        first = self._drops.first_pending
        if (first.counter if first is not None else self._drops.chain.counter + 1) > frame.own_counter + 1:
            self._heal(frame.own_counter, frame.own_id)
        self._mend_clock(now_ms)
        self._adopt_if_behind()
        if frame.log_seq > self._keyring.log.seq:
            self._events.append(LogsWanted())

    def _heal(self, counter: Counter, identifier: EnvelopeId) -> None:
        """Send again what a restored server has lost; without a whole chain, go on from the head that it has."""
        lost = [slot for slot in self._drops.kept.values() if slot.counter > counter]
        if lost and lost[0].counter == counter + 1 and parse(self._drops.data(lost[0])).header.prev == identifier:
            self._drops.add([Lost([slot.token for slot in lost])])
            return
        if lost:
            self._drops.add([Forgotten([slot.token for slot in lost])])
        self._chain_anew(list(self._drops.pending.values()), (counter, identifier), "counter_gap")

    def _mend_clock(self, now_ms: int) -> None:
        """Stamp anew what a wrong clock has stamped ahead, as far as that is still possible."""
        limit = pack(now_ms + CLOCK_AHEAD_MS_MAX)
        ahead = [slot for slot in self._drops.pending.values() if slot.clock > limit]
        if not ahead:
            if self._writes.latest > limit:
                self._writes.set_back(now_ms)
            return
        is_fresh = all(slot.token in self._fresh for slot in ahead)
        if is_fresh or milliseconds_of(ahead[0].clock) > now_ms + HOLD_MS_MAX:
            first = ahead[0].counter
            head = self._head_before(first)
            if head is not None:
                self._writes.set_back(now_ms)
                later = [slot for slot in self._drops.pending.values() if slot.counter >= first]
                self._chain_anew(later, head, "clock_skew", now_ms)

    def _head_before(self, counter: Counter) -> tuple[Counter, EnvelopeId] | None:
        before = Counter(counter - 1)
        if self._server_head is not None and self._server_head[0] == before:
            return self._server_head
        identifier = self._drops.id_of(before)
        return None if identifier is None else (before, identifier)

    def _adopt_if_behind(self) -> None:
        """Go on from the server's head of the own chain, once nothing waits that could still be known to it.

        Behind the server is a device that was restored from a backup, and one that was cloned.
        """
        if self._server_head is None or self._drops.pending:
            return
        counter, identifier = self._server_head
        self._server_head = None
        chain = self._drops.chain
        if counter > chain.counter or (counter == chain.counter and identifier != chain.id):
            self._drops.add([self._head(counter, identifier)])

    def _head(self, counter: Counter, identifier: EnvelopeId) -> Head:
        return Head(counter, identifier, self._writes.latest, self._drops.next_token)

    def on_disconnected(self) -> None:
        """The connection ended: what was sent and not acknowledged will be sent again, the same bytes."""
        self._is_attached = False
        self._server_head = None

    def on_entries(self, frame: object, now_ms: int) -> None:
        """Nothing is delivered to a sender; what comes all the same means nothing to it."""

    def work(self, now_ms: int) -> bool:
        """Do nothing: all is done as it comes. Return that nothing is left."""
        return False

    def keys_changed(self, now_ms: int) -> None:
        """The signed log has grown: the next drop is sealed to its newest key; what was held back is tried again."""
        self._held_until_ms = 0

    def wake_ms(self) -> int | None:
        """Return when `outgoing` should be called again without news, None if never."""
        return self._held_until_ms or None

    # Pushing

    def outgoing(self, now_ms: int, pushes_max: int = 64) -> list[list[bytes]]:
        """Return the pushes that may be sent now, each within the limits of a push; counts them as sent."""
        if not self._is_attached or now_ms < self._held_until_ms:
            return []
        self._held_until_ms = 0
        waiting = self._sendable(now_ms)
        pushes: list[list[bytes]] = []
        room = 0
        for slot in waiting:
            if not pushes or slot.size > room or len(pushes[-1]) >= PUSH_ENVELOPES_MAX:
                if len(pushes) >= pushes_max:
                    break
                pushes.append([])
                room = PUSH_BYTES_MAX
            pushes[-1].append(self._drops.data(slot))
            room -= slot.size
            self._last_sent = slot.counter
        return pushes

    def _sendable(self, now_ms: int) -> list[Slot]:
        """Return the next drops in order, up to one whose time has not come."""
        first = self._drops.first_pending
        if first is None:
            return []
        last = first.counter - 1 + IN_FLIGHT_MAX
        found = []
        for slot in self._drops.pending.values():
            if slot.counter > last:
                break
            due_ms = milliseconds_of(slot.clock) - CLOCK_SKEW_MS_MAX // 2
            if due_ms > now_ms:
                self._hold(due_ms, "clock_skew")
                break
            if slot.counter > self._last_sent:
                found.append(slot)
        return found

    def _hold(self, until_ms: int, code: str) -> None:
        self._held_until_ms = until_ms
        self._events.append(PushHeld(until_ms, code))

    def on_ack(self, frame: Ack, now_ms: int) -> None:
        """These drops are durable on the server; what of this is lost with the disk is acknowledged again."""
        found = (self._drops.pending_token(counter) for counter, _ in frame.acked)
        tokens = [token for token in found if token is not None]
        if tokens:
            self._drops.add([Acked(tokens, now_ms)], durable=False)
            self._events.append(WritesConfirmed(tuple(tokens)))
            self._acks_count += len(tokens)
            self._doubts_role = False
        for token in tokens:
            self._forget(token)
        if self._acks_count >= ACKS_BETWEEN_CLEANINGS:
            self._acks_count = 0
            self._drops.keep_only(now_ms - KEEP_MS, KEPT_BYTES_MAX)
        self._adopt_if_behind()

    def on_reject(self, frame: Reject, now_ms: int) -> None:
        """A drop was refused: hold it, go on from another head, or move it to the refused ones."""
        token = self._drops.pending_token(frame.counter)
        if token is None:
            # Not ours any more: acknowledged meanwhile, or about a push that was overtaken.
            self._resend_after(frame.own_counter)
            return
        error = error_from_code(frame.code, frame.detail, frame.retry_after_ms)
        if frame.code == "stale_epoch":
            # The server does not know of an epoch that the signed log has: it lacks entries, which it will be given.
            self._events.append(LogsWanted())
            self._hold(now_ms + RETRY_MS_MIN, frame.code)
        elif error.retry in ("later", "now"):
            self._hold(now_ms + max(frame.retry_after_ms, RETRY_MS_MIN), frame.code)
        elif error.retry == "reseal":
            self._go_on_from(frame)
        elif frame.code == RoleError.code and not self._doubts_role:
            self._doubts_role = True
            self._events.append(LogsWanted())
            self._hold(now_ms + ROLE_RETRY_MS, frame.code)
        else:
            self._refuse(token, frame)
        self._resend_after(Counter(min(frame.counter - 1, frame.own_counter)))

    def _resend_after(self, counter: Counter) -> None:
        self._last_sent = min(self._last_sent, counter)

    def _go_on_from(self, frame: Reject) -> None:
        """Go on from the server's head: it has another envelope in this drop's place, or lacks some before it."""
        own = (frame.own_counter, frame.own_id)
        first = self._drops.first_pending
        if frame.code == "counter_gap" and first is not None:
            if first.counter > frame.own_counter + 1:
                self._heal(*own)
            # Else those that are missing wait here, and are sent again first.
            return
        self._server_head = None
        later = [slot for slot in self._drops.pending.values() if slot.counter >= frame.counter]
        self._chain_anew(later, own, frame.code)

    def _refuse(self, token: int, frame: Reject) -> None:
        """Move a drop to the refused ones, and let those behind it take its place."""
        head = self._head_before(frame.counter)
        if head is None or frame.own_counter >= frame.counter:
            head = (frame.own_counter, frame.own_id)
        self._server_head = None
        later = [slot for slot in self._drops.pending.values() if slot.counter > frame.counter]
        slot = self._drops.pending[token]
        if frame.code == RoleError.code and self._is_outdated(slot):
            # It may count with what the log says now, if it can still be sealed again.
            self._chain_anew([slot, *later], head, frame.code)
            return
        self._forget(token)
        self._drops.add([Refused([token], frame.code, frame.detail)])
        self._events.append(WritesRefused((token,), frame.code, frame.detail))
        self._chain_anew(later, head, frame.code)

    def _is_outdated(self, slot: Slot) -> bool:
        return parse(self._drops.data(slot)).header.log_head != self._keyring.log.head_prefix

    def _chain_anew(
        self, slots: Sequence[Slot], head: tuple[Counter, EnvelopeId], code: str, now_ms: int | None = None
    ) -> None:
        """Let drops follow another head: those that are still in memory are sealed again, the others are refused.

        Args:
            slots: all that wait from some drop on.
            head: what they are to follow.
            code: why.
            now_ms: the corrected time, where what lies ahead of it is to be stamped anew.
        """
        chain = OwnChain(*head, self._writes.latest)
        records: list[Record] = [self._head(*head)]
        moved: dict[Stamp, Stamp] = {}
        gone = [slot.token for slot in slots if slot.token not in self._fresh]
        detail = "sealed for another place in this device's chain"
        if gone:
            records.append(Refused(gone, code, detail))
        for slot in slots:
            payload = self._fresh.get(slot.token)
            if payload is None:
                continue
            if now_ms is not None:
                payload = self._fresh[slot.token] = self._writes.restamped(payload, now_ms, moved)
            drop, chain = self._seal(payload, slot.token, chain)
            records.append(drop)
        self._drops.add(records)
        self._resend_after(head[0])
        if gone:
            self._events.append(WritesRefused(tuple(gone), code, detail))

    # What the shell asks

    def take_events(self) -> list[ReplicaEvent]:
        """Return what happened since the last call."""
        events, self._events = self._events, []
        return events

    @property
    def pending_count(self) -> int:
        """Writes that the server has not confirmed."""
        return len(self._drops.pending)

    @property
    def is_busy(self) -> bool:
        """Whether something waits, for the server or for the shell."""
        return bool(self._drops.pending or self._events)

    @property
    def syncing(self) -> bool:
        """Whether something is still being read: never."""
        return False

    def pending_envelopes(self) -> dict[int, bytes]:
        """Return the drops that wait, by token and in order: who may read the space can open them."""
        return {token: self._drops.data(slot) for token, slot in self._drops.pending.items()}

    def refused(self) -> list[RefusedWrite]:
        """Return the drops that can never be sent; their payload is sealed, so members of the space can open it."""
        return [
            RefusedWrite(slot.token, self._drops.data(slot), (), slot.code, slot.detail)
            for slot in self._drops.refused.values()
        ]

    def forget_refused(self, tokens: Sequence[int]) -> None:
        """Drop refused writes that the application has dealt with."""
        known = [token for token in tokens if token in self._drops.refused]
        if known:
            self._drops.add([Forgotten(known)])

    def quarantined(self) -> list[Any]:
        """Return what could not be merged: nothing, since a sender reads nothing."""
        return []
