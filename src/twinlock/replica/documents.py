"""The documents that one transaction touches: loaded once, changed in memory, stored together."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from twinlock.document.document import Document
from twinlock.document.operations import Edit
from twinlock.errors import DocumentTooLargeError
from twinlock.ids import DeviceId, Seq
from twinlock.replica.compaction import Progress, base_after_change, base_after_snapshot
from twinlock.replica.store import DocumentKey, ReplicaStore, StoredDocument, encode_value
from twinlock.sealing.padding import PAYLOAD_BYTES_MAX


class Shown(msgspec.Struct, frozen=True, gc=False):
    """What a document shows after a transaction: its value (None: no such document), and whether writes are pending."""

    key: DocumentKey
    value: bytes | None
    pending: bool


class OpenDocument:
    """One document while a transaction works on it.

    `confirmed` is what the server has, `overlay` that and the pending writes; while nothing is pending there is no
    overlay. Both are CRDT states, so edits may come to them in any order. States are decoded only when needed.
    """

    __slots__ = (
        "_confirmed",
        "_confirmed_bytes",
        "_overlay",
        "_overlay_bytes",
        "_value_bytes",
        "base_seq",
        "is_lost",
        "key",
        "last_seq",
        "pending",
    )

    def __init__(self, key: DocumentKey, stored: StoredDocument | None) -> None:
        self.key = key
        self._confirmed: Document | None = None
        self._overlay: Document | None = None
        if stored is None:
            self._confirmed_bytes = self._overlay_bytes = b""
            self._value_bytes: bytes | None = None
            self.base_seq = self.last_seq = Seq(0)
            self.pending = 0
            self.is_lost = False
        else:
            self._confirmed_bytes = stored.confirmed
            self._overlay_bytes = stored.overlay
            self._value_bytes = stored.value
            self.base_seq = stored.base_seq
            self.last_seq = stored.last_seq
            self.pending = stored.pending
            self.is_lost = stored.lost

    # States

    def shown(self) -> Document:
        """Return the state that the application sees."""
        return self.overlay() if self._has_overlay else self.confirmed()

    @property
    def _has_overlay(self) -> bool:
        return self._overlay is not None or bool(self._overlay_bytes)

    def confirmed(self) -> Document:
        """Return the state that the server has, empty where it has none."""
        if self._confirmed is None:
            known = self._confirmed_bytes
            self._confirmed = Document.decode(known) if known else Document.empty()
        return self._confirmed

    def overlay(self) -> Document:
        """Return the state with the pending writes; begins as a copy of the confirmed one."""
        if self._overlay is None:
            # Decoded anew: the confirmed state must not change with the overlay.
            known = self._overlay_bytes or self._encoded_confirmed()
            self._overlay = Document.decode(known) if known else Document.empty()
        return self._overlay

    def _encoded_confirmed(self) -> bytes:
        return self._confirmed.encode() if self._confirmed is not None else self._confirmed_bytes

    # Changes

    def write(self, edit: Edit, device: DeviceId) -> None:
        """Apply an own edit that the server has not confirmed."""
        self.overlay().apply(edit, device)

    def apply(self, edit: Edit, device: DeviceId, seq: Seq) -> None:
        """Apply an edit that the server has, at a place in its log."""
        self.confirmed().apply(edit, device)
        if self._has_overlay:
            self.overlay().apply(edit, device)
        self.note_seq(seq)

    def note_seq(self, seq: Seq) -> None:
        """Note that the entry at a place changed this document."""
        self.base_seq = base_after_change(self.base_seq, seq)
        self.last_seq = max(self.last_seq, seq)

    def merge(self, state: Document) -> None:
        """Merge what a snapshot holds of the document; the snapshot's own `state` must not be used afterwards."""
        if self._has_overlay:
            self.overlay().merge(state)
        if self._confirmed is None and not self._confirmed_bytes:
            self._confirmed = state
            return
        self.confirmed().merge(state)
        if self.is_lost and state.encode() == self.confirmed().encode():
            # The server has all that this device knows of the document.
            self.is_lost = False

    def note_snapshot(self, as_of: Seq, seq: Seq, progress: Progress) -> None:
        """Note that the whole document lies in a snapshot at `seq`."""
        self.base_seq = base_after_snapshot(self.base_seq, self.last_seq, as_of, seq, progress)
        # A snapshot that heals carries what stands nowhere before it: if the server is restored to a state without
        # this one, the document may be lost.
        self.last_seq = max(self.last_seq, seq)

    def settle(self, writes_count: int) -> None:
        """Note that some pending writes, whose edits were applied as confirmed, are pending no more."""
        self.pending = max(0, self.pending - writes_count)
        if not self.pending:
            self._overlay, self._overlay_bytes = None, b""

    def promote(self, seq: Seq) -> None:
        """Confirm all that is pending: what was shown is now what the server has."""
        self._confirmed_bytes = self._overlay.encode() if self._overlay is not None else self._overlay_bytes
        self._confirmed = self._overlay
        self._overlay, self._overlay_bytes = None, b""
        self.pending = 0
        self.note_seq(seq)

    def rebuild_overlay(self, edits: Iterable[Edit], device: DeviceId, pending: int) -> None:
        """Make the overlay anew from the confirmed state and the edits that are still pending."""
        self.confirmed()
        self._overlay, self._overlay_bytes = None, b""
        self.pending = pending
        if pending:
            for edit in edits:
                self.overlay().apply(edit, device)

    def close(self) -> StoredDocument:
        """Return the document as it is to be stored."""
        if self._confirmed is not None and self.base_seq:
            self._confirmed_bytes = self._confirmed.encode()
        if self._overlay is not None:
            self._overlay_bytes = self._overlay.encode()
        changed = self._overlay or self._confirmed
        if changed is not None:
            value = self.shown().value()
            self._value_bytes = encode_value(value) if value is not None else None
        return StoredDocument(
            collection=self.key[0],
            id=self.key[1],
            confirmed=self._confirmed_bytes,
            overlay=self._overlay_bytes,
            value=self._value_bytes,
            base_seq=self.base_seq,
            last_seq=self.last_seq,
            pending=self.pending,
            lost=self.is_lost,
        )


