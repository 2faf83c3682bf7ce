"""A document: its merge state, and what can be asked of it. See spec/documents.md."""

from __future__ import annotations

from collections.abc import Iterable

from twinlock.document.conflicts import Conflict, conflicts_of
from twinlock.document.merge import State
from twinlock.document.operations import Edit
from twinlock.document.stamps import NEVER, Stamp, hlc_of, stamp_of
from twinlock.document.state_codec import decode_state, encode_state
from twinlock.document.values import Value, parse_path
from twinlock.document.view import View, exists, value_of
from twinlock.ids import DeviceId
from twinlock.protocol.clock import Hlc


class Document:
    """One document's merge state.

    Applying edits and merging states is commutative, associative and idempotent; two documents that took in the same
    edits, in any order, directly or through snapshots, encode to the same bytes.
    """

    __slots__ = ("state",)

    def __init__(self, state: State) -> None:
        self.state = state

    @classmethod
    def empty(cls) -> Document:
        """Return a document that nothing was written to."""
        return cls(State())

    @classmethod
    def decode(cls, data: bytes) -> Document:
        """Read what `encode` wrote, here or on another device.

        Raises:
            InvalidDataError: it is not the state of a document.
            UpdateNeededError: a newer version wrote it.
        """
        return cls(decode_state(data))

    def encode(self) -> bytes:
        """Return the canonical bytes of the state."""
        return encode_state(self.state)

    def copy(self) -> Document:
        """Return a document of its own with the same state."""
        return Document(self.state.copy())

    def apply(self, edit: Edit, device: DeviceId) -> None:
        """Take in one edit of a device; a second time changes nothing."""
        stamp = stamp_of(edit.stamp, device)
        apply = self.state.apply
        for operation in edit.ops:
            apply(operation, stamp)

    def merge(self, other: Document) -> None:
        """Take in all that another state of the same document knows."""
        self.state.merge(other.state)

    @property
    def exists(self) -> bool:
        """Whether the document was written to, and not deleted since."""
        return exists(self.state)

    def value(self) -> dict[str, Value] | None:
        """Return the document as a plain dict, which is the caller's own; None if there is no document."""
        return value_of(self.state)

    def list_elements(self, path: str | tuple[str, ...]) -> list[tuple[str, Value]]:
        """Return the ids and values of an ordered list's elements, in order; nothing if the field is none."""
        elements = View(self.state).list_elements(parse_path(path))
        return [(element_id, value) for _, element_id, value in elements]

    def conflicts(self) -> list[Conflict]:
        """Return the writes that concurrent writes overrode, until the next write to their field."""
        return conflicts_of(self.state)

    @property
    def has_unknown(self) -> bool:
        """Whether a newer SDK wrote operations that this one only passes on; it must not compact them away."""
        return bool(self.state.unknown)

    @property
    def latest(self) -> Hlc:
        """The newest clock time of anything known of the document, 0 if nothing is."""
        return hlc_of(max(_stamps(self.state), default=NEVER))


def _stamps(state: State) -> Iterable[Stamp]:
    yield state.alive
    for newest, _ in state.clears.values():
        yield newest
    for devices in state.counters.values():
        for total in devices.values():
            yield total[0]
    for elements in state.members.values():
        for memberships in elements.values():
            for stamp, _ in memberships.values():
                yield stamp
    for stamp, _ in state.unknown:
        yield stamp
