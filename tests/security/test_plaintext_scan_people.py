"""A story of people and of a key service of its own: no word and no key on any disk or wire, in any log or metric.

As `test_plaintext_scan`, for what came later: pairing, invites, names of devices, key files, revocation, and what a
server and a key service in another process say to each other.
"""

import asyncio
import json
import logging
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack

import pytest

import twinlock
from tests.client_kit import until
from tests.security.test_plaintext_scan import Evidence
from twinlock.client import pairing
from twinlock.keyservice.key_files import NODE_KEY_NAME, SERVICE_KEY_NAME, open_signing_key, public_key_text
from twinlock.sealing import RecoveryKit
from twinlock.sealing.invites import InviteKeys, parse_link
from twinlock.testing.keyservice_process import KeyServiceChild
from twinlock.testing.plaintext import Marker, files_below, search
from twinlock.testing.processes import LOG_FILE_NAME, ServerProcess
from twinlock.testing.traffic_tap import TrafficTap, free_port

EMPTY_PAGE = bytes(4096)
PASSWORD = "Zephyranthes-passphrase-9"
WORDS = {
    "space": "Quetzalcoatlus-title",
    "value": "Velociraptor-value",
    "after": "Allosaurus-after-removal",
    "phone": "Archaeopteryx-telephone",
    "renamed": "Pterodactylus-tablet",
    "reading": "Stegosaurus-reading",
}


class Story:
    """The processes, the wires between them, and what must not be found in any place."""

    def __init__(self, folder) -> None:
        self.folder = folder
        data = folder / "server" / "data"
        data.mkdir(parents=True)
        self.node_key = open_signing_key(data / NODE_KEY_NAME)
        self.keys = KeyServiceChild(folder / "keys", [public_key_text(self.node_key)], log_level="debug")
        self.inner = TrafficTap(self.keys.port, free_port())
        port = free_port()
        self.server = ServerProcess(
            folder / "server",
            origins=[f"ws://127.0.0.1:{port}"],
            log_level="debug",
            keyservice_url=f"http://127.0.0.1:{self.inner.port}",
            keyservice_pk=self.keys.public_key,
        )
        self.outer = TrafficTap(self.server.port, port)
        self.logs = Evidence()
        self.metrics: dict[str, bytes] = {}
        self.secrets: list[Marker] = []

    async def tell(self) -> None:
        """Let everything happen that people and keys do."""
        async with AsyncExitStack() as stack:
            await asyncio.to_thread(self.keys.start)
            await stack.enter_async_context(self.inner)
            await asyncio.to_thread(self.server.start)
            await stack.enter_async_context(self.outer)
            url = self.outer.url
            options = twinlock.Options(device_name=WORDS["phone"])
            ada = await twinlock.sign_up(url, "ada", PASSWORD, profile=self.folder / "ada", options=options)
            await stack.enter_async_context(ada)
            kit = ada.recovery_kit()
            await twinlock.create_service_account(url, "worker", self.folder / "worker.json")
            worker = await twinlock.connect(key_file=self.folder / "worker.json", profile=self.folder / "worker")
            await stack.enter_async_context(worker)
            await self.live(ada, worker, stack)
            self.note(ada, kit)
            self.metrics = {"server": self.server.get("/metrics")[1], "keys": self.keys.get("/metrics")[1]}

    async def live(self, ada, worker, stack) -> None:
        """Pair, invite, write, revoke, remove, shred."""
        space = await ada.create_space(WORDS["space"])
        links = [await space.invite("editor"), await space.invite("reader", uses=3)]
        joined = await worker.join(links[0])
        await (await joined.collection("notes").doc("x").set({"text": WORDS["value"]})).durable()
        self.note(worker, "")
        request = await twinlock.pair_device(self.outer.url, self.folder / "tablet", device_name=WORDS["renamed"])
        digits = await ada.pair_device(request.code)
        assert (await request.approved()).digits == digits
        new = await request.confirm(PASSWORD + "x")
        await stack.enter_async_context(new)
        await until(lambda: WORDS["space"] in [info.title for info in new.spaces()])
        await new.synced()
        self.note(new, "")
        assert {info.name for info in await ada.devices()} == {WORDS["phone"], WORDS["renamed"]}
        await space.remove("worker")
        await (await space.collection("notes").doc("y").set({"text": WORDS["after"]})).durable()
        lost = next(info.id for info in await ada.devices() if not info.this)
        await ada.revoke(lost, stolen=True)
        self.secrets += kit_markers(ada.recovery_kit())
        for link in map(parse_link, links):
            keys = InviteKeys.of(link.space, link.secret).expose()
            self.secrets += [Marker.of_bytes(part[at : at + 16]) for part in (link.secret, keys) for at in (0, 16)]

    def note(self, db, kit: str) -> None:
        """Remember the keys that a device holds now."""
        device = db._context.state.device_keys.expose()
        keys = [device[:32], device[32:], db._context.state.account_kem.kem.private_bytes_raw()]
        for runtime in db._courier.runtimes.values():
            for epoch in runtime.keyring.log.epochs:
                if (opened := runtime.keyring.keys(epoch)) is not None:
                    parts = (opened.member_key, opened.service_key, opened.data_key)
                    keys += [part.expose() for part in parts]
        self.secrets += [Marker.of_bytes(key[at : at + 16]) for key in keys for at in (0, 16)]
        if kit:
            self.secrets += [
                Marker.of_text(PASSWORD),
                Marker.of_text(kit),
                Marker.of_bytes(RecoveryKit.parse(kit).expose()),
            ]

    def markers(self) -> list[Marker]:
        """Return all that must not be found, each once."""
        found = [Marker.of_text(word) for word in WORDS.values()] + self.secrets
        return list({marker.word: marker for marker in found}.values())

    def identities(self) -> list[Marker]:
        """Return the private keys of server and key service, which stand in one file each and nowhere else."""
        found = []
        for path in (self.keys.data / SERVICE_KEY_NAME, self.server.data / NODE_KEY_NAME):
            raw = open_signing_key(path).private_bytes_raw()
            found += [Marker.of_bytes(raw[at : at + 16]) for at in (0, 16)]
        return found

    def places(self) -> dict[str, bytes]:
        """Return everything that lies on a disk, passed on a wire, or was logged or counted."""
        folders = {"server": self.server.folder, "key service": self.keys.folder}
        folders |= {f"device {name}": self.folder / name for name in ("ada", "worker", "tablet")}
        found = {f"{where}: {name}": data for where, at in folders.items() for name, data in files_below(at).items()}
        found |= {f"devices' {name}": data for name, data in self.outer.recorded().items()}
        for number, recording in enumerate(self.inner.recordings):
            found[f"server to key service {number}"] = bytes(recording.to_server)
            found[f"key service to server {number}"] = bytes(recording.to_client)
        found |= {f"metrics of the {name}": text for name, text in self.metrics.items()}
        found |= {"logs of the devices": self.logs.text.encode()}
        # A write-ahead log has room for megabytes: what is empty need not be searched.
        return {name: data.replace(EMPTY_PAGE, b"") for name, data in found.items()}


