"""What the JetStream engine does besides the contracts: heads through purges, gaps, refusals, and coming back."""

import asyncio
import secrets
import time

import pytest

from twinlock.contracts.log import Append, DeviceHead
from twinlock.engines.jetstream import JetstreamEngine
from twinlock.engines.jetstream_cluster import FirstSettings
from twinlock.engines.jetstream_format import PLACES, Names
from twinlock.engines.jetstream_live import Live
from twinlock.engines.jetstream_options import NatsOptions
from twinlock.errors import AppendConflictError, LimitExceededError, RevisionError, StoreError, TwinlockError
from twinlock.ids import Counter, EnvelopeId, Seq
from twinlock.protocol.frames import Entry
from twinlock.testing.contracts.envelopes import Chain, new_device, new_space
from twinlock.testing.nats_process import NatsCluster

NOW_MS = 1_700_000_000_000
SMALL = FirstSettings(partitions=1, shards=2)


async def until(there):
    """Wait until something is there; what is asked may have to be awaited."""
    async with asyncio.timeout(40):
        while True:
            found = there()
            if await found if asyncio.iscoroutine(found) else found:
                return
            await asyncio.sleep(0.01)


async def test_a_fresh_node_finds_the_heads_of_a_purged_space(connect):
    chain = Chain(new_space())
    first = await connect()
    seqs = await first.log.append(chain.space, chain.take(5), NOW_MS)
    before = await first.log.state(chain.space)
    await first.log.purge(chain.space)

    second = await connect()
    state = await second.log.state(chain.space)

    assert (state.start, state.head, state.log_bytes) == (seqs[-1] + 1, seqs[-1], 0)
    assert dict(state.heads) == dict(before.heads)
    (following,) = await second.log.append(chain.space, [chain.next()], NOW_MS)
    assert following > seqs[-1]


async def test_the_heads_of_very_many_devices_survive_a_purge(connect):
    """They are in several records, and those that no record names any more go."""
    first, chain = await connect(), Chain(new_space())
    heads = {new_device(): DeviceHead(Counter(7), EnvelopeId(secrets.token_bytes(32))) for _ in range(20_000)}
    entries = [Entry(Seq(1), NOW_MS, chain.next().data)]
    await first.log.adopt(chain.space, entries, heads)
    for _ in range(3):
        await first.log.append(chain.space, [chain.next()], NOW_MS)
        await first.log.purge(chain.space)

    second = await connect()
    state = await second.log.state(chain.space)

    assert dict(state.heads) == {**heads, chain.device: DeviceHead(Counter(4), chain.prev)}
    pieces = await second.directory.list(f"heads/{chain.space.hex()}/")
    assert len(pieces) == 2 * 3
    assert all(len(record.value) < 1 << 20 for record in pieces.values())


async def test_heads_are_stored_from_time_to_time(connect, monkeypatch):
    """A fresh node needs nothing that lies before them."""
    monkeypatch.setattr("twinlock.engines.jetstream_live.CHECKPOINT_ENTRIES", 100)
    chain = Chain(new_space())
    first = await connect()
    for _ in range(6):
        await first.log.append(chain.space, chain.take(50), NOW_MS)
    state = await first.log.state(chain.space)
    await until(lambda: first.directory.get(f"heads/{chain.space.hex()}"))
    names, number = Names(first.name), state.head // PLACES
    request = {"filter": names.log_subject(chain.space), "seq": number}
    await first.api.call(f"STREAM.PURGE.{names.log_stream(0)}", request)

    second = await connect()

    assert await second.log.state(chain.space) == state


async def test_state_and_bytes_stay_exact_through_cuts_by_two_nodes(connect):
    here, there = await connect(), await connect()
    chain = Chain(new_space())
    envelopes = chain.take(9)
    seqs = []
    for first in range(0, 9, 3):
        seqs += await here.log.append(chain.space, envelopes[first : first + 3], NOW_MS)
    for upto in (1, 4, 7):
        by, other = (here, there) if upto == 4 else (there, here)
        state = await by.log.cut(chain.space, seqs[upto], NOW_MS + upto)
        assert state == await other.log.state(chain.space)
        assert state.log_bytes == sum(len(envelope.data) for envelope in envelopes[upto + 1 :])
    assert await here.log.clean(NOW_MS + 5) == 5
    assert (await there.log.uncut(chain.space, Seq(0))).start == seqs[4] + 1
    assert [entry.seq for entry in await here.log.read(chain.space, Seq(0), 1 << 20)] == seqs[5:]


