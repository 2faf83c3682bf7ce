"""The encrypted replica file: its key, its transactions, and queries that equal the pure ones."""

import os
import time
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from twinlock.client.local_store import LocalStore
from twinlock.document.query import Query
from twinlock.errors import StoreDamagedError, StoreError
from twinlock.ids import Counter, EnvelopeId, Seq
from twinlock.replica.store import OwnEnvelope, StoredDocument, encode_value

KEY = bytes(range(32))
FIELDS = ["a", "b", "c.d", "tags"]
START = datetime(2026, 1, 1, tzinfo=UTC)


def stored(id, value, collection="things", seq=1):
    return StoredDocument(
        collection, id, b"state", b"", None if value is None else encode_value(value), Seq(seq), Seq(seq)
    )


@pytest.fixture
def store(tmp_path):
    opened = LocalStore.open(tmp_path / "replica.db", KEY)
    yield opened
    opened.close()


def put(store, documents):
    with store.transaction(durable=False):
        store.put_documents(documents)


atoms = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 3),
    st.sampled_from([0.5, -1.5, 2.0, 2**53 + 0.0]),
    st.sampled_from(["", "a", "ab", "b", "Ä", "a\0b"]),
    st.sampled_from([b"", b"\0", b"a"]),
    st.sampled_from([START, START + timedelta(microseconds=1)]),
)
values = st.one_of(atoms, st.lists(atoms, max_size=3), st.dictionaries(st.sampled_from(["d", "e"]), atoms, max_size=2))
documents = st.dictionaries(st.sampled_from(["a", "b", "c", "tags"]), values, max_size=4)
collections = st.dictionaries(
    st.sampled_from(["x", "y", "z", "xx", "é", "0"]), st.one_of(st.none(), documents), max_size=6
)
one_value = [(op, values) for op in ("==", "!=", "<", "<=", ">", ">=", "array-contains")]
many_values = [(op, st.lists(values, min_size=1, max_size=3)) for op in ("in", "not-in")]
filters = st.one_of(
    *[st.tuples(st.sampled_from(FIELDS), st.just(op), operand) for op, operand in one_value + many_values]
)


@st.composite
def queries(draw):
    query = Query.over("things")
    for item in draw(st.lists(filters, max_size=3)):
        query = query.where(*item)
    order = draw(st.lists(st.tuples(st.sampled_from(FIELDS), st.sampled_from(["asc", "desc"])), max_size=2))
    for item in order:
        query = query.order_by(*item)
    if draw(st.booleans()):
        query = query.search(draw(st.sampled_from(["a", "B", "ab a", "!"])))
    if order and draw(st.booleans()):
        cursor = draw(st.lists(values, min_size=1, max_size=len(order)))
        if len(cursor) == len(order) and draw(st.booleans()):
            cursor.append(draw(st.sampled_from(["x", "xx"])))
        query = query.start_after(*cursor)
    return query.limit(draw(st.integers(1, 4))) if draw(st.booleans()) else query


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(before=collections, after=collections, query=queries())
def test_a_query_by_index_equals_the_pure_query(tmp_path, before, after, query):
    path = tmp_path / f"{os.urandom(8).hex()}.db"
    store = LocalStore.open(path, KEY)
    try:
        put(store, [stored(id, value) for id, value in before.items()])
        known = [(id, value) for id, value in before.items() if value is not None]
        assert store.query(query) == query.run(known)
        # The indexes exist now, and are kept up by what is written afterwards.
        put(store, [stored(id, value) for id, value in after.items()])
        known = [(id, value) for id, value in {**before, **after}.items() if value is not None]
        assert store.query(query) == query.run(known)
        assert store.count(query) == query.count([value for _, value in known])
    finally:
        store.close()
        path.unlink()


def test_a_listing_goes_by_id_and_leaves_out_the_deleted(store):
    put(store, [stored("b", {"n": 1}), stored("a", {"n": 2}), stored("c", None), stored("d", {}, "others")])

    assert store.query(Query.over("things")) == [("a", {"n": 2}), ("b", {"n": 1})]
    assert store.query(Query.over("things").start_after("a")) == [("b", {"n": 1})]
    assert store.count(Query.over("things")) == 2


def test_search_finds_words_by_their_beginning_whatever_their_case_and_accents(store):
    put(store, [stored("a", {"text": "Grüße aus Köln", "n": 1}), stored("b", {"tags": ["Koeln", "kölsch"]})])

    assert [id for id, _ in store.query(Query.over("things").search("KÖL"))] == ["a", "b"]
    put(store, [stored("a", {"text": "elsewhere"})])
    assert [id for id, _ in store.query(Query.over("things").search("köl"))] == ["b"]
    assert store.count(Query.over("things").search("elsewh")) == 1


def test_the_raw_file_holds_no_plaintext(tmp_path, store):
    put(store, [stored(f"plain-id-{n}", {"text": f"plain words {n}"}, "plain-collection") for n in range(200)])
    store.query(Query.over("plain-collection").where("text", ">", "p").search("words"))

    raw = b"".join(path.read_bytes() for path in tmp_path.iterdir())

    assert len(raw) > 20_000
    assert b"plain" not in raw
    assert b"SQLite format" not in raw
    assert b"CREATE TABLE" not in raw


def test_another_key_does_not_open_the_file(tmp_path):
    LocalStore.open(tmp_path / "replica.db", KEY).close()

    with pytest.raises(StoreDamagedError):
        LocalStore.open(tmp_path / "replica.db", bytes(32))


