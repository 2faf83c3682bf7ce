"""A whole story with marked words: none of them, and no key, lies on a disk, passes on a wire, or stands in a log."""

import asyncio
import base64
import json
import logging
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from typing import NamedTuple

import msgspec
import pytest

import twinlock
from tests.client_kit import ShiftedClock, until
from twinlock.sealing import RecoveryKit
from twinlock.testing.plaintext import BASE64_ALIGNMENTS, Marker, files_below, search
from twinlock.testing.processes import ServerProcess
from twinlock.testing.traffic_tap import TrafficTap, free_port

DAY_MS = 25 * 3_600_000
PASSWORD = "Zephyranthes-passphrase-9"
WORDS = {
    "space": "Quetzalcoatlus-title",
    "collection": "Brontosaurus-collection",
    "document": "Archaeopteryx-document",
    "field": "Pterodactylus_field",
    "nested": "Ichthyosaurus_nested",
    "value": "Velociraptor-value",
    "letters": 'Plésiosaurus "zitiert" \\ Wert',
    "item": "Triceratops-item",
    "binary": "Stegosaurus-binary",
    "search": "Diplodocus",
    "changed": "Allosaurus-changed",
    "lost": "Iguanodon-conflict",
    "locked": "Megalosaurus-locked",
    "deleted": "Ankylosaurus-deleted",
}
NUMBER = 7_236_411_908_253_417_321
"""A number that occurs nowhere by chance, as MessagePack writes it and as text."""


class Evidence(logging.Handler):
    """Collects every log record of this process, with all that hangs on it."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.text = ""

    def emit(self, record: logging.LogRecord) -> None:
        self.text += f"{record.getMessage()} {vars(record)!r}\n"


class Story:
    """What was said and done: where the parties keep their files, and what must not be found."""

    def __init__(self, folder) -> None:
        port = free_port()
        self.folder = folder
        self.server = ServerProcess(folder / "server", origins=[f"ws://127.0.0.1:{port}"], log_level="debug")
        self.tap = TrafficTap(self.server.port, port)
        self.metrics = b""
        self.locked_files: dict[str, bytes] = {}
        self.secrets: list[Marker] = []
        self.logs = Evidence()

    async def tell(self) -> None:
        """Let two devices live through everything that handles contents."""
        clock = ShiftedClock()
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(self.tap)
            a = await twinlock.sign_up(self.tap.url, "ada", PASSWORD, profile=self.folder / "a")
            await stack.enter_async_context(a)
            kit = a.recovery_kit()
            await a.create_space(WORDS["space"])
            b = await twinlock.recover(self.tap.url, "ada", kit, profile=self.folder / "b")
            await stack.enter_async_context(b)
            self.note_secrets(a, kit)
            await self.write(a, b)
            await self.conflict(a, b)
            self.metrics = self.server.get("/metrics")[1]
        async with await connected(self.folder / "b", clock) as late:
            await self.write_locked(late, clock)
            self.locked_files = files_below(self.folder / "b")
        async with TrafficTap(self.server.port, self.tap.port) as again:
            async with await connected(self.folder / "b", ShiftedClock()) as late:
                await late.synced()
            self.tap.recordings += again.recordings

    async def write(self, a, b) -> None:
        """Write all kinds of values and search for some."""
        place = a.space(WORDS["space"]).collection(WORDS["collection"])
        document = place.doc(WORDS["document"])
        await document.set(
            {
                WORDS["field"]: {WORDS["nested"]: [WORDS["value"], WORDS["letters"]]},
                "number": NUMBER,
                "bytes": WORDS["binary"].encode(),
                "tags": [],
                "text": f"a {WORDS['search']} that is long " * 50,
            }
        )
        await document.update({"tags": twinlock.array_union(WORDS["item"]), f"{WORDS['field']}.n": 1})
        await place.doc(WORDS["deleted"]).set({WORDS["field"]: WORDS["deleted"]})
        await place.doc(WORDS["deleted"]).delete()
        await a.synced()
        await until(lambda: WORDS["space"] in [space.title for space in b.spaces()])
        await b.synced()
        there = b.space(WORDS["space"]).collection(WORDS["collection"])
        # The story is only worth its search if it took place.
        assert len(await there.search(WORDS["search"]).get()) == 1
        assert await there.where("number", "==", NUMBER).count() == 1

    async def conflict(self, a, b) -> None:
        """Change the same field on both sides while the wire is cut."""
        self.tap.cut()
        for db, word in ((a, WORDS["changed"]), (b, WORDS["lost"])):
            place = db.space(WORDS["space"]).collection(WORDS["collection"])
            await place.doc(WORDS["document"]).update({"state": word})
        await self.tap.plug_in()
        for db in (a, b):
            db._connection.reconnect_now()
            await until(lambda db=db: db.status == "connected")
            await db.synced()

    async def write_locked(self, db, clock) -> None:
        """Write while the lease has ended: into the side file."""
        clock.shift_ms += DAY_MS
        db._courier.tend()
        assert db.status == "locked"
        await db.space(WORDS["space"]).collection(WORDS["collection"]).doc("late").set({"late": WORDS["locked"]})

    def note_secrets(self, db, kit: str) -> None:
        """Remember every key that must not show up anywhere: those of the device, of the account and of the spaces."""
        state = db._context.state
        keys = [
            state.device_keys.expose()[:32],
            state.device_keys.expose()[32:],
            state.account_kem.kem.private_bytes_raw(),
        ]
        for runtime in db._courier.runtimes.values():
            opened = runtime.keyring.newest_keys()
            keys += [opened.member_key.expose(), opened.service_key.expose(), opened.data_key.expose()]
        raw = [key[start : start + 16] for key in keys for start in (0, 16)]
        self.secrets = [Marker.of_bytes(part) for part in raw]
        self.secrets += [Marker.of_text(PASSWORD), Marker.of_text(kit), Marker.of_text(kit.replace("-", ""))]
        self.secrets += [Marker.of_bytes(RecoveryKit.parse(kit).expose())]

    def markers(self) -> list[Marker]:
        """Return all that must not be found."""
        numbers = [Marker.of_bytes(msgspec.msgpack.encode(NUMBER)), Marker.of_text(str(NUMBER))]
        return [Marker.of_text(word) for word in WORDS.values()] + numbers + self.secrets

    def places(self) -> dict[str, bytes]:
        """Return everything that somebody other than the two devices' memory ever held."""
        return {
            **{f"server: {name}": data for name, data in files_below(self.server.folder).items()},
            **{f"device a: {name}": data for name, data in files_below(self.folder / "a").items()},
            **{f"device b: {name}": data for name, data in files_below(self.folder / "b").items()},
            **{f"device b while locked: {name}": data for name, data in self.locked_files.items()},
            **self.tap.recorded(),
            "metrics": self.metrics,
            "logs of the devices": self.logs.text.encode(),
        }