async def test_a_lost_live_message_is_found_by_looking(connect):
    """Nothing follows it, so no chain is broken."""
    here, there = await connect(), await connect()
    chain = Chain(new_space())
    told = []
    there.log.follow(chain.space, Seq(0), told.append)
    await there.log.state(chain.space)
    tail = there.log._live.tails[chain.space]
    tail.stop_live()
    tail.stop_live = int

    seqs = await here.log.append(chain.space, chain.take(2), NOW_MS)

    await until(lambda: told)
    assert [entry.seq for foreign in told for entry in foreign.entries] == seqs


async def test_a_lost_connection_is_made_again_and_nothing_is_missed(connect):
    here, there = await connect(), await connect()
    chain = Chain(new_space())
    told, gaps = [], []
    there.log.follow(chain.space, Seq(0), told.append)
    there.broker.on_gap(lambda: gaps.append(1))
    await here.log.append(chain.space, chain.take(1), NOW_MS)

    there.connection._client._transport._io_writer.transport.abort()
    for _ in range(5):
        await here.log.append(chain.space, chain.take(1), NOW_MS)
    await there.log.append(chain.space, Chain(chain.space).take(1), NOW_MS)

    await until(lambda: sum(len(foreign.entries) for foreign in told) == 6)
    assert gaps == [1]
    assert await there.directory.list("a/") == {}


async def test_an_error_of_our_own_is_told_to_whoever_waits_and_the_space_is_read_anew(connect, monkeypatch):
    """What fails here is the work beside that is to compare the tail with the leader."""
    here, there = await connect(), await connect()
    chain, told = Chain(new_space()), []
    here.log.follow(chain.space, Seq(0), told.append)
    await here.log.append(chain.space, chain.take(1), NOW_MS)
    broken = [ZeroDivisionError()]
    catch_up = Live.catch_up

    async def fail_once(self, tail, *rest):
        if broken:
            raise broken.pop()
        await catch_up(self, tail, *rest)

    monkeypatch.setattr(Live, "catch_up", fail_once)
    gap = Chain(chain.space).take(2)[1]
    async with asyncio.timeout(10):
        with pytest.raises(StoreError):
            await here.log.append(chain.space, [gap], NOW_MS)
        with pytest.raises(AppendConflictError):
            await here.log.append(chain.space, [gap], NOW_MS)
        await here.log.append(chain.space, chain.take(1), NOW_MS)
    seqs = await there.log.append(chain.space, chain.take(2), NOW_MS)
    await until(lambda: told)
    assert [entry.seq for foreign in told for entry in foreign.entries] == seqs


async def test_a_follower_that_fails_costs_no_other_an_entry(connect):
    """Nor an append its answer: everything is told once, in order, of what was appended meanwhile too."""
    here, there = await connect(), await connect()
    space = new_space()
    mine, others = Chain(space), Chain(space)
    seen, failing = [], []

    def hear(foreign):
        seen.extend(entry.seq for entry in foreign.entries)

    def fail(foreign):
        failing.extend(entry.seq for entry in foreign.entries)
        if len(failing) in (2, 5):
            raise ZeroDivisionError

    here.log.follow(space, Seq(0), fail)
    here.log.follow(space, Seq(0), hear)
    stored = []
    async with asyncio.timeout(20):
        for _ in range(8):
            work = there.log.append(space, others.take(1), NOW_MS), here.log.append(space, mine.take(1), NOW_MS)
            (theirs,), ours = await asyncio.gather(*work, return_exceptions=True)
            stored.append(theirs)
            if isinstance(ours, TwinlockError):
                mine = Chain(space)
    await until(lambda: len(seen) == len(failing) == 8)
    assert seen == failing == stored


async def test_a_note_and_a_fence_show_to_no_reader(connect):
    engine = await connect()
    chain = Chain(new_space())
    await engine.log.fence(chain.space)
    seqs = await engine.log.append(chain.space, chain.take(2), NOW_MS)
    await engine.log.cut(chain.space, seqs[0], NOW_MS)
    state = await engine.log.fence(chain.space)

    assert (state.start, state.head) == (seqs[0] + 1, seqs[1])
    assert [entry.seq for entry in await engine.log.read(chain.space, Seq(0), 1 << 20)] == seqs[1:]


async def test_an_append_above_the_limit_is_refused(connect):
    engine = await connect()
    chain = Chain(new_space())
    with pytest.raises(LimitExceededError):
        await engine.log.append(chain.space, [chain.next(bytes(900_000)) for _ in range(5)], NOW_MS)
    chain = Chain(chain.space)
    assert await engine.log.append(chain.space, [chain.next(bytes((1 << 20) - 512)) for _ in range(4)], NOW_MS)


