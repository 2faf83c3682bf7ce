"""Delivered entries on their way into the documents: checked, opened, merged, or put into quarantine."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping, Sequence

import msgspec

from twinlock.errors import ClockSkewError, KeyMismatchError
from twinlock.ids import Counter, DeviceId, EnvelopeId, Epoch, Seq
from twinlock.protocol.envelope import Kind, parse
from twinlock.protocol.frames import Entry
from twinlock.protocol.limits import CLOCK_SKEW_MS_MAX
from twinlock.replica.compaction import Progress
from twinlock.replica.contents import ChangeContent, Content, PackedState, SnapshotContent, decode_content
from twinlock.replica.documents import Shown, WorkingSet
from twinlock.replica.events import EnvelopeQuarantined, LeaseWanted, LogsWanted, ReplicaEvent, WritesConfirmed
from twinlock.replica.keyring import Keyring
from twinlock.replica.outbox import Outbox
from twinlock.replica.snapshots import FragmentKey, Fragments, note_part
from twinlock.replica.state import Place, load_place, save_place
from twinlock.replica.store import QuarantinedEnvelope, ReplicaStore
from twinlock.sealing.chains import ChainHead
from twinlock.sealing.cipher import open_payload
from twinlock.sealing.quarantine import Quarantined, QuarantineReason
from twinlock.sealing.reader import ChainReader, Opened, Page, Source
from twinlock.sealing.space_keys import EpochKeys

SLICE_BYTES_MAX = 64 << 10
SLICE_ENTRIES_MAX = 256
"""About how much is merged in one transaction: a change is never divided, so one entry may be more."""

SLICE_STATES_MAX = 256
"""How many documents of a snapshot are merged in one transaction; they are independent of one another."""

_KIND, _EPOCH, _DEVICE, _COUNTER = slice(1, 2), slice(4, 8), slice(24, 40), slice(40, 48)
_SNAPSHOT = bytes([Kind.SNAPSHOT])
_LOG_REASONS = {QuarantineReason.EPOCH, QuarantineReason.DEVICE, QuarantineReason.LOG_HEAD}
_ADMITTED = {
    QuarantineReason.KEY,
    QuarantineReason.AEAD,
    QuarantineReason.PADDING,
    QuarantineReason.LIMIT,
    QuarantineReason.DECODING,
    QuarantineReason.TIMESTAMP,
}

_SETTLED = {QuarantineReason.REPLAY, QuarantineReason.CUTOFF, QuarantineReason.ROLE, QuarantineReason.VERSION}
"""Reasons that reading the same place again does not change."""


class ChainRecord(msgspec.Struct, frozen=True, array_like=True):
    """A device's chain as it is stored: its head, and the entry in which that was delivered."""

    counter: Counter
    id: EnvelopeId
    seq: Seq


_record_encoder = msgspec.msgpack.Encoder()
_record_decoder = msgspec.msgpack.Decoder(ChainRecord)


