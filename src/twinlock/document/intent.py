"""From what the application asks for to operations, against what is known. See spec/documents.md, section 3."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any, Final

from twinlock.document.document import Document
from twinlock.document.fields import ArrayRemove, ArrayUnion, DeleteField, Increment, ServerTimestamp
from twinlock.document.merge import State, is_below
from twinlock.document.operations import CLEAR, INCREMENT, PUT, REMOVE, REPLACE, UNION
from twinlock.document.seen import newest_at, newest_below
from twinlock.document.stamps import Stamp
from twinlock.document.values import (
    PATH_SEPARATOR,
    STAMP_TIME_MARKER,
    Path,
    Value,
    canonical,
    check_data,
    check_key,
    from_canonical,
    is_list_marker,
    keys_of,
    parse_path,
    prefixes_of,
)
from twinlock.document.view import ABSENT, ELEMENT_VALUE, View, is_leaf
from twinlock.errors import InvalidDataError
from twinlock.ids import DeviceId
from twinlock.protocol.limits import DOCUMENT_DEPTH_MAX

Operations = list[list[Any]]

_OPERATORS: Final = frozenset({Increment, ArrayUnion, ArrayRemove, DeleteField, ServerTimestamp})


def set_ops(document: Document, data: Mapping[str, Any], *, device: DeviceId, merge: bool = False) -> Operations:
    """Return the operations that make the document `data`, or with `merge` that write its fields one by one.

    Raises:
        InvalidDataError: something in `data` cannot be stored.
    """
    leaves: dict[Path, Any] = {}
    flatten(_mapping(data), "", 1, leaves)
    if not merge:
        fresh = {path: _fresh(path, value) if type(value) in _OPERATORS else value for path, value in leaves.items()}
        return [[REPLACE, newest_below(document.state, ""), fresh]]
    view = View(document.state)
    for path in leaves:
        _refuse_inside_list(view, path)
    return _write_leaves(document, leaves, device)


def update_ops(document: Document, changes: Mapping[str | tuple[str, ...], Any], *, device: DeviceId) -> Operations:
    """Return the operations that write single fields: `{"a.b": value}`, or `{("a", "b"): value}`.

    An object as a value replaces what lies at its path. Whether the document exists is for the caller to ask.

    Raises:
        InvalidDataError: a path or a value cannot be stored, or two paths overlap.
    """
    ops: Operations = []
    leaves: dict[Path, Any] = {}
    paths = {parse_path(path): value for path, value in changes.items()}
    _check_apart(sorted(paths))
    view = View(document.state)
    for path, value in paths.items():
        _refuse_inside_list(view, path)
        if isinstance(value, Mapping):
            ops += replace_ops(document.state, path)
            flatten(value, path, len(keys_of(path)) + 1, leaves)
        else:
            leaves[path] = _checked(value, len(keys_of(path)) + 1)
    return ops + _write_leaves(document, leaves, device)


def delete_ops(document: Document) -> Operations:
    """Return the operations that delete the document."""
    return [[CLEAR, newest_below(document.state, ""), ""]]


def _mapping(data: Any) -> Mapping[str, Any]:
    if not isinstance(data, Mapping):
        raise InvalidDataError(f"a document is an object, not a {type(data).__name__}")
    return data


def flatten(data: Mapping[str, Any], prefix: Path, depth: int, leaves: dict[Path, Any]) -> None:
    """Collect the leaves of nested objects; an empty object is a leaf of its own."""
    if depth > DOCUMENT_DEPTH_MAX:
        raise InvalidDataError(f"nested deeper than {DOCUMENT_DEPTH_MAX}")
    for key, value in data.items():
        path = prefix + PATH_SEPARATOR + check_key(key) if prefix else check_key(key)
        kind = type(value)
        if (kind is str and value.isascii()) or kind is bool or value is None:
            leaves[path] = value
        elif kind is dict or (kind is not list and isinstance(value, Mapping)):
            flatten(value, path, depth + 1, leaves)
        elif kind in _OPERATORS:
            leaves[path] = _checked(value, depth + 1)
        else:
            leaves[path] = check_data(value, depth + 1)
    if not data and prefix:
        leaves[prefix] = {}


def _checked(value: Any, depth: int) -> Any:
    match value:
        case ArrayUnion(elements):
            return ArrayUnion(tuple(check_data(element, depth + 1) for element in elements))
        case ArrayRemove(elements):
            return ArrayRemove(tuple(check_data(element, depth + 1) for element in elements))
        case Increment() | DeleteField() | ServerTimestamp():
            return value
    return check_data(value, depth)


def _fresh(path: Path, value: Any) -> Value:
    """Return what an operator makes of a field that was not there."""
    match value:
        case Increment(amount):
            return amount
        case ArrayUnion(elements):
            return _distinct(elements)
        case ArrayRemove():
            return []
        case ServerTimestamp():
            return STAMP_TIME_MARKER
        case DeleteField():
            raise InvalidDataError(f"delete_field() in a set without merge, at {'.'.join(keys_of(path))}")
    return value


def _distinct(elements: tuple[Value, ...]) -> list[Value]:
    return list({canonical(element): element for element in elements}.values())


def _check_apart(paths: list[Path]) -> None:
    for upper, lower in pairwise(paths):
        if is_below(lower, upper):
            raise InvalidDataError(f"an update of {'.'.join(keys_of(upper))} and of a field below it")


def _write_leaves(document: Document, leaves: dict[Path, Any], device: DeviceId) -> Operations:
    state = document.state
    view = View(state)
    ops: Operations = []
    puts: dict[Stamp, dict[Path, Value]] = {}
    for path, value in leaves.items():
        if isinstance(value, ArrayUnion | ArrayRemove):
            _refuse_ordered_list(view, path)
        match value:
            case Increment(amount) if _may_join(view, state, path, (int, float)):
                ops.append(_increment(view, state, path, amount, device))
            case ArrayUnion(elements) if _may_join(view, state, path, (list,)):
                ops.append([UNION, path, _distinct(elements)])
            case ArrayRemove(elements):
                ops += _remove(view, path, elements)
            case DeleteField():
                ops += _delete_field(document, path, puts)
            case _:
                ops += replace_ops(state, path)
                puts.setdefault(newest_at(state, path), {})[path] = _fresh(path, value)
    return ops + [[PUT, saw, put] for saw, put in puts.items()]


def _may_join(view: View, state: State, path: Path, kinds: tuple[type, ...]) -> bool:
    """Tell whether an operator goes on from what is there; over a value of another kind it is a plain write."""
    value = view.leaf(path)
    if any(is_leaf(view.leaf(above)) for above in prefixes_of(path)[1:-1]):
        return False
    if value is ABSENT:
        below = path + PATH_SEPARATOR
        return not any(at.startswith(below) for at in (*state.writes, *state.counters, *state.members))
    return type(value) in kinds


def _increment(view: View, state: State, path: Path, amount: int | float, device: DeviceId) -> list[Any]:
    base = view.base(path)
    known = state.counters.get(path, {}).get(device)
    before = known[2] if known is not None and known[1] == base else 0
    total = before + amount
    return [INCREMENT, base, path, check_data(total)]


def _remove(view: View, path: Path, elements: tuple[Value, ...]) -> Operations:
    wanted = {canonical(element) for element in elements}
    seen: dict[bytes, set[Stamp]] = {}
    for element, stamps in view.elements(path):
        key = canonical(element)
        if key in wanted:
            seen.setdefault(key, set()).update(stamps)
    if not seen:
        return []
    return [[REMOVE, path, [[from_canonical(key), sorted(seen[key])] for key in sorted(seen)]]]


def _delete_field(document: Document, path: Path, puts: dict[Stamp, dict[Path, Value]]) -> Operations:
    """Clear a path; an object that loses its last field so stays as an empty one."""
    parent = path.rpartition(PATH_SEPARATOR)[0]
    if parent:
        value: Any = document.value() or {}
        for key in keys_of(parent):
            value = value.get(key) if isinstance(value, dict) else None
        if isinstance(value, dict) and value.keys() == {keys_of(path)[-1]}:
            puts.setdefault(newest_at(document.state, parent), {})[parent] = {}
    return [[CLEAR, newest_below(document.state, path), path]]


def replace_ops(state: State, path: Path) -> Operations:
    """Return a clear of what a whole value would otherwise leave behind: fields below, counts, elements."""
    below = path + PATH_SEPARATOR
    for facts in (state.writes, state.counters, state.members):
        if any(at.startswith(below) or (at == path and facts is not state.writes) for at in facts):
            return [[CLEAR, newest_below(state, path), path]]
    return []


def _refuse_ordered_list(view: View, path: Path) -> None:
    if is_list_marker(view.leaf(path)):
        raise InvalidDataError("this field is an ordered list: use `list(path)`")


def _refuse_inside_list(view: View, path: Path) -> None:
    """Let only the fields of an element's value be written by a path, never a list's own bookkeeping."""
    keys = keys_of(path)
    for prefix in prefixes_of(path)[1:-1]:
        rest = keys[len(keys_of(prefix)) :]
        if rest[1:2] != (ELEMENT_VALUE,):
            _refuse_ordered_list(view, prefix)
