"""What every engine of several nodes must do. Subclass with a fixture `logs`: those of two nodes on one empty store."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from twinlock.contracts.log import Append, DeviceHead, Foreign, Log, Note, Outcome
from twinlock.errors import AppendConflictError, StoreError, TwinlockError
from twinlock.ids import Counter, EnvelopeId, Seq, SpaceId
from twinlock.protocol.envelope import Envelope
from twinlock.protocol.frames import Entry
from twinlock.testing.contracts.envelopes import Chain, new_space

NOW_MS = 1_700_000_000_000
ALL = 1 << 30
WAIT_S = 20.0
Logs = tuple[Log, Log]


class Told:
    """Keeps what a node is told of a space, together with the outcomes of its own appends."""

    def __init__(self, log: Log, space: SpaceId, after: int = 0) -> None:
        self.log = log
        self.space = space
        self.received_ms = NOW_MS
        """The receive time that its appends are given."""

        self.entries: list[Entry] = []
        self.notes: list[Note] = []
        self.order: list[Seq] = []
        """The seqs of foreign entries and own outcomes, as they came."""

        self._news = asyncio.Event()
        self.end = log.follow(space, Seq(after), self._hear)

    def _hear(self, foreign: Foreign) -> None:
        self.entries += foreign.entries
        self.order += [entry.seq for entry in foreign.entries]
        if foreign.note is not None:
            self.notes.append(foreign.note)
        self._news.set()

    async def until(self, is_there: Callable[[], bool]) -> None:
        """Wait until what is looked for has been told."""
        async with asyncio.timeout(WAIT_S):
            while not is_there():
                self._news.clear()
                await self._news.wait()

    async def until_count(self, count: int) -> None:
        """Wait until so many entries, foreign and own, have been told."""
        await self.until(lambda: len(self.order) >= count)

    async def append(self, envelopes: Sequence[Envelope]) -> Outcome:
        """Append as a server does, and note the outcome in its order."""
        done: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()

        def note(outcomes: Sequence[tuple[int, Outcome]]) -> None:
            ((_, outcome),) = outcomes
            if isinstance(outcome, list):
                self.order += outcome
            done.set_result(outcome)
            self._news.set()

        self.log.append_many([Append(self.space, envelopes, self.received_ms)], note)
        async with asyncio.timeout(WAIT_S):
            return await done


async def all_of(log: Log, space: SpaceId) -> list[Entry]:
    """Return everything that a space holds."""
    entries: list[Entry] = []
    while page := await log.read(space, entries[-1].seq if entries else Seq(0), ALL):
        entries += page
    return entries


class FollowContract:
    """What a node hears of the others."""

    async def test_a_node_hears_what_another_appends(self, logs: Logs) -> None:
        """Every entry as it is stored; the appending node hears nothing of it."""
        here, there = logs
        chain = Chain(new_space())
        told, own = Told(there, chain.space), Told(here, chain.space)

        for count in (1, 3, 2):
            await here.append(chain.space, chain.take(count), NOW_MS)
        await told.until(lambda: len(told.entries) == 6)

        assert told.entries == await all_of(here, chain.space) == await all_of(there, chain.space)
        assert own.entries == []

    async def test_following_goes_on_after_a_seq(self, logs: Logs) -> None:
        """What came between a state and the call that follows it is told too."""
        here, there = logs
        chain = Chain(new_space())
        seqs = await here.append(chain.space, chain.take(3), NOW_MS)
        state = await there.state(chain.space)
        between = await here.append(chain.space, chain.take(2), NOW_MS)

        told = Told(there, chain.space, state.head)
        late = await here.append(chain.space, chain.take(1), NOW_MS)
        await told.until(lambda: len(told.entries) >= 3)

        assert state.head == seqs[-1]
        assert told.order == [*between, *late]

    async def test_who_no_longer_follows_hears_nothing(self, logs: Logs) -> None:
        """And may follow again from where it was."""
        here, there = logs
        chain = Chain(new_space())
        first = Told(there, chain.space)
        await here.append(chain.space, chain.take(1), NOW_MS)
        await first.until(lambda: len(first.entries) == 1)
        first.end()
        first.end()

        missed = await here.append(chain.space, chain.take(2), NOW_MS)
        second = Told(there, chain.space, first.order[-1])
        await second.until(lambda: len(second.entries) == 2)

        assert second.order == missed
        assert len(first.entries) == 1

    async def test_spaces_are_told_apart(self, logs: Logs) -> None:
        """Whoever follows one hears of no other."""
        here, there = logs
        one, other = Chain(new_space()), Chain(new_space())
        told = Told(there, one.space)

        await here.append(other.space, other.take(2), NOW_MS)
        seqs = await here.append(one.space, one.take(1), NOW_MS)
        await told.until(lambda: bool(told.entries))

        assert told.order == seqs

    async def test_a_cut_and_a_purge_are_noted(self, logs: Logs) -> None:
        """The other node then finds the new start; a cut taken back is noted too."""
        here, there = logs
        chain = Chain(new_space())
        seqs = await here.append(chain.space, chain.take(4), NOW_MS)
        told = Told(there, chain.space, seqs[-1])

        await here.cut(chain.space, seqs[1], NOW_MS)
        await told.until(lambda: Note.CUT in told.notes)
        assert (await there.state(chain.space)).start == seqs[1] + 1
        told.notes.clear()
        await here.uncut(chain.space, Seq(0))
        await told.until(lambda: Note.CUT in told.notes)
        assert (await there.state(chain.space)).start == 1
        told.notes.clear()
        await here.purge(chain.space)
        await told.until(lambda: Note.CUT in told.notes)

        assert await all_of(there, chain.space) == []
        assert told.entries == []


class NodesAppendContract:
    """Appends of two nodes to one space."""

    async def test_appends_of_two_nodes_get_one_order(self, logs: Logs) -> None:
        """Each node's own outcomes and what it is told come in the order of the log: no gap, nothing twice."""
        space = new_space()
        here, there = (Told(log, space) for log in logs)
        sent: dict[bytes, bytes] = {}

        async def write(node: Told, chain: Chain) -> None:
            for count in (1, 2, 1, 3, 1, 2):
                envelopes = chain.take(count)
                assert not isinstance(await node.append(envelopes), TwinlockError)
                sent.update((envelope.id, envelope.data) for envelope in envelopes)

        await asyncio.gather(*(write(node, Chain(space)) for node in (here, there) for _ in range(6)))
        stored = await all_of(logs[0], space)
        for node in (here, there):
            await node.until_count(len(stored))

        assert len(stored) == len(sent) == 12 * 10
        assert {entry.envelope for entry in stored} == set(sent.values())
        assert here.order == there.order == [entry.seq for entry in stored]

    async def test_receive_times_of_two_nodes_never_go_back(self, logs: Logs) -> None:
        """Whichever clock is ahead; what is told has the times that are stored, and so has a node's own reckoning."""
        space = new_space()
        here, there = (Told(log, space) for log in logs)
        here.received_ms = NOW_MS + 3_600_000

        async def write(node: Told, chain: Chain) -> None:
            for _ in range(5):
                assert not isinstance(await node.append(chain.take(2)), TwinlockError)

        await asyncio.gather(*(write(node, Chain(space)) for node in (here, there) for _ in range(3)))
        stored = await all_of(logs[0], space)
        for node in (here, there):
            await node.until_count(len(stored))

        times = [entry.received_ms for entry in stored]
        assert times == sorted(times)
        assert set(times) <= {NOW_MS, NOW_MS + 3_600_000}
        assert [entry for entry in stored if entry in there.entries] == there.entries
        assert [entry for entry in stored if entry in here.entries] == here.entries
        assert {(await log.state(space)).received_ms for log in logs} == {times[-1]}

    async def test_a_node_that_knew_nothing_of_it_appends_behind(self, logs: Logs) -> None:
        """Whether it follows the space or not."""
        here, there = logs
        space = new_space()
        one, other = Chain(space), Chain(space)
        assert (await there.state(space)).head == 0
        await there.append(space, other.take(1), NOW_MS)
        before = await here.append(space, one.take(2), NOW_MS)

        (after,) = await there.append(space, other.take(1), NOW_MS)

        assert after > before[-1]
        assert [entry.seq for entry in await all_of(there, space)][-3:] == [*before, after]

    async def test_an_envelope_that_comes_by_both_nodes_is_stored_once(self, logs: Logs) -> None:
        """Its device went from one node to the other and sent it again."""
        here, there = logs
        chain = Chain(new_space())
        envelopes = chain.take(3)

        first, second = await asyncio.gather(*(log.append(chain.space, envelopes, NOW_MS) for log in (here, there)))
        more = [*envelopes, *chain.take(2)]
        again = await there.append(chain.space, more, NOW_MS)

        assert first == second == again[:3]
        assert [entry.envelope for entry in await all_of(here, chain.space)] == [each.data for each in more]

    async def test_a_server_s_append_of_what_another_node_has_is_refused_as_known(self, logs: Logs) -> None:
        """After the other's append was told; the server then knows what to do."""
        here, there = logs
        chain = Chain(new_space())
        told = Told(there, chain.space)
        envelopes = chain.take(2)
        seqs = await here.append(chain.space, envelopes, NOW_MS)

        assert isinstance(await told.append(envelopes), AppendConflictError)
        assert told.order == seqs
        assert not isinstance(await told.append(chain.take(1)), TwinlockError)

    async def test_a_counter_is_taken_whichever_node_took_it(self, logs: Logs) -> None:
        """And gaps are refused as on one node."""
        here, there = logs
        chain = Chain(new_space())
        rival = Chain(chain.space, chain.device)
        await there.state(chain.space)
        await here.append(chain.space, chain.take(2), NOW_MS)

        for envelope in (rival.next(), chain.make(9, EnvelopeId(bytes(32)))):
            try:
                await there.append(chain.space, [envelope], NOW_MS)
            except AppendConflictError:
                continue
            raise AssertionError("it was taken")
        assert len(await all_of(there, chain.space)) == 2

    async def test_every_node_tells_the_same_state(self, logs: Logs) -> None:
        """Head, bytes and the heads of the devices."""
        here, there = logs
        space = new_space()
        one, other = Chain(space), Chain(space)
        envelopes = [*one.take(2), *other.take(1)]
        await here.append(space, envelopes[:2], NOW_MS)
        seqs = await there.append(space, envelopes[2:], NOW_MS)

        states = [await log.state(space) for log in logs]

        assert states[0] == states[1]
        assert (states[0].head, states[0].log_bytes) == (seqs[-1], sum(len(each.data) for each in envelopes))
        assert dict(states[0].heads) == {
            one.device: DeviceHead(Counter(2), one.prev),
            other.device: DeviceHead(Counter(1), other.prev),
        }

    async def test_spaces_and_what_was_adopted_are_seen_by_both(self, logs: Logs) -> None:
        """In the order of their ids, page by page; chains go on at either node."""
        here, there = logs
        chains = sorted((Chain(new_space()) for _ in range(5)), key=lambda chain: chain.space)
        for chain in chains[1:]:
            await here.append(chain.space, chain.take(1), NOW_MS)
        first = chains[0]
        entries = [Entry(Seq(7 * place), NOW_MS, each.data) for place, each in enumerate(first.take(3), 1)]
        await here.adopt(first.space, entries, {first.device: DeviceHead(Counter(3), first.prev)})

        found = await there.spaces(SpaceId(b""), 3)
        found += await there.spaces(found[-1], 3)
        assert found == [chain.space for chain in chains]
        assert [entry.envelope for entry in await all_of(there, first.space)] == [each.envelope for each in entries]
        await there.append(first.space, first.take(1), NOW_MS)


