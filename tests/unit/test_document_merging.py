"""How concurrent edits of one document come together, by example."""

from datetime import UTC, datetime

import pytest

from twinlock.document import Document, Edit, array_remove, array_union, delete_field, increment, server_timestamp
from twinlock.document.intent import delete_ops, set_ops, update_ops
from twinlock.errors import InvalidDataError
from twinlock.protocol.clock import pack

ANNA, BEN, CARA = (bytes([n]) * 16 for n in (1, 2, 3))


class Device:
    """A replica of one document, with a clock that the test turns."""

    def __init__(self, device_id):
        self.id = device_id
        self.document = Document.empty()
        self.sent = []

    def set(self, at, data, merge=False):
        self._edit(at, set_ops(self.document, data, device=self.id, merge=merge))

    def update(self, at, changes):
        self._edit(at, update_ops(self.document, changes, device=self.id))

    def delete(self, at):
        self._edit(at, delete_ops(self.document))

    def _edit(self, at, ops):
        edit = Edit("todos", "one", pack(at), ops)
        self.document.apply(edit, self.id)
        self.sent.append((edit, self.id))

    def read(self, *others):
        for other in others:
            for edit, device in other.sent:
                self.document.apply(edit, device)

    @property
    def value(self):
        return self.document.value()

    @property
    def lost(self):
        return [(conflict.path, conflict.value) for conflict in self.document.conflicts()]


@pytest.fixture
def anna():
    return Device(ANNA)


@pytest.fixture
def ben():
    return Device(BEN)


def agree(*devices):
    """Let everyone read everything; return what all of them see."""
    for device in devices:
        device.read(*devices)
    assert len({device.document.encode() for device in devices}) == 1
    return devices[0].value


def test_edits_of_different_fields_both_count(anna, ben):
    anna.set(1, {"text": "milk", "done": False, "place": {"shop": "north", "shelf": 1}})
    agree(anna, ben)
    anna.update(2, {"done": True, "place.shop": "south"})
    ben.update(2, {"text": "oat milk", "place.shelf": 2})

    assert agree(anna, ben) == {"text": "oat milk", "done": True, "place": {"shop": "south", "shelf": 2}}
    assert anna.lost == []


def test_the_later_edit_of_a_field_wins_and_the_other_stays_readable(anna, ben):
    anna.set(1, {"text": "milk"})
    agree(anna, ben)
    ben.update(2, {"text": "from ben"})
    anna.update(3, {"text": "from anna"})

    assert agree(anna, ben) == {"text": "from anna"}
    assert ben.lost == [(("text",), "from ben")]
    assert ben.document.conflicts()[0].device == BEN
    assert ben.document.conflicts()[0].stamp == pack(2)


def test_the_next_write_of_the_field_settles_its_conflict(anna, ben):
    ben.set(2, {"text": "from ben"}, merge=True)
    anna.set(3, {"text": "from anna"}, merge=True)
    agree(anna, ben)

    ben.update(4, {"text": "both"})

    assert agree(anna, ben) == {"text": "both"}
    assert anna.lost == []


def test_concurrent_writes_of_the_same_value_are_no_conflict(anna, ben):
    ben.set(2, {"text": "same"}, merge=True)
    anna.set(3, {"text": "same"}, merge=True)

    agree(anna, ben)

    assert anna.lost == []


def test_an_overwritten_value_that_was_seen_is_not_kept(anna):
    anna.set(1, {"text": "the old secret"})
    anna.update(2, {"text": "new"})

    assert b"the old secret" not in anna.document.encode()


def test_an_edit_made_offline_keeps_its_old_time(anna, ben):
    anna.set(1, {"text": "milk"})
    agree(anna, ben)
    ben.update(2, {"text": "offline"})
    anna.update(3, {"text": "online"})

    anna.read(ben)

    assert anna.value == {"text": "online"}


def test_equal_times_are_settled_by_the_device(anna, ben):
    anna.set(1, {"text": "from anna"}, merge=True)
    ben.set(1, {"text": "from ben"}, merge=True)

    assert agree(anna, ben) == {"text": "from ben"}


def test_a_set_replaces_the_whole_tree(anna, ben):
    anna.set(1, {"a": {"b": 1, "c": 2}, "d": [1]})
    agree(anna, ben)
    ben.set(2, {"a": {"x": 1}})

    assert agree(anna, ben) == {"a": {"x": 1}}
    assert anna.lost == []


def test_a_set_hides_a_concurrent_older_edit_but_tells_of_it(anna, ben):
    anna.set(1, {"a": 1, "b": 1})
    agree(anna, ben)
    anna.update(2, {"b": "precious"})
    ben.set(3, {"a": 2})

    assert agree(anna, ben) == {"a": 2}
    assert ben.lost == [(("b",), "precious")]


def test_a_delete_tells_of_the_concurrent_edit_that_it_hides(anna, ben):
    anna.set(1, {"text": "milk"})
    agree(anna, ben)
    anna.update(2, {"text": "a whole evening's work"})
    ben.delete(3)

    assert agree(anna, ben) is None
    assert not anna.document.exists
    assert anna.lost == [(("text",), "a whole evening's work")]


