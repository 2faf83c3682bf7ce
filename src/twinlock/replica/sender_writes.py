"""From what a sender asks to write to changes, without a look at any document. Sans-I/O.

It remembers the stamps of its own last writes, no values, so that they do not show as concurrent with the next ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from twinlock.document.document import Document
from twinlock.document.fields import ArrayRemove, Increment
from twinlock.document.intent import Operations
from twinlock.document.operations import CLEAR, PUT, REPLACE, Edit, decode_change, encode_change, restamp
from twinlock.document.stamps import NEVER, Stamp, stamp_of
from twinlock.errors import DocumentTooLargeError, RoleError
from twinlock.ids import AccountId, DeviceId
from twinlock.protocol.clock import Hlc, HybridClock, pack
from twinlock.replica.batch import Batch, EditList, Intent, SetDocument, UpdateDocument
from twinlock.replica.intents import check_batch, operations_of
from twinlock.replica.store import DocumentKey
from twinlock.sealing.padding import PAYLOAD_BYTES_MAX

SEEN_MAX = 4096
"""Of how many documents the last own stamp is remembered; the one that was written longest ago goes first."""

_WITH_SAW = frozenset({PUT, REPLACE, CLEAR})


class SenderWrites:
    """The clock of a sender, and what it remembers of its own writes."""

    __slots__ = ("_account", "_clock", "_device", "_seen")

    def __init__(self, account: AccountId, device: DeviceId, latest: Hlc) -> None:
        self._account = account
        self._device = device
        self._clock = HybridClock(latest)
        self._seen: dict[DocumentKey, Stamp] = {}

    @property
    def latest(self) -> Hlc:
        """The newest stamp that was given."""
        return self._clock.latest

    def set_back(self, now_ms: int) -> None:
        """Go on from the right time: the clock was ahead."""
        self._clock = HybridClock(pack(now_ms - 1))

    def observe(self, payload: bytes) -> None:
        """Keep later stamps above those of a change that was written elsewhere."""
        latest = max((edit.stamp for edit in decode_change(payload).edits), default=Hlc(0))
        if latest > self._clock.latest:
            self._clock = HybridClock(latest)

    def payload(self, batch: Batch, now_ms: int) -> bytes:
        """Return a batch as the payload of a drop.

        Raises:
            RoleError: a document is not this account's own, or a write would have to see it first.
            InvalidDataError, DocumentTooLargeError: the batch cannot be stored.
        """
        check_batch(batch)
        edits: list[Edit] = []
        written: dict[DocumentKey, Stamp] = {}
        for intent in batch:
            self._check(intent)
            key = (intent.collection, intent.id)
            operations = operations_of(intent, Document.empty(), self._device, must_exist=False)
            stamp = self._clock.tick(now_ms)
            edits.append(Edit(*key, stamp, _having_seen(operations, written.get(key) or self._seen.get(key))))
            written[key] = stamp_of(stamp, self._device)
        payload = encode_change(edits)
        if len(payload) > PAYLOAD_BYTES_MAX:
            raise DocumentTooLargeError(f"a batch of {len(payload)} bytes")
        self._note(written)
        return payload

    def restamped(self, payload: bytes, now_ms: int, moved: dict[Stamp, Stamp]) -> bytes:
        """Return a payload with its edits moved to the present; `moved` tells what else has moved before it."""
        edits = []
        for edit in decode_change(payload).edits:
            stamp = self._clock.tick(now_ms)
            own = moved[stamp_of(edit.stamp, self._device)] = stamp_of(stamp, self._device)
            edits.append(restamp(edit, stamp, moved))
            self._note({(edit.collection, edit.id): own})
        return encode_change(edits)

    def _check(self, intent: Intent) -> None:
        own = own_prefix(self._account)
        if not intent.id.startswith(own):
            raise RoleError(f"a sender writes only to documents whose ids begin with {own}")
        if isinstance(intent, EditList):
            raise RoleError("a sender reads nothing, and an ordered list needs to be seen before it is changed")
        if isinstance(intent, UpdateDocument) or (isinstance(intent, SetDocument) and intent.merge):
            data = intent.changes if isinstance(intent, UpdateDocument) else intent.data
            if _needs_reading(data):
                raise RoleError("a sender reads nothing: it can neither increment nor remove from a set")

    def _note(self, written: Mapping[DocumentKey, Stamp]) -> None:
        for key, stamp in written.items():
            self._seen.pop(key, None)
            self._seen[key] = stamp
        while len(self._seen) > SEEN_MAX:
            del self._seen[next(iter(self._seen))]


def own_prefix(account: AccountId) -> str:
    """Return what the ids of a sender's documents begin with."""
    return account.hex()


def is_own(payload: bytes, account: AccountId) -> bool:
    """Tell whether a change touches only documents that its account may write to as a sender."""
    return all(edit.id.startswith(own_prefix(account)) for edit in decode_change(payload).edits)


def _having_seen(operations: Operations, seen: Stamp | None) -> Operations:
    """Say that this device has seen its own last write to the document."""
    if seen is None:
        return operations
    return [[op[0], seen, *op[2:]] if op[0] in _WITH_SAW and op[1] == NEVER else op for op in operations]


def _needs_reading(data: Any) -> bool:
    """Tell whether an operator in some data goes on from what is there."""
    if isinstance(data, Increment | ArrayRemove):
        return True
    return isinstance(data, Mapping) and any(_needs_reading(value) for value in data.values())