async def connected(profile, clock):
    """Open a profile with a clock that the test moves."""
    return await twinlock.connect(profile=profile, options=twinlock.Options(wall_ms=clock))


class Told(NamedTuple):
    """A story that was told, and everything that could be searched before and after the server's end."""

    story: Story
    while_served: dict[str, bytes]
    afterwards: dict[str, bytes]


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    """Tell the story once; in a thread of its own, since it needs a loop of its own."""
    story, logger = Story(tmp_path_factory.mktemp("story")), logging.getLogger("twinlock")
    level = logger.level
    logger.addHandler(story.logs)
    logger.setLevel(logging.DEBUG)
    try:
        with story.server, ThreadPoolExecutor(1) as thread:
            thread.submit(asyncio.run, story.tell()).result()
            while_served = story.places()
            story.server.stop()
        return Told(story, while_served, story.places())
    finally:
        logger.removeHandler(story.logs)
        logger.setLevel(level)


def test_no_plaintext_and_no_key_is_found_anywhere(told):
    places, story = told.while_served, told.story

    # What is searched is what there is: the write-ahead logs as they are while the server runs, and real traffic.
    assert any(name.endswith("twinlock.db-wal") and data for name, data in places.items())
    assert any("keyservice" in name for name in places)
    assert any(name.endswith("replica.db") for name in places)
    assert any(name.endswith("locked.log") for name in places)
    assert sum(map(len, story.tap.recorded().values())) > 20_000
    assert len(story.metrics) > 500
    assert b"listening" in places["server: server.log"]
    assert "waiting to reconnect" in story.logs.text
    assert search(places, story.markers()) == []
    assert search(told.afterwards, story.markers()) == [], "after the server has ended in good order"


def test_the_scan_finds_what_is_planted_into_each_kind_of_place(told):
    """The control: the same words, put where a leak would put them, are found in every coding."""
    word, story, places = WORDS["letters"], told.story, told.while_served
    forms = {
        "raw": word.encode(),
        "utf-16": word.encode("utf-16-le"),
        "JSON": json.dumps({"note": word}).encode(),
        "MessagePack": msgspec.msgpack.encode({"note": [word]}),
        "hex": word.encode().hex().encode(),
        **{
            f"base64 after {shift}": base64.b64encode(b"x" * shift + word.encode() + b"yz")
            for shift in range(BASE64_ALIGNMENTS)
        },
        "base64url": base64.urlsafe_b64encode(word.encode()),
    }
    for form, data in forms.items():
        for place in places:
            planted = {place: places[place][:1000] + data + places[place][1000:2000]}
            assert {hit.place for hit in search(planted, story.markers())} == {place}, (form, place)


def test_the_tap_sees_through_the_mask_of_what_clients_send(told):
    """Without unmasking, a search of the wire could find nothing: the account's name, which is no secret, is there."""
    recorded = told.story.tap.recorded()
    to_server = {place: data for place, data in recorded.items() if place.endswith("to server")}
    raw = {place: data for place, data in recorded.items() if place.endswith("to server, raw")}
    name = [Marker.of_text("account.create")]

    assert search(to_server, name)
    assert not search(raw, name)


def test_a_planted_word_in_a_name_of_a_file_is_found(tmp_path):
    (tmp_path / f"cache-{WORDS['document']}.tmp").touch()

    assert search(files_below(tmp_path), [Marker.of_text(WORDS["document"])])