def test_deleting_again_lets_go_of_what_was_shown_as_lost(anna, ben):
    anna.set(1, {"text": "milk"})
    agree(anna, ben)
    anna.update(2, {"text": "lost"})
    ben.delete(3)
    agree(anna, ben)

    anna.delete(4)

    assert anna.lost == []
    assert b"lost" not in anna.document.encode()


def test_a_deleted_document_keeps_nothing_but_its_tombstone(anna):
    anna.set(1, {"text": "secret", "n": increment(1), "tags": ["secret"]})
    anna.update(2, {"tags": array_union("secret too"), "n": increment(2)})
    anna.delete(3)

    assert b"secret" not in anna.document.encode()
    assert len(anna.document.encode()) < 100


def test_a_later_write_revives_a_document_with_that_write_alone(anna, ben):
    anna.set(1, {"text": "milk", "done": False})
    agree(anna, ben)
    anna.delete(2)
    ben.update(3, {"done": True})

    assert agree(anna, ben) == {"done": True}


def test_removing_a_field_does_not_revive_a_document(anna, ben):
    anna.set(1, {"text": "milk", "done": False})
    agree(anna, ben)
    anna.delete(2)
    ben.update(3, {"done": delete_field()})

    assert agree(anna, ben) is None


def test_a_document_without_fields_exists(anna):
    anna.set(1, {"x": 1})
    anna.update(2, {"x": delete_field()})

    assert anna.value == {}
    assert Document.decode(anna.document.encode()).value() == {}


def test_an_object_that_loses_its_last_field_stays(anna):
    anna.set(1, {"a": {"b": 1}, "c": {}})
    anna.update(2, {"a.b": delete_field()})

    assert anna.value == {"a": {}, "c": {}}


def test_an_object_as_a_value_replaces_the_object_there(anna):
    anna.set(1, {"a": {"b": 1, "c": {"d": 1}}})
    anna.update(2, {"a": {"x": 1}})
    anna.update(3, {"a.x": {}})

    assert anna.value == {"a": {"x": {}}}


def test_a_set_with_merge_goes_into_objects(anna):
    anna.set(1, {"a": {"b": 1, "c": 2}})
    anna.set(2, {"a": {"b": 3}}, merge=True)

    assert anna.value == {"a": {"b": 3, "c": 2}}


def test_a_leaf_becomes_an_object_by_a_write_below_it(anna, ben):
    anna.set(1, {"a": "text"})
    agree(anna, ben)
    anna.update(2, {"a.x": 1})
    ben.update(3, {"a.y": 2})

    assert agree(anna, ben) == {"a": {"x": 1, "y": 2}}
    assert anna.lost == []


def test_an_older_leaf_that_an_object_hides_unseen_is_told(anna, ben):
    anna.set(1, {"z": 0})
    agree(anna, ben)
    anna.update(2, {"a": "text"})
    ben.update(3, {"a.x": 1})

    assert agree(anna, ben) == {"z": 0, "a": {"x": 1}}
    assert anna.lost == [(("a",), "text")]


def test_an_older_field_that_a_leaf_hides_unseen_is_told(anna, ben):
    anna.set(1, {"a": {"x": 1}})
    agree(anna, ben)
    anna.update(2, {"a.y": "mine"})
    ben.update(3, {"a": "text"})

    assert agree(anna, ben) == {"a": "text"}
    assert anna.lost == [(("a", "y"), "mine")]


def test_increments_of_several_devices_add_up(anna, ben):
    anna.set(1, {"n": 10})
    agree(anna, ben)
    anna.update(2, {"n": increment(1)})
    anna.update(3, {"n": increment(2)})
    ben.update(2, {"n": increment(-5)})

    assert agree(anna, ben) == {"n": 8}
    assert agree(anna, ben) == {"n": 8}


def test_a_counter_begins_at_nothing(anna, ben):
    anna.set(1, {"n": increment(2)}, merge=True)
    ben.set(1, {"n": increment(3), "f": increment(0.5)}, merge=True)

    assert agree(anna, ben) == {"n": 5, "f": 0.5}


def test_a_counter_set_anew_forgets_the_increments_it_has_seen(anna, ben):
    anna.set(1, {"n": 1})
    anna.update(2, {"n": increment(5)})
    agree(anna, ben)
    ben.update(3, {"n": 100})
    ben.update(4, {"n": increment(1)})

    assert agree(anna, ben) == {"n": 101}
    assert anna.lost == []


def test_an_increment_that_a_concurrent_set_overrode_is_told(anna, ben):
    anna.set(1, {"n": 1})
    agree(anna, ben)
    anna.update(2, {"n": increment(5)})
    ben.update(3, {"n": 100})

    assert agree(anna, ben) == {"n": 100}
    assert [(c.path, c.value, c.added) for c in anna.document.conflicts()] == [(("n",), 5, True)]


