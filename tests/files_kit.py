"""Devices that put and read files, and the wire on which these travel, for the tests of files."""

import asyncio
from typing import ClassVar

import pytest

import twinlock
from tests.client_kit import World
from twinlock.client.http_dial import open_streams
from twinlock.protocol.limits import BLOB_CHUNK_BYTES
from twinlock.server import Server, Settings

MIB = BLOB_CHUNK_BYTES
SECRET = b"nobody but the members reads this sentence. "


class FilesWorld(World):
    """A world whose server may be started with other settings."""

    more: ClassVar[dict[str, object]] = {}

    def _server(self, port: int) -> Server:
        data = str(self.folder / "server")
        return Server(Settings(data=data, port=port, log_level="error", drain_ms=200, **self.more))

    @property
    def blobs(self):
        return self.folder / "server" / "blobs"

    def parts(self, file) -> list:
        """The parts that lie on the server's disk of a file."""
        return sorted(path for path in self.blobs.rglob("*") if path.is_file() and file.id in str(path))


@pytest.fixture(name="world")
async def files_world(tmp_path, account_template):
    made = FilesWorld(tmp_path, account_template)
    await made.start()
    yield made
    await made.close()


class Wire:
    """The connections on which files travel: counted, and cut when told."""

    def __init__(self, sent_max: int | None = None) -> None:
        self.sent = self.received = 0
        self.sent_max = sent_max
        self.heads: list[str] = []

    async def dial(self, address):
        reader, writer = await open_streams(address)
        write, feed = writer.write, reader.feed_data

        def counted_write(data):
            if data[:4] in (b"PUT ", b"GET "):
                self.heads.append(data.split(b"\r\n")[0].decode())
            self.sent += len(data)
            if self.sent_max is not None and self.sent > self.sent_max:
                writer.transport.abort()
                return
            write(data)

        def counted_feed(data):
            self.received += len(data)
            feed(data)

        writer.write = counted_write
        reader.feed_data = counted_feed
        return reader, writer


def content_of(size: int) -> bytes:
    block = b"".join(number.to_bytes(4, "big") for number in range(1 << 14))
    return (block * (size // len(block) + 1))[:size]


def files_of(db) -> twinlock.Files:
    return db.space("home").files


async def sent(db, file) -> None:
    async with asyncio.timeout(20):
        await files_of(db).uploaded(file)


async def seen(db, file) -> None:
    """Wait until another device knows a file."""
    async with asyncio.timeout(20):
        while file.id not in {info.id for info in await files_of(db).list()}:  # noqa: ASYNC110 - as `until`
            await asyncio.sleep(0.005)


async def counted(files: twinlock.Files, count: int) -> None:
    """Wait until a space has so many files."""
    async with asyncio.timeout(20):
        while len(await files.list()) != count:  # noqa: ASYNC110 - as `until`
            await asyncio.sleep(0.005)


async def put_by(db, other, content, **named):
    """Put a file and wait until another device can read it."""
    file = await files_of(db).put(content, **named)
    await sent(db, file)
    await seen(other, file)
    return file


def staging_of(world, profile: str) -> list:
    return [path for path in (world.folder / profile / "spaces").glob("*/files/*") if path.is_file()]
