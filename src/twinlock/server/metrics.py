"""What the server counts, in a registry of its own. Labels are codes and kinds, never an id, a name or content."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from itertools import accumulate

from prometheus_client import CollectorRegistry, Counter, Gauge, generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from twinlock.errors import TwinlockError, error_from_code

_GROUP_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
_SECONDS_BUCKETS = (0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0)


class Tally:
    """A counter for the hot path: a plain number, since all counting is done in the loop's thread."""

    __slots__ = ("name", "text", "value")

    def __init__(self, name: str, text: str) -> None:
        self.name = name
        self.text = text
        self.value = 0

    def inc(self, amount: int = 1) -> None:
        """Count."""
        self.value += amount


class Spread:
    """A histogram for the hot path, as plain as `Tally`."""

    __slots__ = ("_bounds", "_counts", "_sum", "name", "text")

    def __init__(self, name: str, text: str, bounds: tuple[float, ...]) -> None:
        self.name = name
        self.text = text
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def observe(self, value: float) -> None:
        """Count a value in its bucket."""
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def family(self) -> HistogramMetricFamily:
        """Return the buckets, each with all that lies below it, as the format wants them."""
        names = [*map(floatToGoString, self._bounds), "+Inf"]
        return HistogramMetricFamily(
            self.name, self.text, buckets=list(zip(names, accumulate(self._counts), strict=True)), sum_value=self._sum
        )


class _Plain(Collector):
    """Shows tallies and spreads to whoever scrapes."""

    def __init__(self) -> None:
        self.tallies: list[Tally] = []
        self.spreads: list[Spread] = []

    def collect(self) -> Iterator[Metric]:
        """Yield each as it stands."""
        for tally in self.tallies:
            yield CounterMetricFamily(tally.name, tally.text, value=tally.value)
        for spread in self.spreads:
            yield spread.family()


class Metrics:
    """All counters of one server."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._plain = _Plain()
        self.registry.register(self._plain)
        self.connections = self._gauge("connections", "Sync connections that are open.")
        self.spaces = self._gauge("spaces_served", "Spaces in memory.")
        self.ready = self._gauge("ready", "1 when the server takes clients.")
        self.handshakes = self._tally("handshakes", "Sync connections accepted.")
        self.handshakes_refused = self._tally("handshakes_refused", "Sync connections refused before the protocol.")
        self.hellos = self._tally("hellos", "Devices welcomed.")
        self.frames_in = self._tally("frames_received", "Frames received.")
        self.bytes_in = self._tally("bytes_received", "Bytes received on sync connections.")
        self.pushes = self._tally("pushes", "Pushes received.")
        self.acked = self._tally("envelopes_acknowledged", "Envelopes acknowledged as durable.")
        self.repeats = self._tally("envelopes_repeated", "Envelopes acknowledged that were durable before.")
        self.deliveries = self._tally("deliveries", "Entries handed to live readers, counted for each reader.")
        self.delivered_bytes = self._tally("delivered_bytes", "Bytes handed to live readers.")
        self.caught_up_entries = self._tally("catch_up_entries", "Entries sent from the log.")
        self.caught_up_bytes = self._tally("catch_up_bytes", "Bytes sent from the log.")
        self.slow_readers = self._tally("slow_readers", "Times a reader's buffer was full and it had to catch up.")
        self.signals = self._tally("signals", "Signals relayed.")
        self.signals_dropped = self._tally("signals_dropped", "Signals dropped because of their rate.")
        self.cleaned = self._tally("entries_cleaned", "Entries deleted after their grace.")
        self.blob_bytes_in = self._tally("blob_bytes_stored", "Bytes of parts of blobs that were stored.")
        self.blob_bytes_out = self._tally("blob_bytes_sent", "Bytes of parts of blobs that were sent.")
        self.blobs_deleted = self._tally("blobs_deleted", "Blobs deleted for good.")
        self.blob_memory = self._gauge("blob_memory_bytes", "Bytes that parts on their way may take in memory.")
        self._blob_requests = self._counter("blob_requests", "HTTP requests for parts of blobs.", "method", "code")
        self.nodes = self._gauge("nodes_alive", "Nodes of the cluster that this one hears, itself counted.")
        self.waiting_bytes = self._gauge("waiting_bytes", "Bytes of pushes that wait for the engine.")
        self.waiting_pushes = self._gauge("waiting_pushes", "Pushes that wait for the engine.")
        self.foreign_entries = self._tally(
            "foreign_entries", "Entries that other nodes appended to spaces served here."
        )
        self.append_retries = self._tally(
            "append_retries", "Appends tried again because another node had some of them."
        )
        self.append_overtaken = self._tally(
            "append_overtaken", "Appends that another node's change of the space overtook, and whose pushes come again."
        )
        self.append_failures = self._tally("append_failures", "Appends that failed, and whose pushes come again.")
        self.fences = self._tally("fences", "Changes of signed logs by other nodes that were waited for.")
        self.take_overs = self._tally("take_overs", "Changes of signed logs ended in place of a node that stalled.")
        self.broker_gaps = self._tally("broker_gaps", "Times that news of other nodes may have been missed.")
        self.news_refused = self._tally("news_refused", "Messages of other nodes that no node sends in good order.")
        self._rejects = self._counter("rejects", "Envelopes refused.", "code")
        self._closes = self._counter("closes", "Connections closed by the server.", "code")
        self._calls = self._counter("calls", "Calls answered.", "method", "code")
        self.commit_group = self._spread("commit_group_envelopes", "Envelopes in one append.", _GROUP_BUCKETS)
        self.commit_seconds = self._spread("commit_seconds", "Time of one append.", _SECONDS_BUCKETS)
        self.loop_lag_seconds = self._spread("loop_lag_seconds", "How late the loop's timer is.", _SECONDS_BUCKETS)

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

    def blob_requested(self, method: str, code: str) -> None:
        """Count a request for a part; the caller passes only methods that exist, and "ok" or the code of an error."""
        self._blob_requests.labels(method, code).inc()

    def render(self) -> bytes:
        """Return everything in the text format of Prometheus."""
        return generate_latest(self.registry)

    def _tally(self, name: str, text: str) -> Tally:
        tally = Tally(f"twinlock_{name}", text)
        self._plain.tallies.append(tally)
        return tally

    def _gauge(self, name: str, text: str) -> Gauge:
        return Gauge(f"twinlock_{name}", text, registry=self.registry)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"twinlock_{name}", text, labels, registry=self.registry)

    def _spread(self, name: str, text: str, bounds: tuple[float, ...]) -> Spread:
        spread = Spread(f"twinlock_{name}", text, bounds)
        self._plain.spreads.append(spread)
        return spread
