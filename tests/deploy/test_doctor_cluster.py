"""`twinlock doctor` and `twinlock cluster watch` against real NATS servers, well configured, badly, and broken."""

import asyncio
import datetime
import json

import msgspec
import pytest
from typer.testing import CliRunner

from tests.deploy.cluster_kit import DEPLOY, ShippedCluster
from tests.docs.test_docs_pages import anchors_of
from twinlock.cli.cluster_facts import ReplicaFacts, ServerFacts, StreamFacts
from twinlock.cli.cluster_watch import Watcher
from twinlock.cli.commands import commands
from twinlock.cli.doctor_cluster import cluster as examined
from twinlock.cli.doctor_cluster import judge_servers, judge_streams
from twinlock.cli.findings import Verdict
from twinlock.engines.jetstream import JetstreamEngine
from twinlock.engines.jetstream_cluster import FirstSettings
from twinlock.engines.jetstream_options import NatsOptions
from twinlock.server.secrets_file import open_secrets
from twinlock.server.stores import IDENTITY_KEY
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


async def make_cluster(cluster):
    first = FirstSettings(partitions=1, shards=1)
    admin = cluster.options(cluster.seed_of("operator", "admin.nk"))
    await (await JetstreamEngine.connect("", admin, first=first)).close()


def figures(text):
    """Return what Prometheus would read."""
    lines = [line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#")]
    return {name: float(value) for name, value in lines}


def test_a_shipped_cluster_is_in_order(tmp_path, caplog):
    with ShippedCluster(tmp_path, 3) as cluster:
        asyncio.run(make_cluster(cluster))
        operator = cluster.keys / "operator"
        watcher = Watcher(cluster.url, operator, now_s=lambda: 1234.0)
        asyncio.run(wait_for_copies(watcher))
        found = list(examined(options_of(cluster), operator, []))
        strangers = list(examined(msgspec.structs.replace(options_of(cluster), ca_file=""), None, []))
        nobodies = list(examined(msgspec.structs.replace(options_of(cluster), nkey_file=""), None, []))
    seen = figures(watcher.metrics.render().decode())

    assert (bad(found), noted(found)) == ([], [])
    assert [record.message for record in caplog.records if record.name == "asyncio"] == []
    assert len(bad(strangers)) == len(bad(nobodies)) == 3
    assert all("name the authority: nats_ca_file" in what for what in bad(strangers))
    assert all("see that it knows our key: nats_nkey_file" in what for what in bad(nobodies))
    assert "3 servers sync every message before they acknowledge it" in [finding.what for finding in found]
    assert seen["twinlock_nats_servers"] == seen["twinlock_nats_servers_expected"] == 3
    assert seen['twinlock_stream_replicas_current{stream="TW_0000"}'] == 3
    assert seen['twinlock_nats_sync_always{server="here-1"}'] == 1
    assert seen['twinlock_nats_certificate_ends_timestamp_seconds{server="here-1"}'] > 1.7e9
    assert seen["twinlock_cluster_seen_timestamp_seconds"] == 1234


@pytest.mark.slow
def test_a_server_that_is_gone_is_told(tmp_path):
    with ShippedCluster(tmp_path, 3) as cluster:
        asyncio.run(make_cluster(cluster))
        operator = cluster.keys / "operator"
        watcher = Watcher(cluster.url, operator)
        asyncio.run(wait_for_copies(watcher))
        cluster.kill(a_follower(cluster))
        found = list(examined(options_of(cluster), operator, []))
        asyncio.run(watcher.look())
    seen = figures(watcher.metrics.render().decode())

    assert any("2 of 3 servers answer" in what for what in bad(found))
    assert any("cannot be used" in what for what in bad(found))
    assert seen["twinlock_nats_servers"] == 2


def a_follower(cluster):
    """Return a server that leads nothing, so that the others need not elect anybody first."""
    _, page = cluster.nodes[0].get("/jsz")
    leading = {cluster.leader_of("TW_0000"), cluster.leader_of("TW_DIRECTORY_0")}
    free = [place for place in range(len(cluster.nodes)) if place not in leading]
    return next((place for place in free if cluster.nodes[place].name != page["meta_cluster"]["leader"]), free[0])


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


def test_one_server_that_is_gone_is_one_thing_to_mend_however_many_streams_lack_it():
    followers = [ReplicaFacts(server="b", current=True, offline=False, lag=0)]
    followers.append(ReplicaFacts(server="c", current=False, offline=True, lag=7))
    lacking = StreamFacts(
        name="TW_0000",
        messages=0,
        bytes=0,
        last_seq=0,
        subjects_count=0,
        replicas=3,
        leader="a",
        followers=followers,
        subjects=[],
        mirror=None,
    )
    streams = [msgspec.structs.replace(lacking, name=f"TW_{place:04x}") for place in range(500)]
    streams.append(msgspec.structs.replace(lacking, name="TW_DIRECTORY_0", leader=""))

    gone, leaderless = judge_streams(streams, 2)

    assert gone.what == "TW_0000, TW_0001, TW_0002 and 497 more: 2 of 3 copies are up to date"
    assert gone.fix == "Look at c."
    assert leaderless.what == "TW_DIRECTORY_0: no leader"


def test_what_to_read_about_too_few_copies_is_there():
    stream = StreamFacts(
        name="TW_0000",
        messages=1,
        bytes=1,
        last_seq=1,
        subjects_count=1,
        replicas=1,
        leader="a",
        followers=[],
        subjects=["tw.0000.*"],
        mirror=None,
    )
    (finding,) = judge_streams([stream], 3)
    path, _, anchor = finding.fix.rstrip(".").rpartition(" ")[2].partition("#")
    page = (DEPLOY.parent / path).read_text(encoding="utf-8")

    assert finding.verdict is Verdict.BAD
    assert anchor in anchors_of(page)
    assert "From one copy to three" in page


def told_by_the_command(config, *options):
    """Run the command; return its exit status and what it said of the cluster and of backups."""
    done = CliRunner().invoke(commands, ["doctor", "--config", str(config), *options])
    lines = [line.split(maxsplit=2) for line in done.output.splitlines()]
    return done.exit_code, {
        words[2]: words[0] for words in lines if len(words) == 3 and words[1] in ("cluster", "backup")
    }


def test_the_command_looks_at_everything_that_nodes_share(tmp_path):
    config = tmp_path / "twinlock.toml"
    data, blobs, other = tmp_path / "data", tmp_path / "blobs", tmp_path / "other"
    with ShippedCluster(tmp_path, 1) as cluster:
        asyncio.run(make_cluster(cluster))
        settings = {
            "data": str(data),
            "engine": cluster.url,
            "nats_ca_file": str(cluster.authority),
            "nats_nkey_file": str(cluster.seed_of("sync-1")),
            "blobs": str(blobs),
            "keyservice_url": "http://127.0.0.1:9",
            "keyservice_pk": "ab" * 32,
            "port": 0,
        }
        config.write_text("".join(f"{name} = {json.dumps(value)}\n" for name, value in settings.items()))
        asyncio.run(set_identity(cluster, open_secrets(data).server_id))
        _, good = told_by_the_command(config, "--operator", str(cluster.keys / "operator"))
        asyncio.run(set_identity(cluster, open_secrets(other).server_id))
        config.write_text(config.read_text().replace(str(blobs), ""))
        status, wrong = told_by_the_command(config, "--backup", str(tmp_path / "no-backups"))

    assert {what for what, verdict in good.items() if verdict == "fail"} == set()
    assert any("is the identity of the cluster" in what for what in good)
    assert any("1 of them open for new spaces" in what for what in good)
    assert any("takes parts of files and gives them back" in what for what in good)
    assert status == 1
    failures = " ".join(what for what, verdict in wrong.items() if verdict == "fail")
    assert "that of another server" in failures
    assert "in this node's own folder" in failures
    assert "no-backups" in failures


async def set_identity(cluster, server_id):
    engine = await JetstreamEngine.connect("", cluster.options(cluster.seed_of("sync-1")))
    await engine.directory.put(IDENTITY_KEY, server_id)
    await engine.close()
