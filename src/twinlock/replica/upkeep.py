"""What a device does for all when it is at the head: pack and cut the log, and heal a restored server.

See spec/sealing.md, sections 5 and 6; the rule itself stands in `twinlock.replica.compaction`.
"""

from __future__ import annotations

import msgspec

from twinlock.ids import Counter, Seq
from twinlock.protocol.calls import Cut, CutResult
from twinlock.protocol.envelope import Kind
from twinlock.replica.compaction import JITTER_MS_MAX, LOG_BYTES_MIN, PACK_BYTES, cut_upto, is_due
from twinlock.replica.events import CutWanted, ReplicaEvent
from twinlock.replica.inbox import Inbox
from twinlock.replica.keyring import Keyring
from twinlock.replica.outbox import Outbox
from twinlock.replica.snapshots import snapshot_payloads
from twinlock.replica.store import ReplicaStore, StoredDocument
from twinlock.sealing.suite import Entropy

KEEP_MS = 30 * 24 * 3_600_000
"""How long own envelopes are kept after they were compacted: the larger of grace and backup days, by default."""

NEVER_MS = 1 << 62


class UpkeepSettings(msgspec.Struct, frozen=True):
    """When and how much a device compacts; other values than these are for simulations."""

    log_bytes_min: int = LOG_BYTES_MIN
    pack_bytes: int = PACK_BYTES
    jitter_ms_max: int = JITTER_MS_MAX


DEFAULT_UPKEEP = UpkeepSettings()


class _Pack(msgspec.Struct, frozen=True):
    """Snapshots on their way to the server."""

    last_counter: Counter
    as_of: Seq
    is_cut: bool


