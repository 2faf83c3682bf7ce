"""What every engine's log must do when a space comes from a backup or another engine, and to be listed for one."""

from __future__ import annotations

from twinlock.contracts.log import DeviceHead, Log
from twinlock.ids import Counter, EnvelopeId, Seq, SpaceId
from twinlock.protocol.envelope import parse
from twinlock.protocol.frames import Entry
from twinlock.testing.contracts.envelopes import Chain, new_space

ALL = 1 << 30
FIRST = SpaceId(bytes(16))


def entries_of(*chains_counts: tuple[Chain, int]) -> list[Entry]:
    """Return entries of some chains in turn, with seqs and times such as another log gave them."""
    entries: list[Entry] = []
    for chain, count in chains_counts:
        for envelope in chain.take(count):
            entries.append(Entry(Seq(9_000 + 7 * len(entries)), 5_000 + len(entries), envelope.data))
    return entries


async def read_back(log: Log, space: SpaceId) -> list[tuple[int, bytes]]:
    """Return receive times and envelopes of a space, in order, and see that its seqs grow."""
    found: list[Entry] = []
    while page := await log.read(space, Seq(found[-1].seq if found else 0), ALL):
        found += page
    seqs = [entry.seq for entry in found]
    assert seqs == sorted(set(seqs))
    return [(entry.received_ms, entry.envelope) for entry in found]


def plain(entries: list[Entry]) -> list[tuple[int, bytes]]:
    """Return what must be read back of entries."""
    return [(entry.received_ms, entry.envelope) for entry in entries]


class AdoptContract:
    """Spaces are listed, and taken over from elsewhere."""

    async def test_adopted_entries_keep_their_order_and_times(self, log: Log) -> None:
        """And get seqs of this log's own, from which appends go on."""
        space = new_space()
        one, two = Chain(space), Chain(space)
        given = entries_of((one, 2), (two, 3), (one, 1))

        await log.adopt(space, given, {})

        assert await read_back(log, space) == plain(given)
        state = await log.state(space)
        assert state.heads == {chain.device: DeviceHead(Counter(chain.counter), chain.prev) for chain in (one, two)}
        assert state.log_bytes == sum(len(entry.envelope) for entry in given)
        assert state.received_ms == given[-1].received_ms
        (seq,) = await log.append(space, [one.next()], 9_999)
        assert seq > state.head

    async def test_a_page_may_come_twice(self, log: Log) -> None:
        """What is there already is passed over, also when the pages overlap."""
        space = new_space()
        given = entries_of((Chain(space), 5))

        await log.adopt(space, given[:3], {})
        await log.adopt(space, given[:3], {})
        await log.adopt(space, given[1:], {})

        assert await read_back(log, space) == plain(given)

    async def test_a_chain_may_begin_in_its_middle(self, log: Log) -> None:
        """Its first part was cut away where it comes from."""
        space = new_space()
        chain = Chain(space)
        given = entries_of((chain, 6))[4:]

        await log.adopt(space, given, {})

        assert await read_back(log, space) == plain(given)
        await log.append(space, [chain.next()], 1)
        assert len(await read_back(log, space)) == 3

    async def test_heads_are_raised_but_never_lowered(self, log: Log) -> None:
        """Of a device whose last entries were cut away the chain goes on where it was."""
        space = new_space()
        gone, there = Chain(space), Chain(space)
        gone.take(4)
        given = entries_of((there, 2))
        first = parse(given[0].envelope)

        await log.adopt(space, given, {gone.device: DeviceHead(Counter(4), gone.prev)})
        await log.adopt(space, [], {there.device: DeviceHead(Counter(1), EnvelopeId(first.id))})

        heads = (await log.state(space)).heads
        assert heads[gone.device] == DeviceHead(Counter(4), gone.prev)
        assert heads[there.device] == DeviceHead(Counter(2), there.prev)
        await log.append(space, [gone.next()], 1)
        assert len(await read_back(log, space)) == 3

    async def test_heads_alone_make_a_space(self, log: Log) -> None:
        """All of its entries were cut away where it comes from."""
        space, chain = new_space(), Chain(new_space())
        chain.space = space
        chain.take(3)

        await log.adopt(space, [], {chain.device: DeviceHead(Counter(3), chain.prev)})

        assert await read_back(log, space) == []
        assert (await log.state(space)).heads == {chain.device: DeviceHead(Counter(3), chain.prev)}
        assert await log.spaces(FIRST, 10) == [space]

    async def test_spaces_are_listed_by_the_page(self, log: Log) -> None:
        """Sorted, each once, those of all partitions, however many devices wrote to them."""
        spaces = sorted(new_space(partition) for partition in (0, 0, 1, 7, 15))
        for space in spaces:
            for _ in range(2):
                await log.append(space, Chain(space).take(1), 1)

        assert await log.spaces(FIRST, 100) == spaces
        found: list[SpaceId] = []
        while page := await log.spaces(found[-1] if found else FIRST, 2):
            assert len(page) <= 2
            found += page
        assert found == spaces

    async def test_a_space_that_was_purged_is_still_listed(self, log: Log) -> None:
        """Its heads are worth keeping."""
        space = new_space()
        await log.append(space, Chain(space).take(2), 1)

        await log.purge(space)

        assert await log.spaces(FIRST, 10) == [space]
