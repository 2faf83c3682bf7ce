"""What the command line makes of values and conditions, and back."""

import datetime
import json

import msgspec
import pytest
import typer

from twinlock.cli.conditions import Condition, read_condition
from twinlock.cli.output import from_json, to_json


def test_what_is_printed_can_be_put_again():
    moment = datetime.datetime(2026, 1, 31, 12, tzinfo=datetime.UTC)
    value = {"text": "Ä", "n": [1, 2.5, None, True], "at": moment, "raw": b"\0\xff", "inner": {"at": moment}}

    assert from_json(to_json(value)) == value


def test_a_value_of_a_newer_sdk_is_shown():
    shown = json.loads(to_json({"new": msgspec.msgpack.Ext(9, b"xx")}))

    assert shown == {"new": {"$ext": 9, "data": "eHg="}}


@pytest.mark.parametrize("text", ["", "{", "[1]", "1", '{"a": {"$bytes": "?"}}', '{"a": {"$time": "noon"}}'])
def test_what_is_no_document_ends_the_command_as_wrong_usage(text):
    with pytest.raises(typer.Exit) as ended:
        from_json(text)

    assert ended.value.exit_code == 2


@pytest.mark.parametrize(
    ("text", "field", "operator", "value"),
    [
        ("done == false", "done", "==", False),
        ("mag>=4.5", "mag", ">=", 4.5),
        ("text == milk", "text", "==", "milk"),
        ('text == "4"', "text", "==", "4"),
        ("n in [1, 2]", "n", "in", [1, 2]),
        ("n not-in [1]", "n", "not-in", [1]),
        ("tags array-contains red", "tags", "array-contains", "red"),
        ("a.b != null", "a.b", "!=", None),
    ],
)
def test_a_condition_is_read_as_it_is_typed(text, field, operator, value):
    assert read_condition(text) == Condition(field, operator, value)
