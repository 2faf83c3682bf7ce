"""What a key service in a process of its own counts. Labels are calls and codes, never an id."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, generate_latest

from twinlock.keyservice.calls import AppendCall, LeaseCall, NodeCall, PendingCall, ReadCall, TurnCall

_NAMES = {
    AppendCall: "append_log",
    ReadCall: "read_log",
    PendingCall: "create_pending",
    LeaseCall: "lease",
    TurnCall: "take_turn",
}


class KeyServiceMetrics:
    """Counters of one process, in a registry of their own."""

    __slots__ = ("_calls", "_registry", "in_flight", "refused", "waiting")

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        self._calls = Counter(
            "twinlock_keyservice_calls", "Calls answered, by call and outcome", ["call", "code"], registry=registry
        )
        self.refused = Counter(
            "twinlock_keyservice_refused_requests", "Requests of which nothing was done", ["code"], registry=registry
        )
        self.in_flight = Gauge("twinlock_keyservice_in_flight", "Requests that are worked on", registry=registry)
        self.waiting = Gauge("twinlock_keyservice_waiting", "Calls that wait for the one thread", registry=registry)

    def watch_waiting(self, count: Callable[[], float]) -> None:
        """Have the number of waiting calls asked for when it is shown."""
        self.waiting.set_function(count)

    def called(self, call: NodeCall, code: str) -> None:
        """Count a call."""
        self._calls.labels(_NAMES[type(call)], code).inc()

    def render(self) -> bytes:
        """Return everything in Prometheus's text format."""
        return generate_latest(self._registry)
