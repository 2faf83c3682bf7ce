"""`twinlock doctor` and `twinlock cluster watch` against real NATS servers, well configured, badly, and broken."""

import asyncio
import datetime

import msgspec
import pytest

from tests.deploy.cluster_kit import ShippedCluster
from twinlock.cli.cluster_facts import ServerFacts, ask
from twinlock.cli.cluster_watch import Watcher
from twinlock.cli.doctor_cluster import cluster as examined
from twinlock.cli.doctor_cluster import connected, judge_servers
from twinlock.cli.findings import Verdict
from twinlock.engines.jetstream_options import NatsOptions
from twinlock.testing.nats_process import NatsCluster

NOW = datetime.datetime(2026, 11, 1, tzinfo=datetime.UTC)
FINE = ServerFacts(
    name="a", version="2.15.1", jetstream=True, sync_always=True, max_payload=8 << 20, clock_offset_s=0, clock_error_s=0
)


def bad(findings):
    return [finding.what for finding in findings if finding.verdict is Verdict.BAD]


def noted(findings):
    return [finding.what for finding in findings if finding.verdict is Verdict.NOTE]


def options_of(cluster):
    return cluster.options(cluster.seed_of("operator", "doctor.nk"))


async def make_stream(cluster, **config):
    async with connected(cluster.options(cluster.seed_of("operator", "admin.nk"))) as connection:
        await ask(connection, f"$JS.API.STREAM.CREATE.{config['name']}", config)


def figures(text):
    """Return what Prometheus would read."""
    lines = [line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#")]
    return {name: float(value) for name, value in lines}


def test_a_shipped_cluster_is_in_order_until_a_server_is_gone(tmp_path):
    with ShippedCluster(tmp_path, 3) as cluster:
        asyncio.run(make_stream(cluster, name="TW_0000", subjects=["tw.0000.*"], storage="file", num_replicas=3))
        operator = cluster.keys / "operator"
        watcher = Watcher(cluster.url, operator, lambda: 1234.0)
        asyncio.run(wait_for_copies(watcher))
        healthy = list(examined(options_of(cluster), operator, []))
        seen = figures(watcher.metrics.render().decode())
        cluster.kill(a_follower(cluster))
        broken = list(examined(options_of(cluster), operator, []))
        asyncio.run(watcher.look())
        seen_then = figures(watcher.metrics.render().decode())

    assert (bad(healthy), noted(healthy)) == ([], [])
    assert "3 servers sync every message before they acknowledge it" in [finding.what for finding in healthy]
    assert seen["twinlock_nats_servers"] == seen["twinlock_nats_servers_expected"] == 3
    assert seen['twinlock_stream_replicas_current{stream="TW_0000"}'] == 3
    assert seen['twinlock_nats_sync_always{server="here-1"}'] == 1
    assert seen['twinlock_nats_certificate_ends_timestamp_seconds{server="here-1"}'] > 1.7e9
    assert seen["twinlock_cluster_seen_timestamp_seconds"] == 1234
    assert any("2 of 3 servers answer" in what for what in bad(broken))
    assert any("cannot be reached" in what for what in bad(broken))
    assert seen_then["twinlock_nats_servers"] == 2


def a_follower(cluster):
    """Return a server that leads nothing, so that the others need not elect anybody first."""
    _, page = cluster.nodes[0].get("/jsz")
    leading = {cluster.leader_of("TW_0000")}
    return next(
        place
        for place, node in enumerate(cluster.nodes)
        if place not in leading and node.name != page["meta_cluster"]["leader"]
    )


async def wait_for_copies(watcher):
    async with asyncio.timeout(20):
        while True:
            await watcher.look()
            streams = watcher.metrics.facts.streams
            if streams and all(stream.current_count == 3 for stream in streams):
                return


def test_a_server_that_syncs_lazily_or_takes_small_messages_is_refused(tmp_path):
    lazy = {"jetstream": f'{{ store_dir: "{tmp_path}/store" }}', "max_payload": "1MB"}
    with NatsCluster(tmp_path, 1, settings=lazy) as cluster:
        options = NatsOptions.from_url(cluster.url)
        monitor = f"http://127.0.0.1:{cluster.nodes[0].monitor_port}"
        asked = list(examined(options, None, [monitor]))
        unasked = list(examined(options, None, []))

    assert any("only after up to two minutes" in what for what in bad(asked))
    assert any("messages of at most 1048576 bytes" in what for what in bad(asked))
    assert any(what.endswith("cannot be seen from here: unknown") for what in noted(unasked))


def test_a_server_without_jetstream_is_refused(tmp_path):
    with NatsCluster(tmp_path, 1, settings={"jetstream": "false"}) as cluster:
        found = list(examined(NatsOptions.from_url(cluster.url), None, []))

    assert any("without JetStream" in what for what in bad(found))
    assert any("streams cannot be looked at" in what for what in bad(found))


@pytest.mark.parametrize(
    ("changes", "verdict"),
    [
        ({"clock_offset_s": -90.0}, Verdict.BAD),
        ({"clock_offset_s": 5.0}, Verdict.NOTE),
        ({"clock_offset_s": 1.5, "clock_error_s": 1.0}, None),
        ({"certificate_ends": NOW + datetime.timedelta(days=3)}, Verdict.BAD),
        ({"certificate_ends": NOW + datetime.timedelta(days=20)}, Verdict.NOTE),
        ({"certificate_ends": NOW + datetime.timedelta(days=200)}, None),
        ({"storage_bytes": 85, "storage_max_bytes": 100}, Verdict.NOTE),
        ({"storage_bytes": 95, "storage_max_bytes": 100}, Verdict.BAD),
        ({"has_leader": False}, Verdict.BAD),
        ({"cluster_size": 3}, Verdict.BAD),
        ({"sync_always": False}, Verdict.BAD),
    ],
)
def test_each_thing_that_will_hurt_is_told(changes, verdict):
    found = list(judge_servers([msgspec.structs.replace(FINE, **changes)], NOW))

    assert [finding.verdict for finding in found if finding.verdict is not Verdict.GOOD] == [verdict] * bool(verdict)