class FenceContract:
    """A change of the signed log stands still for a moment, on all nodes."""

    async def test_a_fence_is_told_to_the_others_in_its_place(self, logs: Logs) -> None:
        """Its own node hears nothing, readers see nothing."""
        here, there = logs
        chain = Chain(new_space())
        told, own = Told(there, chain.space), Told(here, chain.space)
        before = await here.append(chain.space, chain.take(1), NOW_MS)

        state = await here.fence(chain.space)
        after = await here.append(chain.space, chain.take(1), NOW_MS)
        await told.until(lambda: len(told.order) == 2)

        assert state.head == before[0]
        assert told.notes == [Note.FENCE]
        assert told.order == [*before, *after] == [entry.seq for entry in await all_of(there, chain.space)]
        assert own.notes == []

    async def test_a_fence_brings_its_node_up_to_its_place(self, logs: Logs) -> None:
        """Everything below it that others appended is told by then."""
        here, there = logs
        chain = Chain(new_space())
        told = Told(here, chain.space)
        seqs = await there.append(chain.space, chain.take(3), NOW_MS)

        state = await here.fence(chain.space)

        assert told.order == seqs
        assert (state.head, dict(state.heads)) == (seqs[-1], {chain.device: DeviceHead(Counter(3), chain.prev)})

    async def test_a_fence_of_an_empty_space_is_told_too(self, logs: Logs) -> None:
        """A space may grow members before anybody has written."""
        here, there = logs
        told = Told(there, new_space())

        state = await here.fence(told.space)
        await told.until(lambda: bool(told.notes))

        assert (state.head, told.notes) == (0, [Note.FENCE])

    async def test_what_comes_behind_a_fence_was_asked_for_by_nodes_that_knew_of_it(self, logs: Logs) -> None:
        """What a fence overtakes on its way is refused, and can be asked for again."""
        here, there = logs
        space = new_space()
        told = Told(there, space)
        chains = [Chain(space) for _ in range(8)]
        told_by: dict[Seq, int] = {}
        refused = 0

        async def write(chain: Chain) -> None:
            nonlocal refused
            for _ in range(25):
                envelopes = chain.take(1)
                while True:
                    fences = len(told.notes)
                    outcome = await told.append(envelopes)
                    if isinstance(outcome, list):
                        told_by[outcome[0]] = fences
                        break
                    assert isinstance(outcome, StoreError), outcome
                    refused += 1

        places: list[Seq] = []

        async def fence() -> None:
            for _ in range(10):
                places.append((await here.fence(space)).head)
                await asyncio.sleep(0.002)

        await asyncio.gather(fence(), *(write(chain) for chain in chains))

        assert sorted(told_by) == [entry.seq for entry in await all_of(here, space)]
        for seq, known in told_by.items():
            assert known >= len([place for place in places if place < seq])


class LogNodesContract(FollowContract, NodesAppendContract, FenceContract):
    """The whole of it."""
