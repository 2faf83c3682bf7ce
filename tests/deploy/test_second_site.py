"""Two real NATS clusters: one copies the other, the first is lost, and the second goes on."""

import asyncio
import shutil

import pytest

import twinlock
from tests.client_kit import PASSWORD, values
from tests.deploy.cluster_kit import ShippedCluster
from twinlock.cli.cluster_facts import ask
from twinlock.cli.cluster_keys import link_sites
from twinlock.cli.cluster_mirror import _take_back_cuts, promote_site, second_site
from twinlock.cli.doctor_cluster import connected
from twinlock.engines.jetstream import JetstreamEngine
from twinlock.engines.jetstream_cluster import FirstSettings
from twinlock.engines.jetstream_starts import Cut, Start, Starts
from twinlock.errors import StoreError
from twinlock.ids import Seq
from twinlock.keyservice.key_files import NODE_KEY_NAME, open_signing_key, public_key_text
from twinlock.testing.contracts import Chain
from twinlock.testing.contracts.envelopes import new_space
from twinlock.testing.keyservice_process import KeyServiceChild
from twinlock.testing.processes import ListeningProcess
from twinlock.testing.traffic_tap import LOOPBACK, free_port

SMALL = FirstSettings(partitions=2, shards=2)
NOW_MS = 1_700_000_000_000
ALL = 1 << 30


class Sites:
    """Two sites of some servers each; the second one's may read the first one's streams."""

    def __init__(self, folder, second_servers=1):
        self.first = ShippedCluster(folder, 1, site="one")
        self.second = ShippedCluster(folder, second_servers, site="two")
        link_sites(self.first.keys, self.second.keys)

    def __enter__(self):
        self.first.start_all()
        self.second.start_all()
        return self

    def __exit__(self, *_):
        self.first.kill_all()
        self.second.kill_all()

    def admin(self, site):
        return site.options(site.seed_of("operator", "admin.nk"))

    async def make(self):
        await (await JetstreamEngine.connect("", self.admin(self.first), first=SMALL)).close()

    async def node(self, site):
        return await JetstreamEngine.connect("", site.options(site.seed_of("sync-1")))

    async def set_up(self):
        async with second_site(self.admin(self.second), "one") as site:
            return await site.set_up()

    async def wait_until_copied(self):
        async with second_site(self.admin(self.second), "") as site, asyncio.timeout(30):
            while True:
                if all(status.behind == 0 for status in await site.status()):
                    return

    async def promote(self, **options):
        return await promote_site(self.admin(self.second), **options)


@pytest.fixture
def sites(tmp_path):
    with Sites(tmp_path) as sites:
        yield sites


async def test_what_was_copied_goes_on_at_the_second_site_with_the_same_seqs(sites):
    await sites.make()
    one = await sites.node(sites.first)
    space = new_space()
    chain = Chain(space)
    seqs = await one.log.append(space, chain.take(5), NOW_MS)
    await one.directory.put("account/a", b"first")
    await one.directory.put("account/a", b"second")
    await one.directory.put("account/b", b"gone")
    await one.directory.delete("account/b")
    made, again = await sites.set_up(), await sites.set_up()
    await sites.wait_until_copied()
    incarnation = one.log.incarnation
    # A tail that never arrives: the second site is away while it is written.
    sites.second.kill_all()
    tail = chain.take(3)
    await one.log.append(space, tail, NOW_MS)
    sites.first.kill_all()
    await one.close()
    sites.second.start_all()
    promoted = await sites.promote(is_planned=False)
    two = await sites.node(sites.second)
    read = await two.log.read(space, Seq(0), ALL)
    record = await two.directory.get("account/a")
    healed = await two.log.append(space, tail, NOW_MS)
    later = await two.directory.put("account/a", b"third", record.revision)
    accounts = await two.directory.list("account/")
    changed = two.log.incarnation != incarnation
    await two.close()

    assert len(made) == 4
    assert again == []
    assert promoted.first == "one"
    assert [entry.seq for entry in read] == seqs
    assert record.value == b"second"
    assert healed[0] > seqs[-1]
    assert later > record.revision
    assert set(accounts) == {"account/a"}
    assert changed, "cursors of the first site's last entries must not be taken for the second one's"


