"""HTTP/1.1 for the parts of blobs, over the streams of asyncio: GET and PUT, with bodies that are never held whole.

Every failure of the network, and every answer that is no HTTP, is an OfflineError: it is tried again later.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Final, NamedTuple

import msgspec

from twinlock.client.transport import Address
from twinlock.errors import LimitExceededError, OfflineError

CONNECT_TIMEOUT_S: Final = 10.0
IDLE_TIMEOUT_S: Final = 30.0
"""A peer that takes or gives nothing for this long is gone."""

ANSWER_TIMEOUT_S: Final = 60.0
HEAD_BYTES_MAX: Final = 64 << 10
HEADERS_MAX: Final = 100
READ_BYTES_MAX: Final = 256 << 10
CONNECTIONS_KEPT_MAX: Final = 4
_INTERIM_MAX = 8
_LINE = b"\r\n"

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]
DialStreams = Callable[[Address], Awaitable[Streams]]
"""Opens a byte stream to a server, with TLS where its address asks for it."""


class Body(NamedTuple):
    """What is sent: its length, and what yields its bytes, from the first one again whenever it is called."""

    length: int
    pieces: Callable[[], AsyncIterator[bytes]]


class _Head(msgspec.Struct, frozen=True):
    status: int
    headers: Mapping[str, str]

    @property
    def length(self) -> int | None:
        """The length of what follows; None where it comes in chunks."""
        if self.headers.get("transfer-encoding", "").lower() == "chunked":
            return None
        if self.status in (204, 304):
            return 0
        text = self.headers.get("content-length", "")
        if not text.isascii() or not text.isdigit():
            raise OfflineError("an answer of no length")
        return int(text)

    @property
    def is_last(self) -> bool:
        return self.headers.get("connection", "").lower() == "close"


class HttpResponse:
    """An answer, whose content is read piece by piece."""

    __slots__ = ("_left", "_reader", "headers", "is_read", "status")

    def __init__(self, head: _Head, reader: asyncio.StreamReader) -> None:
        self.status = head.status
        self.headers = head.headers
        self._reader = reader
        self._left: int | None = head.length
        self.is_read = self._left == 0

    async def read(self, bytes_max: int = READ_BYTES_MAX) -> bytes:
        """Return the next bytes of the content; none at its end."""
        if self.is_read:
            return b""
        if self._left is None:
            return await self._read_chunk()
        data = await _within(self._reader.read(min(bytes_max, self._left)))
        if not data:
            raise OfflineError("the connection ended within an answer")
        self._left -= len(data)
        self.is_read = self._left == 0
        return data

    async def _read_chunk(self) -> bytes:
        """Return one chunk of an answer that comes in chunks; the server's are small."""
        line = await _within(self._reader.readuntil(_LINE))
        try:
            size = int(line.partition(b";")[0].strip(), 16)
        except ValueError as exc:
            raise OfflineError("a chunk of no length") from exc
        if not 0 <= size <= 16 << 20:
            raise OfflineError("a chunk of no sensible length")
        data = await _within(self._reader.readexactly(size)) if size else b""
        # After the last chunk come trailers, which nobody needs, and an empty line.
        for _ in range(HEADERS_MAX):
            if await _within(self._reader.readuntil(_LINE)) == _LINE:
                break
        self.is_read = not size
        return data

    async def read_all(self, bytes_max: int) -> bytes:
        """Return the whole content.

        Raises:
            LimitExceededError: it is longer than that.
        """
        whole = bytearray()
        while data := await self.read():
            whole += data
            if len(whole) > bytes_max:
                raise LimitExceededError(f"an answer of more than {bytes_max} bytes")
        return bytes(whole)


class HttpClient:
    """Requests to one server, over a few connections that are kept for the next ones."""

    __slots__ = ("_dial", "_kept")

    def __init__(self, dial: DialStreams) -> None:
        self._dial = dial
        self._kept: list[tuple[Address, Streams]] = []

    @asynccontextmanager
    async def request(
        self, method: str, address: Address, path: str, headers: Mapping[str, str], body: Body | None = None
    ) -> AsyncIterator[HttpResponse]:
        """Send a request and give its answer. Requests must be safe to repeat: a kept connection may be closed already.

        Raises:
            OfflineError: no answer came, or it ended too early.
        """
        head = _request_head(method, address, path, headers, body)
        streams, response, keeps = await self._answered(address, head, body)
        try:
            yield response
            keeps = keeps and response.is_read
        except BaseException:
            keeps = False
            raise
        finally:
            self._release(address, streams, keeps=keeps)

    async def _answered(self, address: Address, head: bytes, body: Body | None) -> tuple[Streams, HttpResponse, bool]:
        while True:
            kept = self._take_kept(address)
            streams = kept or await self._dialled(address)
            try:
                answer, was_sent = await _exchange(streams, head, body)
                return streams, HttpResponse(answer, streams[0]), was_sent and not answer.is_last
            except OfflineError:
                _close(streams)
                if kept is None:
                    raise
            except BaseException:
                _close(streams)
                raise

    async def _dialled(self, address: Address) -> Streams:
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                return await self._dial(address)
        except (OSError, TimeoutError) as exc:
            raise OfflineError(f"{address.origin}: {type(exc).__name__}") from exc

    def _take_kept(self, address: Address) -> Streams | None:
        while self._kept:
            known, streams = self._kept.pop()
            if known.origin == address.origin and not streams[0].at_eof() and not streams[1].is_closing():
                return streams
            _close(streams)
        return None

    def _release(self, address: Address, streams: Streams, *, keeps: bool) -> None:
        if keeps and len(self._kept) < CONNECTIONS_KEPT_MAX:
            self._kept.append((address, streams))
        else:
            _close(streams)

    def close(self) -> None:
        """Close the connections that are kept."""
        while self._kept:
            _close(self._kept.pop()[1])


