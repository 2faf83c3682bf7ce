"""This device's writes on their way to the server: stored, sealed, frozen, acknowledged or refused.

See spec/protocol.md, "Guarantees". Every change of the chain happens in the transaction that freezes the envelope.
"""

from __future__ import annotations

from collections import Counter as Tally
from collections.abc import Iterable, Sequence

import msgspec

from twinlock.document.operations import Edit, decode_change, encode_change, restamp
from twinlock.document.stamps import Stamp, stamp_of
from twinlock.errors import DocumentTooLargeError, KeyWornOutError
from twinlock.ids import NO_ENVELOPE, Counter, DeviceId, EnvelopeId, Epoch, Seq
from twinlock.protocol.clock import Hlc, HybridClock, milliseconds_of, pack
from twinlock.protocol.envelope import Kind, parse
from twinlock.protocol.limits import (
    CLOCK_SKEW_MS_MAX,
    CONNECTION_PUSHES_IN_FLIGHT_MAX,
    PUSH_BYTES_MAX,
    PUSH_ENVELOPES_MAX,
)
from twinlock.replica.batch import Batch
from twinlock.replica.documents import Shown, WorkingSet
from twinlock.replica.events import RotationWanted
from twinlock.replica.intents import check_batch, operations_of
from twinlock.replica.keyring import Keyring
from twinlock.replica.rebase import Rebase, rebuild_overlays
from twinlock.replica.state import OwnChain, load_chain, save_chain
from twinlock.replica.store import UNSEALED, DocumentKey, OwnEnvelope, PendingWrite, ReplicaStore
from twinlock.replica.wear import DEFAULT_WEAR, Wear, WearLimits
from twinlock.sealing.cipher import Sealer, open_payload
from twinlock.sealing.padding import PAYLOAD_BYTES_MAX

WINDOW = CONNECTION_PUSHES_IN_FLIGHT_MAX
"""How many frozen envelopes may wait for their acknowledgement; what comes after waits unsealed, to be joined."""

JOIN_BYTES_MAX = 256 << 10
JOIN_EDITS_MAX = 256
"""How much is joined into one change: a reader merges a change in one go, so its size is also a wait."""

SEAL_BYTES_MAX = 1 << 20
"""About how much is sealed in one call."""

CLOCK_AHEAD_MS_MAX = 60_000
"""Stamps further ahead of the corrected time than this come from a clock that was wrong, and are clamped."""


LATE_MS = CLOCK_SKEW_MS_MAX - CLOCK_AHEAD_MS_MAX
"""What is sealed keeps its stamps, unless they lie so far ahead that readers may refuse them."""

TIME_MS_MAX = (1 << 48) - 1 - CLOCK_AHEAD_MS_MAX
"""No receive time after this is believed: a stamp would have no room for it."""

_FLOOR_ROOM = 1 << 16
_NEVER = Hlc(0)
_ABSORBED = "absorbed"


class _RawChange(msgspec.Struct, array_like=True, frozen=True):
    schema: int
    edits: list[msgspec.Raw]


class _Stamped(msgspec.Struct, array_like=True, frozen=True, gc=False):
    collection: str
    id: str
    stamp: Hlc


class _StampedChange(msgspec.Struct, array_like=True, frozen=True):
    schema: int
    edits: list[_Stamped]


_raw_decoder = msgspec.msgpack.Decoder(_RawChange)
_stamps_decoder = msgspec.msgpack.Decoder(_StampedChange)
_raw_encoder = msgspec.msgpack.Encoder()


