"""The proxy does to connections what it says: cut, stall, half-open, late, slow."""

import asyncio
import contextlib
import random
import time

import pytest

from twinlock.testing.faulty_proxy import FaultyProxy, flap


@contextlib.asynccontextmanager
async def echoing():
    """A server that says everything back; yields its port and what it heard."""
    heard = bytearray()

    async def echo(reader, writer):
        with contextlib.suppress(OSError):
            while data := await reader.read(1 << 16):
                heard.extend(data)
                writer.write(data)
                await writer.drain()
        writer.close()

    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1], heard
    finally:
        server.close()


@pytest.fixture
async def line():
    """A proxy before an echo, and a connection through it."""
    async with echoing() as (port, heard), FaultyProxy(port) as proxy:
        reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
        yield proxy, reader, writer, heard
        writer.transport.abort()


async def answer(reader, size, seconds=5.0):
    async with asyncio.timeout(seconds):
        return await reader.readexactly(size)


async def dial_and_say(port, said):
    """Return what comes back on a new connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(said)
        return await answer(reader, len(said))
    finally:
        writer.transport.abort()


async def test_what_is_said_comes_back_unchanged(line):
    _, reader, writer, _ = line
    said = random.Random(1).randbytes(1 << 20)

    writer.write(said)

    assert await answer(reader, len(said)) == said


async def test_a_cut_resets_connections_and_lets_no_new_one_speak(line):
    proxy, reader, writer, heard = line
    writer.write(b"one")
    await answer(reader, 3)

    proxy.cut()

    with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
        await answer(reader, 1)
    with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
        await dial_and_say(proxy.port, b"two")
    assert bytes(heard) == b"one"
    proxy.heal()
    assert await dial_and_say(proxy.port, b"six") == b"six"


async def test_what_is_stalled_passes_once_it_is_healed(line):
    proxy, reader, writer, heard = line
    proxy.stall()
    writer.write(b"one")

    with pytest.raises(TimeoutError):
        await answer(reader, 3, 0.1)
    assert bytes(heard) == b""
    proxy.heal()

    assert await answer(reader, 3) == b"one"


async def test_a_half_open_line_hears_and_is_not_heard(line):
    proxy, reader, writer, heard = line
    proxy.stall_answers()
    writer.write(b"one")

    with pytest.raises(TimeoutError):
        await answer(reader, 3, 0.1)

    assert bytes(heard) == b"one"


async def test_a_delay_makes_late_and_not_slow(line):
    proxy, reader, writer, _ = line
    proxy.delay_s = 0.05
    began = time.monotonic()
    for _ in range(20):
        writer.write(bytes(1000))
        await asyncio.sleep(0)

    await answer(reader, 20_000)

    assert 0.1 <= time.monotonic() - began < 0.6


async def test_a_throttle_makes_slow(line):
    proxy, reader, writer, _ = line
    proxy.bytes_per_s = 200_000
    began = time.monotonic()
    writer.write(bytes(20_000))

    await answer(reader, 20_000)

    assert time.monotonic() - began >= 0.1


async def test_a_flapping_line_is_whole_in_the_end(line):
    proxy, _, _, _ = line

    await flap([proxy], random.Random(3), 0.1, (0.01, 0.03))

    assert await dial_and_say(proxy.port, b"end") == b"end"


async def test_the_end_of_one_side_ends_the_other(line):
    _, reader, writer, heard = line
    writer.write(b"bye")
    writer.write_eof()

    assert await answer(reader, 3) == b"bye"
    assert await reader.read() == b""
    assert bytes(heard) == b"bye"
