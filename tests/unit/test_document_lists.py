"""Ordered lists that merge element by element."""

import pytest

from twinlock.document import Document, Edit, array_union
from twinlock.document.intent import set_ops, update_ops
from twinlock.document.lists import insert_ops, move_ops, remove_element_ops, set_element_ops
from twinlock.document.places import place_between
from twinlock.errors import InvalidDataError, NotFoundError

ANNA, BEN = (bytes([n]) * 16 for n in (1, 2))


class Device:
    def __init__(self, device_id):
        self.id = device_id
        self.document = Document.empty()
        self.sent = []

    def edit(self, at, ops):
        edit = Edit("todos", "one", at, ops)
        self.document.apply(edit, self.id)
        self.sent.append((edit, self.id))

    def set(self, at, data):
        self.edit(at, set_ops(self.document, data, device=self.id))

    def update(self, at, changes):
        self.edit(at, update_ops(self.document, changes, device=self.id))

    def insert(self, at, index, element_id, value):
        self.edit(at, insert_ops(self.document, "steps", index, element_id, value))

    def move(self, at, element_id, index):
        self.edit(at, move_ops(self.document, "steps", element_id, index))

    def put(self, at, element_id, value):
        self.edit(at, set_element_ops(self.document, "steps", element_id, value))

    def remove(self, at, element_id):
        self.edit(at, remove_element_ops(self.document, "steps", element_id))

    @property
    def steps(self):
        return self.document.value()["steps"]

    @property
    def ids(self):
        return [element_id for element_id, _ in self.document.list_elements("steps")]


@pytest.fixture
def anna():
    device = Device(ANNA)
    for n, value in enumerate(["one", "two", "three"]):
        device.insert(n + 1, n, f"e{n}", value)
    return device


@pytest.fixture
def ben(anna):
    device = Device(BEN)
    read(device, anna)
    return device


def read(device, other):
    for edit, author in other.sent:
        device.document.apply(edit, author)


def agree(anna, ben):
    read(anna, ben)
    read(ben, anna)
    assert anna.document.encode() == ben.document.encode()
    return anna.steps


def test_elements_stand_where_they_were_inserted(anna):
    anna.insert(10, 1, "x", "between")
    anna.insert(11, 0, "y", "first")
    anna.insert(12, 99, "z", "last")

    assert anna.steps == ["first", "one", "between", "two", "three", "last"]


def test_concurrent_inserts_at_one_place_both_stay_in_one_order(anna, ben):
    anna.insert(10, 1, "a", "from anna")
    ben.insert(10, 1, "b", "from ben")
    steps = agree(anna, ben)
    assert steps[0] == "one"
    assert set(steps[1:3]) == {"from anna", "from ben"}

    ben.insert(12, 2, "c", "in the middle")

    assert agree(anna, ben)[2] == "in the middle"


def test_a_move_and_an_edit_of_one_element_both_count(anna, ben):
    anna.move(10, "e0", 2)
    ben.put(11, "e0", "one, better")

    assert agree(anna, ben) == ["two", "three", "one, better"]
    assert anna.document.conflicts() == []


def test_concurrent_moves_end_in_one_place(anna, ben):
    anna.move(10, "e0", 2)
    ben.move(11, "e0", 1)

    assert agree(anna, ben) == ["two", "one", "three"]
    assert anna.document.conflicts() == []


def test_a_removed_element_is_gone_and_its_concurrent_edit_is_told(anna, ben):
    anna.put(10, "e1", "two, better")
    ben.remove(11, "e1")

    assert agree(anna, ben) == ["one", "three"]
    assert [(c.path, c.value) for c in anna.document.conflicts()] == [(("steps", "e1"), "two, better")]


def test_a_later_edit_brings_a_removed_element_back_at_the_end(anna, ben):
    ben.remove(10, "e1")
    anna.put(11, "e1", "two, better")

    assert agree(anna, ben) == ["one", "three", "two, better"]


def test_a_list_without_elements_stays_a_list(anna):
    for n in range(3):
        anna.remove(10 + n, f"e{n}")

    assert anna.steps == []
    assert Document.decode(anna.document.encode()).value() == {"steps": []}


def test_a_plain_list_becomes_an_ordered_one_alike_on_every_device():
    anna, ben = Device(ANNA), Device(BEN)
    anna.set(1, {"steps": ["one", {"text": "two"}], "n": 1})
    read(ben, anna)
    anna.insert(2, 1, "a", "from anna")
    ben.insert(3, 2, "b", "from ben")

    assert agree(anna, ben) == ["one", "from anna", {"text": "two"}, "from ben"]
    assert anna.document.conflicts() == []


def test_fields_of_an_element_merge(anna, ben):
    anna.insert(10, 3, "o", {"text": "four", "done": False})
    read(ben, anna)
    anna.update(11, {("steps", "o", "v", "done"): True})
    ben.update(11, {("steps", "o", "v", "text"): "4"})

    assert agree(anna, ben)[3] == {"text": "4", "done": True}


def test_a_whole_list_written_later_replaces_the_ordered_one(anna, ben):
    ben.update(10, {"steps": ["all", "new"]})

    assert agree(anna, ben) == ["all", "new"]
    assert anna.ids == []


def test_wrong_uses_of_a_list_are_refused(anna):
    with pytest.raises(NotFoundError):
        anna.move(10, "nobody", 0)
    with pytest.raises(InvalidDataError, match="list"):
        anna.update(10, {"steps": array_union("x")})
    with pytest.raises(InvalidDataError, match="list"):
        anna.update(10, {"steps.e0": 1})
    anna.update(11, {"n": 1})
    with pytest.raises(InvalidDataError, match="something else"):
        insert_ops(anna.document, "n", 0, "x", 1)


def test_a_thousand_appends_keep_places_short():
    place, longest = "", 0
    for n in range(1000):
        place, before = place_between(place, "", f"id{n}"), place
        assert place > before
        longest = max(longest, len(place))
    assert longest <= 10


def test_there_is_always_room_between_two_places():
    low, high = place_between("", "", "a"), place_between(place_between("", "", "a"), "", "b")
    for n in range(200):
        middle = place_between(low, high, f"id{n}")
        assert low < middle < high
        low, high = (middle, high) if n % 3 else (low, middle)


def test_places_in_a_list_that_was_overwritten_are_not_told_as_lost():
    anna, ben = Device(ANNA), Device(BEN)
    anna.insert(1, 0, "a", "one")
    ben.document.merge(anna.document)
    anna.insert(2, 1, "b", "two")
    ben.update(3, {"steps": ["new"]})
    ben.document.merge(anna.document)

    assert [(conflict.path, conflict.value) for conflict in ben.document.conflicts()] == [(("steps", "b"), "two")]