class Outbox:
    """The durable outbox and the own chain of one space. The caller opens the transactions marked "inside"."""

    __slots__ = (
        "_clock",
        "_device",
        "_floor",
        "_keyring",
        "_last_sent",
        "_received_ms",
        "_sealer",
        "_store",
        "_wear_limits",
        "_wear_told",
        "_worn_out",
        "chain",
        "is_behind",
        "is_open",
    )

    def __init__(
        self, store: ReplicaStore, keyring: Keyring, sealer: Sealer, wear_limits: WearLimits = DEFAULT_WEAR
    ) -> None:
        self._store = store
        self._keyring = keyring
        self._sealer = sealer
        self._device: DeviceId = keyring.device
        self.chain: OwnChain = load_chain(store)
        self._clock = HybridClock(self.chain.clock)
        self._floor = self.chain.floor
        self._received_ms = self.chain.received_ms
        self._last_sent = Counter(0)
        self._wear_limits = wear_limits
        self._worn_out = Epoch(0)
        self._wear_told: RotationWanted | None = None
        self.is_open = False
        """Whether a connection takes pushes now, and envelopes may be sealed for it."""
        self.is_behind = False
        """Whether the server has own envelopes that were not read yet: until then nothing is sealed."""

    # Writing

    def write(
        self, batch: Batch, now_ms: int, at: Hlc | None = None, mark: bytes | None = None
    ) -> tuple[int, list[Shown]]:
        """Store a batch durably and return its token, and what is shown now.

        Args:
            batch: what to write.
            now_ms: the corrected time.
            at: when it was written, if that was earlier (while locked).
            mark: what `absorbed_mark` returns from then on.
        """
        check_batch(batch)
        with self._store.transaction(durable=True):
            work = WorkingSet(self._store)
            work.load((intent.collection, intent.id) for intent in batch)
            edits = self._edits(batch, work, now_ms, at)
            keys = list(dict.fromkeys((edit.collection, edit.id) for edit in edits))
            for key in keys:
                work.open(key).pending += 1
            payload = encode_change(edits)
            if len(payload) > PAYLOAD_BYTES_MAX:
                raise DocumentTooLargeError(f"a batch of {len(payload)} bytes")
            # A write must not overtake an earlier one that waits unsealed.
            is_next = self._has_room and not self._store.unsealed_count() and self.may_seal([payload])
            # What is stamped too late waits for `seal_waiting`, which clamps it.
            is_next = is_next and self._clock.latest <= self._limit(now_ms)
            chain = self._with_clock(self.chain)
            token = self._store.add_write(payload, keys, Counter(chain.counter + 1) if is_next else UNSEALED)
            shown = work.flush(is_write=True)
            if is_next:
                chain = self._freeze(Kind.CHANGE, payload, (), chain, self._clock.latest)
            save_chain(self._store, chain)
            if mark is not None:
                self._store.put_meta(_ABSORBED, mark)
        self.chain = chain
        return token, shown

    def write_change(self, payload: bytes) -> int:
        """Store a change that was sealed in another way before, stamps and all; return its token."""
        with self._store.transaction(durable=True):
            work = WorkingSet(self._store)
            edits = decode_change(payload).edits
            keys = list(dict.fromkeys((edit.collection, edit.id) for edit in edits))
            work.load(keys)
            for edit in edits:
                work.open((edit.collection, edit.id)).write(edit, self._device)
            for key in keys:
                work.open(key).pending += 1
            latest = max((edit.stamp for edit in edits), default=Hlc(0))
            if latest > self._clock.latest:
                self._clock = HybridClock(latest)
            token = self._store.add_write(payload, keys)
            work.flush()
            self.chain = self._with_clock(self.chain)
            save_chain(self._store, self.chain)
        return token

    @property
    def absorbed_mark(self) -> bytes | None:
        """The mark of the newest write that came from the side file."""
        return self._store.get_meta(_ABSORBED)

    def _edits(self, batch: Batch, work: WorkingSet, now_ms: int, at: Hlc | None) -> list[Edit]:
        edits = []
        for intent in batch:
            document = work.open((intent.collection, intent.id))
            ops = operations_of(intent, document.shown(), self._device, must_exist=at is None)
            # A batch of the side file keeps its true old time; later ones still lie above earlier ones.
            stamp = self._clock.tick(now_ms if at is None else min(now_ms, milliseconds_of(at)))
            edit = Edit(intent.collection, intent.id, stamp, ops)
            document.write(edit, self._device)
            edits.append(edit)
        return edits

    @property
    def _has_room(self) -> bool:
        return self.is_open and not self.is_behind and self._store.frozen_count() < WINDOW and self._keyring.can_seal

    # Sealing

    def _freeze(
        self, kind: Kind, payload: bytes, tokens: Sequence[int], chain: OwnChain, latest: Hlc = _NEVER
    ) -> OwnChain:
        """Seal a payload, of which `latest` is the newest stamp, as the next envelope; return the chain after it."""
        keys = self._keyring.newest_keys()
        wear = chain.wear.under(keys.epoch)
        if not wear.fits([len(payload)], self._wear_limits):
            raise KeyWornOutError(f"epoch {keys.epoch}")
        counter = Counter(chain.counter + 1)
        envelope = self._sealer.seal(kind, payload, keys, counter, chain.id, self._keyring.log.head_prefix)
        self._store.freeze(OwnEnvelope(counter, envelope.id, kind, envelope.data), tokens)
        self._floor = max(self._floor, latest)
        worn = wear.after(len(payload))
        return OwnChain(counter, envelope.id, chain.clock, worn, self._floor, self._received_ms)

    def may_seal(self, payloads: Sequence[bytes], wear: Wear | None = None) -> bool:
        """Tell whether the device's key of this epoch bears these seals too; what does not fit waits for the next.

        Args:
            payloads: what is to be sealed.
            wear: what the key has borne, if some was sealed that is not part of `chain` yet.
        """
        epoch = self._keyring.log.epoch
        fits = (wear or self.chain.wear).under(epoch).fits(map(len, payloads), self._wear_limits)
        if not fits:
            self._worn_out = epoch
        return fits

    @property
    def is_worn_out(self) -> bool:
        """Whether something waits because the device's key of this epoch may seal no more."""
        return bool(self._worn_out) and self._worn_out == self._keyring.log.epoch

    @property
    def wants_rotation(self) -> bool:
        """Whether the device's key of this epoch has borne half of what it may, so that a new epoch is due."""
        return self.is_worn_out or self.chain.wear.under(self._keyring.log.epoch).is_half(self._wear_limits)

    def rotation_news(self) -> list[RotationWanted]:
        """Return what has changed of that since the last call."""
        wanted = RotationWanted(self._keyring.log.epoch, self.is_worn_out) if self.wants_rotation else None
        if wanted is None or wanted == self._wear_told:
            return []
        self._wear_told = wanted
        return [wanted]

    def _with_clock(self, chain: OwnChain) -> OwnChain:
        return OwnChain(chain.counter, chain.id, self._clock.latest, chain.wear, self._floor, self._received_ms)

    def freeze_snapshots(self, payloads: Iterable[bytes]) -> Counter:
        """Seal snapshots and freeze them, inside a transaction of the caller's; return the last counter."""
        chain = self.chain
        for payload in payloads:
            chain = self._freeze(Kind.SNAPSHOT, payload, (), chain)
        save_chain(self._store, chain)
        self.chain = chain
        return chain.counter

    def seal_waiting(self, now_ms: int) -> list[Shown]:
        """Join waiting writes into changes and freeze them, as far as there is room in the window."""
        if not self._store.unsealed_count() or not self._has_room:
            return []
        shown = self._clamp(now_ms)
        chain = self.chain
        with self._store.transaction(durable=True):
            sealed_bytes = 0
            while sealed_bytes < SEAL_BYTES_MAX and self._store.frozen_count() < WINDOW:
                writes = self._store.unsealed_writes(JOIN_BYTES_MAX)
                if not writes:
                    break
                payload, joined = _join(writes)
                if not self.may_seal([payload], chain.wear):
                    break
                tokens = [write.token for write in joined]
                chain = self._freeze(Kind.CHANGE, payload, tokens, chain, _latest_in(payload))
                sealed_bytes += len(payload)
            save_chain(self._store, chain)
        self.chain = chain
        return shown

    def _clamp(self, now_ms: int) -> list[Shown]:
        """Move waiting edits that a wrong clock has stamped too late to the corrected time, in their order."""
        limit = self._limit(now_ms)
        if self._clock.latest <= limit:
            return []
        # Where the server's clock was set back, what it has taken before must not win over what comes now.
        self._clock = HybridClock(max(pack(max(now_ms - 1, self._received_ms)), self._floor))
        moved: dict[Stamp, Stamp] = {}
        touched: list[DocumentKey] = []
        with self._store.transaction(durable=True):
            for write in self._store.unsealed_writes(1 << 62):
                edits = [self._restamped(edit, limit, now_ms, moved) for edit in decode_change(write.payload).edits]
                self._store.put_write(write.token, encode_change(edits))
                touched += write.keys
            shown = self._rebuild(touched)
            self.chain = self._with_clock(self.chain)
            save_chain(self._store, self.chain)
        return shown

    def _limit(self, now_ms: int) -> Hlc:
        """Return the latest stamp that may be sealed now: every reader takes it, whatever the server's clock does."""
        limit = pack(max(now_ms, self._received_ms) + CLOCK_AHEAD_MS_MAX)
        # What was moved right behind the floor stays there.
        return max(limit, Hlc(self._floor + _FLOOR_ROOM))

    def _restamped(self, edit: Edit, limit: Hlc, now_ms: int, moved: dict[Stamp, Stamp]) -> Edit:
        stamp = edit.stamp
        if stamp > limit:
            stamp = self._clock.tick(now_ms)
            moved[stamp_of(edit.stamp, self._device)] = stamp_of(stamp, self._device)
        elif stamp > self._clock.latest:
            # What comes after it must not be moved before it.
            self._clock = HybridClock(stamp)
        return restamp(edit, stamp, moved)

    def _rebuild(self, keys: Iterable[DocumentKey]) -> list[Shown]:
        """Make the overlays of documents anew from what is pending now, inside a transaction."""
        work = WorkingSet(self._store)
        rebuild_overlays(self._store, work, keys, self._device)
        return work.flush()

    def rebase(self, work: WorkingSet, now_ms: int) -> Rebase:
        """Begin to merge what this device may not know of itself, inside a transaction."""
        return Rebase(self._store, work, self._device, lambda: self._clock.tick(now_ms))

    # Sending

    def connect(self) -> None:
        """Begin to push: everything frozen is sent (again), the same bytes."""
        self.is_open = True
        self._last_sent = Counter(0)

    def disconnect(self) -> None:
        """Stop sealing and pushing."""
        self.is_open = False

    def outgoing(self, pushes_max: int) -> list[list[bytes]]:
        """Return frozen envelopes that were not sent on this connection, grouped into pushes."""
        pushes: list[list[bytes]] = []
        while self.is_open and len(pushes) < pushes_max:
            envelopes = self._store.frozen_envelopes(self._last_sent, PUSH_BYTES_MAX)
            group: list[bytes] = []
            room = PUSH_BYTES_MAX
            for envelope in envelopes[:PUSH_ENVELOPES_MAX]:
                room -= len(envelope.data)
                if group and room < 0:
                    break
                group.append(envelope.data)
                self._last_sent = envelope.counter
            if not group:
                break
            pushes.append(group)
        return pushes

    def resend_after(self, counter: Counter) -> None:
        """Send everything frozen above a counter again."""
        self._last_sent = min(self._last_sent, counter)

    # What becomes of envelopes. All inside a transaction of the caller's.

    def confirm(self, counter: Counter, seq: Seq, now_ms: int, work: WorkingSet) -> tuple[int, ...]:
        """Confirm a frozen envelope; return the tokens of its writes (none if it was confirmed before)."""
        writes = self._store.confirm(counter, seq, now_ms)
        tally = Tally(key for write in writes for key in write.keys)
        work.load(tally)
        settled = {key for key, count in tally.items() if work.open(key).pending == count}
        for key in settled:
            work.open(key).promote(seq)
        if len(settled) < len(tally):
            for write in writes:
                for edit in decode_change(write.payload).edits:
                    key = (edit.collection, edit.id)
                    if key not in settled:
                        work.open(key).apply(edit, self._device, seq)
            for key in tally.keys() - settled:
                work.open(key).settle(tally[key])
        return tuple(write.token for write in writes)

    def refuse(self, counter: Counter, code: str, detail: str) -> tuple[tuple[int, ...], list[Shown]]:
        """Move the writes of an envelope to the refused ones; what was frozen after it is to be sealed again."""
        writes = self._store.writes_of(counter)
        tokens = tuple(write.token for write in writes)
        self.thaw(Counter(counter + 1))
        self._store.thaw(counter)
        self._store.refuse(tokens, code, detail)
        return tokens, self._rebuild(key for write in writes for key in write.keys)

    def thaw(self, from_counter: Counter) -> None:
        """Drop frozen envelopes from a counter on: their writes are sealed again, snapshots are made anew."""
        self._keep_contents(from_counter)
        self._store.thaw(from_counter)

    def _keep_contents(self, from_counter: Counter) -> None:
        """Make writes again of changes that were frozen anew to heal the server and are now to be dropped."""
        for sealed in self._store.frozen_envelopes(Counter(from_counter - 1), 1 << 62):
            if sealed.kind == Kind.CHANGE and not self._store.writes_of(sealed.counter):
                envelope = parse(sealed.data)
                keys = self._keyring.keys(envelope.header.epoch)
                if keys is not None:
                    # The documents show it already, so it touches none of them as a pending write.
                    self._store.add_write(open_payload(envelope, keys), ())

    def thaw_late(self, own_counter: Counter, own_id: EnvelopeId, now_ms: int) -> None:
        """Have sealed again what the server does not have and readers would refuse, since its clock is behind now."""
        late = pack(max(now_ms, self._received_ms) + LATE_MS)
        for sealed in self._store.frozen_envelopes(own_counter, 1 << 62):
            writes = self._store.writes_of(sealed.counter)
            if max((_latest_in(write.payload) for write in writes), default=_NEVER) > late:
                is_next = sealed.counter == own_counter + 1
                head = (own_counter, own_id) if is_next else self.head_before(sealed.counter)
                if head is not None:
                    self.thaw(sealed.counter)
                    self._floor = self._floor_at(head[0])
                    self.adopt(*head)
                return

    def _floor_at(self, counter: Counter) -> Hlc:
        """Return the floor without what was sealed after an own envelope."""
        floor = min(self._floor, pack(self._received_ms + CLOCK_AHEAD_MS_MAX))
        while (sealed := self._store.own_envelope(counter)) is not None:
            envelope = parse(sealed.data)
            keys = self._keyring.keys(envelope.header.epoch)
            if sealed.kind == Kind.CHANGE and keys is not None:
                return max(floor, _latest_in(open_payload(envelope, keys)))
            counter = Counter(counter - 1)
        return floor

    def adopt(self, counter: Counter, identifier: EnvelopeId) -> None:
        """Go on from another head of the own chain."""
        known = self._with_clock(self.chain)
        self.chain = OwnChain(counter, identifier, known.clock, known.wear, known.floor, known.received_ms)
        save_chain(self._store, self.chain)
        self.resend_after(counter)

    def head_before(self, counter: Counter) -> tuple[Counter, EnvelopeId] | None:
        """Return the own envelope just below a counter, if it is still here."""
        if counter == 1:
            return Counter(0), NO_ENVELOPE
        before = self._store.own_envelope(Counter(counter - 1))
        return None if before is None else (before.counter, before.id)

    def lowest_frozen(self) -> Counter | None:
        """Return the counter of the oldest frozen envelope."""
        frozen = self._store.frozen_envelopes(Counter(0), 1)
        return frozen[0].counter if frozen else None

    def observe(self, latest: Hlc, received_ms: int, skew_ms_max: int) -> None:
        """Keep later own stamps above one that was seen in an entry; saved with the next change of the chain."""
        self._clock.observe(latest, received_ms, skew_ms_max)
        self._floor = max(self._floor, min(latest, pack(_time(received_ms) + CLOCK_AHEAD_MS_MAX)))

    def note_received(self, received_ms: int) -> None:
        """Take note of an entry's receive time; saved with the clock."""
        self._received_ms = max(self._received_ms, _time(received_ms))

    def save_clock(self) -> None:
        """Store the clock, inside a transaction."""
        chain = self._with_clock(self.chain)
        if chain != self.chain:
            self.chain = chain
            save_chain(self._store, chain)


def _latest_in(payload: bytes) -> Hlc:
    """Return the newest stamp of an own change, without reading its operations."""
    return max((edit.stamp for edit in _stamps_decoder.decode(payload).edits), default=_NEVER)


def _time(received_ms: int) -> int:
    return max(0, min(received_ms, TIME_MS_MAX))


def _join(writes: Sequence[PendingWrite]) -> tuple[bytes, Sequence[PendingWrite]]:
    """Join the first of some writes into one change, their order and atomicity kept."""
    if len(writes) == 1:
        return writes[0].payload, writes
    first = _raw_decoder.decode(writes[0].payload)
    edits = list(first.edits)
    room = PAYLOAD_BYTES_MAX - len(writes[0].payload)
    joined = 1
    for write in writes[1:]:
        room -= len(write.payload)
        raw = _raw_decoder.decode(write.payload)
        if room < 0 or raw.schema != first.schema or len(edits) + len(raw.edits) > JOIN_EDITS_MAX:
            break
        edits += raw.edits
        joined += 1
    return _raw_encoder.encode(_RawChange(first.schema, edits)), writes[:joined]
