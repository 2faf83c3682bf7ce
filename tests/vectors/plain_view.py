"""The value of a state by its definitions, path by path. See spec/documents.md, section 6.

Slow and simple on purpose, and without a line of the package, like plain_merge.py.
"""

from __future__ import annotations

from typing import Any

import msgspec

from tests.vectors.plain_merge import canonical

EXT_LIST = 1
INT_MIN, INT_MAX = -(1 << 63), (1 << 63) - 1
NEVER = b""
read = msgspec.msgpack.decode


def value_of(state: bytes) -> dict[str, Any] | None:
    """Return the value of a state's bytes; None if there is no document."""
    _, *parts = read(state)
    empty: list[Any] = [NEVER, [], {}, [], {}, {}, []]
    alive, writes, clears, _, counters, sets, _ = [*parts, *empty[len(parts) :]]
    alive = alive or (writes[-1][0] if writes else NEVER)
    if not alive or alive < clears.get("", [NEVER])[0]:
        return None
    tops = {path: (stamp, value) for stamp, _, leaves in writes for path, value in leaves.items()}
    value = _View(tops, clears, counters, sets).below("")
    assert isinstance(value, dict)
    return value


class _View:
    def __init__(self, writes, clears, counters, sets) -> None:
        self.writes, self.clears, self.counters, self.sets = writes, clears, counters, sets
        self.facts = {*writes, *counters, *sets}
        self.limits: dict[str, bytes] = {}

    def limit(self, path: str) -> bytes:
        """Return the stamp below which nothing at a path counts: of clears, and of counting leaves above it."""
        if path in self.limits:
            return self.limits[path]
        limit = self.clears.get(path, [NEVER])[0]
        if path:
            above = path.rpartition("\0")[0]
            limit = max(limit, self.limit(above))
            stamp, value = self.counting_write(above)
            if stamp and not isinstance(value, dict) and not _is_marker(value):
                limit = max(limit, stamp)
        self.limits[path] = limit
        return limit

    def counting_write(self, path: str):
        stamp, value = self.writes.get(path, (NEVER, None))
        return (stamp, value) if stamp >= self.limit(path) else (NEVER, None)

    def at(self, path: str) -> list[Any]:
        """Return what shows at a path itself, in a list of one; nothing if nothing does."""
        shown = [*self.counter(path), *self.set(path)]
        if shown:
            return [max(shown, key=lambda candidate: candidate[:2])[2]]
        stamp, value = self.counting_write(path)
        return [value] if stamp else []

    def counter(self, path: str):
        stamp, value = self.counting_write(path)
        base = max(self.limit(path), self.writes.get(path, (NEVER,))[0])
        totals = [(stamp[8:], stamp, total) for stamp, from_, total in self.counters.get(path, []) if from_ == base]
        if not totals:
            return []
        number = value if stamp and type(value) in (int, float) else 0
        for _, _, total in sorted(totals):
            number += total
        if isinstance(number, int):
            number = max(INT_MIN, min(INT_MAX, number))
        return [(max(stamp for _, stamp, _ in totals), 0, number)]

    def set(self, path: str):
        written, value = self.counting_write(path)
        is_list = bool(written) and isinstance(value, list)
        entries = [(canonical(e), stamp, removed) for e, facts in self.sets.get(path, []) for stamp, removed in facts]
        later = [entry for entry in entries if entry[1] >= self.limit(path) and entry[1] > written]
        if not entries or not (is_list or later):
            return []
        adds: dict[bytes, bytes] = {}
        for element, stamp, removed in later:
            if not removed:
                adds[element] = min(stamp, adds.get(element, stamp))
        gone = {e for e, stamp, removed in entries if removed and stamp >= written and stamp[8:] == written[8:]}
        kept = [e for e in value if canonical(e) not in gone or canonical(e) in adds] if is_list else []
        names = {canonical(element) for element in value} if is_list else set()
        added = [read(element) for _, element in sorted((stamp, e) for e, stamp in adds.items() if e not in names)]
        newest = max([stamp for _, stamp, _ in entries] + [written] * is_list)
        return [(newest, 1, kept + added)]

    def below(self, path: str) -> Any:
        """Return what a path shows with all that lies below it; UNSET if nothing does."""
        start = path + "\0" if path else ""
        keys = {fact[len(start) :].split("\0")[0] for fact in self.facts if fact.startswith(start) and fact != path}
        fields = {key: self.below(start + key) for key in keys}
        fields = {key: value for key, value in fields.items() if value is not msgspec.UNSET}
        own = self.at(path) if path else []
        if own and _is_marker(own[0]):
            return self.elements(start, fields)
        if fields or not path:
            return fields
        return own[0] if own else msgspec.UNSET

    def elements(self, start: str, fields: dict[str, Any]) -> list[Any]:
        found = []
        for element in fields:
            value = self.below(f"{start}{element}\0v")
            if value is not msgspec.UNSET:
                place = [text for text in self.at(f"{start}{element}\0p") if isinstance(text, str)]
                found.append((not place, place, element, value))
        return [value for *_, value in sorted(found, key=lambda row: row[:3])]


def _is_marker(value: Any) -> bool:
    return isinstance(value, msgspec.msgpack.Ext) and value.code == EXT_LIST