def kit_markers(kit: str) -> list[Marker]:
    """A kit as it is written down, and what it stands for."""
    return [Marker.of_text(kit), Marker.of_bytes(RecoveryKit.parse(kit).expose())]


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    """Tell the story once; in a thread of its own, since it needs a loop of its own."""
    story, logger = Story(tmp_path_factory.mktemp("people")), logging.getLogger("twinlock")
    level = logger.level
    logger.addHandler(story.logs)
    logger.setLevel(logging.DEBUG)
    quick = pytest.MonkeyPatch()
    quick.setattr(pairing, "POLL_INTERVAL_S", 0.02)
    try:
        with ThreadPoolExecutor(1) as thread:
            thread.submit(asyncio.run, story.tell()).result()
        return story, story.places()
    finally:
        story.server.kill()
        story.keys.kill()
        quick.undo()
        logger.removeHandler(story.logs)
        logger.setLevel(level)


def test_no_plaintext_and_no_key_of_people_is_found_anywhere(told):
    story, places = told

    # What is searched is what there is: both processes' disks and logs at debug level, and the wire between them.
    sizes = {name: len(data) for name, data in places.items()}
    assert sizes["key service: data/keyservice.db"] > 4_000
    assert b"listening" in places[f"key service: {LOG_FILE_NAME}"]
    assert sum(size for name, size in sizes.items() if "to key service" in name) > 5_000
    assert sum(size for name, size in sizes.items() if name.startswith("devices' wire")) > 20_000
    assert sizes["metrics of the keys"] > 300
    assert len(story.markers()) > 50
    assert search(places, story.markers()) == []


def test_identities_of_server_and_key_service_stand_in_their_own_files_only(told):
    story, places = told

    found = {hit.place for hit in search(places, story.identities())}

    assert found == {f"key service: data/{SERVICE_KEY_NAME}", f"server: data/{NODE_KEY_NAME}"}


def test_a_key_file_holds_the_kit_and_no_key_besides(told):
    """Who has it is that account, by the kit; neither the account's keys nor a device's lie in it."""
    story, _ = told
    data = (story.folder / "worker.json").read_bytes()

    assert set(json.loads(data)) == {"url", "server_id", "name", "kit"}
    assert search({"key file": data}, story.markers()) == []
    assert search(told[1], kit_markers(json.loads(data)["kit"])) == []


def test_the_scan_would_find_a_key_in_what_server_and_key_service_say_to_each_other(told):
    """The control: also there, where bodies are MessagePack over HTTP."""
    story, places = told
    for place in places:
        if "key service" in place or "metrics" in place:
            planted = {place: places[place][:500] + story.secrets[0].forms["raw"] + places[place][500:900]}
            assert [hit.place for hit in search(planted, story.markers()[:20])] == [place]
    calls = [data for name, data in places.items() if name.startswith("server to key service")]
    assert any(b"POST /calls" in data for data in calls), "and what is no secret is there in clear"
