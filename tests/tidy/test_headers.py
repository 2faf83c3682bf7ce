"""Every module says what it is for before it does anything."""

import ast


def test_every_module_opens_with_a_docstring(package_sources):
    assert [source.name for source in package_sources if not ast.get_docstring(source.tree)] == []
