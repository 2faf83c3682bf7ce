"""The laws of merging, for every kind of field and for whole documents. See spec/documents.md, section 4."""

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from twinlock.document.conflicts import conflicts_of
from twinlock.document.document import Document
from twinlock.document.fields import array_remove, array_union, delete_field, increment, server_timestamp
from twinlock.document.intent import delete_ops, set_ops, update_ops
from twinlock.document.lists import insert_ops, move_ops, remove_element_ops, set_element_ops
from twinlock.document.operations import Edit, decode_change, encode_change
from twinlock.document.snapshot import fragments_of
from twinlock.document.values import LIST_MARKER, Ext, is_list_marker
from twinlock.errors import InvalidDataError, UpdateNeededError

DEVICES = [bytes([n]) * 16 for n in range(1, 4)]
SEEN_NOTHING = b""

scalars = st.one_of(
    st.none(), st.booleans(), st.integers(-3, 3), st.sampled_from([0.5, 1.0, -0.0]), st.sampled_from(["", "x", "é"])
)
leaves = st.one_of(scalars, st.lists(scalars, max_size=2), st.just({}), st.just(LIST_MARKER), st.just(Ext(9, b"new")))
keys = st.sampled_from(["a", "b"])
paths = st.lists(keys, min_size=1, max_size=3).map("\0".join)
stamps = st.builds(lambda hlc, device: hlc.to_bytes(8, "big") + device, st.integers(1, 9), st.sampled_from(DEVICES))
seen = st.one_of(st.just(SEEN_NOTHING), stamps)
puts = st.dictionaries(paths, leaves, max_size=3)

put = st.tuples(st.just(0), seen, puts)
replace = st.tuples(st.just(1), seen, puts)
clear = st.tuples(st.just(2), seen, st.one_of(st.just(""), paths))
count = st.tuples(st.just(3), seen, paths, st.sampled_from([1, -2, 0.5]))
union = st.tuples(st.just(4), paths, st.lists(scalars, max_size=2))
removal = st.tuples(st.just(5), paths, st.lists(st.tuples(scalars, st.lists(stamps, max_size=2)), max_size=2))
unknown = st.tuples(st.just(77), paths, scalars)


def edits_of(*kinds):
    """Any edits at all, also ones that no honest device makes: stamps and what was seen are unrelated."""
    operation = st.one_of(*kinds).map(_as_list)
    edit = st.builds(Edit, st.just("c"), st.just("d"), st.integers(1, 9), st.lists(operation, min_size=1, max_size=3))
    return st.lists(st.tuples(edit, st.sampled_from(DEVICES)), max_size=8).map(_over_the_wire)


def _as_list(operation):
    return [_as_list(part) if isinstance(part, tuple) else part for part in operation]


def _over_the_wire(edits):
    return [(decode_change(encode_change([edit])).edits[0], device) for edit, device in edits]


def merged(edits):
    document = Document.empty()
    for edit, device in edits:
        document.apply(edit, device)
    return document


KINDS = {
    "fields": edits_of(put),
    "objects": edits_of(put, replace),
    "deletes": edits_of(put, replace, clear),
    "counters": edits_of(put, clear, count),
    "sets": edits_of(put, clear, union, removal),
    "unknown": edits_of(put, unknown),
    "documents": edits_of(put, replace, clear, count, union, removal, unknown),
}

by_kind = pytest.mark.parametrize("kind", KINDS)


