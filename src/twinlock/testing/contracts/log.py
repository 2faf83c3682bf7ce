"""What every engine's log must do. Subclass with a `log` fixture that gives an empty one."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Sequence

import pytest

from twinlock.contracts.log import DeviceHead, Log
from twinlock.errors import AppendConflictError, CutRefusedError
from twinlock.ids import Counter, EnvelopeId, Seq, SpaceId
from twinlock.protocol.envelope import CIPHERTEXT_BYTES_MAX, TAG_BYTES, Envelope
from twinlock.protocol.frames import Entry
from twinlock.testing.contracts.adopting import AdoptContract
from twinlock.testing.contracts.envelopes import Chain, new_space
from twinlock.testing.contracts.log_many import AppendManyContract

ALL = 1 << 30
NOW_MS = 1_700_000_000_000


async def read_all(log: Log, space: SpaceId, after: int = 0, bytes_max: int = ALL) -> list[Entry]:
    """Return everything after a seq, page by page."""
    entries: list[Entry] = []
    while page := await log.read(space, Seq(entries[-1].seq if entries else after), bytes_max):
        entries += page
    return entries


async def take(watch: AsyncIterator[list[Entry]], count: int) -> list[Entry]:
    """Return at least so many entries of a watch."""
    entries: list[Entry] = []
    async with asyncio.timeout(20):
        while len(entries) < count:
            entries += await anext(watch)
    return entries


def data_of(envelopes: Sequence[Envelope]) -> list[bytes]:
    """Return the bytes that a reader should get."""
    return [envelope.data for envelope in envelopes]


def bytes_of(envelopes: Sequence[Envelope]) -> int:
    """Return how much of a log these take."""
    return sum(len(envelope.data) for envelope in envelopes)


class AppendContract:
    """Appending: whole, in order, each envelope once."""

    async def test_an_unknown_space_is_empty(self, log: Log) -> None:
        """Its log starts at 1 and has no head."""
        state = await log.state(new_space())

        assert (state.start, state.head, state.log_bytes, dict(state.heads)) == (1, 0, 0, {})

    async def test_appended_envelopes_are_read_back_byte_for_byte(self, log: Log) -> None:
        """With their seqs and their receive time, in order."""
        space = new_space()
        envelopes = Chain(space).take(3)

        seqs = await log.append(space, envelopes, NOW_MS)

        assert seqs == sorted(set(seqs))
        assert min(seqs) >= 1
        expected = [Entry(seq, NOW_MS, envelope.data) for seq, envelope in zip(seqs, envelopes, strict=True)]
        assert await read_all(log, space) == expected

    async def test_an_append_of_nothing_changes_nothing(self, log: Log) -> None:
        """And fails nobody."""
        space = new_space()

        assert await log.append(space, [], NOW_MS) == []
        assert (await log.state(space)).head == 0

    async def test_every_byte_value_survives(self, log: Log) -> None:
        """Zeros and broken UTF-8 too, over pages of several entries."""
        space, contents = new_space(), [bytes(range(256)), bytes(300), b"\xff\xfe\xc3\x28", b"\xef\xbb\xbf,,,"]
        chain = Chain(space)
        envelopes = [chain.next(content) for content in contents]

        await log.append(space, envelopes, NOW_MS)

        assert [entry.envelope for entry in await read_all(log, space)] == data_of(envelopes)

    async def test_the_largest_envelope_is_taken(self, log: Log) -> None:
        """Of 1 MiB, headers and all."""
        space = new_space()
        envelope = Chain(space).next(os.urandom(CIPHERTEXT_BYTES_MAX - TAG_BYTES))

        await log.append(space, [envelope], NOW_MS)

        assert [entry.envelope for entry in await log.read(space, Seq(0), 1)] == [envelope.data]

    async def test_state_tells_head_bytes_and_the_heads_of_devices(self, log: Log) -> None:
        """Of all devices that ever wrote."""
        space = new_space()
        first, second = Chain(space), Chain(space)
        envelopes = [*first.take(2), *second.take(1)]

        seqs = await log.append(space, envelopes, NOW_MS)
        state = await log.state(space)

        assert (state.start, state.head, state.log_bytes) == (1, seqs[-1], bytes_of(envelopes))
        assert dict(state.heads) == {
            first.device: DeviceHead(Counter(2), first.prev),
            second.device: DeviceHead(Counter(1), second.prev),
        }

    async def test_state_tells_the_receive_time_of_the_newest_entry(self, log: Log) -> None:
        """Of each space its own; a cut leaves it, since it does not touch the newest entry."""
        one, other = Chain(new_space()), Chain(new_space())
        assert (await log.state(one.space)).received_ms == 0

        await log.append(one.space, one.take(2), NOW_MS)
        seqs = await log.append(one.space, one.take(2), NOW_MS + 5)
        await log.append(other.space, other.take(1), NOW_MS + 9)
        cut = await log.cut(one.space, Seq(seqs[-1] - 1), NOW_MS)

        assert cut.received_ms == NOW_MS + 5
        assert (await log.state(one.space)).received_ms == NOW_MS + 5
        assert (await log.state(other.space)).received_ms == NOW_MS + 9

    async def test_spaces_do_not_see_one_another(self, log: Log) -> None:
        """Not even when one device writes to both."""
        one, other = Chain(new_space()), Chain(new_space())
        other.device = one.device
        here, there = one.take(2), other.take(1)

        await log.append(one.space, here, NOW_MS)
        await log.append(other.space, there, NOW_MS)

        assert [entry.envelope for entry in await read_all(log, one.space)] == data_of(here)
        assert [entry.envelope for entry in await read_all(log, other.space)] == data_of(there)

    @pytest.mark.parametrize("fault", ["gap", "prev", "first prev", "other head", "other space", "twice", "backwards"])
    async def test_an_append_that_does_not_fit_is_refused_as_a_whole(self, log: Log, fault: str) -> None:
        """Also when only its last envelope is at fault; the chain then goes on where it was."""
        chain = Chain(new_space())
        stored = chain.take(2)
        await log.append(chain.space, stored, NOW_MS)
        before = await log.state(chain.space)
        good, after = chain.next(), Chain(chain.space, chain.device)
        bad = {
            "gap": [good, chain.make(5, good.id)],
            "prev": [good, chain.make(4, EnvelopeId(os.urandom(32)))],
            "first prev": [good, Chain(chain.space).make(1, good.id)],
            "other head": [chain.make(2, stored[0].id)],
            "other space": [good, Chain(new_space()).next()],
            "twice": [good, good],
            "backwards": [good, after.make(2, stored[0].id)],
        }

        with pytest.raises(AppendConflictError):
            await log.append(chain.space, bad[fault], NOW_MS)

        assert await log.state(chain.space) == before
        await log.append(chain.space, [good], NOW_MS)
        assert [entry.envelope for entry in await read_all(log, chain.space)] == data_of([*stored, good])

    async def test_a_taken_counter_below_the_head_is_refused(self, log: Log) -> None:
        """Another envelope with an old counter is no repetition, and what follows it is not appended."""
        chain = Chain(new_space())
        stored = chain.take(3)
        await log.append(chain.space, stored, NOW_MS)

        with pytest.raises(AppendConflictError):
            await log.append(chain.space, [chain.make(2, stored[0].id), chain.next()], NOW_MS)

        assert len(await read_all(log, chain.space)) == 3

    async def test_a_repeated_append_gives_the_same_seqs(self, log: Log) -> None:
        """And stores nothing again, the oldest envelope of a device included."""
        chain = Chain(new_space())
        envelopes = chain.take(5)
        seqs = await log.append(chain.space, envelopes, NOW_MS)

        assert await log.append(chain.space, envelopes, NOW_MS + 1) == seqs
        assert await log.append(chain.space, envelopes[:1], NOW_MS + 1) == seqs[:1]
        assert await log.append(chain.space, envelopes[2:4], NOW_MS + 1) == seqs[2:4]
        assert [entry.received_ms for entry in await read_all(log, chain.space)] == [NOW_MS] * 5

    async def test_a_partly_repeated_append_adds_the_rest(self, log: Log) -> None:
        """Known ones keep their seq, also when other devices wrote since."""
        chain = Chain(new_space())
        other = Chain(chain.space)
        envelopes = chain.take(4)
        seqs = await log.append(chain.space, envelopes[:2], NOW_MS)
        await log.append(chain.space, other.take(3), NOW_MS)

        again = await log.append(chain.space, envelopes, NOW_MS)

        assert again[:2] == seqs
        assert again == sorted(set(again))
        assert len(await read_all(log, chain.space)) == 7

    async def test_the_same_append_at_the_same_time_is_stored_once(self, log: Log) -> None:
        """Both callers get the same seqs."""
        chain = Chain(new_space())
        envelopes = chain.take(3)

        first, second = await asyncio.gather(*(log.append(chain.space, envelopes, NOW_MS) for _ in range(2)))

        assert first == second
        assert len(await read_all(log, chain.space)) == 3

    async def test_many_appenders_get_one_order(self, log: Log) -> None:
        """Appends never interleave, no seq is given twice, and the log is in the order of the seqs."""
        space = new_space()
        chains = [Chain(space) for _ in range(24)]
        acknowledged: dict[Seq, bytes] = {}

        async def write(chain: Chain) -> None:
            for _ in range(10):
                envelopes = chain.take(3)
                seqs = await log.append(space, envelopes, NOW_MS)
                assert seqs == sorted(seqs)
                acknowledged.update(zip(seqs, data_of(envelopes), strict=True))

        await asyncio.gather(*(write(chain) for chain in chains))
        entries = await read_all(log, space)

        assert {entry.seq: entry.envelope for entry in entries} == acknowledged
        assert len(entries) == len(acknowledged) == 24 * 10 * 3
        assert [entry.seq for entry in entries] == sorted(acknowledged)
        authors = [entry.envelope[24:40] for entry in entries]
        assert all(len(set(authors[place : place + 3])) == 1 for place in range(0, len(authors), 3))

    async def test_a_refused_append_harms_no_other_of_its_moment(self, log: Log) -> None:
        """Nor does a good one carry a bad one through."""
        space = new_space()
        good = [Chain(space).take(2) for _ in range(20)]
        bad = [[Chain(space).make(7, EnvelopeId(bytes(32)))] for _ in range(20)]
        appends = [log.append(space, envelopes, NOW_MS) for pair in zip(good, bad, strict=True) for envelopes in pair]

        outcomes = await asyncio.gather(*appends, return_exceptions=True)

        assert all(isinstance(outcome, list) for outcome in outcomes[::2])
        assert all(isinstance(outcome, AppendConflictError) for outcome in outcomes[1::2])
        assert len(await read_all(log, space)) == 40


class ReadContract:
    """Reading and watching: in order, without gap or overlap."""

    async def test_pages_hold_about_what_was_asked_for(self, log: Log) -> None:
        """At least one entry, and never more bytes than asked for if there is more than one."""
        chain = Chain(new_space())
        envelopes = [chain.next(bytes(100)) for _ in range(10)]
        await log.append(chain.space, envelopes, NOW_MS)
        length = len(envelopes[0].data)

        counts = {bytes_max: len(await log.read(chain.space, Seq(0), bytes_max)) for bytes_max in (0, 1, length)}
        assert counts == {0: 1, 1: 1, length: 1}
        assert len(await log.read(chain.space, Seq(0), 2 * length - 1)) == 1
        assert len(await log.read(chain.space, Seq(0), 2 * length)) == 2
        assert [entry.envelope for entry in await read_all(log, chain.space, bytes_max=3 * length)] == data_of(
            envelopes
        )

    async def test_reading_goes_on_after_any_seq(self, log: Log) -> None:
        """Seqs that the space does not have included, however large."""
        chain = Chain(new_space())
        seqs = await log.append(chain.space, chain.take(4), NOW_MS)

        assert [entry.seq for entry in await log.read(chain.space, seqs[1], ALL)] == seqs[2:]
        assert await log.read(chain.space, seqs[-1], ALL) == []
        assert await log.read(chain.space, Seq((1 << 64) - 1), ALL) == []
        assert [entry.seq for entry in await log.read(chain.space, Seq(-(1 << 64)), ALL)] == seqs
        assert await log.read(new_space(), Seq(0), ALL) == []

    async def test_a_watch_gives_what_is_there_and_what_comes(self, log: Log) -> None:
        """Each entry once, to every watcher, from its own cursor on."""
        chain = Chain(new_space())
        seqs = await log.append(chain.space, chain.take(3), NOW_MS)
        everything, later = log.watch(chain.space, Seq(0)), log.watch(chain.space, seqs[1])
        assert [entry.seq for entry in await take(everything, 3)] == seqs
        assert [entry.seq for entry in await take(later, 1)] == seqs[2:]

        waiting = [asyncio.ensure_future(take(watch, 2)) for watch in (everything, later)]
        await asyncio.sleep(0)
        more = await log.append(chain.space, chain.take(2), NOW_MS)

        assert [[entry.seq for entry in entries] for entries in await asyncio.gather(*waiting)] == [more, more]

    async def test_watches_begun_amid_appends_have_no_gap_and_no_overlap(self, log: Log) -> None:
        """Whatever a watcher's first read meets."""
        space = new_space()
        total = 12 * 20

        async def write(chain: Chain) -> None:
            for _ in range(10):
                await log.append(space, chain.take(2), NOW_MS)

        async def look(turns: int) -> list[Entry]:
            for _ in range(turns):
                await asyncio.sleep(0)
            return await take(log.watch(space, Seq(0)), total)

        async with asyncio.TaskGroup() as group:
            looks = [group.create_task(look(turns)) for turns in range(0, 60, 6)]
            for _ in range(12):
                group.create_task(write(Chain(space)))
        entries = await read_all(log, space)

        assert len(entries) == total
        assert all(task.result() == entries for task in looks)

    async def test_a_watcher_that_fell_far_behind_still_gets_everything(self, log: Log) -> None:
        """More than any buffer may hold."""
        chain = Chain(new_space())
        await log.append(chain.space, chain.take(1), NOW_MS)
        watch = log.watch(chain.space, Seq(0))
        await take(watch, 1)

        for _ in range(10):
            await log.append(chain.space, [chain.next(bytes(900_000))], NOW_MS)
        last = await log.append(chain.space, chain.take(1), NOW_MS)

        entries = await take(watch, 11)
        assert [entry.seq for entry in entries] == sorted({entry.seq for entry in entries})
        assert (len(entries), entries[-1].seq) == (11, last[0])

    async def test_a_watcher_that_leaves_disturbs_no_other(self, log: Log) -> None:
        """And the log forgets it."""
        chain = Chain(new_space())
        leaving, staying = log.watch(chain.space, Seq(0)), log.watch(chain.space, Seq(0))
        tasks = [asyncio.ensure_future(take(watch, 1)) for watch in (leaving, staying)]
        await asyncio.sleep(0)
        tasks[0].cancel()
        await asyncio.gather(tasks[0], return_exceptions=True)

        seqs = await log.append(chain.space, chain.take(1), NOW_MS)

        assert [entry.seq for entry in await tasks[1]] == seqs

    async def test_closing_ends_every_watch(self, log: Log) -> None:
        """So that a server can drain."""
        watch = log.watch(new_space(), Seq(0))

        async def consume() -> int:
            return sum([len(page) async for page in watch])

        task = asyncio.ensure_future(consume())
        for _ in range(5):
            await asyncio.sleep(0.01)
        await log.close()

        async with asyncio.timeout(10):
            assert await task == 0


