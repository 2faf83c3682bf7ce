"""What the tidy tests look at: the project's Python files, and every file of the repository."""

import ast
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[2]
CODE_FOLDERS = ("src", "demo", "bench", "examples", "tests")


class Source(NamedTuple):
    """A Python file: its name from the root, its text and its syntax tree."""

    name: str
    text: str
    tree: ast.Module


@pytest.fixture(scope="session")
def sources() -> list[Source]:
    """Every Python file of the project."""
    paths = sorted(path for folder in CODE_FOLDERS for path in (ROOT / folder).rglob("*.py"))
    texts = [(path.relative_to(ROOT).as_posix(), path.read_text(encoding="utf-8")) for path in paths]
    return [Source(name, text, ast.parse(text, name)) for name, text in texts]


@pytest.fixture(scope="session")
def package_sources(sources: list[Source]) -> list[Source]:
    """The Python files of the package that is shipped."""
    return [source for source in sources if source.name.startswith("src/")]


@pytest.fixture(scope="session")
def root() -> Path:
    """The folder that holds the whole project."""
    return ROOT


@pytest.fixture(scope="session")
def repository_files() -> list[Path]:
    """Every file that is committed or would be, from the root."""
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("this copy of the project is not a git repository, so nothing in it is about to be committed")
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listing = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    # A file deleted but not yet committed so is still listed.
    return [Path(name) for name in sorted(set(listing.split("\0")) - {""}) if (ROOT / name).is_file()]