async def test_a_promotion_that_was_interrupted_is_ended_and_never_done_twice(sites):
    await sites.make()
    await sites.set_up()
    await sites.wait_until_copied()
    sites.first.kill_all()
    async with second_site(sites.admin(sites.second), "") as site:
        begun = await site.promote()
    first = await sites.promote(is_planned=False)
    again = await sites.promote(is_planned=False)
    engine = await sites.node(sites.second)
    incarnation = engine.log.incarnation
    await engine.close()
    await sites.promote(is_planned=False)
    engine = await sites.node(sites.second)
    unchanged = engine.log.incarnation == incarnation
    await engine.close()

    assert first.at_ms == again.at_ms == begun.at_ms
    assert unchanged


async def test_nobody_promotes_while_the_first_site_serves(sites, capsys):
    await sites.make()
    await sites.set_up()
    with pytest.raises(Exception, match="1"):
        await sites.promote(is_planned=False)
    refused = capsys.readouterr().err
    await sites.wait_until_copied()
    promoted = await sites.promote(is_planned=True)

    assert "first_site_alive" in refused
    assert promoted.first == "one"


async def test_a_cut_whose_snapshot_was_lost_is_taken_back(sites):
    await sites.make()
    engine = await sites.node(sites.first)
    space = new_space()
    chain = Chain(space)
    seqs = await engine.log.append(space, chain.take(3), NOW_MS)
    # What the directory of a promoted site says where the log is further behind than it.
    lost = Seq(seqs[-1] + 50 * 4096)
    starts = Starts(engine.directory)
    await starts.write(space, Start(Seq(lost + 1), Seq(0), 1000, 0, [Cut(lost, NOW_MS, 10)]), 0)
    await engine.close()
    engine = await sites.node(sites.first)
    hidden = await engine.log.read(space, Seq(0), ALL)
    await _take_back_cuts(engine)
    shown = await engine.log.read(space, Seq(0), ALL)
    await engine.close()

    assert hidden == []
    assert [entry.seq for entry in shown] == seqs


async def test_the_second_site_reads_and_writes_nothing_else(sites):
    await sites.make()
    await sites.set_up()
    heard = []
    async with (
        connected(sites.first.options(sites.first.seed_of("sync-1"))) as at_one,
        connected(sites.second.options(sites.second.seed_of("sync-1"))) as at_two,
    ):
        at_one.subscribe("sig.>", heard.append)
        at_two.publish("sig.from-two", b"x")
        at_two.publish("tw.0000.aa", b"x")
        # Answered behind what was published: by then it would have crossed.
        await ask(at_two, "$JS.API.STREAM.INFO.TW_0000")
        await sites.wait_until_copied()
        info = await ask(at_one, "$JS.API.STREAM.INFO.TW_0000")

    assert heard == []
    assert info["state"]["messages"] == 0


async def test_no_server_starts_at_a_site_that_only_copies(sites):
    await sites.make()
    await sites.set_up()
    with pytest.raises(StoreError, match="promote"):
        await sites.node(sites.second)


async def test_a_site_that_copies_nobody_is_not_promoted(sites):
    await sites.make()
    with pytest.raises(StoreError):
        await sites.promote(is_planned=False)


@pytest.mark.slow
async def test_a_second_site_of_three_servers_keeps_three_copies(tmp_path):
    with Sites(tmp_path, second_servers=3) as sites:
        await sites.make()
        one = await sites.node(sites.first)
        space = new_space()
        chain = Chain(space)
        seqs = await one.log.append(space, chain.take(5), NOW_MS)
        await sites.set_up()
        await sites.wait_until_copied()
        sites.first.kill_all()
        await one.close()
        await sites.promote(is_planned=False)
        sites.second.kill(0)
        two = await sites.node(sites.second)
        read = await two.log.read(space, Seq(0), ALL)
        await two.log.append(space, chain.take(1), NOW_MS)
        await two.close()

    assert [entry.seq for entry in read] == seqs


