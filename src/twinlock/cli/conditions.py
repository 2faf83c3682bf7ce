"""Conditions as a person types them: `done == false`, `mag >= 4.5`, `tags array-contains "red"`."""

from __future__ import annotations

import json
import re
from typing import Any, NamedTuple

from twinlock.cli.output import fail

OPERATORS = ("==", "!=", "<=", ">=", "<", ">", "not-in", "in", "array-contains")
_SIGNS = "|".join(map(re.escape, OPERATORS[:6]))
_WORDS = "|".join(OPERATORS[6:])
_FORM = re.compile(rf"^\s*(\S+?)\s*({_SIGNS}|(?<=\s)(?:{_WORDS})\s)(.*)$")


class Condition(NamedTuple):
    """A field, an operator and the value to compare with."""

    field: str
    operator: str
    value: Any


def read_condition(text: str) -> Condition:
    """Read a condition; a value that is not JSON is taken as a string."""
    found = _FORM.match(text)
    if found is None:
        fix = f"Write field, operator, value, such as 'done == false'. Operators: {' '.join(OPERATORS)}"
        fail("bad_condition", f"{text!r} is not a condition.", fix, status=2)
    field, operator, value = (part.strip() for part in found.groups())
    try:
        return Condition(field, operator, json.loads(value))
    except ValueError:
        return Condition(field, operator, value)
