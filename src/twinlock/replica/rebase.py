"""Own writes that wait, when entries of this very device come that it does not know.

A device that was restored from a backup has forgotten what it had sent since; one that was cloned never knew what its
twin sends. An increment carries the device's running total, so what waits is laid on top of such entries when they are
merged, in the same transaction. See docs/internals/replica.md, "A restored device".
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from twinlock.document.document import Document
from twinlock.document.merge import Total
from twinlock.document.operations import INCREMENT, Edit, check_total, decode_change, encode_change, restamp
from twinlock.document.stamps import Stamp, hlc_of, stamp_of
from twinlock.document.values import Path
from twinlock.errors import InvalidDataError
from twinlock.ids import Counter, DeviceId, EnvelopeId
from twinlock.protocol.clock import Hlc
from twinlock.replica.documents import WorkingSet
from twinlock.replica.store import UNSEALED, DocumentKey, OwnEnvelope, PendingWrite, ReplicaStore
from twinlock.sealing.chains import ChainHead
from twinlock.sealing.padding import PAYLOAD_BYTES_MAX

Totals = Mapping[Path, Total]
"""By path, how far this device has counted."""

_DEVICE, _COUNTER = slice(24, 40), slice(40, 48)


def is_read(
    store: ReplicaStore, device: DeviceId, read: ChainHead | None, counter: Counter, identifier: EnvelopeId
) -> bool:
    """Tell whether an envelope of the own chain was sealed by this very copy of the device, or has been read."""
    if not counter or (read is not None and read.counter >= counter):
        return True
    sealed = store.own_envelope(counter)
    if sealed is not None and sealed.id == identifier:
        return True
    # What came and cannot be opened is not worth waiting for.
    return any(
        kept.data[_DEVICE] == device and int.from_bytes(kept.data[_COUNTER], "big") >= counter
        for kept in store.quarantined()
    )


def own_totals(document: Document, device: DeviceId) -> dict[Path, Total]:
    """Return how far a device has counted in a document."""
    return {path: totals[device] for path, totals in document.state.counters.items() if device in totals}


def rebuild_overlays(store: ReplicaStore, work: WorkingSet, keys: Iterable[DocumentKey], device: DeviceId) -> None:
    """Make the overlays of documents anew from what is pending now, inside a transaction."""
    for key in dict.fromkeys(keys):
        writes = store.writes_touching(key)
        edits = [edit for write in writes for edit in decode_change(write.payload).edits]
        own = [edit for edit in edits if (edit.collection, edit.id) == key]
        work.open(key).rebuild_overlay(own, device, len(writes))


class Rebase:
    """One merge of what this device did not know of itself, over the writes that wait. Inside a transaction."""

    __slots__ = ("_before", "_device", "_store", "_tick", "_work")

    def __init__(self, store: ReplicaStore, work: WorkingSet, device: DeviceId, tick: Callable[[], Hlc]) -> None:
        """`tick` gives stamps above all that was seen, what is being merged included."""
        self._store = store
        self._work = work
        self._device = device
        self._tick = tick
        self._before: dict[DocumentKey, Totals] = {}

    def note(self, key: DocumentKey) -> None:
        """Look at a document before something is merged into it."""
        document = self._work.open(key)
        if document.pending and key not in self._before:
            self._before[key] = own_totals(document.confirmed(), self._device)

    def _grown(self, key: DocumentKey) -> Totals:
        before = self._before[key]
        after = own_totals(self._work.open(key).confirmed(), self._device)
        return {path: total for path, total in after.items() if before.get(path) != total}

    def after_snapshot(self) -> None:
        """Lay what waits over the states that were merged.

        A state does not tell which increments it holds. Those stamped before its newest are taken to be in it, as they
        are unless a clone wrote at the same time: what was counted must never count twice.
        """
        for key in self._before:
            grown = self._grown(key)
            if not grown:
                continue
            starts = dict(self._before[key])
            for write in self._store.writes_touching(key):
                edits = [_recounted(edit, key, grown, starts) for edit in _edits(write)]
                # What is frozen may be on the server already, as it is.
                if write.counter == UNSEALED:
                    self._put(write, edits)
            rebuild_overlays(self._store, self._work, [key], self._device)

    def after_change(self, edits: Sequence[Edit], counter: Counter) -> tuple[int, ...]:
        """Lay what waits over a change that this device did not know; return the writes that it held already."""
        writes = self._waiting(counter)
        if not writes:
            return ()
        sent = {(edit.collection, edit.id, edit.stamp): edit.ops for edit in edits}
        grown = {key: self._grown(key) for key in self._before}
        starts = {key: dict(totals) for key, totals in self._before.items()}
        left: dict[int, list[Edit]] = {}
        first_move: tuple[int, Hlc] | None = None
        for write in writes:
            left[write.token] = kept = []
            for edit in _edits(write):
                key = (edit.collection, edit.id)
                if sent.get((*key, edit.stamp)) == edit.ops:
                    _count(edit, starts.setdefault(key, {}), self._device)
                    continue
                moved = _raised(edit, grown.get(key, {}), starts.get(key, {}))
                kept.append(moved)
                if first_move is None and ((*key, edit.stamp) in sent or _is_hidden(moved, grown.get(key, {}))):
                    first_move = (write.token, edit.stamp)
        done = tuple(token for token, edits_left in left.items() if not edits_left)
        for write in writes:
            self._put(write, left[write.token])
        keys = [key for write in writes for key in write.keys]
        if first_move is not None:
            keys += self._move(first_move, counter)
        if done:
            self._store.refuse(done, "", "")
            self._store.forget_refused(done)
        rebuild_overlays(self._store, self._work, keys, self._device)
        return done

    def _waiting(self, counter: Counter) -> list[PendingWrite]:
        """Return the writes of the documents at hand that this envelope, at its place in the chain, comes before."""
        writes = {write.token: write for key in self._before for write in self._store.writes_touching(key)}
        is_frozen_lost = bool(self._lost_envelopes(counter))
        return [writes[token] for token in sorted(writes) if is_frozen_lost or writes[token].counter == UNSEALED]

    def _lost_envelopes(self, counter: Counter) -> list[OwnEnvelope]:
        """Return the frozen envelopes if the server can never take them, since the place of the first is taken."""
        frozen = self._store.frozen_envelopes(Counter(0), 1 << 62)
        return frozen if frozen and frozen[0].counter <= counter else []

    def _put(self, write: PendingWrite, edits: list[Edit]) -> None:
        payload = encode_change(edits)
        # Larger numbers may make it too large to be sealed: then it stays what it was.
        if edits and payload != write.payload and len(payload) <= PAYLOAD_BYTES_MAX:
            self._store.put_write(write.token, payload)

    def _move(self, first: tuple[int, Hlc], counter: Counter) -> list[DocumentKey]:
        """Stamp all that waits anew, from one edit on: a device's own stamps must grow along its chain."""
        token, stamp = first
        moved: dict[Stamp, Stamp] = {}
        keys: list[DocumentKey] = []
        for write in self._all_waiting(counter):
            if write.token < token:
                continue
            edits = []
            for edit in _edits(write):
                to = edit.stamp
                if write.token > token or to >= stamp:
                    to = self._tick()
                    moved[stamp_of(edit.stamp, self._device)] = stamp_of(to, self._device)
                edits.append(restamp(edit, to, moved))
            self._put(write, edits)
            keys += write.keys
        return keys

    def _all_waiting(self, counter: Counter) -> list[PendingWrite]:
        frozen = [
            write for envelope in self._lost_envelopes(counter) for write in self._store.writes_of(envelope.counter)
        ]
        writes = [*frozen, *self._store.unsealed_writes(1 << 62)]
        # A write without documents says again what the server had: it keeps its stamps.
        return sorted((write for write in writes if write.keys), key=lambda write: write.token)