@by_kind
@given(data=st.data())
@settings(deadline=None, max_examples=40)
def test_edits_in_any_order_and_number_give_the_same_bytes(kind, data):
    edits = data.draw(KINDS[kind])
    shuffled = data.draw(st.permutations(edits + edits[: len(edits) // 2]))

    assert merged(edits).encode() == merged(shuffled).encode()


@by_kind
@given(data=st.data())
@settings(deadline=None, max_examples=40)
def test_states_merge_like_the_edits_they_hold(kind, data):
    left, middle, right = (data.draw(KINDS[kind]) for _ in range(3))
    whole = merged(left + middle + right).encode()

    left_first = merged(left)
    left_first.merge(merged(middle))
    left_first.merge(merged(right))
    right_first = merged(middle)
    right_first.merge(merged(right))
    right_first.merge(merged(left))
    right_first.merge(merged(right))

    assert left_first.encode() == whole
    assert right_first.encode() == whole


@by_kind
@given(data=st.data())
@settings(deadline=None, max_examples=40)
def test_a_stored_state_is_the_same_state(kind, data):
    edits, later = data.draw(KINDS[kind]), data.draw(KINDS[kind])
    document = merged(edits)

    restored = Document.decode(document.encode())

    assert restored.encode() == document.encode()
    assert restored.value() == document.value()
    assert restored.conflicts() == document.conflicts()
    assert restored.exists == document.exists
    assert restored.latest == document.latest
    for edit, device in later:
        restored.apply(edit, device)
    assert restored.encode() == merged(edits + later).encode()


@by_kind
@given(data=st.data())
@settings(deadline=None, max_examples=40)
def test_fragments_merge_to_the_document_in_any_order(kind, data):
    document = merged(data.draw(KINDS[kind]))
    fragments = data.draw(st.permutations(fragments_of(document.encode(), 60)))

    whole = Document.empty()
    for fragment in fragments:
        whole.merge(Document.decode(fragment))

    assert whole.encode() == document.encode()
    assert whole.value() == document.value()


def nest(action):
    path, value = action
    return {path.replace("\0", "."): value}


plain_data = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=2) | st.dictionaries(keys, inner, max_size=2), max_leaves=4
)
bodies = st.dictionaries(keys, plain_data, max_size=2)
operators = st.one_of(
    plain_data,
    st.integers(-3, 3).map(increment),
    scalars.map(array_union),
    scalars.map(array_remove),
    st.just(delete_field()),
    st.just(server_timestamp),
)
steps = st.one_of(
    st.tuples(st.just("set"), bodies),
    st.tuples(st.just("merge"), bodies),
    st.tuples(st.just("update"), st.tuples(paths, operators).map(nest)),
    st.tuples(st.just("delete"), st.none()),
    st.tuples(st.just("insert"), st.tuples(st.integers(0, 3), plain_data)),
    st.tuples(st.just("move"), st.tuples(st.integers(0, 3), st.integers(0, 3))),
    st.tuples(st.just("put"), st.tuples(st.integers(0, 3), plain_data)),
    st.tuples(st.just("drop"), st.integers(0, 3)),
    st.tuples(st.just("sync"), st.integers(0, 2)),
)


class Simulated:
    """Devices that edit one document for themselves, and now and then read what the others did."""

    def __init__(self):
        self.documents = [Document.empty() for _ in DEVICES]
        self.log = []
        self.read = [0, 0, 0]

    def step(self, who, hlc, action, argument):
        if action == "sync":
            self.catch_up(who)
            return
        document = self.documents[who]
        try:
            ops = operations_for(document, DEVICES[who], action, argument, f"{hlc:x}")
        except InvalidDataError:
            return
        change = decode_change(encode_change([Edit("c", "d", hlc, ops)]))
        document.apply(change.edits[0], DEVICES[who])
        self.log.append((change.edits[0], DEVICES[who]))

    def catch_up(self, who):
        for edit, device in self.log[self.read[who] :]:
            self.documents[who].apply(edit, device)
        self.read[who] = len(self.log)


def operations_for(document, device, action, argument, fresh_id):
    known = [element_id for element_id, _ in document.list_elements("a")]
    match action:
        case "set" | "merge":
            return set_ops(document, argument, device=device, merge=action == "merge")
        case "update":
            return update_ops(document, argument, device=device)
        case "delete":
            return delete_ops(document)
        case "insert":
            return insert_ops(document, "a", argument[0], fresh_id, argument[1])
        case "move" if argument[0] < len(known):
            return move_ops(document, "a", known[argument[0]], argument[1])
        case "put" if argument[0] < len(known):
            return set_element_ops(document, "a", known[argument[0]], argument[1])
        case "drop" if argument < len(known):
            return remove_element_ops(document, "a", known[argument])
    return []


histories = st.lists(st.tuples(st.integers(0, 2), st.integers(0, 6), steps), max_size=14)


@given(history=histories)
@settings(deadline=None, max_examples=80)
def test_devices_that_read_everything_agree_byte_for_byte(history):
    world = Simulated()
    for number, (who, skew, (action, argument)) in enumerate(history):
        world.step(who, number * 2 + skew + 1, action, argument)
    for who in range(len(DEVICES)):
        world.catch_up(who)

    assert len({document.encode() for document in world.documents}) == 1
    assert all(document.value() == world.documents[0].value() for document in world.documents)
    assert merged(world.log).encode() == world.documents[0].encode()


@given(history=histories)
@settings(deadline=None, max_examples=80)
def test_a_lone_device_meets_no_conflict(history):
    world = Simulated()
    for number, (_, _, (action, argument)) in enumerate(history):
        world.step(0, number + 1, action, argument)

    assert conflicts_of(world.documents[0].state) == []


@given(before=histories, body=bodies)
@settings(deadline=None, max_examples=40)
def test_a_set_leaves_exactly_its_data(before, body):
    world = Simulated()
    for number, (_, _, (action, argument)) in enumerate(before):
        world.step(0, number + 1, action, argument)

    world.step(0, 100, "set", body)

    assert world.documents[0].value() == body
    assert len(world.documents[0].state.clears) == 1


def is_ordered_list(document):
    return "a" in document.state.writes and is_list_marker(document.state.writes["a"][1])


@given(before=histories, path=paths, value=plain_data)
@settings(deadline=None, max_examples=40)
def test_an_update_sets_exactly_its_field(before, path, value):
    world = Simulated()
    for number, (_, _, (action, argument)) in enumerate(before):
        world.step(0, number + 1, action, argument)

    assume(not is_ordered_list(world.documents[0]))
    world.step(0, 100, "update", nest((path, value)))

    found = world.documents[0].value()
    for key in path.split("\0"):
        found = found[key]
    assert found == value


@given(st.binary(max_size=80))
@settings(deadline=None, max_examples=40)
def test_hostile_bytes_are_refused_with_a_clear_error(data):
    for read in (decode_change, Document.decode):
        try:
            read(data)
        except InvalidDataError:
            continue


@given(data=st.data())
@settings(deadline=None, max_examples=40)
def test_an_altered_state_is_refused_or_in_normal_form(data):
    encoded = bytearray(merged(data.draw(KINDS["documents"])).encode())
    position = data.draw(st.integers(0, len(encoded) - 1))
    encoded[position] = data.draw(st.integers(0, 255))
    try:
        document = Document.decode(bytes(encoded))
    except (InvalidDataError, UpdateNeededError):
        return
    again = Document.decode(document.encode())
    assert again.encode() == document.encode()
    assert again.value() == document.value()
    document.conflicts()


@given(before=histories, path=paths, theirs=steps, first=st.booleans())
@settings(deadline=None, max_examples=80)
def test_a_concurrently_written_value_is_shown_or_told_as_lost(before, path, theirs, first):
    world = Simulated()
    for number, (who, _, (action, argument)) in enumerate(before):
        world.step(who, number + 1, action, argument)
    for who in range(len(DEVICES)):
        world.catch_up(who)
    assume(not is_ordered_list(world.documents[0]))
    assume(theirs[0] not in ("insert", "sync"))

    world.step(0, 50 if first else 60, "update", nest((path, "precious")))
    world.step(1, 55, *theirs)
    world.catch_up(0)

    found = world.documents[0].value() or {}
    for key in path.split("\0"):
        found = found.get(key) if isinstance(found, dict) else None
    lost = [(conflict.path, conflict.value) for conflict in world.documents[0].conflicts()]
    assert found == "precious" or (tuple(path.split("\0")), "precious") in lost
