"""What the server counts, in a registry of its own. Labels are codes and kinds, never an id, a name or content."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from twinlock.errors import TwinlockError, error_from_code

_GROUP_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
_SECONDS_BUCKETS = (0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0)


class Metrics:
    """All counters of one server. Values that are cheap to ask for are asked only when somebody scrapes."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.connections = self._gauge("connections", "Sync connections that are open.")
        self.spaces = self._gauge("spaces_served", "Spaces in memory.")
        self.ready = self._gauge("ready", "1 when the server takes clients.")
        self.handshakes = self._counter("handshakes", "Sync connections accepted.")
        self.handshakes_refused = self._counter("handshakes_refused", "Sync connections refused before the protocol.")
        self.hellos = self._counter("hellos", "Devices welcomed.")
        self.frames_in = self._counter("frames_received", "Frames received.")
        self.bytes_in = self._counter("bytes_received", "Bytes received on sync connections.")
        self.pushes = self._counter("pushes", "Pushes received.")
        self.acked = self._counter("envelopes_acknowledged", "Envelopes acknowledged as durable.")
        self.repeats = self._counter("envelopes_repeated", "Envelopes acknowledged that were durable before.")
        self.deliveries = self._counter("deliveries", "Entries handed to live readers, counted for each reader.")
        self.delivered_bytes = self._counter("delivered_bytes", "Bytes handed to live readers.")
        self.caught_up_entries = self._counter("catch_up_entries", "Entries sent from the log.")
        self.caught_up_bytes = self._counter("catch_up_bytes", "Bytes sent from the log.")
        self.slow_readers = self._counter("slow_readers", "Times a reader's buffer was full and it had to catch up.")
        self.signals = self._counter("signals", "Signals relayed.")
        self.signals_dropped = self._counter("signals_dropped", "Signals dropped because of their rate.")
        self.cleaned = self._counter("entries_cleaned", "Entries deleted after their grace.")
        self._rejects = self._counter("rejects", "Envelopes refused.", "code")
        self._closes = self._counter("closes", "Connections closed by the server.", "code")
        self._calls = self._counter("calls", "Calls answered.", "method", "code")
        self.commit_group = self._histogram("commit_group_envelopes", "Envelopes in one append.", _GROUP_BUCKETS)
        self.commit_seconds = self._histogram("commit_seconds", "Time of one append.", _SECONDS_BUCKETS)
        self.loop_lag_seconds = self._histogram("loop_lag_seconds", "How late the loop's timer is.", _SECONDS_BUCKETS)

    def delivered(self, entries: int, size: int) -> None:
        """Count one round of live delivery."""
        self.deliveries.inc(entries)
        self.delivered_bytes.inc(size)

    def caught_up(self, entries: int, size: int) -> None:
        """Count one page of catch-up."""
        self.caught_up_entries.inc(entries)
        self.caught_up_bytes.inc(size)

    def rejected(self, error: TwinlockError) -> None:
        """Count a refused envelope by its code."""
        self._rejects.labels(error.code).inc()

    def closed(self, code: str) -> None:
        """Count a connection that the server closed, by a code of the registry of errors or a word of its own."""
        self._closes.labels(code).inc()

    def called(self, method: str, code: str) -> None:
        """Count an answered call; the caller passes only names of methods that exist."""
        self._calls.labels(method, code if error_from_code(code).code == code else "ok").inc()

    def render(self) -> bytes:
        """Return everything in the text format of Prometheus."""
        return generate_latest(self.registry)

    def _gauge(self, name: str, text: str) -> Gauge:
        return Gauge(f"twinlock_{name}", text, registry=self.registry)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"twinlock_{name}", text, labels, registry=self.registry)

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(f"twinlock_{name}", text, registry=self.registry, buckets=buckets)
