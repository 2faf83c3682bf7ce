"""The drops of a sender on its disk: sealed, sent, acknowledged, refused; nothing of it this device can open.

An append-only list of groups of records, each group there whole or not at all. See docs/internals/sender.md.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice

import msgspec

from twinlock.ids import NO_ENVELOPE, Counter, EnvelopeId
from twinlock.protocol.clock import Hlc
from twinlock.protocol.envelope import parse
from twinlock.replica.state import OwnChain

SPARE_BYTES = 1 << 20
"""The file is written anew when it is larger than twice what is alive in it, and by so much at least."""

_COUNTER = slice(40, 48)


class Drop(msgspec.Struct, frozen=True, array_like=True, tag=1):
    """A sealed drop. One of a token that is known takes its place: it was sealed again."""

    token: int
    clock: Hlc
    data: bytes
    acked_ms: int = 0
    code: str = ""
    detail: str = ""


class Acked(msgspec.Struct, frozen=True, array_like=True, tag=2):
    """The server has these drops."""

    tokens: list[int]
    now_ms: int


class Refused(msgspec.Struct, frozen=True, array_like=True, tag=3):
    """These drops can never be sent."""

    tokens: list[int]
    code: str
    detail: str


class Head(msgspec.Struct, frozen=True, array_like=True, tag=4):
    """From where the chain goes on, and which token comes next."""

    counter: Counter
    id: EnvelopeId
    clock: Hlc
    next_token: int


class Forgotten(msgspec.Struct, frozen=True, array_like=True, tag=5):
    """These drops need not be kept any longer."""

    tokens: list[int]


class Lost(msgspec.Struct, frozen=True, array_like=True, tag=6):
    """The server lost these drops that it had acknowledged: they are to be sent again."""

    tokens: list[int]


Record = Drop | Acked | Refused | Head | Forgotten | Lost
_encoder = msgspec.msgpack.Encoder()
_decoder: msgspec.msgpack.Decoder[Record] = msgspec.msgpack.Decoder(Record)


class SenderStore(ABC):
    """Groups of records, appended; the shell keeps them in a file."""

    @abstractmethod
    def groups(self) -> Iterator[tuple[int, list[bytes]]]:
        """Return every group and its place, in the order of appending."""

    @abstractmethod
    def append(self, records: Sequence[bytes], *, durable: bool) -> int:
        """Append a group and return its place; with `durable` it and all before it are on the disk then.

        Raises:
            StoreError: the disk refused; the group does not count.
        """

    @abstractmethod
    def read(self, place: int) -> list[bytes]:
        """Return the group at a place."""

    @abstractmethod
    def replace(self, groups: Iterable[Sequence[bytes]]) -> list[int]:
        """Put other groups in place of all, durably and all at once; return their places."""

    @property
    @abstractmethod
    def stored_bytes(self) -> int:
        """How large it is."""


class Slot:
    """What is kept in memory of one drop: where it lies, and what became of it."""

    __slots__ = ("acked_ms", "at", "clock", "code", "counter", "detail", "place", "size", "token")

    def __init__(self, drop: Drop, place: int, at: int) -> None:
        self.token = drop.token
        self.counter = Counter(int.from_bytes(drop.data[_COUNTER], "big"))
        self.clock = drop.clock
        self.size = len(drop.data)
        self.place = place
        self.at = at
        self.acked_ms = drop.acked_ms
        self.code = drop.code
        self.detail = drop.detail


class DropLog:
    """The drops of one space by what became of them, each by its token, in the order of the chain."""

    __slots__ = ("_by_counter", "_group", "_group_place", "_store", "chain", "kept", "next_token", "pending", "refused")

    def __init__(self, store: SenderStore) -> None:
        self._store = store
        self._group: list[bytes] = []
        self._group_place = -1
        self._by_counter: dict[Counter, int] = {}
        self.pending: dict[int, Slot] = {}
        self.kept: dict[int, Slot] = {}
        self.refused: dict[int, Slot] = {}
        self.chain = OwnChain()
        self.next_token = 1
        for place, records in store.groups():
            for at, record in enumerate(records):
                self._take(_decoder.decode(record), place, at)

    # Changes

    def add(self, records: Sequence[Record], *, durable: bool = True) -> None:
        """Append records as one group, and take them in.

        Raises:
            StoreError: the disk refused; nothing has changed.
        """
        if records:
            place = self._store.append([_encoder.encode(record) for record in records], durable=durable)
            for at, record in enumerate(records):
                self._take(record, place, at)

    def _take(self, record: Record, place: int, at: int) -> None:
        match record:
            case Drop():
                self._take_drop(record, place, at)
            case Acked(tokens, now_ms):
                for slot in self._move(tokens, self.pending, self.kept):
                    slot.acked_ms = now_ms
            case Refused(tokens, code, detail):
                for slot in self._move(tokens, self.pending, self.refused):
                    slot.code, slot.detail = code, detail
            case Head(counter, identifier, clock, next_token):
                self.chain = OwnChain(counter, identifier, clock)
                self.next_token = max(self.next_token, next_token)
            case Forgotten(tokens):
                self._forget(tokens)
            case Lost(tokens):
                for slot in self._move(tokens, self.kept, self.pending):
                    slot.acked_ms = 0
                    self._by_counter[slot.counter] = slot.token
                # Older than what waits, so they come first.
                self.pending = dict(sorted(self.pending.items()))

    def _take_drop(self, drop: Drop, place: int, at: int) -> None:
        slot = Slot(drop, place, at)
        self.next_token = max(self.next_token, drop.token + 1)
        if drop.code:
            self.refused[drop.token] = slot
            return
        if drop.acked_ms:
            self.kept[drop.token] = slot
        else:
            self.pending[drop.token] = slot
            self._by_counter[slot.counter] = drop.token
        self.chain = OwnChain(slot.counter, parse(drop.data).id, drop.clock)

    def _forget(self, tokens: Iterable[int]) -> None:
        for token in tokens:
            for slots in (self.kept, self.refused, self.pending):
                slots.pop(token, None)

    @staticmethod
    def _move(tokens: Iterable[int], source: dict[int, Slot], target: dict[int, Slot]) -> list[Slot]:
        moved = [slot for token in tokens if (slot := source.pop(token, None)) is not None]
        target.update((slot.token, slot) for slot in moved)
        return moved

    # What there is

    def data(self, slot: Slot) -> bytes:
        """Return a drop's envelope."""
        if slot.place != self._group_place:
            self._group, self._group_place = self._store.read(slot.place), slot.place
        record = _decoder.decode(self._group[slot.at])
        assert isinstance(record, Drop)
        return record.data

    def id_of(self, counter: Counter) -> EnvelopeId | None:
        """Return the id of the drop of a counter, None where it is not here any more."""
        if counter == 0:
            return NO_ENVELOPE
        if counter == self.chain.counter:
            return self.chain.id
        found = [slot for slots in (self.pending, self.kept) for slot in slots.values() if slot.counter == counter]
        return parse(self.data(found[-1])).id if found else None

    def pending_token(self, counter: Counter) -> int | None:
        """Return which drop waits with a counter."""
        token = self._by_counter.get(counter)
        slot = self.pending.get(token) if token is not None else None
        return slot.token if slot is not None and slot.counter == counter else None

    @property
    def first_pending(self) -> Slot | None:
        """The oldest drop that waits."""
        return next(iter(self.pending.values()), None)

    # Room

    def keep_only(self, acked_after_ms: int, bytes_max: int) -> None:
        """Forget acknowledged drops that are too old, or more than there is room for, oldest first."""
        total = sum(slot.size for slot in self.kept.values())
        forgotten = []
        for token, slot in self.kept.items():
            if slot.acked_ms > acked_after_ms and total <= bytes_max:
                break
            total -= slot.size
            forgotten.append(token)
        if forgotten:
            for token in forgotten:
                self._by_counter.pop(self.kept[token].counter, None)
            self.add([Forgotten(forgotten)], durable=False)
        self._tidy()

    def _tidy(self) -> None:
        live = sum(slot.size + 64 for slots in (self.kept, self.pending, self.refused) for slot in slots.values())
        if self._store.stored_bytes <= 2 * live + SPARE_BYTES:
            return
        slots = [slot for slots in (self.refused, self.kept, self.pending) for slot in slots.values()]
        head = Head(self.chain.counter, self.chain.id, self.chain.clock, self.next_token)
        groups = ([_encoder.encode(self._record(slot))] for slot in slots)
        places = self._store.replace(_followed(groups, [_encoder.encode(head)]))
        self._group_place = -1
        for slot, place in zip(slots, islice(places, len(slots)), strict=True):
            slot.place, slot.at = place, 0

    def _record(self, slot: Slot) -> Drop:
        return Drop(slot.token, slot.clock, self.data(slot), slot.acked_ms, slot.code, slot.detail)


def _followed(groups: Iterable[Sequence[bytes]], last: Sequence[bytes]) -> Iterator[Sequence[bytes]]:
    yield from groups
    yield last