@pytest.mark.slow
async def test_a_lost_site_comes_back_as_the_second_and_takes_over_again(sites):
    await sites.make()
    one = await sites.node(sites.first)
    space = new_space()
    chain = Chain(space)
    await one.log.append(space, chain.take(2), NOW_MS)
    await sites.set_up()
    await sites.wait_until_copied()
    sites.first.kill_all()
    await one.close()
    await sites.promote(is_planned=False)
    two = await sites.node(sites.second)
    await two.log.append(space, chain.take(2), NOW_MS)
    await two.close()
    # The way back: the lost site is wiped, and reads from the one that serves.
    shutil.rmtree(sites.first.nodes[0].store)
    link_sites(sites.second.keys, sites.first.keys)
    sites.second.kill_all()
    sites.second.start_all()
    sites.first.start_all()
    sites.first, sites.second = sites.second, sites.first
    async with second_site(sites.admin(sites.second), "two") as site:
        await site.set_up()
    await sites.wait_until_copied()
    await sites.promote(is_planned=True)
    back = await sites.node(sites.second)
    read = await back.log.read(space, Seq(0), ALL)
    await back.log.append(space, chain.take(1), NOW_MS)
    await back.close()

    assert len(read) == 4


class Server(ListeningProcess):
    """`twinlock serve` at a site; both sites' are dialled by the same address, as a name that is moved would do."""

    def __init__(self, folder, site, port, keys, blobs):
        settings = {
            "origins": [f"ws://{LOOPBACK}:{port}"],
            "engine": site.url,
            "nats_ca_file": str(site.authority),
            "nats_nkey_file": str(site.seed_of("sync-1")),
            "keyservice_url": keys.url,
            "keyservice_pk": keys.public_key,
            "blobs": str(blobs),
        }
        super().__init__(folder, "serve", port, settings)


def node_key(folder):
    return public_key_text(open_signing_key(folder / "data" / NODE_KEY_NAME))


@pytest.mark.slow
async def test_devices_go_on_at_the_second_site_and_give_it_what_it_lacks(sites, tmp_path):
    folders = tmp_path / "server-one", tmp_path / "server-two"
    port = free_port()
    with KeyServiceChild(tmp_path / "keyservice", [node_key(folder) for folder in folders]) as keys:
        await sites.make()
        first = Server(folders[0], sites.first, port, keys, tmp_path / "blobs")
        with first:
            shutil.copy(folders[0] / "data" / "server.key", folders[1] / "data" / "server.key")
            db = await twinlock.sign_up(f"ws://{LOOPBACK}:{port}", "ann", PASSWORD, profile=tmp_path / "a")
            todos = db.space("home").collection("todos")
            await todos.add({"text": "copied"})
            await db.synced()
            await sites.set_up()
            await sites.wait_until_copied()
            sites.second.kill_all()
            await todos.add({"text": "acknowledged, not copied"})
            await db.synced()
            sites.first.kill_all()
            first.kill()
        await todos.add({"text": "written while nobody served"})
        sites.second.start_all()
        await sites.promote(is_planned=False)
        with Server(folders[1], sites.second, port, keys, tmp_path / "blobs"):
            async with asyncio.timeout(60):
                await db.synced()
            kit = db.recovery_kit()
            other = await twinlock.recover(f"ws://{LOOPBACK}:{port}", "ann", kit, PASSWORD, profile=tmp_path / "b")
            theirs = other.space("home").collection("todos")
            async for snap in theirs.watch():
                if len(snap.docs) >= 3:
                    break
            await other.close()
            await db.close()

    assert {doc["text"] for doc in values(snap.docs)} == {
        "copied",
        "acknowledged, not copied",
        "written while nobody served",
    }
