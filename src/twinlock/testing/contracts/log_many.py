"""What every engine's `append_many` must do: many spaces in one call, each by itself, each answered once."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from twinlock.contracts.log import Append, Log, Outcome
from twinlock.errors import AppendConflictError, TwinlockError
from twinlock.ids import Seq
from twinlock.protocol.frames import Entry
from twinlock.testing.contracts.envelopes import Chain, new_space

NOW_MS = 1_700_000_000_000


async def append_many(log: Log, *appends: Append) -> Sequence[Outcome]:
    """Append and wait for what came of it."""
    outcomes: dict[int, Outcome] = {}
    ended = asyncio.Event()

    def done(told: Sequence[tuple[int, Outcome]]) -> None:
        assert not outcomes.keys() & dict(told).keys()
        outcomes.update(told)
        if len(outcomes) == len(appends):
            ended.set()

    log.append_many(appends, done)
    assert not outcomes
    async with asyncio.timeout(20):
        await ended.wait()
    return [outcomes[place] for place in range(len(appends))]


class AppendManyContract:
    """Appending to many spaces at once."""

    async def test_every_space_gets_its_own(self, log: Log) -> None:
        """With the seqs that the answer told, in the order of the appends."""
        chains = [Chain(new_space()) for _ in range(20)]
        appends = [Append(chain.space, chain.take(count % 3 + 1), NOW_MS) for count, chain in enumerate(chains)]

        outcomes = await append_many(log, *appends)

        for append, seqs in zip(appends, outcomes, strict=True):
            assert not isinstance(seqs, TwinlockError)
            pairs = zip(seqs, append.envelopes, strict=True)
            expected = [Entry(seq, NOW_MS, envelope.data) for seq, envelope in pairs]
            assert await log.read(append.space, Seq(0), 1 << 20) == expected
            assert (await log.state(append.space)).head == seqs[-1]

    async def test_every_space_has_its_own_receive_time(self, log: Log) -> None:
        """In one call: one may have entries of a later time than another."""
        one, other = Chain(new_space()), Chain(new_space())
        watch = log.watch(other.space, Seq(0))

        await append_many(log, Append(one.space, one.take(1), NOW_MS), Append(other.space, other.take(2), NOW_MS + 70))

        for space, received_ms in ((one.space, NOW_MS), (other.space, NOW_MS + 70)):
            assert {entry.received_ms for entry in await log.read(space, Seq(0), 1 << 20)} == {received_ms}
            assert (await log.state(space)).received_ms == received_ms
        async with asyncio.timeout(20):
            assert {entry.received_ms for entry in await anext(watch)} == {NOW_MS + 70}

    async def test_one_that_does_not_fit_harms_no_other(self, log: Log) -> None:
        """Whether it is a gap, or known already."""
        good, late, gap, known = (Chain(new_space()) for _ in range(4))
        stored = known.take(1)
        await log.append(known.space, stored, NOW_MS)
        gap.next()

        outcomes = await append_many(
            log,
            Append(good.space, good.take(1), NOW_MS),
            Append(gap.space, gap.take(1), NOW_MS),
            Append(known.space, [*stored, *known.take(1)], NOW_MS),
            Append(late.space, late.take(1), NOW_MS),
        )

        assert [isinstance(outcome, AppendConflictError) for outcome in outcomes] == [False, True, True, False]
        assert [len(await log.read(chain.space, Seq(0), 1 << 20)) for chain in (good, gap, known, late)] == [1, 0, 1, 1]

    async def test_a_second_call_may_go_on_before_the_first_is_answered(self, log: Log) -> None:
        """Both are answered, in their order."""
        chain = Chain(new_space())
        answers: list[Sequence[tuple[int, Outcome]]] = []
        log.append_many([Append(chain.space, chain.take(2), NOW_MS)], answers.append)

        await append_many(log, Append(chain.space, chain.take(2), NOW_MS))

        assert len(answers) == 1
        assert len(await log.read(chain.space, Seq(0), 1 << 20)) == 4

    async def test_who_watches_gets_it_as_well(self, log: Log) -> None:
        """Once, like what is appended one by one."""
        chain = Chain(new_space())
        watch = log.watch(chain.space, Seq(0))
        await append_many(log, Append(chain.space, chain.take(1), NOW_MS))

        async with asyncio.timeout(20):
            first = await anext(watch)
            await append_many(log, Append(chain.space, chain.take(1), NOW_MS))
            second = await anext(watch)

        assert [entry.envelope[40:48] for entry in (*first, *second)] == [bytes(7) + b"\1", bytes(7) + b"\2"]
