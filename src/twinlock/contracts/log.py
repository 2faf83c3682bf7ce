"""The log contract: per space one totally ordered, durable list of sealed envelopes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from enum import Enum

import msgspec

from twinlock.errors import StoreError, TwinlockError
from twinlock.ids import Counter, DeviceId, EnvelopeId, Incarnation, Seq, SpaceId
from twinlock.protocol.envelope import Envelope
from twinlock.protocol.frames import Entry


class DeviceHead(msgspec.Struct, frozen=True, gc=False):
    """The last envelope of one device in one space."""

    counter: Counter
    id: EnvelopeId


class SpaceState(msgspec.Struct, frozen=True):
    """What a node must know of a space before it serves it.

    `start` is the first seq that is delivered, `head` the last seq (0 when empty), `log_bytes` the envelope bytes
    from `start` on, `heads` the chain heads of every device that ever wrote, which survive cuts and purges.
    `received_ms` is the receive time of the newest entry that is stored (0 where there is none, or it is not known).
    """

    start: Seq
    head: Seq
    log_bytes: int
    heads: Mapping[DeviceId, DeviceHead]
    received_ms: int = 0


class Append(msgspec.Struct, frozen=True):
    """New envelopes of one space, to be appended all or none, and when they were received."""

    space: SpaceId
    envelopes: Sequence[Envelope]
    received_ms: int


Outcome = list[Seq] | TwinlockError
"""What came of an append: one seq for each envelope, or why nothing was appended."""

Done = Callable[[Sequence[tuple[int, Outcome]]], None]
"""Called with the places of appends in their call and what came of them; must not raise."""

APPEND_ENVELOPES_MAX = 4096
APPEND_BYTES_MAX = 4 << 20
"""An append carries at most so many envelopes, and so many bytes of them."""


class OvertakenError(StoreError):
    """Another node's fence came before an append: nothing of it was stored, nor will be; it may be asked for again."""


class Note(Enum):
    """What a node tells the others through a space's log, in order with its entries."""

    FENCE = "fence"
    """A change of the space's signed log begins or has ended: look at the directory."""

    CUT = "cut"
    """The start has moved, or what was cut is deleted: ask for the state."""


class Foreign(msgspec.Struct, frozen=True):
    """What another node did to a space: it appended `entries`, or it left a `note`."""

    entries: list[Entry]
    note: Note | None = None


Follower = Callable[[Foreign], None]
"""Called in the event loop with what other nodes did, one thing after the other; must not block nor raise."""


class Log(ABC):
    """Per space one total order of envelopes.

    Guarantees, tested for every engine by `twinlock.testing.contracts`:

    - An append is all or nothing, and durable when it returns. Appends to one space never interleave.
    - `seq` grows strictly within a space; gaps in the numbers mean nothing.
    - Appending is idempotent by (space, device, counter, id). Counters have no gaps; a counter that is taken by
      another id, a gap, or a wrong `prev` refuses the whole append with `AppendConflictError`.
    - `watch` continues `read` without gap or overlap.
    - A cut takes effect for new readers at once; what it covers is deleted only by `clean`, after the grace.
    - Receive times never go back, if no append is given one before that of the newest entry that its node knows: where
      another node was faster, the larger of both is stored. What is adopted keeps its times.
    - Several nodes may each have a `Log` of their own on one store. An append of one of them that did not know of an
      append of another is tried again behind it, so that all of the above holds over all nodes; `follow` tells.
    """

    @property
    @abstractmethod
    def incarnation(self) -> Incarnation:
        """The random id of this life of the database."""

    @abstractmethod
    async def state(self, space: SpaceId) -> SpaceState:
        """Return the space's present state; an unknown space is simply empty (start 1, head 0)."""

    @abstractmethod
    async def append(self, space: SpaceId, envelopes: Sequence[Envelope], received_ms: int) -> list[Seq]:
        """Append durably and return one seq for each envelope, in order; a known envelope gets the seq it has.

        Where a known envelope's entry has already been cleaned away, its seq is 0. Within one append the counters of
        a device grow. An append whose caller was cancelled may still happen; appending again tells.

        Raises:
            AppendConflictError: the chain of a device does not fit; nothing was appended.
            StoreError: the store failed; nothing was acknowledged and the caller may try again.
            OverloadedError: too much waits already; nothing was taken.
        """

    @abstractmethod
    def append_many(self, appends: Sequence[Append], done: Done) -> None:
        """Append to many spaces at once, and tell `done` what came of each once that is durable.

        Each append stands by itself and fails as `append` does; one with an envelope that is known already is refused
        with `AppendConflictError`. A space that takes long keeps no other waiting: `done` is called as often as it
        takes, for each append once, in the event loop, never from within this call. This is how a busy server appends:
        it costs no task for each space.
        """

    @abstractmethod
    async def read(self, space: SpaceId, after: Seq, bytes_max: int) -> list[Entry]:
        """Return entries after a seq, from `start` on, in order: about `bytes_max`, at least one if there is any."""

    @abstractmethod
    def watch(self, space: SpaceId, after: Seq) -> AsyncIterator[list[Entry]]:
        """Yield all entries after a seq, in order, each once, as they become durable; end when the log is closed."""

    @abstractmethod
    def follow(self, space: SpaceId, after: Seq, follower: Follower) -> Callable[[], None]:
        """Tell of everything that other nodes do to a space after a seq, in order and each once, until ended.

        In order with this node's own appends too: what others did below an own append is told before the outcome of
        that append, and what they did above it afterwards. What this node does itself is not told, except an append
        that was stored although it was answered with an error. An engine of a single process has no other nodes.
        Returns what ends it.
        """

    @abstractmethod
    async def fence(self, space: SpaceId) -> SpaceState:
        """Leave `Note.FENCE` for the other nodes, durably, and return the state at that very place of the log.

        Every append of another node that comes after it was asked for when that node had been told of the fence (by
        `follow`, or because its state was read later): one on its way that a fence overtakes is refused, with
        `OvertakenError` where it is certain that it will not be stored. No reader ever sees a fence. An engine of a
        single process just returns the state.
        """

    @abstractmethod
    async def cut(self, space: SpaceId, upto: Seq, now_ms: int) -> SpaceState:
        """Deliver from `upto + 1` on; `start` only rises. Return the new state.

        Raises:
            CutRefusedError: `upto` lies above the head.
        """

    @abstractmethod
    async def uncut(self, space: SpaceId, upto: Seq) -> SpaceState:
        """Move `start` back to `upto + 1`, as far as the entries are not yet deleted. Return the new state."""

    @abstractmethod
    async def clean(self, cut_before_ms: int) -> int:
        """Delete entries that were cut before a time; return how many. Runs in small steps beside the load."""

    @abstractmethod
    async def purge(self, space: SpaceId) -> None:
        """Delete every entry of a space; the heads of its devices survive."""

    @abstractmethod
    async def spaces(self, after: SpaceId, count_max: int) -> list[SpaceId]:
        """Return the spaces that anything was ever appended to, sorted, those above an id: a page of all of them."""

    @abstractmethod
    async def adopt(self, space: SpaceId, entries: Sequence[Entry], heads: Mapping[DeviceId, DeviceHead]) -> None:
        """Take over entries of a space from a backup or another engine, durably; they get seqs of this log's own.

        Their order and receive times are kept, nothing is checked. What lies at or below the head that its device has
        here is passed over, so that a page may come twice. Then the heads are raised to those given: of devices whose
        last entries were cut away. For a space that nobody serves.
        """

    @abstractmethod
    async def close(self) -> None:
        """Finish what was begun and release the store."""