class WorkingSet:
    """The documents of one transaction. Open inside it, change, and `flush` before it ends."""

    __slots__ = ("_open", "_store")

    def __init__(self, store: ReplicaStore) -> None:
        self._store = store
        self._open: dict[DocumentKey, OpenDocument] = {}

    def load(self, keys: Iterable[DocumentKey]) -> None:
        """Read documents ahead, many at once."""
        missing = {key for key in keys if key not in self._open}
        if len(missing) == 1:
            self.open(missing.pop())
        elif missing:
            found = self._store.get_documents(missing)
            for key in missing:
                self._open[key] = OpenDocument(key, found.get(key))

    def open(self, key: DocumentKey) -> OpenDocument:
        """Return a document to be changed; all opened documents are stored again."""
        document = self._open.get(key)
        if document is None:
            document = self._open[key] = OpenDocument(key, self._store.get_document(*key))
        return document

    def flush(self, *, is_write: bool = False) -> list[Shown]:
        """Store everything, and return what is shown now.

        Raises:
            DocumentTooLargeError: with `is_write`, a document has grown over what one envelope holds.
        """
        rows = [document.close() for document in self._open.values()]
        if is_write:
            for row in rows:
                if len(row.overlay) > PAYLOAD_BYTES_MAX:
                    raise DocumentTooLargeError(f"{row.collection}/{row.id} has {len(row.overlay)} bytes of state")
        self._store.put_documents(rows)
        self._open.clear()
        return [Shown(row.key, row.value, row.pending > 0) for row in rows]
