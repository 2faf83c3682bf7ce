"""The HTTP client: whole answers come through, whatever else comes is an OfflineError, connections are kept."""

import asyncio
from contextlib import asynccontextmanager
from urllib.parse import urlsplit

import pytest

from twinlock.client import http
from twinlock.client.http import Body, HttpClient, parse_head
from twinlock.client.http_dial import open_streams, open_through, proxy_for
from twinlock.client.transport import parse_address
from twinlock.errors import LimitExceededError, OfflineError

OK = b"HTTP/1.1 200 OK\r\n"


@asynccontextmanager
async def serving(answer):
    """Serve with `answer(reader, writer)`, once for each connection; yields the address and the count of them."""
    connections, tasks = [], []

    async def serve(reader, writer):
        connections.append(writer)
        tasks.append(asyncio.current_task())
        try:
            await answer(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    client = HttpClient(open_streams)
    try:
        yield client, parse_address(f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}"), connections
    finally:
        client.close()
        server.close()
        for writer in connections:
            writer.transport.abort()
        await asyncio.gather(*tasks)


async def request_of(reader) -> tuple[bytes, bytes]:
    head = await reader.readuntil(b"\r\n\r\n")
    length = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
    return head, await reader.readexactly(int(length[0].split(b":")[1])) if length else b""


def answering(*answers: bytes):
    """Answer each request of a connection with the next of these bytes, then hang up."""

    async def answer(reader, writer):
        for data in answers:
            await request_of(reader)
            writer.write(data)
            await writer.drain()

    return answer


async def get(client, address, bytes_max=1 << 20):
    async with client.request("GET", address, "/x", {}) as response:
        return response.status, await response.read_all(bytes_max)


@pytest.mark.parametrize(
    ("raw", "content"),
    [
        (b"Content-Length: 5\r\n\r\nhello", b"hello"),
        (b"content-length: 0\r\n\r\n", b""),
        (
            b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n6;ext=1\r\n world\r\n0\r\nTrailer: 1\r\n\r\n",
            b"hello world",
        ),
        (b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n", b""),
        (b"Content-Length: 300000\r\n\r\n" + b"x" * 300_000, b"x" * 300_000),
    ],
)
async def test_an_answer_is_read_whole(raw, content):
    async with serving(answering(OK + raw)) as (client, address, _):
        assert await get(client, address) == (200, content)


async def test_an_interim_answer_is_passed_over():
    async with serving(answering(b"HTTP/1.1 100 Continue\r\n\r\n" + OK + b"Content-Length: 1\r\n\r\nx")) as (
        client,
        to,
        _,
    ):
        assert await get(client, to) == (200, b"x")


async def test_a_connection_is_used_again_and_replaced_when_the_server_has_closed_it():
    two = answering(OK + b"Content-Length: 1\r\n\r\na", OK + b"Content-Length: 1\r\n\r\nb")
    async with serving(two) as (client, address, connections):
        assert [(await get(client, address))[1] for _ in range(3)] == [b"a", b"b", b"a"]
        assert len(connections) == 2


@pytest.mark.parametrize("raw", [b"Connection: close\r\nContent-Length: 1\r\n\r\na", b"Content-Length: 2\r\n\r\na"])
async def test_a_connection_that_is_not_at_its_end_is_not_used_again(raw):
    async with serving(answering(OK + raw)) as (client, address, connections):
        for _ in range(2):
            async with client.request("GET", address, "/x", {}) as response:
                assert await response.read() == b"a"
        assert len(connections) == 2


async def test_a_body_is_sent_in_pieces_with_its_length():
    seen = []

    async def answer(reader, writer):
        seen.append(await request_of(reader))
        writer.write(OK + b"Content-Length: 0\r\n\r\n")
        await writer.drain()

    async def pieces():
        for _ in range(40):
            yield b"x" * 10_000

    async with (
        serving(answer) as (client, address, _),
        client.request("PUT", address, "/p", {"Authorization": "Bearer t"}, Body(400_000, pieces)) as response,
    ):
        assert response.status == 200
    head, body = seen[0]
    assert head.startswith(b"PUT /p HTTP/1.1\r\nHost: 127.0.0.1:")
    assert b"\r\nAuthorization: Bearer t\r\n" in head
    assert body == b"x" * 400_000


async def test_a_refusal_is_heard_before_the_whole_body_was_sent():
    async def answer(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 413 Too Large\r\nContent-Length: 0\r\n\r\n")
        await writer.drain()
        await reader.read()

    sent = 0

    async def pieces():
        nonlocal sent
        while sent < 1 << 30:
            sent += 1 << 20
            yield bytes(1 << 20)

    async with serving(answer) as (client, address, connections):
        async with client.request("PUT", address, "/p", {}, Body(1 << 30, pieces)) as response:
            assert response.status == 413
        assert sent < 1 << 29
        assert (await get(client, address))[0] == 413
        assert len(connections) == 2


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"nonsense\r\n\r\n",
        b"HTTP/1.0 200 OK\r\nContent-Length: 1\r\n\r\nx",
        b"HTTP/2 200\r\n\r\n",
        OK + b"\r\nno length",
        OK + b"Content-Length: -1\r\n\r\n",
        OK + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\nxx",
        OK + b"Content-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n\r\n",
        OK + b"Content-Length : 1\r\n\r\nx",
        OK + b" folded\r\nContent-Length: 1\r\n\r\nx",
        OK + b"Content-Length: 5\r\n\r\nhell",
        OK + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
        OK + b"Transfer-Encoding: chunked\r\n\r\n-5\r\nhello\r\n",
        OK + b"Transfer-Encoding: chunked\r\n\r\nfffffffff\r\n",
        OK + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhe",
        OK + b"A: b\r\n" * 101 + b"Content-Length: 0\r\n\r\n",
        OK + b"A: " + b"b" * (1 << 19) + b"\r\n\r\n",
        OK + b"A: " + b"b" * (1 << 17) + b"\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\n" * 9,
    ],
)
async def test_what_is_no_whole_answer_is_offline(raw):
    async with serving(answering(raw)) as (client, address, _):
        with pytest.raises(OfflineError):
            await get(client, address)


async def test_an_answer_over_its_bound_is_refused():
    async with serving(answering(OK + b"Content-Length: 101\r\n\r\n" + b"x" * 101)) as (client, address, _):
        with pytest.raises(LimitExceededError):
            await get(client, address, bytes_max=100)


async def test_nobody_there_is_offline():
    with pytest.raises(OfflineError):
        await get(HttpClient(open_streams), parse_address("ws://127.0.0.1:1"))


async def test_a_silent_server_is_given_up(monkeypatch):
    monkeypatch.setattr(http, "ANSWER_TIMEOUT_S", 0.05)
    monkeypatch.setattr(http, "IDLE_TIMEOUT_S", 0.05)

    async def answer(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        if len(said) == 0:
            said.append(True)
        else:
            writer.write(OK + b"Content-Length: 5\r\n\r\nhe")
        await reader.read()

    said: list[bool] = []
    async with serving(answer) as (client, address, _):
        for _ in range(2):
            with pytest.raises(OfflineError):
                await get(client, address)


async def test_whoever_is_cancelled_leaves_no_connection_behind():
    async def answer(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(OK + b"Content-Length: 5\r\n\r\nhe")
        asked.set()
        await reader.read()
        ended.set()

    asked, ended = asyncio.Event(), asyncio.Event()
    async with serving(answer) as (client, address, _):
        reading = asyncio.ensure_future(get(client, address))
        await asked.wait()
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading
        await asyncio.wait_for(ended.wait(), 5)


def test_a_status_and_headers_are_read():
    head = parse_head(b"HTTP/1.1 429 Too Many\r\nRetry-After: 3\r\nContent-Length:0\r\n\r\n")

    assert (head.status, head.headers["retry-after"], head.length, head.is_last) == (429, "3", 0, False)


async def test_a_proxy_opens_the_way_to_the_server():
    asked = []

    async def forward(reader, writer):
        asked.append(await reader.readuntil(b"\r\n\r\n"))
        if b"127.0.0.1" not in asked[-1]:
            writer.write(b"HTTP/1.1 403 Forbidden\r\n\r\n")
            await writer.drain()
            return
        writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
        await answering(OK + b"Content-Length: 5\r\n\r\nhello")(reader, writer)

    async with serving(forward) as (_, proxy, _):
        named = urlsplit(f"http://ann:p%40ss@127.0.0.1:{proxy.port}")

        async def dial(address):
            return await open_through(named, address)

        client = HttpClient(dial)
        assert await get(client, parse_address("ws://127.0.0.1:1")) == (200, b"hello")
        with pytest.raises(OfflineError, match="403"):
            await get(client, parse_address("ws://example.org"))
        client.close()
    assert asked[0].startswith(b"CONNECT 127.0.0.1:1 HTTP/1.1\r\n")
    assert b"Proxy-Authorization: Basic YW5uOnBAc3M=" in asked[0]
    with pytest.raises(OfflineError, match="socks5"):
        await open_through(urlsplit("socks5://127.0.0.1:1"), proxy)


def test_the_environment_names_the_proxy(monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "no_proxy", "NO_PROXY", "HTTPS_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("https_proxy", "http://proxy.example:3128")
    monkeypatch.setenv("no_proxy", "inside.example")

    assert proxy_for(parse_address("wss://outside.example")).port == 3128
    assert proxy_for(parse_address("wss://inside.example")) is None
    assert proxy_for(parse_address("wss://127.0.0.1")) is None


async def test_a_body_that_cannot_be_read_is_no_fault_of_the_network():
    async def pieces():
        yield b"half"
        raise FileNotFoundError("the file ends too early")

    async with serving(answering()) as (client, address, _):
        with pytest.raises(FileNotFoundError):
            async with client.request("PUT", address, "/x", {}, Body(8, pieces)):
                pass
