"""What lies in an opened envelope: decoded, and checked where every reader must come to the same verdict."""

from __future__ import annotations

import msgspec

from twinlock.document.document import Document
from twinlock.document.operations import Change, Edit, decode_change, is_known
from twinlock.document.snapshot import PackedDocument, decode_snapshot
from twinlock.errors import ClockSkewError, InvalidDataError
from twinlock.ids import Seq
from twinlock.protocol.clock import Hlc, milliseconds_of
from twinlock.protocol.envelope import Kind
from twinlock.protocol.limits import CLOCK_SKEW_MS_MAX
from twinlock.sealing.reader import Source


class PackedState(msgspec.Struct, frozen=True):
    """One document of a snapshot, decoded."""

    packed: PackedDocument
    state: Document


class SnapshotContent(msgspec.Struct, frozen=True):
    """A snapshot, and the newest stamp in it."""

    incarnation: bytes
    as_of: Seq
    states: list[PackedState]
    latest: Hlc


class ChangeContent(msgspec.Struct, frozen=True):
    """A change, its newest stamp, and whether a newer SDK wrote operations in it that this one only keeps."""

    edits: list[Edit]
    latest: Hlc
    has_unknown: bool


Content = ChangeContent | SnapshotContent


def decode_content(payload: bytes, source: Source) -> Content:
    """Decode a payload by the kind of its envelope.

    Raises:
        ClockSkewError: an edit is stamped more than 5 min after the entry's receive time.
        UpdateNeededError: a newer version wrote it.
        InvalidDataError: no honest device wrote it.
    """
    if source.kind is Kind.SNAPSHOT:
        content: Content = _decode_snapshot(payload)
    else:
        change = decode_change(payload)
        if source.kind is Kind.DROP:
            _check_drop(change, source)
        latest = max((edit.stamp for edit in change.edits), default=Hlc(0))
        has_unknown = any(not is_known(op) for edit in change.edits for op in edit.ops)
        content = ChangeContent(change.edits, latest, has_unknown)
    ahead_ms = milliseconds_of(content.latest) - source.received_ms
    if ahead_ms > CLOCK_SKEW_MS_MAX:
        raise ClockSkewError(f"stamped {ahead_ms} ms after its arrival")
    return content


def _decode_snapshot(payload: bytes) -> SnapshotContent:
    snapshot = decode_snapshot(payload)
    states = [PackedState(packed, Document.decode(packed.state)) for packed in snapshot.documents]
    latest = max((state.state.latest for state in states), default=Hlc(0))
    return SnapshotContent(snapshot.incarnation, snapshot.as_of, states, latest)


def _check_drop(change: Change, source: Source) -> None:
    """A sender holds no key, so it may only write documents that carry its account in their id."""
    own = source.account.hex()
    if any(not edit.id.startswith(own) for edit in change.edits):
        raise InvalidDataError("a sender wrote to a document that is not its own")
