"""Blobs through `obstore`: in a folder, or in a bucket of anything that speaks S3."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from obstore.exceptions import BaseError
from obstore.store import LocalStore, S3Store

from twinlock.contracts.blobs import BlobStore, StoredPart, check_name, check_object, check_prefix, check_range
from twinlock.engines.blob_folder import BlobFolder
from twinlock.engines.blobs_memory import MemoryBlobs
from twinlock.errors import StoreError

MEMORY_BLOBS = "memory:"
BUCKET_SCHEME = "s3://"
REQUEST_S_MAX = 30.0
"""How long one request to a bucket may take, and how long it is tried again."""

RETRIES_MAX = 3
LIST_CHUNK = 1000


class ObstoreBlobs(BlobStore):
    """A blob store on one of obstore's stores.

    Args:
        store: where the objects are.
        folder: writes them in the store's place, where the store is a folder: obstore does not sync what it writes.
    """

    __slots__ = ("_folder", "_store")

    def __init__(self, store: LocalStore | S3Store, folder: BlobFolder | None = None) -> None:
        self._store = store
        self._folder = folder

    async def put(self, name: str, data: bytes) -> None:
        """Store an object durably."""
        check_object(name, data)
        if self._folder is not None:
            await self._folder.write(name, data)
            return
        with _translated():
            # One request for one object: a multipart upload would leave its parts behind where it is cut short.
            await self._store.put_async(name, data, use_multipart=False)

    async def get(self, name: str, first: int = 0, size: int | None = None) -> bytes | None:
        """Return an object's bytes from `first` on."""
        check_name(name)
        check_range(first, size)
        with _translated():
            try:
                if not first and size is None:
                    whole = await self._store.get_async(name)
                    return bytes(await whole.bytes_async())
                # No store answers a range that lies beyond the end in the same way as another.
                end = int((await self._store.head_async(name))["size"])
                if size is not None:
                    end = min(end, first + size)
                if first >= end:
                    return b""
                return bytes(await self._store.get_range_async(name, start=first, end=end))
            except FileNotFoundError:
                return None

    async def delete(self, name: str) -> None:
        """Delete an object."""
        check_name(name)
        with _translated():
            try:
                await self._store.delete_async(name)
            except FileNotFoundError:
                return

    async def list(self, prefix: str) -> AsyncIterator[StoredPart]:
        """Yield every object below a prefix."""
        check_prefix(prefix)
        pages = self._store.list(prefix, chunk_size=LIST_CHUNK).__aiter__()
        while True:
            with _translated():
                try:
                    page = await anext(pages)
                except (StopAsyncIteration, FileNotFoundError):
                    return
            for each in page:
                written_ms = int(each["last_modified"].timestamp() * 1000)
                yield StoredPart(each["path"], each["size"], written_ms)

    async def close(self) -> None:
        """Release the store."""
        if self._folder is not None:
            await self._folder.close()


def open_blobs(where: str, endpoint: str = "") -> BlobStore:
    """Open the store that a setting names: `memory:`, `s3://bucket/prefix`, or the path of a folder.

    Args:
        where: what the setting says.
        endpoint: the address of a bucket that is not Amazon's. Its credentials come from `AWS_ACCESS_KEY_ID` and
            `AWS_SECRET_ACCESS_KEY` of the environment, or from wherever else the AWS tools find them.

    Raises:
        StoreError: the folder cannot be made, or the bucket's name is none.
    """
    if where == MEMORY_BLOBS:
        return MemoryBlobs()
    if where.startswith(BUCKET_SCHEME):
        return ObstoreBlobs(_bucket(where, endpoint))
    folder = BlobFolder.open(Path(where))
    return ObstoreBlobs(LocalStore(folder.root, automatic_cleanup=True), folder)


def _bucket(where: str, endpoint: str) -> S3Store:
    parts = urlsplit(where)
    if not parts.netloc:
        raise StoreError(f"{where} names no bucket")
    limit = timedelta(seconds=REQUEST_S_MAX)
    options: dict[str, Any] = {"endpoint": endpoint, "virtual_hosted_style_request": False} if endpoint else {}
    try:
        return S3Store(
            parts.netloc,
            prefix=parts.path.strip("/") or None,
            client_options={"timeout": limit, "allow_http": endpoint.startswith("http://")},
            retry_config={"max_retries": RETRIES_MAX, "retry_timeout": limit},
            **options,
        )
    except (BaseError, ValueError) as exc:
        raise StoreError(f"the bucket of {where}: {_told(exc)}") from exc


@contextmanager
def _translated() -> Iterator[None]:
    """Turn what a store raises into the project's error."""
    try:
        yield
    except FileNotFoundError:
        raise
    except (BaseError, OSError, ValueError) as exc:
        raise StoreError(f"the blob store failed: {_told(exc)}") from exc


def _told(exc: Exception) -> str:
    """Return the kind of an error alone: its text may name hosts, paths and signed addresses."""
    return type(exc).__name__
