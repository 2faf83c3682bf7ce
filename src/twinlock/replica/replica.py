"""One space on this device: documents, outbox and cursor, from writes and delivered entries to shown results. Sans-I/O.

The shell owns the clock, the socket and the file; it calls in, and takes out envelopes, events and snapshots of live
queries. `now_ms` is always the corrected time (the device's clock plus the offset learnt at `welcome`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from twinlock.document.query import Query
from twinlock.ids import Seq
from twinlock.protocol.calls import CutResult
from twinlock.protocol.frames import Ack, Attach, Attached, Entries, Reject
from twinlock.replica.batch import Batch
from twinlock.replica.events import ReplicaEvent
from twinlock.replica.keyring import Keyring
from twinlock.replica.live import LiveQuery, QuerySnapshot
from twinlock.replica.store import QuarantinedEnvelope, RefusedWrite, ReplicaStore


class Replica:
    """A space's state on this device.

    Life: construct with an unlocked `Keyring` and an open store; when the lease ends the shell closes replica and
    store, and writes go to a `LockedOutbox` (twinlock.replica.locked) until there is a lease again.
    """

    # -- construction: Replica(identity, keyring, store, entropy, settings, now_ms)

    # -- writing

    def write(self, batch: Batch, now_ms: int) -> int:
        """Store a batch durably as one atomic change, show it at once, and return its token.

        The token comes back in `WritesConfirmed` or `WritesRefused`. While connected, and with room in the window,
        the change is sealed and frozen in the same transaction.

        Raises:
            InvalidDataError, NotFoundError, DocumentTooLargeError: nothing was written.
            StoreError: the disk refused; nothing was written.
        """

    def absorb(self, locked: list[bytes], now_ms: int) -> list[int]:
        """Open what was written while locked and make it ordinary pending writes; return their tokens, in order."""

    # -- connection

    def attach_request(self) -> Attach:
        """Return the frame that asks for delivery from this device's cursor on."""

    def on_attached(self, frame: Attached, now_ms: int) -> None:
        """Take note of the server's state: adopt or heal the own chain, begin to push and to catch up."""

    def on_disconnected(self) -> None:
        """The connection ended: what was sent and not acknowledged will be sent again, the same bytes."""

    def on_entries(self, frame: Entries, now_ms: int) -> None:
        """Take in a page of entries; `work` merges it."""

    def work(self, now_ms: int, edits_max: int = 256) -> bool:
        """Do a bounded slice of what there is to do; return whether more is left.

        Merges received entries (about `edits_max` edits a slice, whole envelopes), retries quarantine, heals,
        compacts. Call it until it returns False after every frame, yielding to the loop in between.
        """

    def outgoing(self, now_ms: int) -> list[list[bytes]]:
        """Return the pushes that may be sent now, each within the limits of a push; counts them as sent."""

    def on_ack(self, frame: Ack, now_ms: int) -> None:
        """These envelopes are durable on the server."""

    def on_reject(self, frame: Reject, now_ms: int) -> None:
        """An envelope was refused: keep its bytes for later, seal again, or move its writes to the refused list."""

    def on_cut(self, result: CutResult | None) -> None:
        """The call asked for by `CutWanted` succeeded, or (None) failed."""

    def keys_changed(self, now_ms: int) -> None:
        """The keyring has a new log state or lease: quarantine is tried again, stale frozen envelopes are resealed."""

    # -- reading (raise LeaseExpiredError when the keyring's lease has ended)

    def get(self, collection: str, id: str, now_ms: int) -> dict[str, Any] | None:
        """Return a document's shown value, or None."""

    def query(self, query: Query, now_ms: int) -> list[tuple[str, dict[str, Any]]]:
        """Return ids and values in the query's order."""

    def count(self, query: Query, now_ms: int) -> int:
        """Return how many documents the query would return."""

    def conflicts(self, collection: str, id: str, now_ms: int) -> Mapping[str, Any]:
        """Return the losing value of every field that was written concurrently, by dotted path."""

    def live(self, query: Query, now_ms: int) -> LiveQuery:
        """Open a live query; its first snapshot is there at once."""

    def take_snapshots(self, now_ms: int) -> list[tuple[LiveQuery, QuerySnapshot]]:
        """Return a snapshot for every live query whose result or flags changed since the last call."""

    def take_events(self) -> list[ReplicaEvent]:
        """Return what happened since the last call."""

    @property
    def pending_count(self) -> int:
        """Writes that the server has not confirmed."""

    @property
    def syncing(self) -> bool:
        """Whether the head told by `attached` has not been reached yet."""

    @property
    def cursor(self) -> Seq:
        """The newest entry that was merged."""

    def refused(self) -> list[RefusedWrite]:
        """Return the writes that the server refused for good."""

    def quarantined(self) -> list[QuarantinedEnvelope]:
        """Return the entries that could not be merged, with their reasons."""
