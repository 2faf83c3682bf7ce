"""A package's `__init__.py` is its list of public names and nothing else.

That the list is sorted is the business of the lint rule RUF022, which also mends it.
"""

import ast
from pathlib import PurePath

VAGUE_WORDS = {"utils", "util", "helpers", "helper", "manager", "base"}


def exported_names(tree: ast.Module) -> list[str]:
    """Return what `__all__` lists; a package without one exports nothing."""
    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return list(ast.literal_eval(node.value))
    return []


def imported_names(tree: ast.Module) -> list[str]:
    """Return the names that a package takes from its modules."""
    return [
        alias.asname or alias.name
        for node in tree.body
        if isinstance(node, ast.Import | ast.ImportFrom) and getattr(node, "module", None) != "__future__"
        for alias in node.names
    ]


def is_allowed_in_init(node: ast.stmt) -> bool:
    """Tell whether a statement is a docstring, an import or the list of public names."""
    match node:
        case ast.Import() | ast.ImportFrom() | ast.Expr(value=ast.Constant(value=str())):
            return True
        case ast.Assign(targets=[ast.Name(id="__all__")], value=ast.List()):
            return True
    return False


def test_init_files_only_re_export(package_sources):
    strangers = [
        f"{source.name}:{node.lineno}"
        for source in package_sources
        if source.name.endswith("/__init__.py")
        for node in source.tree.body
        if not is_allowed_in_init(node)
    ]

    assert strangers == []


def test_init_files_list_exactly_what_they_re_export(package_sources):
    for source in package_sources:
        if source.name.endswith("/__init__.py"):
            assert sorted(exported_names(source.tree)) == sorted(imported_names(source.tree)), source.name


def test_no_import_is_relative_or_a_star(package_sources):
    strays = [
        f"{source.name}:{node.lineno}"
        for source in package_sources
        for node in ast.walk(source.tree)
        if isinstance(node, ast.ImportFrom) and (node.level > 0 or node.names[0].name == "*")
    ]

    assert strays == []


def test_no_module_has_a_name_that_says_nothing(package_sources):
    vague = [
        source.name
        for source in package_sources
        for part in PurePath(source.name).with_suffix("").parts
        if VAGUE_WORDS.intersection(part.split("_"))
    ]

    assert vague == []
