"""The figures of `twinlock cluster watch`. Labels are names of servers and streams, never of spaces."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from twinlock.cli.cluster_facts import ClusterFacts, ServerFacts, StreamFacts

Reading = Callable[[ServerFacts], float | None]
StreamReading = Callable[[StreamFacts], float | None]

_OF_SERVERS: tuple[tuple[str, str, Reading], ...] = (
    ("nats_sync_always", "1 where what a server acknowledges is on its disk.", lambda one: _flag(one.sync_always)),
    ("nats_has_leader", "1 where a server knows a leader of JetStream.", lambda one: float(one.has_leader)),
    ("nats_clock_offset_seconds", "How far a server's clock is ahead of ours.", lambda one: one.clock_offset_s),
    (
        "nats_certificate_ends_timestamp_seconds",
        "Until when a server's certificate is valid.",
        lambda one: one.certificate_ends.timestamp() if one.certificate_ends else None,
    ),
    ("nats_storage_bytes", "What a server's streams take of its disk.", lambda one: one.storage_bytes),
    ("nats_storage_max_bytes", "What they may take.", lambda one: one.storage_max_bytes or None),
    (
        "nats_slow_consumers",
        "Connections that a server ended since it started: too slow.",
        lambda one: one.slow_consumers,
    ),
)
_OF_STREAMS: tuple[tuple[str, str, StreamReading], ...] = (
    ("stream_has_leader", "1 where a stream can be written.", lambda one: float(bool(one.leader))),
    ("stream_replicas", "How many copies a stream has.", lambda one: one.replicas),
    ("stream_replicas_current", "How many of them are up to date.", lambda one: one.current_count),
    ("stream_replica_lag", "Operations that the slowest copy lacks.", lambda one: max(_lags(one), default=0)),
    ("stream_bytes", "Bytes of a stream, in one copy.", lambda one: one.bytes),
    ("stream_spaces", "Spaces, or keys of the directory, in a stream.", lambda one: one.subjects_count),
    (
        "stream_mirror_lag",
        "Messages that a copy of another site lacks.",
        lambda one: one.mirror.lag if one.mirror else None,
    ),
    (
        "stream_mirror_silent_seconds",
        "How long ago a copy heard of the other site.",
        lambda one: one.mirror.active_s if one.mirror else None,
    ),
)


class ClusterMetrics(Collector):
    """Shows what was last seen of a cluster, and nothing of servers and streams that are not seen any more."""

    def __init__(self) -> None:
        self.facts = ClusterFacts(None, [])
        self.seen_s = 0.0
        self.backup_s: float | None = None
        self._registry = CollectorRegistry()
        self._registry.register(self)

    def collect(self) -> Iterator[Metric]:
        """Yield every figure."""
        yield _plain("cluster_seen_timestamp_seconds", "When the cluster was last looked at in full.", self.seen_s)
        servers = self.facts.servers
        if servers is not None:
            expected = max([len(servers), *(server.cluster_size for server in servers)])
            yield _plain("nats_servers", "Servers that answer.", len(servers))
            yield _plain("nats_servers_expected", "Servers that the cluster counts.", expected)
        for name, text, reading in _OF_SERVERS:
            yield _labelled(name, text, "server", [(one.name, reading(one)) for one in servers or []])
        for name, text, stream_reading in _OF_STREAMS:
            figures = [(one.name, stream_reading(one)) for one in self.facts.streams]
            yield _labelled(name, text, "stream", figures)
        if self.backup_s is not None:
            yield _plain("backup_newest_timestamp_seconds", "When the newest backup was made.", self.backup_s)

    def render(self) -> bytes:
        """Return everything in Prometheus's text format."""
        return generate_latest(self._registry)


def _plain(name: str, text: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"twinlock_{name}", text, value=value)


def _labelled(name: str, text: str, label: str, figures: list[tuple[str, float | None]]) -> GaugeMetricFamily:
    family = GaugeMetricFamily(f"twinlock_{name}", text, labels=[label])
    for key, figure in figures:
        if figure is not None:
            family.add_metric([key], figure)
    return family


def _flag(value: bool | None) -> float | None:
    return None if value is None else float(value)


def _lags(stream: StreamFacts) -> list[int]:
    return [follower.lag for follower in stream.followers]
