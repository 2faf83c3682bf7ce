"""The words of the SDK: typed collections, queries, search, live results, refused writes."""

import asyncio
from dataclasses import dataclass, field

import msgspec
import pytest

import twinlock
from tests.client_kit import until, values
from twinlock.errors import ClosedError, InvalidDataError, SchemaError
from twinlock.replica.store import UNSEALED


class Todo(msgspec.Struct):
    text: str
    done: bool = False


@dataclass
class Note:
    title: str
    tags: list[str] = field(default_factory=list)


@pytest.fixture
async def db(account_world):
    return await account_world.device("a")


@pytest.fixture
def home(db):
    return db.space("home")


async def test_a_typed_collection_takes_and_gives_its_type(home):
    todos = home.collection("todos", Todo)

    write = await todos.add(Todo("buy milk"))
    await home.collection("notes", Note).add(Note("n", ["a"]))

    assert await todos.doc(write.id).get() == Todo("buy milk")
    assert [doc.value for doc in await todos.where("done", "==", False).get()] == [Todo("buy milk")]
    assert [doc.value for doc in await home.collection("notes", Note).get()] == [Note("n", ["a"])]
    with pytest.raises(SchemaError):
        await todos.add({"text": 5})


async def test_a_document_that_does_not_fit_its_type_is_handed_over_raw(home):
    await home.collection("todos").doc("x").set({"text": 5, "more": True})

    (doc,) = await home.collection("todos", Todo).get()

    assert doc.data == {"text": 5, "more": True}
    assert isinstance(doc.error, SchemaError)
    with pytest.raises(SchemaError):
        _ = doc.value


async def test_unknown_fields_survive_a_round_trip_through_a_type(home):
    await home.collection("todos").doc("x").set({"text": "a", "from": "a newer version"})
    typed = home.collection("todos", Todo).doc("x")

    await typed.set(Todo("b", True))

    assert await home.collection("todos").doc("x").get() == {"text": "b", "done": True, "from": "a newer version"}


async def test_queries_page_through_an_order(home):
    quakes = home.collection("quakes")
    await asyncio.gather(*[quakes.doc(f"{n}").set({"mag": n / 2, "deep": n % 2 == 0}) for n in range(10)])
    query = quakes.where("mag", ">=", 1).order_by("mag", "desc").limit(3)

    first = await query.get()
    second = await query.start_after(first[-1]).get()

    assert [doc["mag"] for doc in first + second] == [4.5, 4.0, 3.5, 3.0, 2.5, 2.0]
    assert await quakes.where("deep", "==", True).count() == 5


async def test_search_finds_documents_by_their_words(home):
    notes = home.collection("notes")
    await notes.doc("a").set({"title": "Wanderung zur Bastei", "body": {"text": "schön"}})
    await notes.doc("b").set({"title": "Einkaufen"})

    assert [doc.id for doc in await notes.search("schon wander").get()] == ["a"]
    snaps = []
    notes.search("einkauf").on_snapshot(snaps.append)
    await notes.doc("c").set({"title": "einkaufszettel"})
    await until(lambda: len(snaps[-1].docs) == 2)


async def test_a_live_query_tells_what_was_added_modified_and_removed(home):
    todos = home.collection("todos")
    changes = []
    stop = todos.where("done", "==", False).on_snapshot(
        lambda snap: changes.extend((change.kind, change.doc.id) for change in snap.changes)
    )

    await todos.doc("a").set({"done": False})
    await todos.doc("a").update({"n": 1})
    await todos.doc("b").set({"done": True})
    await todos.doc("a").update({"done": True})
    stop()
    await todos.doc("c").set({"done": False})

    assert changes == [("added", "a"), ("modified", "a"), ("removed", "a")]


async def test_watching_yields_now_and_later_and_misses_no_change(home):
    todos = home.collection("todos")
    kinds, sizes = [], []

    async def watch():
        async for snap in todos.watch():
            sizes.append(len(snap))
            kinds.extend(change.doc.id for change in snap.changes)
            if len(snap) == 30:
                return

    watching = asyncio.ensure_future(watch())
    await until(lambda: sizes)
    await asyncio.gather(*[todos.doc(f"{n}").set({}) for n in range(15)])
    await asyncio.gather(*[todos.doc(f"{n}").set({}) for n in range(15, 30)])
    await watching

    assert sizes[0] == 0
    assert sorted(kinds) == sorted(f"{n}" for n in range(30))