class CutContract:
    """Cutting, undoing, cleaning and purging the head of a log."""

    async def test_a_cut_takes_effect_at_once(self, log: Log) -> None:
        """For readers, watchers and the bytes that the log counts."""
        chain = Chain(new_space())
        envelopes = chain.take(5)
        seqs = await log.append(chain.space, envelopes, NOW_MS)

        state = await log.cut(chain.space, seqs[2], NOW_MS)

        assert state == await log.state(chain.space)
        assert (state.start, state.head, state.log_bytes) == (seqs[2] + 1, seqs[4], bytes_of(envelopes[3:]))
        assert [entry.seq for entry in await read_all(log, chain.space)] == seqs[3:]
        assert [entry.seq for entry in await take(log.watch(chain.space, Seq(0)), 2)] == seqs[3:]

    async def test_the_start_only_rises(self, log: Log) -> None:
        """A lower cut than the last changes nothing."""
        chain = Chain(new_space())
        seqs = await log.append(chain.space, chain.take(5), NOW_MS)
        state = await log.cut(chain.space, seqs[2], NOW_MS)

        assert await log.cut(chain.space, seqs[1], NOW_MS) == state
        assert await log.cut(chain.space, seqs[2], NOW_MS) == state
        assert (await log.cut(chain.space, seqs[3], NOW_MS)).start == seqs[3] + 1

    async def test_a_cut_at_the_head_is_taken_and_one_above_refused(self, log: Log) -> None:
        """Also in a space without entries."""
        chain = Chain(new_space())
        seqs = await log.append(chain.space, chain.take(2), NOW_MS)

        with pytest.raises(CutRefusedError):
            await log.cut(chain.space, Seq(seqs[1] + 1), NOW_MS)
        with pytest.raises(CutRefusedError):
            await log.cut(new_space(), Seq(1), NOW_MS)
        with pytest.raises(CutRefusedError):
            await log.cut(chain.space, Seq((1 << 64) - 1), NOW_MS)
        assert (await log.cut(chain.space, Seq(-(1 << 64)), NOW_MS)).start == 1
        state = await log.cut(chain.space, seqs[1], NOW_MS)
        assert await log.uncut(chain.space, Seq((1 << 64) - 1)) == state

        assert (state.start, state.head, state.log_bytes) == (seqs[1] + 1, seqs[1], 0)
        assert len(state.heads) == 1

    async def test_a_cut_is_undone_within_the_grace(self, log: Log) -> None:
        """As far as asked; never beyond the beginning, never upwards."""
        chain = Chain(new_space())
        envelopes = chain.take(5)
        seqs = await log.append(chain.space, envelopes, NOW_MS)
        await log.cut(chain.space, seqs[3], NOW_MS)

        part = await log.uncut(chain.space, seqs[1])
        assert (part.start, part.log_bytes) == (seqs[1] + 1, bytes_of(envelopes[2:]))
        assert await log.uncut(chain.space, seqs[2]) == part
        whole = await log.uncut(chain.space, Seq(0))
        assert (whole.start, whole.log_bytes) == (1, bytes_of(envelopes))
        assert [entry.seq for entry in await read_all(log, chain.space)] == seqs

    async def test_cleaning_deletes_what_was_cut_before_a_time(self, log: Log) -> None:
        """Nothing else, and tells how many."""
        chain = Chain(new_space())
        seqs = await log.append(chain.space, chain.take(6), NOW_MS)
        await log.cut(chain.space, seqs[1], NOW_MS)
        await log.cut(chain.space, seqs[3], NOW_MS + 1000)

        assert await log.clean(NOW_MS) == 0
        assert await log.clean(NOW_MS + 1000) == 2
        state = await log.uncut(chain.space, Seq(0))

        assert state.start == seqs[1] + 1
        assert [entry.seq for entry in await read_all(log, chain.space)] == seqs[2:]
        assert await log.clean(NOW_MS + 5000) == 0

    async def test_what_an_undone_cut_leaves_cut_keeps_its_time(self, log: Log) -> None:
        """It is cleaned when it would have been."""
        chain = Chain(new_space())
        seqs = await log.append(chain.space, chain.take(6), NOW_MS)
        await log.cut(chain.space, seqs[4], NOW_MS + 1000)
        await log.uncut(chain.space, seqs[2])

        assert await log.clean(NOW_MS + 1000) == 0
        assert await log.clean(NOW_MS + 1001) == 3
        assert [entry.seq for entry in await read_all(log, chain.space)] == seqs[3:]

    async def test_cleaning_goes_on_beside_appends(self, log: Log) -> None:
        """Through more entries than one step takes."""
        chain = Chain(new_space())
        seqs = await log.append(chain.space, chain.take(1200), NOW_MS)
        await log.cut(chain.space, seqs[1099], NOW_MS)

        async def write() -> None:
            for _ in range(20):
                await log.append(chain.space, chain.take(1), NOW_MS)

        deleted, _ = await asyncio.gather(log.clean(NOW_MS + 1), write())

        assert deleted == 1100
        assert len(await read_all(log, chain.space)) == 120

    async def test_heads_survive_cleaning(self, log: Log) -> None:
        """The chain goes on, and what is repeated has no place any more: its seq is 0."""
        chain = Chain(new_space())
        envelopes = chain.take(3)
        seqs = await log.append(chain.space, envelopes, NOW_MS)
        await log.cut(chain.space, seqs[1], NOW_MS)
        await log.clean(NOW_MS + 1)

        assert await log.append(chain.space, envelopes, NOW_MS) == [0, 0, seqs[2]]
        (following,) = await log.append(chain.space, [chain.next()], NOW_MS)
        assert following > seqs[2]

    async def test_a_purge_leaves_only_the_heads(self, log: Log) -> None:
        """No undo brings an entry back; the chains go on with seqs that nobody has seen."""
        chain, neighbour = Chain(new_space()), Chain(new_space())
        envelopes = chain.take(1100)
        seqs = await log.append(chain.space, envelopes, NOW_MS)
        await log.append(neighbour.space, neighbour.take(2), NOW_MS)
        await log.cut(chain.space, seqs[10], NOW_MS)
        heads = (await log.state(chain.space)).heads

        await log.purge(chain.space)
        await log.uncut(chain.space, Seq(0))
        state = await log.state(chain.space)

        assert (state.start, state.head, state.log_bytes) == (seqs[-1] + 1, seqs[-1], 0)
        assert dict(state.heads) == dict(heads)
        assert await read_all(log, chain.space) == []
        assert await log.append(chain.space, envelopes[-2:], NOW_MS) == [0, 0]
        (following,) = await log.append(chain.space, [chain.next()], NOW_MS)
        assert following > seqs[-1]
        assert len(await read_all(log, neighbour.space)) == 2

    async def test_a_purge_of_an_unknown_space_is_fine(self, log: Log) -> None:
        """There is nothing to delete."""
        space = new_space()

        await log.purge(space)

        assert (await log.state(space)).head == 0


class LogContract(AppendContract, AppendManyContract, ReadContract, CutContract, AdoptContract):
    """The whole of it."""
