"""The story of marked words in a cluster, with files and a backup: none of them, and no key, is found anywhere.

As `test_plaintext_scan`, for what a cluster adds: the folders of NATS, the wires between nodes and NATS, the objects of
files and a backup. Besides, what opens doors at the server itself, `server.key` and bearer tokens, stands in no log, no
directory and no backup.
"""

import asyncio
import logging
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, ExitStack

import pytest

import twinlock
from tests.security.test_plaintext_scan import PASSWORD, WORDS, Evidence, Story
from twinlock.keyservice.key_files import NODE_KEY_NAME, open_signing_key, public_key_text
from twinlock.server.secrets_file import FILE_NAME as SERVER_KEY_NAME
from twinlock.server.secrets_file import open_secrets
from twinlock.testing.keyservice_process import KeyServiceChild
from twinlock.testing.nats_process import NatsCluster
from twinlock.testing.plaintext import Marker, files_below, search
from twinlock.testing.processes import ServerProcess
from twinlock.testing.traffic_tap import LOOPBACK, TrafficTap, free_port

pytestmark = pytest.mark.slow

NODES = range(2)
FILE_WORDS = {
    "file's name": "Compsognathus-letter.txt",
    "file's type": "text/x-Parasaurolophus",
    "file's content": "Giganotosaurus-sentence-in-a-file ",
}
STORY_S_MAX = 60
FILE_COPIES = 60_000
"""So many times the sentence: a file of two chunks."""


class ClusterStory(Story):
    """One NATS server, a key service, two nodes, and a device at each; everything between them is recorded."""

    def __init__(self, folder) -> None:
        self.folder = folder
        self.nats = NatsCluster(folder / "nats", 1)
        homes = [folder / f"node-{place}" for place in NODES]
        self.server_secret = _give_server_key([home / "data" for home in homes])
        node_keys = [open_signing_key(home / "data" / NODE_KEY_NAME) for home in homes]
        self.keys = KeyServiceChild(folder / "keys", [*map(public_key_text, node_keys)], log_level="debug")
        self.nats_taps = [TrafficTap(self.nats.nodes[0].port, free_port()) for _ in NODES]
        tap_ports = [free_port() for _ in NODES]
        self.servers = [
            ServerProcess(
                home,
                origins=[f"ws://{LOOPBACK}:{port}" for port in tap_ports],
                engine=f"nats://{LOOPBACK}:{self.nats_taps[place].port}",
                keyservice_url=self.keys.url,
                keyservice_pk=self.keys.public_key,
                blobs=str(folder / "blobs"),
                log_level="debug",
            )
            for place, home in enumerate(homes)
        ]
        self.taps = [TrafficTap(server.port, port) for server, port in zip(self.servers, tap_ports, strict=True)]
        self.metrics = b""
        self.space = b""
        self.device = b""
        self.secrets: list[Marker] = []
        self.tokens: list[Marker] = []
        self.logs = Evidence()

    async def tell(self) -> None:
        """Let two devices live at two nodes, write, read and put a file; then back it all up."""
        async with AsyncExitStack() as stack:
            for tap in (*self.nats_taps, *self.taps):
                await stack.enter_async_context(tap)
            for server in self.servers:
                stack.callback(server.kill)
                await asyncio.to_thread(server.start)
            async with asyncio.timeout(STORY_S_MAX):
                await self.live(stack)
            self.metrics = b"".join([server.get("/metrics")[1] for server in self.servers])
            await asyncio.to_thread(self.back_up)
            for server in self.servers:
                await asyncio.to_thread(server.stop)

    async def live(self, stack) -> None:
        """Write at one node and read at the other."""
        here, there = (tap.url for tap in self.taps)
        a = await stack.enter_async_context(await twinlock.sign_up(here, "ada", PASSWORD, profile=self.folder / "a"))
        kit = a.recovery_kit()
        space = await a.create_space(WORDS["space"])
        b = await stack.enter_async_context(await twinlock.recover(there, "ada", kit, profile=self.folder / "b"))
        self.note_secrets(a, kit)
        self.space, self.device = bytes.fromhex(space.id), a._context.state.device_keys.device
        await self.write(a, b)
        content = FILE_WORDS["file's content"].encode() * FILE_COPIES
        file = await space.files.put(content, name=FILE_WORDS["file's name"], type=FILE_WORDS["file's type"])
        await a.synced()
        assert await _read(b.space(WORDS["space"]).files, file) == content
        self.tokens = [Marker.of_text(db._files.transfer._token.token) for db in (a, b)]

    def back_up(self) -> None:
        """Back the cluster up, as an operator does."""
        command = [sys.executable, "-m", "twinlock", "backup", str(self.folder / "backup")]
        told = subprocess.run(
            [*command, "--config", str(self.servers[0].config)], capture_output=True, timeout=60, check=False
        )
        (self.folder / "backup.log").write_bytes(told.stdout + told.stderr)
        assert told.returncode == 0, told.stderr

    def markers(self) -> list[Marker]:
        return super().markers() + [Marker.of_text(word) for word in FILE_WORDS.values()]

    def door_markers(self) -> list[Marker]:
        """Return what lets somebody in at the server: the halves of its secret, and tokens."""
        halves = [self.server_secret[:32], self.server_secret[32:]]
        return [*map(Marker.of_bytes, halves), *self.tokens]

    def places(self) -> dict[str, bytes]:
        wires = {f"nodes and NATS {place}": tap for place, tap in enumerate(self.nats_taps)}
        wires |= {f"devices and node {place}": tap for place, tap in enumerate(self.taps)}
        return {
            **{f"disk: {name}": data for name, data in files_below(self.folder).items()},
            **{f"{wire}: {name}": data for wire, tap in wires.items() for name, data in tap.recorded().items()},
            "metrics": self.metrics,
            "logs of the devices": self.logs.text.encode(),
        }


