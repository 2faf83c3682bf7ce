"""The merge state by its definitions: all facts at once, each rule applied as spec/documents.md, section 4, has it.

Slow and simple on purpose, and without a line of the package: what the vectors say is not only what the code does.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import groupby

import msgspec

PUT, REPLACE, CLEAR, INCREMENT, UNION, REMOVE = range(6)
EXT_STAMP_TIME = 3
canonical = msgspec.msgpack.Encoder(order="sorted").encode


def operations_of(payload: bytes):
    """Yield each operation of a change of one edit, decoded and as its bytes."""
    ((_, _, _, raws),) = msgspec.msgpack.decode(
        payload, type=tuple[int, list[tuple[str, str, int, list[msgspec.Raw]]]]
    )[1]
    for raw in raws:
        yield msgspec.msgpack.decode(raw), bytes(raw)


def state_bytes(facts) -> bytes:
    """Return the state that operations make, given as `(stamp, operation, its bytes)`."""
    told = _clears_told(facts)
    cleared = {path: max(stamp for at, stamp, _ in told if at == path) for path, _, _ in told}
    seen = {path: max(saw for at, _, saw in told if at == path) for path, _, _ in told}
    clears = {}
    for path in cleared:
        above = _above(path)
        stamp = cleared[path] if cleared[path] > _newest(cleared, above) else b""
        saw = seen[path] if seen[path] > _newest(seen, above) else b""
        if stamp or saw:
            clears[path] = [stamp, saw]

    def stays(path: str, stamp: bytes) -> bool:
        places = [*_above(path), path]
        return not (stamp < _newest(cleared, places) and stamp <= _newest(seen, places))

    highest, second = _writes(facts, stays)
    makes_alive = {PUT, REPLACE, INCREMENT, UNION}
    alive = max((stamp for stamp, operation, _ in facts if operation[0] in makes_alive), default=b"")
    writes = _grouped(highest)
    unknown = sorted({(stamp, raw) for stamp, operation, raw in facts if operation[0] > REMOVE})
    if writes and writes[-1][0] == alive:
        alive = b""
    parts = [1, alive, writes, clears, _grouped(second), _counters(facts, stays), _sets(facts, stays), unknown]
    while not parts[-1]:
        parts.pop()
    return canonical(parts)


def _above(path: str) -> list[str]:
    """Return the paths above one, the document's among them."""
    keys = path.split("\0")
    return ["\0".join(keys[:count]) for count in range(len(keys))] if path else []


def _newest(stamps: dict[str, bytes], paths: list[str]) -> bytes:
    return max((stamps[path] for path in paths if path in stamps), default=b"")


def _clears_told(facts):
    told = [(op[2], stamp, op[1]) for stamp, op, _ in facts if op[0] == CLEAR]
    return told + [("", stamp, op[1]) for stamp, op, _ in facts if op[0] == REPLACE]


def _writes(facts, stays):
    by_path: dict[str, set] = {}
    for stamp, operation, _ in facts:
        if operation[0] in (PUT, REPLACE):
            for path, value in operation[2].items():
                if stays(path, stamp):
                    by_path.setdefault(path, set()).add((stamp, canonical(_timed(value, stamp)), operation[1]))
    highest, second = {}, {}
    for path, found in by_path.items():
        ranked = sorted(found, reverse=True)
        highest[path] = ranked[0]
        if len(ranked) > 1 and ranked[1][0] > ranked[0][2]:
            second[path] = ranked[1]
    return highest, second


def _timed(value, stamp: bytes):
    if isinstance(value, msgspec.msgpack.Ext) and value.code == EXT_STAMP_TIME:
        return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=int.from_bytes(stamp[:6], "big"))
    return value


def _grouped(writes):
    rows = sorted((stamp, saw, path, msgspec.Raw(value)) for path, (stamp, value, saw) in writes.items())
    return [
        [*stamps, {path: value for _, _, path, value in group}] for stamps, group in groupby(rows, lambda row: row[:2])
    ]


def _counters(facts, stays):
    found: dict[str, dict[bytes, tuple]] = {}
    for stamp, operation, _ in facts:
        if operation[0] == INCREMENT and stays(operation[2], stamp):
            _, base, path, total = operation
            entry = (stamp, base, canonical(total))
            devices = found.setdefault(path, {})
            devices[stamp[8:]] = max(entry, devices.get(stamp[8:], entry))
    return {
        path: [[stamp, base, msgspec.Raw(total)] for _, (stamp, base, total) in sorted(devices.items())]
        for path, devices in found.items()
    }


def _sets(facts, stays):
    entries = [(op[1], e, stamp, False) for stamp, op, _ in facts if op[0] == UNION for e in op[2]]
    removes = [op for _, op, _ in facts if op[0] == REMOVE]
    entries += [(op[1], element, stamp, True) for op in removes for element, stamps in op[2] for stamp in stamps]
    found: dict[str, dict[bytes, dict[bytes, tuple]]] = {}
    for path, element, stamp, removed in entries:
        if stays(path, stamp):
            devices = found.setdefault(path, {}).setdefault(canonical(element), {})
            entry = (stamp, removed)
            devices[stamp[8:]] = max(entry, devices.get(stamp[8:], entry))
    return {
        path: [
            [msgspec.Raw(element), [entry for _, entry in sorted(devices.items())]]
            for element, devices in sorted(elements.items())
        ]
        for path, elements in found.items()
    }