def test_an_altered_file_is_noticed(tmp_path):
    path = tmp_path / "replica.db"
    store = LocalStore.open(path, KEY)
    put(store, [stored("a", {"text": "x" * 5000})])
    store.close()
    raw = bytearray(path.read_bytes())
    for at in range(200, len(raw), 4096):
        raw[at] ^= 1
    path.write_bytes(raw)

    with pytest.raises(StoreDamagedError):
        LocalStore.open(path, KEY).query(Query.over("things"))


def test_a_transaction_that_raises_leaves_nothing_behind(store):
    put(store, [stored("a", {"n": 1})])
    store.query(Query.over("things").order_by("n"))

    with pytest.raises(ZeroDivisionError):
        fail_in_transaction(store, lambda: store.put_documents([stored("b", {"n": 2})]))

    assert store.query(Query.over("things").order_by("n")) == [("a", {"n": 1})]
    assert store.pending_count() == 0
    assert store.live_bytes() == len(b"state" + b"things" + b"a")


def test_a_part_of_a_group_is_taken_back_alone(store):
    with store.group():
        with store.transaction(durable=True):
            store.add_write(b"first", [("things", "a")])
        with pytest.raises(ZeroDivisionError):
            fail_in_transaction(store, lambda: None)
        with store.transaction(durable=True):
            store.add_write(b"third", [("things", "a")])

    assert [write.payload for write in store.unsealed_writes(1 << 20)] == [b"first", b"third"]
    assert store.pending_count() == 2


def test_what_was_received_is_committed_with_the_next_write_or_by_a_flush(store):
    put(store, [stored("a", {"n": 1})])
    assert not store.is_flushed
    with store.transaction(durable=True):
        store.add_write(b"own", [("things", "a")])
    assert store.is_flushed
    put(store, [stored("b", {"n": 2})])
    store.flush()
    assert store.is_flushed


def test_a_part_that_raises_leaves_what_was_received_before_it(store):
    put(store, [stored("a", {"n": 1})])
    with pytest.raises(ZeroDivisionError):
        fail_in_transaction(store, lambda: store.put_documents([stored("a", {"n": 2}), stored("b", {"n": 2})]))
    put(store, [stored("c", {"n": 3})])
    store.flush()

    assert store.query(Query.over("things")) == [("a", {"n": 1}), ("c", {"n": 3})]
    assert (store.pending_count(), store.unsealed_count(), store.count(Query.over("things"))) == (0, 0, 2)


def fail_in_transaction(store, work):
    with store.transaction(durable=True):
        work()
        store.add_write(b"second", [("things", "a")])
        _ = 1 / 0


def test_a_reopened_file_holds_everything(tmp_path):
    path = tmp_path / "replica.db"
    store = LocalStore.open(path, KEY)
    query = Query.over("things").where("n", ">", 1)
    with store.transaction(durable=True):
        store.put_documents([stored(f"{n}", {"n": n}) for n in range(5)])
        token = store.add_write(b"payload", [("things", "1"), ("things", "2")])
        store.freeze(OwnEnvelope(Counter(1), EnvelopeId(bytes(32)), 1, b"sealed"), [token])
        store.put_meta("place", b"somewhere")
    store.query(query)
    store.close()

    store = LocalStore.open(path, KEY)
    assert store.pending_count() == store.frozen_count() == 1
    assert store.live_bytes() == 5 * (len(b"state") + 7)
    assert store.get_meta("place") == b"somewhere"
    put(store, [stored("9", {"n": 9})])
    assert [id for id, _ in store.query(query)] == ["2", "3", "4", "9"]
    with store.transaction(durable=True):
        assert [write.token for write in store.confirm(Counter(1), Seq(7), 1_000)] == [token]
        assert store.confirm(Counter(1), Seq(7), 1_000) == []
    assert store.pending_count() == store.frozen_count() == 0
    assert store.kept_envelopes(Counter(0), 1 << 20)[0].seq == 7
    store.close()


def test_a_closed_file_refuses_in_this_projects_words(tmp_path):
    store = LocalStore.open(tmp_path / "replica.db", KEY)
    store.close()

    with pytest.raises(StoreError):
        store.put_meta("a", b"b")


def test_only_so_many_indexes_are_kept(tmp_path, store):
    put(store, [stored("a", {f"f{n}": n for n in range(30)})])

    for n in range(30):
        assert store.query(Query.over("things").where(f"f{n}", "==", n)) != []

    assert len(store._indexes._by_collection["things"]) == 16


def test_a_hundred_thousand_documents_are_queried_in_under_50_ms(store):
    count = 100_000
    for start in range(0, count, 10_000):
        put(store, [stored(f"{n:06}", quake(n)) for n in range(start, start + 10_000)])
    ranged = Query.over("things").where("mag", ">=", 3.0).where("mag", "<", 5.0)
    page = Query.over("things").where("place", "==", "place 77").where("mag", ">", 2).order_by("mag", "desc").limit(20)
    searched = Query.over("things").search("place 77").limit(20)
    for query in (ranged, page, searched):
        store.count(query) if query is ranged else store.query(query)

    spent = {"count": best_ms(lambda: store.count(ranged)), "page": best_ms(lambda: store.query(page))}

    assert store.count(ranged) == sum(3.0 <= n % 100 / 10 < 5.0 for n in range(count))
    assert len(store.query(page)) == 20
    print({name: round(ms, 2) for name, ms in spent.items()})
    assert max(spent.values()) < 50, spent


def quake(n):
    return {"mag": n % 100 / 10, "place": f"place {n % 1000}", "time": n}


def best_ms(work):
    found = []
    for _ in range(3):
        begin = time.perf_counter()
        work()
        found.append((time.perf_counter() - begin) * 1000)
    return min(found)
