"""Two SDKs in two processes and a server in a third: live both ways, one profile each, and killed without warning."""

import asyncio
import random
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from twinlock.errors import ProfileInUseError
from twinlock.testing.processes import DeviceProcess, ProcessFailedError, ServerProcess

pytestmark = pytest.mark.e2e

PROGRAM = Path(__file__).with_name("device_program.py")
PASSWORD = "correct horse battery"
KILLS = 2


@pytest.fixture
def server(tmp_path):
    with ServerProcess(tmp_path / "server") as running:
        yield running


@pytest.fixture
async def device(tmp_path, monkeypatch):
    """Start a device process by its name; all are ended with the test."""
    # A test must not put keys into the keyring of whoever runs it.
    monkeypatch.setenv("PYTHON_KEYRING_BACKEND", "keyring.backends.fail.Keyring")
    async with AsyncExitStack() as stack:

        async def start(name: str) -> DeviceProcess:
            return await stack.enter_async_context(DeviceProcess([str(PROGRAM)], tmp_path / f"{name}.log"))

        yield start


async def until_seen(device: DeviceProcess, id: str) -> dict:
    """Wait until a device has told of a document."""
    looked = 0
    while True:
        for event in device.events[looked:]:
            looked += 1
            if event.get("seen") == id:
                return event["data"]
        await device.event(looked)


async def test_two_processes_see_each_others_writes_live_and_end_up_equal(server, device, tmp_path):
    a, b = await device("a"), await device("b")
    kit = await a.tell("sign_up", url=server.url, name="ada", password=PASSWORD, profile=str(tmp_path / "a"))
    await b.tell("recover", url=server.url, name="ada", kit=kit, profile=str(tmp_path / "b"))
    await asyncio.gather(a.tell("follow", collection="notes"), b.tell("follow", collection="notes"))

    await a.tell("put", collection="notes", id="from-a", data={"text": "hello b"})
    assert await until_seen(b, "from-a") == {"text": "hello b"}
    await b.tell("put", collection="notes", id="from-b", data={"text": "hello a"})
    assert await until_seen(a, "from-b") == {"text": "hello a"}

    for one in (a, b):
        assert await one.tell("synced") == 0
    assert await a.tell("read", collection="notes") == await b.tell("read", collection="notes")


async def test_a_second_process_is_refused_the_profile_until_the_first_closes_it(server, device, tmp_path):
    first, second = await device("first"), await device("second")
    profile = str(tmp_path / "profile")
    await first.tell("sign_up", url=server.url, name="ada", password=PASSWORD, profile=profile)

    with pytest.raises(ProcessFailedError) as caught:
        await second.tell("open", profile=profile)
    assert caught.value.code == ProfileInUseError.code

    # The refused one has harmed nothing, and gets the profile when it is free.
    await first.tell("put", collection="notes", id="kept", data={"n": 1})
    await first.tell("close")
    await second.tell("open", profile=profile)
    assert await second.tell("read", collection="notes") == {"kept": {"n": 1}}


async def test_a_killed_process_leaves_its_profile_free(server, device, tmp_path):
    first, second = await device("first"), await device("second")
    profile = str(tmp_path / "profile")
    await first.tell("sign_up", url=server.url, name="ada", password=PASSWORD, profile=profile)
    await first.kill()

    await second.tell("open", profile=profile)

    assert await second.tell("read", collection="notes") == {}


@pytest.mark.parametrize("online", [True, False], ids=["online", "offline"])
async def test_every_write_that_returned_survives_the_kill_of_its_process(server, device, tmp_path, online):
    chance = random.Random(f"kill {online}")
    profile = str(tmp_path / "profile")
    a = await device("a")
    kit = await a.tell("sign_up", url=server.url, name="ada", password=PASSWORD, profile=profile)
    await a.kill()
    if not online:
        server.kill()

    returned: list[int] = []
    for _ in range(KILLS):
        a = await device("a")
        await a.tell("open", profile=profile)
        await a.tell("write_on", collection="log", first=1 + max(returned, default=-1))
        # Killed while it writes: at an odd moment behind an odd number of writes.
        await until_count(a, chance.randrange(20, 120))
        await asyncio.sleep(chance.random() / 50)
        await a.kill()
        returned += [event["returned"] for event in a.events]
    assert returned == sorted(set(returned))

    a = await device("a")
    await a.tell("open", profile=profile)
    check(await a.tell("read", collection="log"), returned)
    if not online:
        assert await a.tell("pending") >= len(returned)
        server.start()
    assert await a.tell("synced") == 0
    b = await device("b")
    await b.tell("recover", url=server.url, name="ada", kit=kit, profile=str(tmp_path / "b"))
    check(await b.tell("read", collection="log"), returned)
    assert await b.tell("read", collection="log") == await a.tell("read", collection="log")


async def until_count(device: DeviceProcess, count: int) -> None:
    """Wait until a device has told of so many events."""
    while len(device.events) < count:
        await device.event(len(device.events))


def check(documents: dict, returned: list[int]) -> None:
    """Every write that returned is there once; one more may be there for each kill, whose return nobody heard."""
    total = documents.pop("tally")["total"]
    numbers = sorted(value["number"] for value in documents.values())

    assert set(returned) <= set(numbers)
    assert total >= len(numbers)
    assert len(numbers) <= len(returned) + KILLS
    assert total <= len(returned) + KILLS
