"""From one file to a NATS cluster and back: backups, restores and moves, with devices that go on all the time."""

import asyncio
import secrets
import shutil

import msgspec
import pytest

from tests.backup_kit import all_entries, now_ms, objects_of, opened, records_of
from tests.client_kit import values
from tests.integration.test_migrate import Writer, no_stop, restart_at, steps
from twinlock.backup import EnginePlace, make_backup, migrate, open_backup, open_reading, open_writing, restore
from twinlock.contracts import MOVING_KEY
from twinlock.engines.blobs import open_blobs
from twinlock.engines.jetstream import JetstreamEngine
from twinlock.errors import StoreError
from twinlock.keyservice.service import LocalKeyService
from twinlock.server import Server, Settings
from twinlock.server.secrets_file import open_secrets
from twinlock.server.stores import Stores
from twinlock.testing.contracts import Chain
from twinlock.testing.contracts.envelopes import new_space
from twinlock.testing.nats_process import NatsCluster


@pytest.fixture
def nats(tmp_path):
    with NatsCluster(tmp_path / "nats", nodes=1) as servers:
        yield servers


@pytest.fixture
def cluster(nats, tmp_path):
    return EnginePlace(nats.url, str(tmp_path / "cluster-blobs"))


@pytest.fixture
async def source(tmp_path):
    """A data folder with some spaces, a cut one and a purged one among them."""
    chains = [Chain(new_space(number)) for number in range(4)]
    async with opened(tmp_path / "old") as holdings:
        for chain in chains:
            seqs = await holdings.log.append(chain.space, chain.take(6), 1_000)
            await holdings.directory.put(f"name/{chain.space.hex()}", secrets.token_bytes(20))
            await holdings.blobs.put(f"blobs/{chain.space.hex()}/{'0' * 32}/00000000", chain.space)
        await holdings.log.cut(chains[2].space, seqs[2] - 6, 2_000)
        await holdings.log.purge(chains[3].space)
    return chains


def carried(records):
    """Leave out what is of an engine, and the births, which tell the lives of each."""
    apart = ("birth/", "heads/", "start/", "cluster/", MOVING_KEY)
    return {key: value for key, value in records.items() if not key.startswith(apart)}


async def held(place):
    async with open_reading(place) as holdings:
        heads = {each.space: dict((await holdings.log.state(each.space)).heads) async for each in holdings.all_places()}
        return heads, await all_entries(holdings), carried(await records_of(holdings)), await objects_of(holdings.blobs)


async def test_what_a_file_held_a_cluster_holds_and_a_file_again(source, tmp_path, nats, cluster):
    before = await held(EnginePlace(f"sqlite:{tmp_path / 'old'}"))

    there = await migrate(EnginePlace(f"sqlite:{tmp_path / 'old'}"), cluster, steps(), now_ms)
    on_cluster = await held(cluster)
    async with open_writing(cluster) as holdings:
        for chain in source:
            await holdings.log.append(chain.space, [chain.next()], 9_000)
    back = await migrate(cluster, EnginePlace(f"sqlite:{tmp_path / 'back'}"), steps(), now_ms)

    assert on_cluster == before
    assert there.verified.spaces_count == back.verified.spaces_count == 4
    _, entries, records, objects = await held(EnginePlace(f"sqlite:{tmp_path / 'back'}"))
    assert (records, objects) == before[2:]
    for chain in source:
        assert entries[chain.space][:-1] == before[1][chain.space]
    # The nodes of the cluster refuse what was moved away.
    (tmp_path / "node").mkdir(mode=0o700)
    engine = await JetstreamEngine.connect(nats.url)
    assert b"away" in (await engine.directory.get(MOVING_KEY)).value
    await engine.close()


async def test_a_clusters_backup_comes_back_on_an_empty_cluster(source, tmp_path, cluster):
    await migrate(EnginePlace(f"sqlite:{tmp_path / 'old'}"), cluster, steps(no_stop), now_ms)
    async with open_reading(cluster) as holdings, open_backup(str(tmp_path / "backup"), is_made=True) as store:
        made = await make_backup(holdings, store, now_ms)
        again = await make_backup(holdings, store, now_ms)
        assert again.manifest.written_bytes == 0
        with NatsCluster(tmp_path / "other", nodes=1) as other:
            empty = EnginePlace(other.url, str(tmp_path / "other-blobs"))
            async with open_writing(empty) as into:
                restored = await restore(made.manifest, store, into, now_ms)
                with pytest.raises(StoreError, match="already"):
                    await restore(made.manifest, store, into, now_ms)
            assert restored.problems == []
            assert await held(empty) == await held(cluster)
            async with open_writing(empty) as into:
                for chain in source:
                    births = (await into.directory.get(f"birth/{chain.space.hex()}")).value
                    assert msgspec.msgpack.decode(births)[-1] == [into.log.incarnation, 0]
                    await into.log.append(chain.space, [chain.next()], 9_000)


class NodeInThisProcess:
    """A server on a cluster, at the address that devices know, with the key service of its former life."""

    def __init__(self, world, place, folder):
        self._world = world
        self._place = place
        self._folder = folder

    async def start(self):
        engine = await JetstreamEngine.connect(self._place.url)
        blobs = open_blobs(self._place.blob_place)
        keys = LocalKeyService.open(self._folder / "keyservice")

        async def close():
            await keys.close()
            await engine.close()
            await blobs.close()

        stores = Stores(
            log=engine.log,
            directory=engine.directory,
            broker=engine.broker,
            blobs=blobs,
            keys=keys,
            secrets=open_secrets(self._folder),
            close=close,
            is_shared=True,
        )
        settings = Settings(port=self._world.server.port, log_level="error", drain_ms=200)
        self._world.server = Server(settings, stores)
        await self._world.server.start()


@pytest.mark.slow
async def test_devices_write_on_while_their_server_moves_to_a_cluster_and_back(account_world, tmp_path, cluster):
    world = account_world
    a, b = await world.device("a"), await world.device("b")
    counter = (await a.space("home").collection("todos").add({"who": "nobody", "total": 0})).id
    await asyncio.gather(a.synced(), b.synced())
    writers = [Writer(a, "a", counter), Writer(b, "b", counter)]
    old, back = tmp_path / "server", tmp_path / "back"

    there = await migrate(EnginePlace(f"sqlite:{old}"), cluster, steps(world.stop), now_ms)
    await NodeInThisProcess(world, cluster, old).start()
    await asyncio.sleep(0.5)
    again = await migrate(cluster, EnginePlace(f"sqlite:{back}"), steps(world.stop), now_ms)
    for name in ("server.key", "keyservice"):
        (shutil.copytree if (old / name).is_dir() else shutil.copy)(old / name, back / name)
    await restart_at(world, back)
    await asyncio.sleep(0.2)
    for writer in writers:
        await writer.end()

    expected = {(writer.name, n) for writer in writers for n in range(writer.count)} | {("nobody", None)}
    async with asyncio.timeout(60):
        while True:
            shown = [values(await writer.todos.get()) for writer in writers]
            if all(len(each) == len(expected) for each in shown):
                break
            await asyncio.sleep(0.05)
    for each in shown:
        assert {(doc["who"], doc.get("n")) for doc in each} == expected
        assert next(doc for doc in each if doc["who"] == "nobody")["total"] == sum(w.count for w in writers)
    assert there.cutover_ms < 10_000
    assert again.cutover_ms < 10_000
