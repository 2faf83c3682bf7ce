"""The page that lists attackers names tests that exist, leaves none out, and has every row of the threat model."""

import ast
import re
from pathlib import Path

TESTS = Path(__file__).parents[1]
PAGE = TESTS.parent / "docs" / "concepts" / "threats-tested.md"
MODEL = TESTS.parent / "spec" / "threat-model.md"
HEAD = "| attacker holds |"


def test_every_attackers_test_exists_and_every_security_test_is_listed():
    named = set(re.findall(r"`(\w+/test_\w+\.py)`", PAGE.read_text(encoding="utf-8")))
    there = {f"security/{path.name}" for path in (TESTS / "security").glob("test_*.py")} - {
        "security/" + Path(__file__).name
    }

    assert [name for name in sorted(named) if not (TESTS / name).exists()] == []
    assert there - named == set()


def test_every_row_of_the_threat_model_names_tests_that_play_it():
    played = {cells[0]: named_in(cells[-1]) for cells in rows(PAGE.read_text(encoding="utf-8"))}

    assert list(played) == [cells[0] for cells in rows(section_3())]
    assert [row for row, tests in played.items() if not tests] == []
    missing = {row: tests - defined(file) for row, named in played.items() for file, tests in named.items()}
    assert {row: tests for row, tests in missing.items() if tests} == {}


def test_every_test_of_an_attacker_is_named_on_the_page():
    """Those of `test_attacker_...`: a test that nobody points to would not be missed."""
    page = PAGE.read_text(encoding="utf-8")
    there = {name for path in (TESTS / "security").glob("test_attacker_*.py") for name in defined(path.name)}

    assert len(there) > 30
    assert {name for name in there if f"`{name}`" not in page} <= CONTROLS


CONTROLS = {
    "test_a_call_that_runs_data_would_be_found",
    "test_a_key_that_had_leaked_to_the_disk_would_be_found",
    "test_a_removed_sensors_folder_is_of_no_use_to_our_client_either",
    "test_an_honest_server_does_not_even_store_what_a_reader_writes",
    "test_what_was_planted_would_have_been_shown_while_they_were_a_member",
}
"""What shows that the others would notice something, or goes without saying."""


def section_3() -> str:
    """The part of the threat model that tells who gets what."""
    text = MODEL.read_text(encoding="utf-8")
    return text[text.index("\n## 3.") : text.index("\n## 4.")]


def rows(text: str) -> list[list[str]]:
    """Return the cells of the table that begins with `HEAD`, without its head."""
    lines = text[text.index(HEAD) :].split("\n\n", 1)[0].splitlines()
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines[2:]]


def named_in(cell: str) -> dict[str, set[str]]:
    """Return the tests that a cell names, by their files."""
    file = re.search(r"`security/(test_\w+\.py)`", cell)
    return {file[1]: set(re.findall(r"`(test_\w+)`", cell))} if file else {}


def defined(file: str) -> set[str]:
    """Return the tests in a file of this folder."""
    tree = ast.parse((TESTS / "security" / file).read_text(encoding="utf-8"))
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    return {node.name for node in tree.body if isinstance(node, kinds) and node.name.startswith("test_")}