async def test_no_append_of_many_takes_more_places_than_a_seq_has(connect):
    engine, chain = await connect(), Chain(new_space())
    answered = asyncio.get_running_loop().create_future()

    append = Append(chain.space, [chain.next(b"") for _ in range(PLACES + 1)], NOW_MS)
    engine.log.append_many([append], answered.set_result)

    ((place, outcome),) = await answered
    assert place == 0
    assert isinstance(outcome, LimitExceededError)
    assert await engine.log.read(chain.space, Seq(0), 1 << 20) == []


async def test_adopted_entries_of_many_times_are_few_messages_and_keep_their_times(connect):
    engine, chain = await connect(), Chain(new_space())
    times = [NOW_MS + (place * 7_919) % 86_400_000 for place in range(5_000)]
    entries = [
        Entry(Seq(place), received_ms, envelope.data)
        for place, (received_ms, envelope) in enumerate(zip(times, chain.take(5_000), strict=True), 1)
    ]

    await engine.log.adopt(chain.space, entries, {})
    await engine.log.adopt(chain.space, entries, {})

    info = await engine.api.call(f"STREAM.INFO.{Names(engine.name).log_stream(0)}", {})
    assert info["state"]["messages"] == 2
    found = []
    while page := await engine.log.read(chain.space, found[-1].seq if found else Seq(0), 1 << 22):
        found += page
    assert [(entry.received_ms, entry.envelope) for entry in found] == [
        (entry.received_ms, entry.envelope) for entry in entries
    ]
    await engine.log.append(chain.space, [chain.next()], NOW_MS)


async def test_of_two_nodes_that_start_at_once_one_makes_the_cluster(server):
    name = secrets.token_hex(4)
    engines = await asyncio.gather(*(JetstreamEngine.connect(server.url, name=name, first=SMALL) for _ in range(4)))
    assert len({engine.log.incarnation for engine in engines}) == 1
    await engines[0].directory.put("k/1", b"", expect_revision=0)
    with pytest.raises(RevisionError):
        await engines[1].directory.put("k/1", b"", expect_revision=0)
    for engine in engines:
        await engine.close()


async def test_a_server_alone_is_told_by_its_own_word_although_it_names_a_cluster(tmp_path):
    """It does where it is linked to another as a leaf."""
    linked = {"leafnodes": '{ remotes: [ { url: "nats-leaf://127.0.0.1:1" } ] }'}
    with NatsCluster(tmp_path, nodes=1, settings=linked) as cluster:
        engine = await JetstreamEngine.connect(cluster.url, first=SMALL)
        assert engine.connection.server["cluster"]
        assert engine.settings.replicas == 1
        await engine.close()


@pytest.mark.slow
async def test_a_cluster_that_lacks_servers_gets_no_fewer_copies_for_that(tmp_path):
    with NatsCluster(tmp_path, nodes=3) as cluster:
        cluster.kill(2)
        engine = await JetstreamEngine.connect(cluster.url, first=SMALL)
        assert engine.settings.replicas == 3
        status = await engine.status()
        assert [len(stream.replicas) for stream in status.streams] == [2] * 3
        await engine.close()


@pytest.mark.parametrize("url", ["nats://", "http://a", "nats://127.0.0.1:1", "nats://[", "sqlite:x"])
async def test_an_address_that_leads_nowhere_is_told(url):
    with pytest.raises(StoreError):
        await JetstreamEngine.connect(url)


async def test_addresses_are_read():
    options = NatsOptions.from_url("tls://u:p@a:1,b,c:3")
    assert [(each.host, each.port) for each in options.addresses] == [("a", 1), ("b", 4222), ("c", 3)]
    assert (options.is_tls, options.user, options.password) == (True, "u", "p")


@pytest.mark.slow
async def test_what_is_given_up_is_told_and_may_be_asked_for_again(tmp_path):
    """The cluster is away for longer than an append is tried for."""
    with NatsCluster(tmp_path, nodes=1) as cluster:
        engine = await JetstreamEngine.connect(cluster.url, first=SMALL)
        chain = Chain(new_space())
        await engine.log.append(chain.space, chain.take(1), NOW_MS)
        envelopes = chain.take(2)
        outcomes = []
        cluster.pause(0)
        engine.log.append_many([Append(chain.space, envelopes, NOW_MS)], outcomes.extend)
        started = time.monotonic()
        await until(lambda: outcomes)
        waited = time.monotonic() - started
        cluster.resume(0)

        assert isinstance(outcomes[0][1], StoreError)
        assert outcomes[0][1].retry_after_ms > 0
        assert 15 < waited < 30
        seqs = await engine.log.append(chain.space, envelopes, NOW_MS)
        entries = await engine.log.read(chain.space, Seq(0), 1 << 20)
        assert [entry.envelope for entry in entries[1:]] == [envelope.data for envelope in envelopes]
        assert [entry.seq for entry in entries[1:]] == seqs
        await engine.close()
