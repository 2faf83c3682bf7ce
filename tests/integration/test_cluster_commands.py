"""An operator makes a cluster, looks at it, and opens and closes its partitions, on real NATS servers."""

import asyncio

import pytest
from typer.testing import CliRunner

from twinlock.cli.commands import commands
from twinlock.engines.jetstream import JetstreamEngine
from twinlock.engines.jetstream_room import Room
from twinlock.testing.contracts.envelopes import Chain, new_space
from twinlock.testing.nats_process import NatsCluster


def cluster(*arguments):
    return CliRunner().invoke(commands, ["cluster", *map(str, arguments)], env={"COLUMNS": "200"})


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """Three servers of which the last is on the new machine."""
    servers = NatsCluster(tmp_path_factory.mktemp("nats"), 3)
    for node, tags in zip(servers.nodes, ("old", "old", "new"), strict=True):
        node._settings["server_tags"] = f"[{tags}]"
    with servers:
        yield servers


def test_an_operator_makes_looks_opens_and_closes(site):
    nothing = cluster("status", site.url)
    made = cluster("init", site.url, "--partitions", 2, "--shards", 2, "--replicas", 1)
    again = cluster("init", site.url)
    opened = cluster("open-partitions", site.url, "--count", 2, "--tag", "new")
    nowhere = cluster("open-partitions", site.url, "--count", 1, "--tag", "no-such-machine")
    closed = cluster("close-partitions", site.url, "0-1")
    last = cluster("close-partitions", site.url, "2-3")
    missing = cluster("close-partitions", site.url, "3-5")
    reopened = cluster("open-partitions", site.url, "1")
    looked = cluster("status", site.url)

    assert nothing.exit_code == 1
    assert "no_cluster" in nothing.stderr
    assert made.exit_code == 0, made.stderr
    assert "2 partitions, open for new spaces: 0-1; 2 shards of the directory, 1 copies" in made.stderr
    assert again.exit_code == 1
    assert "cluster_exists" in again.stderr
    assert "4 partitions, open for new spaces: 0-3" in opened.stderr
    assert nowhere.exit_code == 1
    assert "store_failed" in nowhere.stderr
    assert "open for new spaces: 2-3; closed: 0-1" in closed.stderr
    assert "partitions_all_closed" in last.stderr
    assert missing.exit_code == 1
    assert "There is no partition 4-5: 0-3 are there." in missing.stderr
    assert "open for new spaces: 1-3; closed: 0" in reopened.stderr
    assert looked.exit_code == 0, looked.stderr
    rows = {line.split()[0]: line for line in looked.stdout.splitlines() if line.strip().startswith("TW_")}
    assert [name for name in rows if rows[name].split()[1] in ("open", "closed")] == [f"TW_000{n}" for n in range(4)]
    for name in ("TW_0002", "TW_0003"):
        assert site.nodes[2].name in rows[name]
        assert rows[name].split()[-1] == "new"


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("open-partitions", "--count", "2000"), "too_many_streams"),
        (("open-partitions", "0-2000"), "too_many_streams"),
        (("open-partitions", "65535-65536"), "invalid_call"),
        (("open-partitions", "nine"), "partitions_malformed"),
        (("close-partitions", "9-1"), "partitions_malformed"),
        (("open-partitions",), "partitions_missing"),
        (("init", "--partitions", "512", "--shards", "512"), "too_many_streams"),
    ],
)
def test_what_cannot_be_is_refused_by_its_code(site, arguments, code):
    if code in ("too_many_streams", "invalid_call"):
        asyncio.run(_ensure(site.url))
    command, *rest = arguments
    refused = cluster(command, site.url, *rest)

    assert refused.exit_code in (1, 2)
    assert code in refused.stderr


async def test_a_partition_that_is_full_takes_no_new_spaces(site):
    engine = await JetstreamEngine.connect(site.url)
    try:
        first = engine.settings.open[0]
        before = await Room(engine, spaces_max=1).open_partitions()
        space = new_space(first)
        await engine.log.append(space, [Chain(space).next()], 1)

        assert first in before
        assert first not in await Room(engine, spaces_max=1).open_partitions()
        assert first in await Room(engine, spaces_max=2).open_partitions()
    finally:
        await engine.close()


async def _ensure(url):
    engine = await JetstreamEngine.connect(url)
    await engine.close()


def test_a_server_without_jetstream_is_told(tmp_path):
    with NatsCluster(tmp_path, 1, settings={"jetstream": "false"}) as servers:
        looked = cluster("status", servers.url)

    assert looked.exit_code == 1
    assert "no_jetstream" in looked.stderr