class Upkeep:
    """Compaction and healing of one space, one pack at a time, while connected and at the head."""

    __slots__ = (
        "_begin_ms",
        "_entropy",
        "_floor_bytes",
        "_goal",
        "_inbox",
        "_is_cutting",
        "_is_told",
        "_keyring",
        "_outbox",
        "_pack",
        "_settings",
        "_snapshots_seen",
        "_store",
        "events",
        "log_bytes",
        "start",
    )

    def __init__(
        self,
        store: ReplicaStore,
        keyring: Keyring,
        outbox: Outbox,
        inbox: Inbox,
        entropy: Entropy,
        settings: UpkeepSettings,
    ) -> None:
        self._settings = settings
        self._store = store
        self._keyring = keyring
        self._outbox = outbox
        self._inbox = inbox
        self._entropy = entropy
        self._pack: _Pack | None = None
        self._is_cutting = False
        self._is_told = False
        self._goal = Seq(0)
        self._floor_bytes = 0
        self._snapshots_seen = inbox.foreign_snapshots_count
        self._begin_ms = NEVER_MS
        self.log_bytes = 0
        self.start = Seq(1)
        self.events: list[ReplicaEvent] = []

    def reset(self, log_bytes: int, start: Seq) -> None:
        """Begin anew with a connection: nothing is known to be under way."""
        self.log_bytes = log_bytes
        self.start = start
        self._is_told = True
        self._goal = Seq(0)
        self._pack = None
        self._is_cutting = False
        self._begin_ms = NEVER_MS

    def wake_ms(self) -> int | None:
        """Return when `work` will have something to do, None if only news can tell."""
        return None if self._begin_ms == NEVER_MS else self._begin_ms

    def work(self, now_ms: int) -> bool:
        """Take one step, if it is time; return whether there was one. The device is connected and at the head."""
        if self._is_cutting:
            return False
        if self._pack is not None:
            return self._follow(self._pack)
        if not self._is_wanted(now_ms):
            self._begin_ms = NEVER_MS
            return False
        if self._begin_ms == NEVER_MS:
            self._begin_ms = now_ms + self._jitter_ms()
        if self._inbox.foreign_snapshots_count != self._snapshots_seen:
            # Somebody else is at it: go on only if nothing comes of that.
            self._snapshots_seen = self._inbox.foreign_snapshots_count
            self._begin_ms = now_ms + self._settings.jitter_ms_max + self._jitter_ms()
            self._is_told = False
        if now_ms < self._begin_ms or not self._may_seal:
            return False
        return self._begin()

    @property
    def _may_seal(self) -> bool:
        return self._outbox.is_open and self._keyring.can_seal and not self._outbox.is_worn_out

    def _is_wanted(self, now_ms: int) -> bool:
        role = self._keyring.log.role_of(self._keyring.account)
        if role is None or not role.may_write(Kind.SNAPSHOT):
            return False
        if self._inbox.place.is_healing:
            return self._is_healing_wanted()
        return self.may_compact and self._is_due()

    def _is_healing_wanted(self) -> bool:
        """Tell whether a restored server still lacks something; what has come back needs no healing."""
        place = self._inbox.place
        if place.expected and self._store.lost_documents(1):
            return True
        with self._store.transaction(durable=False):
            self._store.clear_lost()
            self._inbox.move(msgspec.structs.replace(place, expected={}, is_healing=False))
        return False

    @property
    def may_compact(self) -> bool:
        """Whether everything that was read was understood."""
        return self._inbox.place.may_compact and not self._inbox.progress.holes

    def _is_due(self) -> bool:
        newest = self._inbox.place.newest_of_epoch
        epoch = self._keyring.log.epoch
        retired = max((seq for number, seq in newest.items() if number < epoch), default=Seq(0))
        if retired < self.start and self.log_bytes <= self._floor_bytes:
            return False
        return is_due(self.log_bytes, self._store.live_bytes(), retired, self.start, self._settings.log_bytes_min)

    def _jitter_ms(self) -> int:
        return int.from_bytes(self._entropy(4), "big") * self._settings.jitter_ms_max >> 32

    def _begin(self) -> bool:
        """Seal the next snapshots: of lost documents first, else of those that hold the log's oldest part."""
        is_healing = self._inbox.place.is_healing
        if not is_healing and not self._is_told:
            # Another device has packed and may have cut, which only the server can tell: a cut up to 0 asks for it.
            self._ask_cut(Seq(0))
            return True
        pick = self._store.lost_documents if is_healing else self._store.oldest_documents
        documents = pick(self._settings.pack_bytes)
        documents = [document for document in documents if document.confirmed]
        if not documents:
            self._begin_ms = NEVER_MS
            return False
        self._seal(documents, is_cut=not is_healing)
        return True

    def _seal(self, documents: list[StoredDocument], is_cut: bool) -> None:
        as_of = self._inbox.place.cursor
        if is_cut and not self._goal:
            self._goal = as_of
        payloads = snapshot_payloads(documents, as_of, self._inbox.heads, self._inbox.place.incarnation)
        if not self._outbox.may_seal(payloads):
            # The next epoch brings a new key, and with it this round of packing anew.
            self._begin_ms = NEVER_MS
            return
        with self._store.transaction(durable=True):
            last = self._outbox.freeze_snapshots(payloads)
        self._pack = _Pack(last, as_of, is_cut)

    def _follow(self, pack: _Pack) -> bool:
        """See what became of the pack: lost, read back, or still under way."""
        sealed = self._store.own_envelope(pack.last_counter)
        if sealed is None or sealed.kind != Kind.SNAPSHOT:
            self._pack = None
            return True
        if not sealed.seq or self._inbox.place.cursor < sealed.seq:
            return False
        self._pack = None
        if not pack.is_cut:
            return True
        upto = cut_upto(pack.as_of, self._store.lowest_base_seq(), self._inbox.progress)
        if upto >= self.start:
            self._ask_cut(upto)
        return True

    def _ask_cut(self, upto: Seq) -> None:
        self._is_cutting = True
        self.events.append(CutWanted(Cut(self._keyring.space, self._inbox.place.incarnation, upto)))

    def on_cut(self, result: CutResult | None, now_ms: int) -> None:
        """The cut was made, or failed: then another try is left to a later moment."""
        self._is_cutting = False
        if result is None:
            self._begin_ms = now_ms + self._settings.jitter_ms_max + self._jitter_ms()
            return
        self._is_told = True
        self.start = result.start
        self.log_bytes = result.log_bytes
        if 0 < self._goal < result.start:
            # All that was there when this round began has been packed anew: more of it would gain nothing.
            self._goal = Seq(0)
            self._floor_bytes = result.log_bytes * 3 // 2
        with self._store.transaction(durable=False):
            self._store.forget_kept(Seq(result.start - 1), now_ms - KEEP_MS)
