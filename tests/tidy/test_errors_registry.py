"""The errors that Python raises are the errors that the spec lists, word for word."""

import json
import re

import pytest

from twinlock import errors


def error_classes() -> list[type[errors.TwinlockError]]:
    """Return every error below the root, however deep."""
    found = list(errors.TwinlockError.__subclasses__())
    for error in found:
        found.extend(error.__subclasses__())
    return [error for error in found if error.__module__.startswith(f"{errors.__name__}.")]


@pytest.fixture(scope="module")
def registry(root) -> list[dict[str, str]]:
    """The list of errors in the spec."""
    return json.loads((root / "spec" / "errors.json").read_text(encoding="utf-8"))


def test_codes_are_unique_and_sorted(registry):
    codes = [entry["code"] for entry in registry]

    assert codes == sorted(set(codes))


def test_no_two_classes_share_a_code():
    codes = [error.code for error in error_classes()]

    assert sorted(codes) == sorted(set(codes))


def test_classes_say_what_the_registry_says(registry):
    written = [(entry["code"], entry["name"], entry["retry"], entry["text"], entry["fix"]) for entry in registry]
    raised = [(error.code, error.__name__, error.retry, error.__doc__, error.fix) for error in error_classes()]

    assert sorted(raised) == written


def test_every_error_is_raised_or_sent_somewhere(root):
    sources = [
        path for path in (root / "src").rglob("*.py") if path.parent.name != "errors" and "testing" not in path.parts
    ]
    text = "\n".join(path.read_text(encoding="utf-8") for path in sources)

    names = [error.__name__ for error in error_classes()]
    unused = [name for name in names if not re.search(rf"raise {name}\b|\b{name}[(.]", text)]

    assert unused == []
