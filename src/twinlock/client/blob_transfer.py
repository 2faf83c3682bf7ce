"""Blobs to and from the server: calls over the sync socket, parts over HTTP. See spec/protocol.md, section 9."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import msgspec

from twinlock.client.connection import Connection
from twinlock.client.device_clock import DeviceClock
from twinlock.client.http import Body, DialStreams, HttpClient, HttpResponse
from twinlock.errors import (
    BearerError,
    InternalError,
    OfflineError,
    OverloadedError,
    TwinlockError,
    error_from_code,
)
from twinlock.ids import BlobId, Epoch, SpaceId
from twinlock.protocol.blob_calls import (
    BearerToken,
    BeginBlob,
    BeginBlobResult,
    BlobInfo,
    ListBlobs,
    ListBlobsResult,
    NameBlob,
    part_path,
)
from twinlock.protocol.calls import Nothing
from twinlock.protocol.limits import BLOB_PART_BYTES

TOKEN_SPARE_MS: Final = 60_000
"""A token that ends so soon is replaced before it is used."""

PIECE_BYTES: Final = 256 << 10
ERROR_BYTES_MAX: Final = 64 << 10
RETRY_AFTER_MS_MAX: Final = 10 * 60_000


class HttpError(msgspec.Struct, frozen=True):
    """The body of an answer that is no success."""

    code: str
    detail: str = ""
    retry_after_ms: int = 0


class BlobTransfer:
    """What the server offers for blobs, with the tokens that this takes."""

    __slots__ = ("_clock", "_connection", "_http", "_token")

    def __init__(self, connection: Connection, clock: DeviceClock, dial: DialStreams) -> None:
        self._connection = connection
        self._clock = clock
        self._http = HttpClient(dial)
        self._token: BearerToken | None = None

    @property
    def is_connected(self) -> bool:
        """Whether there is a session with the server."""
        return self._connection.session is not None

    # Calls

    async def begin(self, space: SpaceId, blob: BlobId, epoch: Epoch, sealed_bytes: int) -> BeginBlobResult:
        """Make room for a blob, or tell which of its parts are there already."""
        return await self._connection.call("blob.begin", BeginBlob(space, blob, epoch, sealed_bytes), BeginBlobResult)

    async def finish(self, space: SpaceId, blob: BlobId) -> None:
        """Say that every part is there."""
        await self._connection.call("blob.finish", NameBlob(space, blob), Nothing)

    async def delete(self, space: SpaceId, blob: BlobId) -> None:
        """Have a blob deleted, after the server's grace."""
        await self._connection.call("blob.delete", NameBlob(space, blob), Nothing)

    async def restore(self, space: SpaceId, blob: BlobId) -> None:
        """Take a deletion back."""
        await self._connection.call("blob.restore", NameBlob(space, blob), Nothing)

    async def list(self, space: SpaceId) -> AsyncIterator[BlobInfo]:
        """Yield every blob of a space."""
        after, has_more = BlobId(b""), True
        while has_more:
            page = await self._connection.call("blob.list", ListBlobs(space, after), ListBlobsResult)
            for info in page.blobs:
                yield info
            has_more = page.has_more and bool(page.blobs)
            after = page.blobs[-1].blob if page.blobs else after

    # Parts

    async def put_part(self, space: SpaceId, blob: BlobId, part: int, path: Path, sealed_bytes: int) -> int:
        """Send one part of a sealed file; return how many bytes it has."""
        first = part * BLOB_PART_BYTES
        size = min(BLOB_PART_BYTES, sealed_bytes - first)
        body = Body(size, lambda: _pieces_of(path, first, size))
        async with self._request("PUT", part_path(space, blob, part), {}, body) as response:
            await response.read_all(ERROR_BYTES_MAX)
        return size

    @asynccontextmanager
    async def get(self, space: SpaceId, blob: BlobId, part: int, first: int, size: int) -> AsyncIterator[HttpResponse]:
        """Give the answer that holds `size` bytes of a part from `first` on.

        Raises:
            OfflineError: the server answered with other bytes.
        """
        headers = {"Range": f"bytes={first}-{first + size - 1}"}
        async with self._request("GET", part_path(space, blob, part), headers, None) as response:
            told = response.headers.get("content-length")
            if response.status not in (200, 206) or (response.status == 200 and first) or told not in (None, str(size)):
                raise OfflineError("the server answered with another part of the file")
            yield response

    def close(self) -> None:
        """Let go of the connections."""
        self._http.close()

    @asynccontextmanager
    async def _request(
        self, method: str, path: str, headers: Mapping[str, str], body: Body | None
    ) -> AsyncIterator[HttpResponse]:
        """Make a request under a token, with a new one if it is refused."""
        for is_second in (False, True):
            bearer = {"Authorization": f"Bearer {await self._bearer()}"}
            async with self._http.request(
                method, self._connection.address, path, {**headers, **bearer}, body
            ) as response:
                if response.status < 300:
                    yield response
                    return
                error = await _error_of(response)
            self._token = None
            if is_second or not isinstance(error, BearerError):
                raise error

    async def _bearer(self) -> str:
        # A token is tied to this device, and the connection that gave it may have ended.
        now_ms = self._clock.now_ms()
        if self._token is None or now_ms >= self._token.expires_ms - TOKEN_SPARE_MS:
            self._token = await self._connection.call("session.token", Nothing(), BearerToken)
        return self._token.token


async def _error_of(response: HttpResponse) -> TwinlockError:
    """Return the error that an answer names; by its status alone where something in between made it."""
    try:
        told = msgspec.json.decode(await response.read_all(ERROR_BYTES_MAX), type=HttpError)
        return error_from_code(told.code, told.detail, min(told.retry_after_ms, RETRY_AFTER_MS_MAX))
    except (msgspec.DecodeError, TwinlockError):
        pass
    if response.status == 401:
        return BearerError()
    if response.status in (408, 425, 429) or response.status >= 500:
        after = response.headers.get("retry-after", "")
        after_ms = min(int(after) * 1000, RETRY_AFTER_MS_MAX) if after.isascii() and after.isdigit() else 0
        return OverloadedError(f"HTTP status {response.status}", retry_after_ms=after_ms)
    return InternalError(f"HTTP status {response.status}")


async def _pieces_of(path: Path, first: int, size: int) -> AsyncIterator[bytes]:
    """Yield a stretch of a file."""
    with await asyncio.to_thread(path.open, "rb") as file:
        file.seek(first)
        while size > 0:
            data = await asyncio.to_thread(file.read, min(PIECE_BYTES, size))
            if not data:
                raise FileNotFoundError(f"{path.name} ends too early")
            size -= len(data)
            yield data