async def test_watching_ends_when_the_database_closes(db, home):
    async def watch():
        return [len(snap) async for snap in home.collection("todos").watch()]

    watching = asyncio.ensure_future(watch())
    await asyncio.sleep(0)
    await db.close()

    # One snapshot, or two where the device had not caught up when it began to watch.
    assert set(await asyncio.wait_for(watching, 5)) == {0}
    with pytest.raises(ClosedError):
        await home.collection("todos").get()


async def test_whoever_waits_for_the_server_is_told_when_the_database_closes(account_world):
    db = await account_world.device("a")
    await account_world.stop()
    write = await db.space("home").collection("todos").add({"n": 1})
    waiting = [asyncio.ensure_future(write.durable()), asyncio.ensure_future(db.synced())]
    await asyncio.sleep(0)

    await db.close()

    for each in waiting:
        with pytest.raises(ClosedError):
            await each


async def test_an_empty_id_names_no_document_and_makes_none(home):
    todos = home.collection("todos")

    with pytest.raises(InvalidDataError):
        await todos.doc("").set({"text": "lost under a random id"})

    assert await todos.query().count() == 0


async def test_a_document_is_followed_by_its_id(home):
    doc = home.collection("todos").doc("x")
    seen = []
    stop = doc.on_snapshot(lambda snap: seen.append(snap.doc and snap.doc.data))

    await doc.set({"n": 1}, merge=True)
    await home.collection("todos").doc("y").set({"n": 9})
    await doc.delete()
    await until(lambda: seen[-1] is None and len(seen) > 1)
    stop()

    assert list(dict.fromkeys(map(repr, seen))) == ["None", "{'n': 1}"]


async def test_field_operators_do_what_they_say(home):
    doc = home.collection("todos").doc("x")
    await doc.set({"n": 1, "tags": ["a"], "old": 1})

    await doc.update(
        {
            "n": twinlock.increment(2),
            "tags": twinlock.array_union("b"),
            "old": twinlock.delete_field(),
            "deep.er": True,
        }
    )
    await doc.update({"tags": twinlock.array_remove("a")})

    assert await doc.get() == {"n": 3, "tags": ["b"], "deep": {"er": True}}


async def test_an_ordered_list_is_changed_element_by_element(home):
    doc = home.collection("recipes").doc("x")
    await doc.set({"steps": ["boil", "eat"]})
    steps = doc.list("steps")

    stir = await steps.insert(1, "stir")
    last = await steps.append("wash up")
    await steps.set(stir.id, "stir well")
    await steps.move(last.id, 0)
    await steps.remove((await steps.elements())[-1].id)

    assert (await doc.get())["steps"] == ["wash up", "boil", "stir well"]
    assert [element.value for element in await steps.elements()] == ["wash up", "boil", "stir well"]


async def test_what_cannot_be_stored_is_refused_at_once(home):
    with pytest.raises(InvalidDataError):
        await home.collection("todos").add({"x": object()})
    with pytest.raises(InvalidDataError):
        await twinlock.WriteBatch().commit()
    assert await home.collection("todos").get() == []


async def test_a_batch_stays_within_one_space(db, home):
    await db.unlock("correct horse")
    other = await db.create_space("other")

    batch = db.batch().set(home.collection("a").doc("x"), {})
    with pytest.raises(InvalidDataError):
        batch.set(other.collection("a").doc("x"), {})


async def test_refused_writes_are_told_and_stay_until_they_are_forgotten(account_world):
    db = await account_world.device("a")
    await db.synced()
    await account_world.stop()
    await until(lambda: db.status == "reconnecting")
    write = await db.space("home").collection("todos").doc("x").set({"n": 1})
    runtime = next(iter(db._courier.runtimes.values()))
    store = runtime._store
    with store.transaction(durable=True):
        tokens = [pending.token for pending in store.unsealed_writes(1 << 20) or store.writes_of(UNSEALED)]
        store.refuse(tokens, "role_forbids", "by a test")
    runtime.settle(twinlock_refused(tokens))

    with pytest.raises(twinlock.TwinlockError, match="role_forbids"):
        await write.durable()
    assert [refused.code for found in db.refused.values() for refused in found] == ["role_forbids"]
    db.forget_refused()
    assert not db.refused


def twinlock_refused(tokens):
    from twinlock.replica.events import WritesRefused

    return WritesRefused(tuple(tokens), "role_forbids", "by a test")


async def test_values_of_documents_read_like_a_dict(home):
    await home.collection("todos").doc("x").set({"text": "a"})

    (doc,) = await home.collection("todos").get()

    assert doc.id == "x"
    assert doc["text"] == doc.get("text") == "a"
    assert dict(doc) == doc.data == {"text": "a"}
    assert repr(doc) == "Doc('x', {'text': 'a'})"
    assert values([doc]) == [{"text": "a"}]
