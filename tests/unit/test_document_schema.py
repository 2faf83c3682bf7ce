"""Typed collections: validation on the way in, never a loss on the way out."""

from dataclasses import dataclass, field
from datetime import UTC, datetime

import msgspec
import pytest
from pydantic import BaseModel

from twinlock.document import Migration, Schema, increment, server_timestamp
from twinlock.errors import SchemaError


class Place(msgspec.Struct):
    shop: str
    shelf: int = 0


class Todo(msgspec.Struct):
    text: str
    done: bool = False
    place: Place | None = None
    at: datetime | None = None
    photo: bytes = b""


@dataclass
class DataTodo:
    text: str
    done: bool = False
    tags: list[str] = field(default_factory=list)


class PydanticTodo(BaseModel):
    text: str
    done: bool = False


NOW = datetime(2026, 1, 1, tzinfo=UTC)


def test_values_go_in_and_come_out():
    schema = Schema(Todo)
    todo = Todo("milk", place=Place("north"), at=NOW, photo=b"\x00")

    plain = schema.dump(todo)

    assert plain == {
        "text": "milk", "done": False, "place": {"shop": "north", "shelf": 0}, "at": NOW, "photo": b"\x00"
    }  # fmt: skip
    assert schema.load(plain).value == todo


@pytest.mark.parametrize("model", [DataTodo, PydanticTodo])
def test_dataclasses_and_pydantic_models_work_alike(model):
    schema = Schema(model)
    plain = schema.dump(model(text="milk"))

    assert schema.load(plain).value == model(text="milk")
    assert schema.load({"text": 5}).value is None
    with pytest.raises(SchemaError):
        schema.dump({"done": True})


def test_a_wrong_value_is_refused_before_it_is_stored():
    with pytest.raises(SchemaError):
        Schema(Todo).dump(Todo(text=5))


def test_a_mapping_may_hold_field_operators():
    plain = Schema(Todo).dump({"text": "milk", "at": server_timestamp})

    assert plain == {"text": "milk", "at": server_timestamp}
    with pytest.raises(SchemaError):
        Schema(Todo).dump({"text": increment(1)})


def test_what_does_not_fit_is_handed_over_raw_with_the_error():
    raw = {"text": 5, "other": [1]}

    loaded = Schema(Todo).load(raw)

    assert (loaded.value, loaded.raw) == (None, raw)
    assert isinstance(loaded.error, SchemaError)


def test_fields_that_the_model_does_not_know_survive():
    schema = Schema(Todo)
    raw = {"text": "milk", "color": "red", "place": {"shop": "north", "aisle": 7}}
    todo = schema.load(raw).value
    todo.done = True
    todo.place.shop = "south"

    plain = schema.dump(todo, raw)

    assert plain["color"] == "red"
    assert plain["place"] == {"shop": "south", "shelf": 0, "aisle": 7}
    assert plain["done"] is True


def split_name(value):
    first, _, last = value.pop("name").partition(" ")
    return {**value, "first": first, "last": last}


def join_name(value):
    return {**value, "name": f"{value.pop('first')} {value.pop('last')}"}


class Person1(msgspec.Struct):
    name: str


class Person2(msgspec.Struct):
    first: str
    last: str
    born: int = 0


class Person3(msgspec.Struct):
    first: str
    last: str
    year: int


MIGRATIONS = (
    Migration(1, 2, split_name, join_name),
    Migration(2, 3, lambda value: {**value, "year": value.get("born", 0)}),
)


def test_documents_of_an_older_form_are_read_as_the_newest():
    schema = Schema(Person3, version=3, migrations=MIGRATIONS)
    raw = {"name": "Ada Lovelace"}

    assert schema.load(raw).value == Person3("Ada", "Lovelace", 0)
    assert raw == {"name": "Ada Lovelace"}
    assert schema.dump(Person3("Ada", "Lovelace", 1815))["$schema"] == 3


def test_documents_of_a_newer_form_are_read_downwards_where_that_is_possible():
    plain = Schema(Person2, version=2, migrations=MIGRATIONS).dump(Person2("Ada", "Lovelace"))
    assert Schema(Person1, migrations=MIGRATIONS).load(plain).value == Person1("Ada Lovelace")

    newest = Schema(Person3, version=3, migrations=MIGRATIONS).dump(Person3("Ada", "Lovelace", 1815))
    loaded = Schema(Person1, migrations=MIGRATIONS).load(newest)
    assert loaded.value is None
    assert loaded.raw == newest


def test_a_migration_that_fails_loses_nothing():
    loaded = Schema(Person2, version=2, migrations=MIGRATIONS).load({"nom": "Ada"})

    assert loaded.raw == {"nom": "Ada"}
    assert "migration" in str(loaded.error)


def test_a_model_is_a_class_of_a_known_kind():
    with pytest.raises(SchemaError):
        Schema(int)
