"""No engine knows another: each is one word, and the modules whose names begin with it are its parts."""

import ast
from pathlib import Path

import twinlock.engines

FOLDER = Path(twinlock.engines.__file__).parent
PACKAGE = "twinlock.engines."
ENGINES = {"jetstream", "memory", "sqlite"}


def engine_of(module):
    word = module.partition("_")[0]
    return word if word in ENGINES else None


def test_no_part_of_an_engine_imports_a_part_of_another():
    parts = {path.stem: path for path in FOLDER.glob("*.py") if engine_of(path.stem)}
    crossings = [
        (name, node.module)
        for name, path in parts.items()
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(PACKAGE)
        if engine_of(node.module.removeprefix(PACKAGE)) not in (None, engine_of(name))
    ]

    assert {engine_of(name) for name in parts} == ENGINES
    assert not crossings
