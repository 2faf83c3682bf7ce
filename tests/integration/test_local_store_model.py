"""The replica file against the memory store: the same calls give the same answers."""

from contextlib import ExitStack

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from twinlock.client.local_store import LocalStore
from twinlock.document.query import Query
from twinlock.ids import Counter, DeviceId, EnvelopeId, Seq
from twinlock.replica.store import OwnEnvelope, QuarantinedEnvelope, StoredDocument, encode_value
from twinlock.testing.memory_store import MemoryStore

seqs = st.integers(1, 6).map(Seq)
counters = st.integers(1, 6).map(Counter)
keys = st.sampled_from([("a", "x"), ("a", "ä"), ("b", "x")])
tokens = st.lists(st.integers(1, 8), max_size=3, unique=True)
sizes = st.sampled_from([1, 40, 1 << 20])


@st.composite
def stored(draw):
    collection, id = draw(keys)
    confirmed = draw(st.sampled_from([b"", b"state", b"a longer state"]))
    value = draw(st.sampled_from([None, encode_value({"n": 1})]))
    base, last = (draw(seqs), draw(seqs)) if confirmed else (Seq(0), Seq(0))
    return StoredDocument(collection, id, confirmed, b"over", value, base, last, draw(st.integers(0, 2)))


envelopes = st.builds(
    OwnEnvelope, counters, st.just(EnvelopeId(bytes(32))), st.just(1), st.sampled_from([b"sealed", b"sealed longer"])
)
poisoned = st.builds(QuarantinedEnvelope, seqs, st.just(5), st.just(b"data"), st.sampled_from(["x", "y"]))
calls = st.one_of(
    st.tuples(st.just("put_documents"), st.lists(stored(), max_size=3)),
    st.tuples(st.just("add_write"), st.just(b"payload"), st.lists(keys, max_size=2, unique=True)),
    st.tuples(st.just("write_and_freeze"), envelopes, st.lists(keys, max_size=2, unique=True)),
    st.tuples(st.just("put_write"), st.integers(1, 3), st.just(b"clamped")),
    st.tuples(st.just("freeze"), envelopes, tokens),
    st.tuples(st.just("confirm"), counters, seqs, st.just(1_000)),
    st.tuples(st.just("thaw"), counters),
    st.tuples(st.just("refreeze"), counters),
    st.tuples(st.just("refuse"), tokens, st.just("code"), st.just("detail")),
    st.tuples(st.just("forget_refused"), tokens),
    st.tuples(st.just("forget_kept"), seqs, st.sampled_from([500, 2_000])),
    st.tuples(st.just("mark_lost_above"), seqs),
    st.tuples(st.just("clear_lost")),
    st.tuples(st.just("quarantine"), st.lists(poisoned, max_size=2)),
    st.tuples(st.just("release"), st.lists(seqs, max_size=2)),
    st.tuples(st.just("put_chains"), st.dictionaries(st.sampled_from([DeviceId(b"d" * 16)]), st.just(b"chain"))),
    st.tuples(st.just("put_meta"), st.sampled_from(["a", "b"]), st.sampled_from([b"", b"1"])),
)


def view(store, bytes_max):
    """Everything that can be asked of a store."""
    return {
        "documents": store.get_documents([("a", "x"), ("a", "ä"), ("b", "x"), ("none", "x")]),
        "pages": [store.documents_after(key, 2) for key in (("", ""), ("a", "x"), ("b", "x"))],
        "oldest": store.oldest_documents(bytes_max),
        "lost": store.lost_documents(bytes_max),
        "numbers": (store.lowest_base_seq(), store.live_bytes(), store.pending_count(), store.frozen_count()),
        "unsealed": (store.unsealed_count(), store.unsealed_writes(bytes_max)),
        "counts": (store.count(Query.over("a")), store.count(Query.over("b"))),
        "pending": (store.pending_ids("a"), store.pending_ids("none")),
        "touching": store.writes_touching(("a", "x")),
        "carried": [store.writes_of(Counter(counter)) for counter in range(1, 7)],
        "frozen": store.frozen_envelopes(Counter(0), bytes_max),
        "kept": store.kept_envelopes(Counter(0), bytes_max),
        "own": [store.own_envelope(Counter(counter)) for counter in range(1, 7)],
        "refused": store.refused_writes(),
        "quarantined": store.quarantined(),
        "chains": store.chains(),
        "meta": (store.get_meta("a"), store.get_meta("b")),
    }


def possible(store, call):
    """Tell whether a replica would make this call: it freezes new counters, and writes that wait."""
    if call[0] == "freeze":
        waiting = {write.token for write in store.unsealed_writes(1 << 20)}
        return store.own_envelope(call[1].counter) is None and set(call[2]) <= waiting
    if call[0] == "write_and_freeze":
        return store.own_envelope(call[1].counter) is None
    if call[0] == "put_write":
        return call[1] in {write.token for write in store.unsealed_writes(1 << 20)}
    if call[0] == "forget_refused":
        return set(call[1]) <= {write.token for write in store.refused_writes()}
    if call[0] == "refuse":
        waiting = [write.token for write in store.unsealed_writes(1 << 20)]
        return set(call[1]) <= set(waiting)
    return True


def outcome(store, name, arguments):
    if name != "write_and_freeze":
        return getattr(store, name)(*arguments)
    envelope, written = arguments
    token = store.add_write(b"at once", written, envelope.counter)
    store.freeze(envelope, ())
    return token


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(calls=st.lists(calls, max_size=14), bytes_max=sizes)
def test_the_file_answers_as_the_memory_does(tmp_path, calls, bytes_max):
    path = tmp_path / "replica.db"
    with ExitStack() as closing:
        model = MemoryStore()
        store = LocalStore.open(path, bytes(32))
        closing.callback(lambda: path.unlink())
        closing.callback(store.close)
        for call in calls:
            if not possible(model, call):
                continue
            name, *arguments = call
            with model.transaction(durable=False), store.transaction(durable=False):
                assert outcome(store, name, arguments) == outcome(model, name, arguments), name
            assert view(store, bytes_max) == view(model, bytes_max), name