def _request_head(method: str, address: Address, path: str, headers: Mapping[str, str], body: Body | None) -> bytes:
    host = address.origin.partition("//")[2]
    lines = [f"{method} {path} HTTP/1.1", f"Host: {host}", "Accept-Encoding: identity"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    if body is not None:
        lines.append(f"Content-Length: {body.length}")
    text = "\r\n".join(lines)
    assert text.isascii()
    assert "\r\n\r\n" not in text
    return text.encode() + b"\r\n\r\n"


async def _exchange(streams: Streams, head: bytes, body: Body | None) -> tuple[_Head, bool]:
    """Send a request and read the head of its answer; tell too whether all of it was sent."""
    reader, writer = streams
    # A server that refuses a request says so before it has read all of it.
    answer = asyncio.ensure_future(read_head(reader))
    try:
        was_sent = await _send(writer, head, body, answer)
        async with asyncio.timeout(ANSWER_TIMEOUT_S):
            return await answer, was_sent
    except TimeoutError as exc:
        raise OfflineError("the server did not answer in time") from exc
    finally:
        # Waited for and not awaited: whoever cancels this meanwhile must be heard.
        answer.cancel()
        await asyncio.wait([answer])
        if not answer.cancelled():
            answer.exception()


async def _send(writer: asyncio.StreamWriter, head: bytes, body: Body | None, answer: asyncio.Future[_Head]) -> bool:
    """Send a request, until the server answers or hangs up; tell whether all of it was sent.

    Raises:
        OSError: the body cannot be read.
    """
    writer.write(head)
    async for piece in _pieces(body):
        try:
            writer.write(piece)
            async with asyncio.timeout(IDLE_TIMEOUT_S):
                await writer.drain()
        except OSError:
            # What it said before it hung up is worth more than that it did.
            return False
        if answer.done():
            return False
    return True


async def _pieces(body: Body | None) -> AsyncIterator[bytes]:
    if body is not None:
        async for piece in body.pieces():
            yield piece


async def read_head(reader: asyncio.StreamReader) -> _Head:
    """Read the head of an answer; interim ones are passed over."""
    for _ in range(_INTERIM_MAX):
        try:
            raw = await reader.readuntil(b"\r\n\r\n")
        except (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError) as exc:
            raise OfflineError(f"no answer: {type(exc).__name__}") from exc
        head = parse_head(raw)
        if head.status >= 200:
            return head
    raise OfflineError("too many interim answers")


def parse_head(raw: bytes) -> _Head:
    """Read the status line and the headers of an answer.

    Raises:
        OfflineError: it is no answer of HTTP/1.1, or one whose end cannot be told.
    """
    status, *lines = raw[:-4].decode("latin-1").split("\r\n")
    version, _, rest = status.partition(" ")
    if version != "HTTP/1.1" or not rest[:3].isdigit() or len(raw) > HEAD_BYTES_MAX or len(lines) > HEADERS_MAX:
        raise OfflineError("the answer is no HTTP/1.1")
    headers: dict[str, str] = {}
    for line in lines:
        name, colon, value = line.partition(":")
        if not colon or not name or name != name.strip() or (name.lower() in _SINGLE and name.lower() in headers):
            raise OfflineError("the answer has a broken header")
        headers[name.lower()] = value.strip()
    if "transfer-encoding" in headers and "content-length" in headers:
        raise OfflineError("the answer tells two lengths")
    return _Head(int(rest[:3]), headers)


_SINGLE = frozenset({"content-length", "transfer-encoding"})


async def _within(reading: Awaitable[bytes]) -> bytes:
    try:
        async with asyncio.timeout(IDLE_TIMEOUT_S):
            return await reading
    except (OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError) as exc:
        raise OfflineError(f"an answer broke off: {type(exc).__name__}") from exc


def _close(streams: Streams) -> None:
    # Nobody waits for the end of TLS: what counts was answered.
    streams[1].transport.abort()