def _give_server_key(folders) -> bytes:
    open_secrets(folders[0])
    for other in folders[1:]:
        other.mkdir(mode=0o700, parents=True)
        shutil.copy2(folders[0] / SERVER_KEY_NAME, other / SERVER_KEY_NAME)
    return (folders[0] / SERVER_KEY_NAME).read_bytes()


async def _read(files, file) -> bytes:
    """Read a file as soon as it is complete there."""
    async with asyncio.timeout(20):
        while file.id not in [info.id for info in await files.list()]:  # noqa: ASYNC110
            await asyncio.sleep(0.02)
    return await files.get(file)


@pytest.fixture(scope="module")
def story(tmp_path_factory):
    """Tell the story once; in a thread of its own, since it needs a loop of its own."""
    logger = logging.getLogger("twinlock")
    level = logger.level
    with ExitStack() as stack:
        told = ClusterStory(tmp_path_factory.mktemp("cluster"))
        logger.addHandler(told.logs)
        logger.setLevel(logging.DEBUG)
        stack.callback(logger.setLevel, level)
        stack.callback(logger.removeHandler, told.logs)
        stack.enter_context(told.nats)
        stack.enter_context(told.keys)
        with ThreadPoolExecutor(1) as thread:
            thread.submit(asyncio.run, told.tell()).result()
        yield told


@pytest.fixture(scope="module")
def places(story):
    return story.places()


def of(places, *beginnings):
    return {name: data for name, data in places.items() if name.startswith(beginnings)}


def test_no_plaintext_and_no_key_is_found_anywhere_in_a_cluster(story, places):
    assert search(places, story.markers()) == []


def test_what_opens_doors_at_the_server_stands_in_no_log_directory_or_backup(story, places):
    """`server.key` is in the nodes' folders alone, and a token in nobody's but on the wire of whom it belongs to."""
    found = {hit.place for hit in search(places, story.door_markers())}

    own = {f"disk: node-{place}/data/{SERVER_KEY_NAME}" for place in NODES}
    assert own <= found
    assert [place for place in found - own if not place.startswith("devices and node")] == []
    assert not {hit.place for hit in search(of(places, "devices"), story.door_markers()[:2])}


def test_what_is_searched_is_what_there_is(story, places):
    """NATS stores and passes on in the clear what nodes give it, and so would it a leak: ids, no secrets, are found."""
    device, space = Marker.of_bytes(story.device), Marker.of_text(f"tw.{story.space[:2].hex()}.{story.space.hex()}")
    kinds = {
        "NATS on disk": of(places, "disk: nats/twinlock-0/store"),
        "nodes to NATS": {name: data for name, data in of(places, "nodes and NATS").items() if "to server" in name},
        "NATS to nodes": {name: data for name, data in of(places, "nodes and NATS").items() if "to client" in name},
    }
    for kind, some in kinds.items():
        assert search(some, [space]), kind
        assert search(some, [device]), kind
    assert search(of(places, "disk: backup/"), [device])
    assert sum(map(len, of(places, "disk: blobs/").values())) > 2_000_000
    for log in ("node-0/server.log", "node-1/server.log", "keys/server.log", "nats/twinlock-0/nats.log"):
        assert len(places[f"disk: {log}"]) > 100, log
    assert len(places["metrics"]) > 1_000
    assert b"generation 1" in places["disk: backup.log"]


def test_the_scan_finds_what_is_planted_into_each_place_of_a_cluster(story, places):
    """The control: a word, a name of a file and a key, put where a leak would put them."""
    planted = [WORDS["letters"].encode(), FILE_WORDS["file's name"].encode()]
    chosen = [name for name in places if "store" in name or "backup" in name or "log" in name or "NATS" in name]

    assert len(chosen) > 20
    for place in chosen:
        for data in planted:
            hits = search({place: places[place][:500] + data + places[place][500:900]}, story.markers())
            assert {hit.place for hit in hits} == {place}, place
        leaked = {place: places[place][:500] + story.server_secret[:32]}
        assert {hit.place for hit in search(leaked, story.door_markers())} == {place}
