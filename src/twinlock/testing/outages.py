"""How long a fault kept acknowledgements away, read from a recorded history. Pure."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from twinlock.testing.history import Acked, Event, Fault


class Outage(msgspec.Struct, frozen=True):
    """The longest silence of a space after a fault: from the fault, or the last ack after it, to the next ack.

    Only a space that is written to all the time tells anything by its silence.
    """

    number: int
    kind: str
    target: str
    space: str
    seconds: float


def outages(events: Iterable[Event]) -> list[Outage]:
    """Return for each fault and each space the longest silence until the next fault begins, or the run ends.

    The end of a fault's cause belongs to the fault. A silence that no ack ends is not counted: the run was over.
    """
    found: list[Outage] = []
    fault: Fault | None = None
    number = 0
    last_s: dict[str, float] = {}
    longest_s: dict[str, float] = {}
    for event in events:
        if isinstance(event, Fault) and not event.is_over:
            found += _told(number, fault, longest_s)
            number += 1
            # What was acknowledged before the fault is no sign of life after it.
            fault, longest_s = event, {}
            last_s = dict.fromkeys(last_s, event.at_s)
        elif isinstance(event, Acked):
            silent_s = event.at_s - last_s.get(event.space, event.at_s)
            longest_s[event.space] = max(longest_s.get(event.space, 0.0), silent_s)
            last_s[event.space] = event.at_s
    return found + _told(number, fault, longest_s)


class Summary(msgspec.Struct, frozen=True):
    """The outages of one kind of fault; each fault counts with the space that waited longest."""

    kind: str
    faults_count: int
    median_s: float
    worst_s: float


def summarize(found: Iterable[Outage]) -> list[Summary]:
    """Return how long each kind of fault kept acknowledgements away, by kind."""
    worst_s: dict[str, dict[int, float]] = {}
    for outage in found:
        by_fault = worst_s.setdefault(outage.kind, {})
        by_fault[outage.number] = max(by_fault.get(outage.number, 0.0), outage.seconds)
    summaries: list[Summary] = []
    for kind, by_fault in sorted(worst_s.items()):
        seconds = sorted(by_fault.values())
        summaries.append(Summary(kind, len(seconds), seconds[len(seconds) // 2], seconds[-1]))
    return summaries


def _told(number: int, fault: Fault | None, longest_s: dict[str, float]) -> list[Outage]:
    if fault is None:
        return []
    return [Outage(number, fault.kind, fault.target, space, seconds) for space, seconds in sorted(longest_s.items())]
