"""The shipped configuration of NATS, run by a real server: who is let in, and what each key may do."""

import asyncio
import json
import os
import signal
import ssl

import msgspec
import nats
import nkeys
import pytest
from typer.testing import CliRunner

from tests.deploy.cluster_kit import ShippedCluster, ask, wait_for_text
from twinlock.cli.cluster_keys import make_keys
from twinlock.cli.commands import commands
from twinlock.testing.traffic_tap import LOOPBACK


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    with ShippedCluster(tmp_path_factory.mktemp("nats"), 1, nodes=("sync-1", "sync-2")) as cluster:
        yield cluster


class Dialled:
    """A connection and the violations that the server told it of."""

    def __init__(self, cluster, seed):
        self._cluster = cluster
        self._seed = seed
        self._errors = asyncio.Queue()

    async def __aenter__(self):
        self.connection = await self._cluster.dial(self._seed, error_cb=self._errors.put)
        return self

    async def __aexit__(self, *_):
        await self.connection.close()

    async def refusal(self, subject):
        """Publish something that must be refused, and return what the server said of it."""
        await self.connection.publish(subject, b"{}")
        return await self._told()

    async def refusal_to_listen(self, subject):
        """Subscribe to something that must be refused, and return what the server said of it."""
        await self.connection.subscribe(subject)
        return await self._told()

    async def _told(self):
        async with asyncio.timeout(5):
            return str(await self._errors.get())


def node(cluster):
    return Dialled(cluster, cluster.seed_of("sync-1"))


async def test_what_it_acknowledges_is_on_the_disk_and_an_append_fits(cluster):
    _, page = cluster.nodes[0].get("/varz")

    assert page["jetstream"]["config"]["sync_always"] is True
    assert page["max_payload"] == 8 << 20


async def test_a_key_that_nobody_listed_is_refused(cluster, tmp_path):
    seed = tmp_path / "stranger.nk"
    seed.write_bytes(nkeys.encode_seed(os.urandom(32), nkeys.PREFIX_BYTE_USER))

    with pytest.raises(nats.errors.Error, match=r"(?i)authorization"):
        await cluster.dial(seed, max_reconnect_attempts=1)


async def test_nobody_gets_in_without_a_key(cluster):
    tls = ssl.create_default_context(cafile=cluster.authority)

    with pytest.raises(nats.errors.Error, match=r"(?i)authorization"):
        await nats.connect(cluster.url, tls=tls, allow_reconnect=False)


async def test_plaintext_is_refused_before_anything_is_said(cluster):
    reader, writer = await asyncio.open_connection(LOOPBACK, cluster.nodes[0].port)
    greeting = json.loads((await reader.readline()).removeprefix(b"INFO "))
    writer.write(b'CONNECT {"verbose":true}\r\nPING\r\n')
    answer = await reader.read()
    writer.close()

    assert greeting["tls_required"] is True
    assert b"PONG" not in answer


