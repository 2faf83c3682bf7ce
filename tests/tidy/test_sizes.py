"""A module fits a reader's patience and a function fits a screen."""

import ast

MODULE_LINES_MAX = 500
FUNCTION_LINES_MAX = 60


def test_no_module_is_too_long(sources):
    lengths = {source.name: len(source.text.splitlines()) for source in sources}

    assert {name: lines for name, lines in lengths.items() if lines > MODULE_LINES_MAX} == {}


def test_no_function_is_too_long(sources):
    lengths = {
        f"{source.name}:{node.lineno} {node.name}": node.end_lineno - node.lineno + 1
        for source in sources
        for node in ast.walk(source.tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }

    assert {name: lines for name, lines in lengths.items() if lines > FUNCTION_LINES_MAX} == {}