class Inbox:
    """Everything about received entries of one space. One slice of work is one transaction."""

    __slots__ = (
        "_chains",
        "_fragments",
        "_holes",
        "_keyring",
        "_outbox",
        "_partly",
        "_partly_entry",
        "_queue",
        "_reader",
        "_store",
        "events",
        "foreign_snapshots_count",
        "place",
        "shown",
    )

    def __init__(self, store: ReplicaStore, keyring: Keyring, outbox: Outbox) -> None:
        self._store = store
        self._keyring = keyring
        self._outbox = outbox
        self._queue: deque[Entry] = deque()
        self.place: Place = load_place(store)
        self._chains = {device: _record_decoder.decode(data) for device, data in store.chains().items() if data}
        self._fragments: dict[FragmentKey, Fragments] = {}
        self._partly: tuple[Opened[Content], Page[Content], int] | None = None
        self._partly_entry = Entry(Seq(0), 0, b"")
        self._holes: list[Seq] = []
        self._reader = self._new_reader()
        self.foreign_snapshots_count = 0
        """Snapshots of other devices since this replica was opened: somebody else compacts or heals."""
        self.events: list[ReplicaEvent] = []
        self.shown: list[Shown] = []
        self._count_holes()

    def _new_reader(self) -> ChainReader[Content]:
        heads = {device: ChainHead(record.counter, record.id) for device, record in self._chains.items()}
        return ChainReader(self._keyring.log, self._keyring.accounts.values(), self._keys_of, decode_content, heads)

    def _keys_of(self, epoch: Epoch) -> EpochKeys | None:
        try:
            return self._keyring.keys(epoch)
        except KeyMismatchError:
            # A wrong key is as good as none; the keyring says so when the lease comes.
            return None

    # What is known

    @property
    def heads(self) -> Mapping[DeviceId, ChainHead]:
        """The newest envelope of every device that was read."""
        return {device: ChainHead(record.counter, record.id) for device, record in self._chains.items()}

    @property
    def progress(self) -> Progress:
        """What was read of the log, and what of it could not be opened."""
        return Progress(self.place.read_from, self.place.cursor, self._holes)

    @property
    def is_idle(self) -> bool:
        """Whether everything that was delivered has been merged."""
        return not self._queue and self._partly is None

    # The log moved under us. Inside a transaction of the caller's.

    def move(self, place: Place) -> None:
        """Go on from another place of the log."""
        self.place = place
        save_place(self._store, place)

    def forget_chains(self, after: Seq) -> dict[DeviceId, EnvelopeId]:
        """Begin the chains anew that were read beyond an entry; return the heads they had."""
        lost = {device: record.id for device, record in self._chains.items() if record.seq > after}
        self._store.put_chains(dict.fromkeys(lost, b""))
        for device in lost:
            del self._chains[device]
        self._reader = self._new_reader()
        return lost

    def drop(self, after: Seq) -> None:
        """Forget what was delivered but not merged, and what lies in quarantine beyond an entry."""
        self._queue.clear()
        self._partly = None
        self._store.release([kept.seq for kept in self._store.quarantined() if kept.seq > after])
        self._count_holes()

    def reread_from(self) -> Seq | None:
        """Return the entry after which to read again, None if there is no need.

        What was altered or withheld between its author and this device may come whole the next time.
        """
        blocked = [kept for kept in self._store.quarantined() if _may_come_whole(kept)]
        starts = [kept.seq - 1 for kept in blocked]
        # Where an entry is missing it lies behind the last good one of its device.
        devices = {DeviceId(kept.data[_DEVICE]) for kept in blocked}
        starts += [self._chains[device].seq for device in devices if device in self._chains]
        return Seq(min(starts)) if starts else None

    def go_back(self, to: Seq) -> None:
        """Stand where everything up to an entry was read, inside a transaction; merging twice changes nothing."""
        self.drop(to)
        self.forget_chains(to)
        self.move(msgspec.structs.replace(self.place, cursor=min(self.place.cursor, to)))

    def _note_return(self, device: DeviceId, identifier: EnvelopeId) -> None:
        """Note that an envelope was read; if it was expected, so was the whole chain before it."""
        expected = self.place.expected
        if expected and expected.get(device) == identifier:
            left = {name: head for name, head in expected.items() if name != device}
            self.place = msgspec.structs.replace(self.place, expected=left)

    # Work

    def add(self, entries: Iterable[Entry]) -> None:
        """Take in delivered entries; what is known by its seq is skipped."""
        newest = self._queue[-1].seq if self._queue else self.place.cursor
        if self._partly is not None:
            newest = max(newest, self._partly[0].source.seq)
        for entry in entries:
            if entry.seq > newest:
                self._queue.append(entry)
                newest = entry.seq

    def work(self, now_ms: int) -> bool:
        """Merge one slice; return whether there was anything to do."""
        if self._partly is not None:
            self._merge_states(now_ms)
            return True
        entries = self._take_slice()
        if not entries:
            return False
        self._merge(entries, now_ms)
        return True

    def _take_slice(self) -> list[Entry]:
        entries: list[Entry] = []
        room = SLICE_BYTES_MAX
        while self._queue and len(entries) < SLICE_ENTRIES_MAX:
            entry = self._queue[0]
            room -= len(entry.envelope)
            is_snapshot = entry.envelope[_KIND] == _SNAPSHOT
            if entries and (room < 0 or is_snapshot):
                break
            entries.append(self._queue.popleft())
            if is_snapshot:
                break
        return entries

    def _merge(self, entries: Sequence[Entry], now_ms: int) -> None:
        own, foreign, later = self._sorted(entries)
        if later:
            self._queue.extendleft(reversed(later))
            entries = entries[: -len(later)]
        page = self._reader.read(foreign) if foreign else Page([], [], {})
        for opened in page.opened:
            if isinstance(opened.content, SnapshotContent) and len(entries) == 1 == len(page.opened):
                self._partly, self._partly_entry = (opened, page, 0), entries[0]
                self._merge_states(now_ms)
                return
        with self._store.transaction(durable=False):
            work = WorkingSet(self._store)
            for entry in own:
                self._confirm_own(entry, work, now_ms)
            self._apply(page, work, now_ms)
            self.shown += work.flush()
            self._move_to(entries)

    def _sorted(self, entries: Sequence[Entry]) -> tuple[list[Entry], list[Entry], Sequence[Entry]]:
        """Return known own entries, those to be checked, and what must wait until these are merged.

        What was forgotten of the own chain is read in its place, between what is known before it and after it.
        """
        own: list[Entry] = []
        foreign: list[Entry] = []
        had_forgotten = False
        for at, entry in enumerate(entries):
            if entry.envelope[_DEVICE] != self._keyring.device:
                foreign.append(entry)
                continue
            is_known = self._is_known_own(entry)
            if had_forgotten if is_known else bool(own):
                return own, foreign, entries[at:]
            had_forgotten = not is_known
            (own if is_known else foreign).append(entry)
        return own, foreign, ()

    def _is_known_own(self, entry: Entry) -> bool:
        data = entry.envelope
        if data[_DEVICE] != self._keyring.device:
            return False
        known = self._store.own_envelope(Counter(int.from_bytes(data[_COUNTER], "big")))
        return known is not None and known.data == data

    def _confirm_own(self, entry: Entry, work: WorkingSet, now_ms: int) -> None:
        """Take in an envelope that this device sealed and still has: it needs no check."""
        counter = Counter(int.from_bytes(entry.envelope[_COUNTER], "big"))
        known = self._store.own_envelope(counter)
        assert known is not None
        tokens = self._outbox.confirm(counter, entry.seq, now_ms, work)
        if tokens:
            self.events.append(WritesConfirmed(tokens))
        self._note_head(self._keyring.device, ChainHead(counter, known.id), entry.seq)
        self._note_return(self._keyring.device, known.id)
        self._reader.adopt(self._keyring.device, ChainHead(counter, known.id))
        if known.kind == Kind.SNAPSHOT or not (tokens or known.seq == entry.seq):
            self._merge_own(entry, work, now_ms)

    def _merge_own(self, entry: Entry, work: WorkingSet, now_ms: int) -> None:
        """Merge an own envelope at its place; what it says is known, where it stands is not."""
        envelope = parse(entry.envelope)
        header = envelope.header
        keys = self._keys_of(header.epoch)
        if keys is None:
            # Known contents, unknown place: as good as an entry that could not be opened.
            self._keep([Quarantined(entry, QuarantineReason.KEY, admitted=True)])
            return
        source = Source(
            entry.seq,
            entry.received_ms,
            header.kind,
            header.epoch,
            self._keyring.account,
            header.device,
            header.counter,
            envelope.id,
        )
        content = decode_content(open_payload(envelope, keys), source)
        self._apply_one(Opened(source, content), work, now_ms)

    def _apply(self, page: Page[Content], work: WorkingSet, now_ms: int) -> None:
        work.load(
            (edit.collection, edit.id)
            for opened in page.opened
            if isinstance(opened.content, ChangeContent)
            for edit in opened.content.edits
        )
        for opened in page.opened:
            self._apply_one(opened, work, now_ms)
            self._observe(opened)
        self._finish(page)

    def _apply_one(self, opened: Opened[Content], work: WorkingSet, now_ms: int) -> None:
        content, source = opened.content, opened.source
        if isinstance(content, ChangeContent):
            if source.device == self._keyring.device:
                self._apply_own(content, source, work, now_ms)
            else:
                for edit in content.edits:
                    work.open((edit.collection, edit.id)).apply(edit, source.device, source.seq)
            if content.has_unknown:
                self.place = msgspec.structs.replace(self.place, may_compact=False)
        else:
            self.foreign_snapshots_count += source.device != self._keyring.device
            self._apply_states(content, content.states, source, work)

    def _apply_own(self, content: ChangeContent, source: Source, work: WorkingSet, now_ms: int) -> None:
        """Merge a change that this device has forgotten, or that a clone of it has sent."""
        self._outbox.observe(content.latest, source.received_ms, CLOCK_SKEW_MS_MAX)
        rebase = self._outbox.rebase(work, now_ms)
        for edit in content.edits:
            rebase.note((edit.collection, edit.id))
        for edit in content.edits:
            work.open((edit.collection, edit.id)).apply(edit, source.device, source.seq)
        before = self._chains.get(source.device)
        self._note_head(source.device, ChainHead(source.counter, source.id), source.seq)
        if source.counter != (before.counter if before is not None else 0) + 1:
            # What comes before it in the chain was cut: its totals stand for all of that, as those of a pack do.
            rebase.after_snapshot()
            return
        tokens = rebase.after_change(content.edits, source.counter)
        if tokens:
            self.events.append(WritesConfirmed(tokens))

    def _apply_states(
        self, content: SnapshotContent, states: Sequence[PackedState], source: Source, work: WorkingSet
    ) -> None:
        work.load((state.packed.collection, state.packed.id) for state in states)
        # The snapshot itself and what stands beside it in this slice are not read yet.
        progress = Progress(self.place.read_from, Seq(max(self.place.cursor, source.seq - 1)), self._holes)
        rebase = self._outbox.rebase(work, source.received_ms)
        for state in states:
            packed = state.packed
            document = work.open((packed.collection, packed.id))
            if state.state.has_unknown:
                self.place = msgspec.structs.replace(self.place, may_compact=False)
            rebase.note(document.key)
            document.merge(state.state)
            if content.incarnation != self.place.incarnation:
                # Sealed before the server was restored: its `as_of` counts entries that are not those of now.
                document.note_seq(source.seq)
                continue
            first_seq = note_part(self._fragments, source.device, content.as_of, source.seq, packed)
            if first_seq == source.seq:
                document.note_snapshot(content.as_of, source.seq, progress)
            elif first_seq is not None:
                # All parts are here: the document is needed from its first part on.
                document.note_snapshot(content.as_of, source.seq, progress)
                document.base_seq = min(document.base_seq, first_seq)
            elif not document.base_seq:
                document.base_seq = Seq(content.as_of + 1)
        rebase.after_snapshot()

    def _merge_states(self, now_ms: int) -> None:
        """Merge the next part of a snapshot; the cursor moves with the last."""
        assert self._partly is not None
        opened, page, start = self._partly
        content = opened.content
        assert isinstance(content, SnapshotContent)
        states = content.states[start : start + SLICE_STATES_MAX]
        is_last = start + SLICE_STATES_MAX >= len(content.states)
        with self._store.transaction(durable=False):
            work = WorkingSet(self._store)
            self._apply_states(content, states, opened.source, work)
            if is_last:
                self.foreign_snapshots_count += 1
                self._observe(opened)
                self._finish(page)
                self._move_to([self._partly_entry])
            self.shown += work.flush()
        self._partly = None if is_last else (opened, page, start + SLICE_STATES_MAX)

    def _finish(self, page: Page[Content]) -> None:
        """Store what a page did to chains and quarantine."""
        seqs: dict[DeviceId, Seq] = {}
        for opened in page.opened:
            seqs[opened.source.device] = opened.source.seq
            self._note_return(opened.source.device, opened.source.id)
        for kept in page.quarantined:
            seqs.setdefault(DeviceId(kept.entry.envelope[_DEVICE]), kept.entry.seq)
        for device, head in page.heads.items():
            self._note_head(device, head, seqs.get(device, self.place.cursor))
        if page.quarantined:
            self._keep(page.quarantined)
        if self._store.quarantined():
            released = {opened.source.seq for opened in page.opened}
            self._store.release([kept.seq for kept in self._store.quarantined() if kept.seq in released])
            self._count_holes()

    def _note_head(self, device: DeviceId, head: ChainHead, seq: Seq) -> None:
        known = self._chains.get(device)
        if known is not None and known.counter > head.counter:
            return
        record = self._chains[device] = ChainRecord(head.counter, head.id, seq)
        self._store.put_chains({device: _record_encoder.encode(record)})

    def _keep(self, quarantined: Sequence[Quarantined]) -> None:
        self._store.quarantine(
            [
                QuarantinedEnvelope(kept.entry.seq, kept.entry.received_ms, kept.entry.envelope, str(kept.reason))
                for kept in quarantined
            ]
        )
        for kept in quarantined:
            self.events.append(EnvelopeQuarantined(kept.entry.seq, str(kept.reason)))
        reasons = {kept.reason for kept in quarantined}
        if reasons & _LOG_REASONS:
            self.events.append(LogsWanted())
        if QuarantineReason.KEY in reasons:
            self.events.append(LeaseWanted())
        self._count_holes()

    def _count_holes(self) -> None:
        self._holes = [kept.seq for kept in self._store.quarantined() if QuarantineReason(kept.reason).may_differ]

    def _observe(self, opened: Opened[Content]) -> None:
        """Let later own stamps lie above what was seen; who received it has checked that it is not of the future."""
        try:
            self._outbox.observe(opened.content.latest, opened.source.received_ms, CLOCK_SKEW_MS_MAX)
        except ClockSkewError:
            return  # Cannot be: the reader has refused it. A clock must not run away all the same.

    def _move_to(self, entries: Sequence[Entry]) -> None:
        """Move the cursor over entries that were merged or put into quarantine."""
        newest = dict(self.place.newest_of_epoch)
        for entry in entries:
            newest[Epoch(int.from_bytes(entry.envelope[_EPOCH], "big"))] = entry.seq
        cursor = max(self.place.cursor, entries[-1].seq)
        self.move(msgspec.structs.replace(self.place, cursor=cursor, newest_of_epoch=newest))
        self._outbox.note_received(entries[-1].received_ms)
        self._outbox.save_clock()

    def retry(self, now_ms: int) -> None:
        """Judge again what lies in quarantine, after a log, a key or the clock has changed."""
        self._reader.update(self._keyring.log, self._keyring.accounts.values())
        kept = [kept for kept in self._store.quarantined() if QuarantineReason(kept.reason).is_worth_a_retry]
        if not kept:
            return
        page = self._reader.retry([_from_store(item) for item in kept])
        with self._store.transaction(durable=False):
            work = WorkingSet(self._store)
            self._apply(page, work, now_ms)
            self.shown += work.flush()
            save_place(self._store, self.place)
            self._outbox.save_clock()


def _may_come_whole(kept: QuarantinedEnvelope) -> bool:
    """Tell whether an entry is in quarantine for what it is, or lacks, on its way; not for what its author wrote."""
    return not _from_store(kept).admitted and kept.reason not in _SETTLED


def _from_store(kept: QuarantinedEnvelope) -> Quarantined:
    reason = QuarantineReason(kept.reason)
    is_admitted = reason in _ADMITTED or (reason is QuarantineReason.VERSION and kept.data[:1] == b"\x01")
    return Quarantined(Entry(kept.seq, kept.received_ms, kept.data), reason, is_admitted)
