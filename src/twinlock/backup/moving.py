"""Moving a server's data into another engine while the server goes on serving. See docs/operate/migrate.md.

Rounds copy what is new in the source, while devices write on. At the end nobody serves the source any more, one more
round copies the little that is left, everything is compared, and the two marks change places: the source is marked as
moved before the target's mark is taken off, so that at no moment both could be served.

What was copied up to where stands in a scratch file. A move that was cut short is begun anew into the same target: what
is there already is found, and not written again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import msgspec

from twinlock.backup.carried import BIRTHS, birth_key, is_carried, with_birth
from twinlock.backup.format import CHUNK_BYTES, digest_of
from twinlock.backup.holdings import SPACES_AT_ONCE, Holdings, Place, all_of
from twinlock.backup.log_tables import pages_upto
from twinlock.backup.restoring import AT_ONCE, check_empty
from twinlock.backup.spool import Spool
from twinlock.contracts import MOVING_KEY, Moving, StoredPart, Whereabouts, decode_moving, encode_moving
from twinlock.errors import StoreError
from twinlock.ids import Seq, SpaceId
from twinlock.protocol.frames import Entry

ARRIVAL_TRIES = 100
ARRIVAL_PAUSE_S = 0.05


class _Copied(msgspec.Struct, frozen=True, array_like=True):
    """How far a space was copied: its start and head in the source, its head in the target, and what was compared."""

    start: Seq
    head: Seq
    target_head: Seq
    count: int


class Round(msgspec.Struct, frozen=True):
    """What a round copied."""

    entries_count: int = 0
    records_count: int = 0
    blobs_count: int = 0

    @property
    def is_empty(self) -> bool:
        """Whether there was nothing new."""
        return not (self.entries_count or self.records_count or self.blobs_count)


class Verified(msgspec.Struct, frozen=True):
    """What source and target were found to have in common: all of it."""

    spaces_count: int
    entries_count: int
    records_count: int
    blobs_count: int


class Move:
    """A move under way.

    Args:
        source: what is moved; it is only read, but for its mark at the end.
        target: an empty engine, or the one of a move that was cut short.
        spools: scratch files of the move's own, for spaces, records and blobs.
        has_one_store: whether both have their blobs in one and the same store.
    """

    __slots__ = (
        "_blobs",
        "_has_one_store",
        "_own_births",
        "_records",
        "_round",
        "_rounds",
        "_source",
        "_spaces",
        "_target",
    )

    def __init__(
        self, source: Holdings, target: Holdings, spools: tuple[Spool, Spool, Spool], has_one_store: bool = False
    ) -> None:
        self._source = source
        self._target = target
        self._spaces, self._records, self._blobs = spools
        self._has_one_store = has_one_store
        self._rounds = 0
        self._round = Round()
        self._own_births: set[str] = set()

    async def begin(self, place: str, now_ms: Callable[[], int]) -> None:
        """Mark the target as not yet complete.

        Raises:
            StoreError: it holds something else.
        """
        record = await self._target.directory.get(MOVING_KEY)
        name = f"{place} ({self._source.log.incarnation.hex()})"
        if record is not None:
            mark = decode_moving(record.value)
            if (mark.whereabouts, mark.place) != (Whereabouts.ARRIVING, name):
                raise StoreError(f"the target is marked: {mark.whereabouts.value}, {mark.place}; name an empty one")
            return
        await check_empty(self._target)
        mark = Moving(Whereabouts.ARRIVING, name, now_ms())
        await self._target.directory.put(MOVING_KEY, encode_moving(mark))

    async def copy(self) -> Round:
        """Copy what is new: the log first, then the directory, then the blobs, as a backup does.

        Raises:
            StoreError: one of the two fails, or the target did not keep what it was given.
        """
        self._rounds += 1
        self._round = Round()
        group: list[Place] = []
        async for place in self._source.all_places():
            if not self._is_copied(place):
                group.append(place)
            if len(group) == SPACES_AT_ONCE:
                await all_of(map(self._copy_space, group))
                group = []
        await all_of(map(self._copy_space, group))
        await self._copy_records()
        if not self._has_one_store:
            await self._copy_blobs()
        return self._round

    def read_from(self, source: Holdings) -> None:
        """Read the same source through another opening, one that can be written."""
        self._source = source

    async def rehearse(self) -> None:
        """Compare the target as a whole with what was copied, while the source is still served.

        What is copied later is compared as it is copied, so that little is left for the moment when nobody is served.

        Raises:
            StoreError: the target did not keep something.
        """
        spaces = [SpaceId(bytes.fromhex(space)) for space, _ in self._spaces.rows()]
        for first in range(0, len(spaces), AT_ONCE):
            await all_of(map(self._ensure_birth, spaces[first : first + AT_ONCE]))
        await self._compare_records()
        if not self._has_one_store:
            await self._compare_blobs()

    async def finish(self, source_place: str, target_place: str, now_ms: Callable[[], int]) -> Verified:
        """See that nothing is left, then let the target be served and the source never again.

        Raises:
            StoreError: the source has grown after the last round; it may be served again.
        """
        entries = spaces = 0
        async for place in self._source.all_places():
            copied = self._copied(place.space)
            if copied is None or not self._is_copied(place):
                raise StoreError(f"space {place.space.hex()} has grown meanwhile: {source_place} is still served")
            await self._ensure_birth(place.space)
            spaces += 1
            entries += copied.count
        mark = Moving(Whereabouts.AWAY, target_place, now_ms())
        await self._source.directory.put(MOVING_KEY, encode_moving(mark))
        await self._target.directory.delete(MOVING_KEY)
        return Verified(spaces, entries, self._records.count(), self._blobs.count())

    # The log

    def _copied(self, space: SpaceId) -> _Copied | None:
        known = self._spaces.get(space.hex())
        return None if known is None else msgspec.msgpack.decode(known, type=_Copied)

    def _is_copied(self, place: Place) -> bool:
        copied = self._copied(place.space)
        return copied is not None and (copied.start, copied.head) == (place.start, place.head)

    async def _copy_space(self, place: Place) -> None:
        key = place.space.hex()
        copied = self._copied(place.space) or await self._found(place)
        state = await self._source.log.state(place.space)
        if state.start < copied.start:
            raise StoreError(f"a cut of space {key} was undone while it was moved: begin anew with an empty target")
        async for page in pages_upto(self._source.log, place.space, Seq(max(copied.head, state.start - 1)), state.head):
            await self._target.log.adopt(place.space, page, {})
            target_head = await self._check_arrived(place.space, copied.target_head, page)
            copied = _Copied(copied.start, page[-1].seq, target_head, copied.count + len(page))
            self._note(entries_count=len(page))
        if (await self._target.log.state(place.space)).heads != state.heads:
            await self._target.log.adopt(place.space, [], state.heads)
            if (await self._target.log.state(place.space)).heads != state.heads:
                raise StoreError(f"the target did not keep the heads of space {key}")
        if state.start > copied.start:
            await self._cut(place.space, state.start, state.head)
        copied = msgspec.structs.replace(copied, start=state.start, head=state.head)
        self._spaces.put(key, msgspec.msgpack.encode(copied))

    async def _found(self, place: Place) -> _Copied:
        """Return how far a space was copied by a move that was cut short."""
        last: Entry | None = None
        after = Seq(0)
        count = 0
        while page := await self._target.log.read(place.space, after, CHUNK_BYTES):
            last, after = page[-1], page[-1].seq
            count += len(page)
        # Of what is there already, some may have been cut in the source since: the start is looked for then.
        begun = _Copied(place.start if last is None else Seq(1), Seq(place.start - 1), after, count)
        if last is None:
            return begun
        async for page in pages_upto(self._source.log, place.space, begun.head, place.head):
            for entry in page:
                if entry.envelope == last.envelope:
                    return msgspec.structs.replace(begun, head=entry.seq)
        # All that was copied has been cut in the source since.
        return begun

    async def _check_arrived(self, space: SpaceId, after: Seq, page: list[Entry]) -> Seq:
        """Read a page back from the target; return its head there."""
        place = tries = 0
        while place < len(page):
            arrived = await self._target.log.read(space, after, CHUNK_BYTES)
            expected = page[place : place + len(arrived)]
            if [_content(entry) for entry in arrived] != [_content(entry) for entry in expected]:
                raise StoreError(f"the target did not keep entry {page[place].seq} of space {space.hex()} as it was")
            if arrived:
                place += len(arrived)
                after = arrived[-1].seq
                continue
            # A replica may lag behind what its leader has stored.
            tries += 1
            if tries == ARRIVAL_TRIES:
                raise StoreError(f"the target did not keep entry {page[place].seq} of space {space.hex()}")
            await asyncio.sleep(ARRIVAL_PAUSE_S)
        return after

    async def _cut(self, space: SpaceId, start: Seq, head: Seq) -> None:
        """Cut the target where the source was cut; purge it where nothing is left."""
        first = await self._source.log.read(space, Seq(start - 1), 1)
        if not first or first[0].seq > head:
            await self._target.log.purge(space)
            return
        after = Seq(0)
        while page := await self._target.log.read(space, after, CHUNK_BYTES):
            for entry in page:
                if entry.envelope == first[0].envelope:
                    await self._target.log.cut(space, Seq(entry.seq - 1), first[0].received_ms)
                    return
            after = page[-1].seq
        raise StoreError(f"the target lacks the first entry of space {space.hex()}")

    # The directory

    async def _copy_records(self) -> None:
        waiting: list[tuple[str, bytes]] = []
        seen = 0
        async for key, record in self._source.directory.scan():
            if not is_carried(key):
                continue
            seen += 1
            self._own_births.discard(key)
            value = with_birth(record.value, self._target.log.incarnation) if key.startswith(BIRTHS) else record.value
            digest = digest_of(value)
            if self._records.get(key) == digest:
                continue
            self._records.put(key, digest)
            waiting.append((key, value))
            if len(waiting) == AT_ONCE:
                await self._put(waiting)
                waiting = []
        await self._put(waiting)
        if seen < self._records.count() - len(self._own_births):
            await self._forget_deleted()

    async def _forget_deleted(self) -> None:
        """Look through the source once more for what is not there any more; mostly nothing was deleted."""
        async for key, _ in self._source.directory.scan():
            self._records.meet(key, self._rounds)
        for key in self._records.not_met(self._rounds):
            # Births that the source never wrote are the target's own.
            if not key.startswith(BIRTHS):
                await self._target.directory.delete(key)
                self._records.delete(key)
                self._note(records_count=1)

    async def _put(self, records: list[tuple[str, bytes]]) -> None:
        await asyncio.gather(*(self._target.directory.put(key, value) for key, value in records))
        kept = await asyncio.gather(*(self._target.directory.get(key) for key, _ in records))
        for (key, value), record in zip(records, kept, strict=True):
            if record is None or record.value != value:
                raise StoreError(f"the target did not keep record {key} as it was")
        self._note(records_count=len(records))

    async def _ensure_birth(self, space: SpaceId) -> None:
        """Let a space begin anew in the target's life that was never served in the source's."""
        key = birth_key(space)
        if self._records.get(key) is None:
            value = with_birth(b"", self._target.log.incarnation)
            self._records.put(key, digest_of(value))
            self._own_births.add(key)
            await self._put([(key, value)])

    async def _compare_records(self) -> None:
        count = 0
        async for key, record in self._target.directory.scan():
            if not is_carried(key):
                continue
            digest = self._records.get(key)
            if digest is None:
                # Of a move that was cut short; the source has deleted it since.
                await self._target.directory.delete(key)
            elif digest != digest_of(record.value):
                raise StoreError(f"record {key} is another in the target")
            else:
                count += 1
        if count != self._records.count():
            raise StoreError(f"the target has {count} records of {self._records.count()}")

    # The blobs

    async def _copy_blobs(self) -> None:
        async for part in self._source.blobs.list("blobs/"):
            known = msgspec.msgpack.encode((part.size, part.written_ms))
            if self._blobs.get(part.name) == known:
                self._blobs.meet(part.name, self._rounds)
                continue
            await self._copy_blob(part)
            self._blobs.put(part.name, known, self._rounds)
        for name in self._blobs.not_met(self._rounds):
            await self._target.blobs.delete(name)
            self._blobs.delete(name)

    async def _copy_blob(self, part: StoredPart) -> None:
        data = await self._source.blobs.get(part.name)
        if data is None:
            return
        if await self._target.blobs.get(part.name) != data:
            await self._target.blobs.put(part.name, data)
            if await self._target.blobs.get(part.name) != data:
                raise StoreError(f"the target did not keep {part.name} as it was")
        self._note(blobs_count=1)

    async def _compare_blobs(self) -> None:
        names = {part.name async for part in self._target.blobs.list("blobs/")}
        missing = next((name for name, _ in self._blobs.rows() if name not in names), None)
        if missing is not None:
            raise StoreError(f"the target lacks {missing}")

    def _note(self, entries_count: int = 0, records_count: int = 0, blobs_count: int = 0) -> None:
        done = self._round
        self._round = Round(
            done.entries_count + entries_count, done.records_count + records_count, done.blobs_count + blobs_count
        )


def _content(entry: Entry) -> tuple[int, bytes]:
    return entry.received_ms, entry.envelope
