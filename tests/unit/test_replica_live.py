"""Live queries: their changes lead from each result to the next, and the result is what the query answers."""

import random

import pytest

from twinlock.document.query import Query
from twinlock.protocol.frames import Entries
from twinlock.replica.batch import DeleteDocument, SetDocument, UpdateDocument
from twinlock.replica.live import ChangeKind
from twinlock.testing.simulator import START_MS, Simulation
from twinlock.testing.simulator_device import follow

NOW = START_MS

QUERIES = [
    Query.over("c"),
    Query.over("c").order_by("n"),
    Query.over("c").order_by("n", "desc").limit(3),
    Query.over("c").where("n", ">", 40).order_by("n").start_after(50).limit(4),
    Query.over("c").where("even", "==", True),
    Query.over("c").search("wor"),
]


@pytest.fixture
def simulation() -> Simulation:
    simulation = Simulation(1)
    simulation.devices[0].skew_ms = 0
    return simulation


@pytest.mark.parametrize("query", QUERIES)
def test_changes_lead_to_what_the_query_answers(simulation, query):
    replica = simulation.devices[0].replica
    assert replica is not None
    chance = random.Random(5)
    live = replica.live(query, NOW)
    ids: list[str] = follow(live, replica, [], NOW)
    for _ in range(150):
        name = f"d{chance.randrange(12)}"
        number = chance.randrange(100)
        if chance.random() < 0.2:
            replica.write([DeleteDocument("c", name)], NOW)
        else:
            text = chance.choice(("words", "others"))
            data = {"n": number, "even": number % 2 == 0, "text": text}
            replica.write([SetDocument("c", name, data), SetDocument("other", name, {"n": 50})], NOW)
        ids = follow(live, replica, ids, NOW)

        assert ids == [identifier for identifier, _ in replica.query(query, NOW)]


def test_a_snapshot_tells_what_happened_and_what_is_pending(simulation):
    device = simulation.devices[0]
    replica = device.replica
    assert replica is not None
    live = replica.live(Query.over("c"), NOW)
    ((_, first),) = replica.take_snapshots(NOW)
    assert (first.documents, first.changes, first.from_cache, first.pending) == ([], [], True, False)

    replica.write([SetDocument("c", "x", {"a": 1})], NOW)
    ((_, second),) = replica.take_snapshots(NOW)
    assert [(change.kind, change.id, change.new_index) for change in second.changes] == [(ChangeKind.ADDED, "x", 0)]
    assert second.pending

    simulation.settle()
    ((_, third),) = replica.take_snapshots(device.now_ms(simulation.now_ms))
    assert (third.changes, third.from_cache, third.syncing, third.pending) == ([], False, False, False)

    live.close()
    replica.write([UpdateDocument("c", "x", {"a": 2})], device.now_ms(simulation.now_ms))
    assert replica.take_snapshots(device.now_ms(simulation.now_ms)) == []


def test_an_altered_envelope_is_quarantined_alone(simulation):
    writer, reader = simulation.devices[:2]
    reader.skew_ms = 0
    for number in range(3):
        writer.write([SetDocument("c", f"d{number}", {"n": number})], NOW)
        for _ in range(12):
            simulation.serve(writer)
    log = simulation.server.entries
    damaged = bytearray(log[1].envelope)
    damaged[130] ^= 1
    log[1] = type(log[1])(log[1].seq, log[1].received_ms, bytes(damaged))

    simulation.serve(reader)
    for _ in range(30):
        simulation.serve(reader)

    replica = reader.replica
    assert replica is not None
    assert replica.get("c", "d0", NOW) == {"n": 0}
    assert replica.quarantined()[0].seq == log[1].seq
    assert replica.caught_up


def test_entries_that_come_twice_are_merged_once(simulation):
    writer, reader = simulation.devices[:2]
    writer.write([SetDocument("c", "x", {"n": 1})], NOW)
    simulation.settle()
    replica = reader.replica
    assert replica is not None
    before = reader.states()

    frame = Entries(simulation.world.log.space, simulation.server.entries, simulation.server.head)
    replica.on_entries(frame, simulation.now_ms)

    assert not replica.work(simulation.now_ms)
    assert reader.states() == before


def test_a_restored_server_gets_back_what_only_readers_still_have(simulation):
    writer, reader = simulation.devices[:2]
    simulation.serve(writer)
    old = simulation.server.backup()
    writer.write([SetDocument("c", "x", {"n": 1})], NOW)
    for _ in range(60):
        for device in (writer, reader):
            simulation.serve(device)
    assert reader.replica is not None
    assert reader.replica.get("c", "x", NOW) == {"n": 1}
    simulation._retire(writer)

    simulation.server.restore(old)
    simulation.settle()

    newcomer = simulation.devices[-1]
    assert newcomer.replica is not None
    assert newcomer.replica.get("c", "x", newcomer.now_ms(simulation.now_ms)) == {"n": 1}
    assert newcomer.states() == reader.states()


def test_compaction_bounds_the_log_and_a_newcomer_gets_everything(simulation):
    device = simulation.devices[0]
    for number in range(120):
        device.write([SetDocument("c", f"d{number % 5}", {"n": number, "pad": "x" * 300})], NOW)
        for _ in range(6):
            simulation.serve(device)
    whole_bytes = 120 * 500

    simulation.settle()

    kept_bytes = sum(len(entry.envelope) for entry in simulation.server.entries)
    assert simulation.server.start > 1
    assert kept_bytes < whole_bytes / 5
    newcomer = simulation.devices[-1].replica
    assert newcomer is not None
    assert newcomer.count(Query.over("c"), simulation.now_ms) == 5