def _edits(write: PendingWrite) -> list[Edit]:
    return decode_change(write.payload).edits


def _is_increment(op: Any) -> bool:
    return type(op) is list and op[0] == INCREMENT


def _count(edit: Edit, starts: dict[Path, Total], device: DeviceId) -> None:
    """Note that what waits later goes on from this edit's totals."""
    for op in edit.ops:
        if _is_increment(op):
            _, base, path, total = op
            starts[path] = (stamp_of(edit.stamp, device), base, total)


def _is_hidden(edit: Edit, grown: Totals) -> bool:
    """Tell whether a total is stamped too early to count above one that this device has sent since."""
    return any(_is_increment(op) and op[2] in grown and edit.stamp <= hlc_of(grown[op[2]][0]) for op in edit.ops)


def _raised(edit: Edit, grown: Totals, starts: Totals) -> Edit:
    if not grown:
        return edit
    ops = [
        _on_top(op, grown[op[2]], starts.get(op[2])) if _is_increment(op) and op[2] in grown else op for op in edit.ops
    ]
    return Edit(edit.collection, edit.id, edit.stamp, ops)


def _on_top(op: list[Any], known: Total, start: Total | None) -> list[Any]:
    """Return an increment as the same amount on top of a known total; one since a later write stays as it is."""
    code, base, path, total = op
    if base > known[1]:
        return op
    before = start[2] if start is not None and start[1] == base else 0
    raised = known[2] + (total - before)
    try:
        check_total(raised)
    except InvalidDataError:
        return op
    return [code, known[1], path, raised]


def _recounted(edit: Edit, key: DocumentKey, grown: Totals, starts: dict[Path, Total]) -> Edit:
    """Take out of an edit what a merged state holds, and lay the rest on top of it."""
    if (edit.collection, edit.id) != key:
        return edit
    ops: list[Any] = []
    for op in edit.ops:
        if not _is_increment(op) or op[2] not in grown:
            ops.append(op)
        elif edit.stamp <= hlc_of(grown[op[2]][0]):
            starts[op[2]] = (grown[op[2]][0], op[1], op[3])
        else:
            ops.append(_on_top(op, grown[op[2]], starts.get(op[2])))
    return Edit(edit.collection, edit.id, edit.stamp, ops)
