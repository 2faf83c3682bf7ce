"""A device that puts and gets parts of blobs, request by request."""

from __future__ import annotations

import os
from typing import Any

import httpx

from tests.server_kit import Wire, World
from twinlock.ids import BlobId, SpaceId
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


def fresh_blob() -> BlobId:
    """Make an id."""
    return BlobId(os.urandom(16))


class BlobDevice:
    """A device with its session and its way over HTTP."""

    def __init__(self, wire: Wire, space: SpaceId) -> None:
        self.wire = wire
        self.space = space
        self.token = ""
        self.http = httpx.AsyncClient(base_url=f"http://127.0.0.1:{wire.port}", trust_env=False, timeout=20)

    async def sign_in(self) -> BearerToken:
        """Get a token."""
        token = await self.wire.call("session.token", Nothing(), BearerToken)
        self.token = token.token
        return token

    async def begin(self, blob: BlobId, sealed_bytes: int, epoch: int = 1) -> BeginBlobResult:
        return await self.wire.call("blob.begin", BeginBlob(self.space, blob, epoch, sealed_bytes), BeginBlobResult)

    async def finish(self, blob: BlobId) -> None:
        await self.wire.call("blob.finish", NameBlob(self.space, blob))

    async def delete(self, blob: BlobId) -> None:
        await self.wire.call("blob.delete", NameBlob(self.space, blob))

    async def restore(self, blob: BlobId) -> None:
        await self.wire.call("blob.restore", NameBlob(self.space, blob))

    async def info(self, blob: BlobId) -> BlobInfo:
        return await self.wire.call("blob.info", NameBlob(self.space, blob), BlobInfo)

    async def list(self, after: bytes = b"") -> ListBlobsResult:
        return await self.wire.call("blob.list", ListBlobs(self.space, BlobId(after)), ListBlobsResult)

    async def put(self, blob: BlobId, part: int, data: Any, **headers: str) -> httpx.Response:
        path = part_path(self.space, blob, part)
        return await self.http.put(path, content=data, headers={**self._shown(), **headers})

    async def get(self, blob: BlobId, part: int = 0, method: str = "GET", **headers: str) -> httpx.Response:
        path = part_path(self.space, blob, part)
        return await self.http.request(method, path, headers={**self._shown(), **headers})

    async def store(self, data: bytes) -> BlobId:
        """Begin, put and finish a blob of one part."""
        blob = fresh_blob()
        await self.begin(blob, len(data))
        assert (await self.put(blob, 0, data)).status_code == 204
        await self.finish(blob)
        return blob

    async def close(self) -> None:
        await self.http.aclose()

    def _shown(self) -> dict[str, str]:
        return {"authorization": f"Bearer {self.token}"} if self.token else {}


async def blob_device(person: World, space: SpaceId, wire: Wire | None = None) -> BlobDevice:
    """Open a device of an account that has a token."""
    device = BlobDevice(wire or await person.open(), space)
    await device.sign_in()
    return device


def told(response: httpx.Response) -> tuple[int, str]:
    """Return a refusal's status and code."""
    return response.status_code, response.json()["code"]
