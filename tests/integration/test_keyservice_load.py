"""Floods at a key service in a process of its own: everybody is answered or told when to come back."""

import asyncio
import time

import httpx
import pytest

from tests.client_kit import until
from tests.keyservice_kit import Node, counted_posts, life_of, opened_now
from twinlock.errors import KeyServiceError, LimitExceededError, LogInvalidError, OverloadedError, TwinlockError
from twinlock.keyservice.app import KeyServiceProcess
from twinlock.keyservice.calls import REQUEST_BYTES_MAX
from twinlock.keyservice.node_auth import REQUEST_HEADER
from twinlock.keyservice.remote import RemoteKeyService
from twinlock.keyservice.service import wall_clock_ms
from twinlock.keyservice.settings import ProcessSettings
from twinlock.protocol.calls import SignedEntry
from twinlock.protocol.frames import Leases
from twinlock.protocol.space_log import Role
from twinlock.testing.contracts.key_requests import registered
from twinlock.testing.keyservice_process import KeyServiceChild


@pytest.fixture(scope="module")
def node():
    return Node()


@pytest.fixture(scope="module")
def service(tmp_path_factory, node):
    """A running key service that knows the node; a process takes a second to start, so it serves all tests here."""
    with KeyServiceChild(tmp_path_factory.mktemp("shared") / "keyservice", [node.public_key]) as child:
        yield child


@pytest.fixture
async def keys(service, node):
    keys = node.connect(service)
    yield keys
    await keys.close()


async def test_a_storm_of_leases_is_answered_or_told_when_to_come_back(service, keys):
    """2,000 devices at once."""
    space, now_ms = await opened_now(keys), wall_clock_ms()
    people = [space.owner]
    for _ in range(3):
        person = await registered(keys)
        await space.admit(keys, person, Role.READER)
        people.append(person)
    requests = [(person, person.lease_request(space.id, 1, time_ms=now_ms)) for person in people * 500]

    outcomes = await asyncio.gather(
        *(keys.lease(person.asking(now_ms), request) for person, request in requests), return_exceptions=True
    )

    given = [outcome for outcome in outcomes if isinstance(outcome, Leases)]
    refused = [outcome for outcome in outcomes if not isinstance(outcome, Leases)]
    assert len(given) > 1_000
    assert all(isinstance(error, TwinlockError) and error.retry_after_ms > 0 for error in refused)


async def test_calls_that_may_wait(service, keys, monkeypatch):
    monkeypatch.setattr("twinlock.keyservice.remote.WAITING_MAX", 100)

    outcomes = await asyncio.gather(*(keys.read_log(bytes(16), 0) for _ in range(1_000)), return_exceptions=True)

    refused = [outcome for outcome in outcomes if isinstance(outcome, OverloadedError)]
    assert len(refused) == 900
    assert all(error.retry_after_ms for error in refused)
    assert [outcome for outcome in outcomes if outcome == []] == [[]] * 100


async def test_bytes_that_may_wait(keys, monkeypatch):
    monkeypatch.setattr("twinlock.keyservice.remote.WAITING_BYTES_MAX", 1_000)
    entries = [SignedEntry(bytes(200), bytes(64))]

    outcomes = await asyncio.gather(
        *(keys.append_log(bytes(16), 0, entries) for _ in range(20)), return_exceptions=True
    )

    refused = [outcome for outcome in outcomes if isinstance(outcome, OverloadedError)]
    assert len(refused) == 17
    assert {type(outcome) for outcome in outcomes[:3]} == {LogInvalidError}


async def test_a_call_that_is_too_large_is_refused_before_it_is_sent(keys):
    entries = [SignedEntry(bytes(REQUEST_BYTES_MAX), bytes(64))]

    with pytest.raises(LimitExceededError):
        await keys.append_log(bytes(16), 0, entries)
    assert await keys.read_log(bytes(16), 0) == []


async def test_one_turn_of_the_loop_is_one_request(service, keys, monkeypatch):
    await keys.probe()
    posts = counted_posts(monkeypatch)

    await asyncio.gather(*(keys.read_log(bytes(16), 0) for _ in range(60)))

    assert len(posts) == 1


async def test_requests_over_the_bound_of_the_service_are_asked_to_come_back(tmp_path, node):
    """The bound counts what is read and worked on, whoever sends it."""
    service = KeyServiceProcess(
        ProcessSettings(data=str(tmp_path / "keys"), port=0, nodes=[node.public_key], in_flight_max=2)
    )
    await service.start()
    identity = node.identity(service.service_pk)
    async with httpx.AsyncClient(base_url=service.url, trust_env=False) as client:
        life = await life_of(client, identity)
    held = []
    for _ in range(2):
        # The header is in order, the body does not come.
        _, writer = await asyncio.open_connection("127.0.0.1", service.port)
        header = identity.sign(b"12", life, wall_clock_ms()).header
        writer.write(f"POST /calls HTTP/1.1\r\nhost: k\r\n{REQUEST_HEADER}: {header}\r\n".encode())
        writer.write(b"content-length: 2\r\n\r\n1")
        held.append(writer)
    async with httpx.AsyncClient(base_url=service.url, trust_env=False) as client:
        await until(lambda: service.in_flight == 2)
        keys = RemoteKeyService.connect(service.url, node.identity(service.service_pk), wall_clock_ms)
        with pytest.raises(OverloadedError) as refused:
            await keys.read_log(bytes(16), 0)
        for writer in held:
            writer.close()
            await writer.wait_closed()
        await until(lambda: service.in_flight == 0)
        assert (await client.get("/healthz")).status_code == 200
        assert await keys.read_log(bytes(16), 0) == []

    assert refused.value.retry_after_ms > 0
    await keys.close()
    await service.stop()


async def test_a_service_that_hangs_holds_nobody_for_long(node):
    async def hang(reader, writer):
        await reader.read()
        writer.close()

    listener = await asyncio.start_server(hang, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}"
    client = httpx.AsyncClient(base_url=url, trust_env=False, timeout=0.2)
    keys = RemoteKeyService(client, node.identity(bytes(32)), wall_clock_ms)

    started = time.monotonic()
    outcomes = await asyncio.gather(*(keys.read_log(bytes(16), 0) for _ in range(500)), return_exceptions=True)

    assert {type(outcome) for outcome in outcomes} == {KeyServiceError}
    assert time.monotonic() - started < 2
    await keys.close()
    listener.close()
    await listener.wait_closed()