async def test_a_server_of_another_authority_is_not_believed(cluster, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    make_keys(other, cluster.members)
    tls = ssl.create_default_context(cafile=other / "ca.pem")

    with pytest.raises(ssl.SSLCertVerificationError):
        await nats.connect(cluster.url, tls=tls, nkeys_seed=str(cluster.seed_of("sync-1")), allow_reconnect=False)


@pytest.mark.parametrize(
    "subject",
    [
        "orders.new",
        "live.0001.aa",
        "$JS.API.STREAM.DELETE.TW_0001",
        "$JS.API.STREAM.UPDATE.TW_0001",
        "$JS.API.STREAM.CREATE.ORDERS",
        "$JS.API.STREAM.RESTORE.TW_0001",
        "$JS.API.STREAM.SNAPSHOT.TW_0001",
        "$JS.API.STREAM.MSG.DELETE.TW_0001",
        "$JS.API.STREAM.PEER.REMOVE.TW_0001",
        "$JS.API.STREAM.LEADER.STEPDOWN.TW_0001",
        "$JS.API.CONSUMER.CREATE.TW_0001",
        "$JS.API.META.LEADER.STEPDOWN",
        "$JS.API.SERVER.REMOVE",
        "$JS.API.ACCOUNT.PURGE.TWINLOCK",
        "$SYS.REQ.SERVER.PING.VARZ",
        "$SYS.REQ.ACCOUNT.PING.CONNZ",
    ],
)
async def test_a_nodes_key_reaches_nothing_but_its_own_streams(cluster, subject):
    async with node(cluster) as dialled:
        assert subject.lower() in await dialled.refusal(subject)


@pytest.mark.parametrize("subject", [">", "$SYS.>", "$JS.>", "tw.>", "orders.>"])
async def test_a_nodes_key_overhears_nothing(cluster, subject):
    async with node(cluster) as dialled:
        assert subject.lower() in await dialled.refusal_to_listen(subject)


@pytest.mark.parametrize(
    "subject", ["tw.0001.aa", "sig.aa", "$JS.API.STREAM.CREATE.TW_0001", "$JS.API.STREAM.PURGE.TW_0001"]
)
async def test_the_doctors_key_changes_nothing(cluster, subject):
    async with Dialled(cluster, cluster.seed_of("operator", "doctor.nk")) as dialled:
        assert subject.lower() in await dialled.refusal(subject)
        assert (await ask(dialled.connection, "$JS.API.STREAM.LIST"))["total"] >= 0


@pytest.mark.parametrize("subject", ["$SYS.REQ.SERVER.PING.KICK", "$SYS.REQ.CLAIMS.UPDATE", "$JS.API.STREAM.LIST"])
async def test_the_monitors_key_asks_how_servers_are_and_no_more(cluster, subject):
    async with Dialled(cluster, cluster.seed_of("operator", "monitor.nk")) as dialled:
        page = await ask(dialled.connection, "$SYS.REQ.SERVER.PING.VARZ")
        assert page["data"]["server_name"] == cluster.nodes[0].name
        assert subject.lower() in await dialled.refusal(subject)


def test_three_servers_find_one_another_and_take_in_no_stranger(tmp_path):
    with ShippedCluster(tmp_path, 3) as cluster:
        stranger = ShippedCluster(tmp_path / "strange", 1, site="here")
        conf = stranger.keys / "here-0" / "server.conf"
        routes = (cluster.keys / "here-0" / "server.conf").read_text().partition("cluster {")[2]
        stolen = routes.replace(str(cluster.keys), str(stranger.keys)).replace(
            f"{LOOPBACK}:{cluster.nodes[0].route_port}", f"{LOOPBACK}:{stranger.nodes[0].route_port}"
        )
        conf.write_text(f"{conf.read_text()}\ncluster {{{stolen}".replace('"here-0"', '"stranger"'))
        try:
            stranger.nodes[0].launch()
            wait_for_text(stranger.nodes[0], "TLS route handshake error")
        finally:
            stranger.kill_all()
        _, page = cluster.nodes[1].get("/routez")

        assert {route["remote_name"] for route in page["routes"]} == {"here-0", "here-2"}


async def test_a_key_that_is_added_is_let_in_after_a_reload_that_cuts_nobody_off(cluster):
    old = await cluster.dial(cluster.seed_of("sync-1"))
    members = msgspec.structs.replace(cluster.members, nodes={**cluster.members.nodes, "sync-9": ""})
    (cluster.keys / "sync-9").mkdir()
    make_keys(cluster.keys, members)
    os.kill(cluster.nodes[0].pid, signal.SIGHUP)
    wait_for_text(cluster.nodes[0], "Reloaded server configuration")
    new = await cluster.dial(cluster.seed_of("sync-9"))
    await old.flush()
    is_connected = old.is_connected
    await new.close()
    await old.close()

    assert is_connected
    assert new.stats["reconnects"] == old.stats["reconnects"] == 0


def test_tags_and_members_are_added_later_and_what_exists_stays(tmp_path):
    def run(*arguments):
        return CliRunner().invoke(commands, ["cluster", "keys", str(tmp_path / "keys"), *arguments])

    first = run("--site", "berlin", "--server", "nats-1=10.0.0.1", "--node", "sync-1")
    seed = (tmp_path / "keys" / "sync-1" / "nats.nk").read_bytes()
    second = run("--server", "nats-2=10.0.0.2", "--tag", "nats-2=b", "--node", "sync-2")
    third = run("--tag", "nats-7=b")
    one, two = ((tmp_path / "keys" / name / "server.conf").read_text() for name in ("nats-1", "nats-2"))

    assert (first.exit_code, second.exit_code, third.exit_code) == (0, 0, 2)
    assert (tmp_path / "keys" / "sync-1" / "nats.nk").read_bytes() == seed
    assert "nats-route://10.0.0.2:6222" in one
    assert 'server_tags: ["b"]' in two
    assert 'SITE = "berlin"' in two
    assert (tmp_path / "keys" / "nats-2" / "accounts.conf").read_text().count("permissions: $NODE") == 2
