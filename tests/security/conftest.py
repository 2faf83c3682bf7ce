"""What the security tests share: a server process, people with devices, and everything that an attacker may look at."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def package_trees():
    """The syntax trees of the package that is shipped, by name."""
    return [
        (path.relative_to(ROOT).as_posix(), ast.parse(path.read_text(encoding="utf-8")))
        for path in sorted((ROOT / "src").rglob("*.py"))
    ]
