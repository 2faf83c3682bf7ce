"""The page of complaints about other systems names tests that exist."""

import ast
import re

from tests.docs.errors_page import ROOT

PAGE = ROOT / "docs" / "concepts" / "elsewhere.md"
TESTS = ROOT / "tests"


def defined(name: str) -> set[str]:
    """Return the tests in a file."""
    tree = ast.parse((TESTS / name).read_text(encoding="utf-8"))
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}


def named() -> list[tuple[str, set[str]]]:
    """Return each file that a row names, with the tests that stand behind it."""
    rows = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("| ")][1:]
    parts = [part for row in rows for part in re.split(r"(?=`\w+/test_\w+\.py`)", row)[1:]]
    return [(part.split("`")[1], set(re.findall(r"`(test_\w+)`", part))) for part in parts]


def test_every_complaint_is_answered_by_tests_that_exist():
    rows = re.findall(r"^\| .*\|$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)[1:]

    assert [row for row in rows if not re.search(r"`test_\w+`", row)] == []
    assert [(name, tests - defined(name)) for name, tests in named() if not tests or tests - defined(name)] == []