def test_counters_stop_at_the_ends_of_64_bits(anna, ben):
    anna.set(1, {"n": (1 << 63) - 2})
    agree(anna, ben)
    anna.update(2, {"n": increment(1)})
    ben.update(2, {"n": increment(5)})

    assert agree(anna, ben) == {"n": (1 << 63) - 1}


def test_concurrent_adds_to_a_set_all_stay(anna, ben):
    anna.set(1, {"tags": ["a"]})
    agree(anna, ben)
    anna.update(2, {"tags": array_union("b", "a")})
    ben.update(3, {"tags": array_union("c", "b")})

    assert agree(anna, ben) == {"tags": ["a", "b", "c"]}


def test_a_remove_takes_only_the_adds_that_it_saw(anna, ben):
    anna.set(1, {"tags": ["a", "b"]})
    agree(anna, ben)
    anna.update(2, {"tags": array_union("a")})
    ben.update(3, {"tags": array_remove("a", "b", "unknown")})

    assert agree(anna, ben) == {"tags": ["a"]}


def test_an_element_can_come_and_go_and_come_again(anna):
    anna.set(1, {"title": "x"})
    anna.update(2, {"tags": array_union("a")})
    anna.update(3, {"tags": array_remove("a")})
    assert anna.value == {"title": "x", "tags": []}

    anna.update(4, {"tags": array_union("a")})
    assert anna.value == {"title": "x", "tags": ["a"]}


def test_a_set_written_whole_forgets_its_elements(anna, ben):
    anna.set(1, {"tags": ["a"]})
    anna.update(2, {"tags": array_union("b")})
    agree(anna, ben)
    ben.update(3, {"tags": ["z"]})

    assert agree(anna, ben) == {"tags": ["z"]}
    assert anna.lost == []


def test_an_element_that_a_concurrent_write_overrode_is_told(anna, ben):
    anna.set(1, {"tags": ["a"]})
    agree(anna, ben)
    anna.update(2, {"tags": array_union("b")})
    ben.update(3, {"tags": ["z"]})

    assert agree(anna, ben) == {"tags": ["z"]}
    assert [(c.path, c.value, c.added) for c in anna.document.conflicts()] == [(("tags",), "b", True)]


def test_operators_in_a_fresh_document_become_what_they_mean(anna):
    anna.set(
        5,
        {"n": increment(3), "tags": array_union("a", "a"), "gone": array_remove("x"), "at": server_timestamp},
    )

    assert anna.value == {"n": 3, "tags": ["a"], "gone": [], "at": datetime(1970, 1, 1, 0, 0, 0, 5000, tzinfo=UTC)}


def test_the_value_given_out_is_the_callers_own(anna):
    anna.set(1, {"tags": ["a"], "o": {"x": [1]}})
    given = anna.value
    given["tags"].append("b")
    given["o"]["x"].append(2)

    assert anna.value == {"tags": ["a"], "o": {"x": [1]}}


def test_data_given_in_is_copied(anna):
    tags = ["a"]
    anna.set(1, {"tags": tags})
    tags.append("b")

    assert anna.value == {"tags": ["a"]}


def test_overlapping_paths_in_an_update_are_refused(anna):
    with pytest.raises(InvalidDataError, match="below it"):
        anna.update(1, {"a": 1, "a.b": 2})


def test_keys_with_dots_are_reached_by_a_tuple(anna):
    anna.set(1, {"a.b": {"c": 1}})
    anna.update(2, {("a.b", "c"): 2})

    assert anna.value == {"a.b": {"c": 2}}


def test_three_devices_agree_whatever_the_order(anna, ben):
    cara = Device(CARA)
    anna.set(1, {"n": 0, "tags": []})
    agree(anna, ben, cara)
    anna.update(5, {"n": increment(1), "tags": array_union("a")})
    ben.set(3, {"n": 7})
    cara.delete(4)
    ben.update(6, {"tags": array_union("b")})

    assert agree(cara, anna, ben) == {"tags": ["a", "b"]}
    assert (("n",), 1) in cara.lost


def test_the_latest_time_is_that_of_any_fact(anna):
    assert Document.empty().latest == 0
    anna.set(3, {"a": 1})
    anna.delete(9)

    assert anna.document.latest == pack(9)


def test_a_copy_goes_its_own_way(anna):
    anna.set(1, {"n": 1, "tags": ["a"]})
    anna.update(2, {"n": increment(1), "tags": array_union("b")})
    twin = anna.document.copy()
    assert twin.encode() == anna.document.encode()
    anna.update(3, {"n": increment(1), "tags": array_union("c")})

    assert twin.value() == {"n": 2, "tags": ["a", "b"]}


def test_a_leaf_that_an_increment_below_it_does_not_hide_is_not_told_as_lost(anna, ben):
    anna.update(1, {"n": "x"})
    ben.update(2, {"n.deep": increment(1)})
    anna.read(ben)

    assert anna.value == {"n": "x"}
    assert anna.lost == [(("n", "deep"), 1)]
