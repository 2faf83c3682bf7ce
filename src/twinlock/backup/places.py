"""Opening what a place names: a server's data folder, a cluster, a backup. The shell of this package."""

from __future__ import annotations

import fcntl
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
from obstore.store import LocalStore

from twinlock.backup.holdings import Holdings
from twinlock.contracts import BlobStore
from twinlock.engines.blobs import BUCKET_SCHEME, ObstoreBlobs, open_blobs
from twinlock.engines.sqlite import SqliteEngine
from twinlock.errors import StoreError

if TYPE_CHECKING:
    from twinlock.engines.jetstream import JetstreamEngine

SQLITE_SCHEME = "sqlite:"
NATS_SCHEMES = ("nats://", "tls://")
DATABASE_NAME = "twinlock.db"
BLOBS_FOLDER = "blobs"
LOCK_NAME = ".twinlock-backup.lock"


class EnginePlace(msgspec.Struct, frozen=True):
    """Where an engine and its blobs are: `sqlite:FOLDER`, or `nats://…` with the bucket of the blobs."""

    url: str
    blobs: str = ""
    blobs_endpoint: str = ""
    nats_ca_file: str = ""
    nats_certificate: str = ""
    nats_key: str = ""
    nats_nkey_file: str = ""
    nats_creds_file: str = ""

    @property
    def is_cluster(self) -> bool:
        """Whether it is a NATS cluster."""
        return self.url.startswith(NATS_SCHEMES)

    @property
    def folder(self) -> Path:
        """The data folder of a server on SQLite."""
        return Path(self.url.removeprefix(SQLITE_SCHEME))

    @property
    def database(self) -> Path:
        """The file of a server on SQLite."""
        return self.folder / DATABASE_NAME

    @property
    def blob_place(self) -> str:
        """Where the blobs are.

        Raises:
            StoreError: nothing says so.
        """
        if self.blobs:
            return self.blobs
        if self.is_cluster:
            raise StoreError("say where the cluster's files are: its setting `blobs`, such as s3://bucket/prefix")
        return str(self.folder / BLOBS_FOLDER)

    @property
    def shown(self) -> str:
        """The place as messages name it, without what is secret in an address."""
        head, at, tail = self.url.rpartition("@")
        return f"{head.partition('://')[0]}://{tail}" if at else self.url


@asynccontextmanager
async def open_reading(place: EnginePlace) -> AsyncIterator[Holdings]:
    """Open what may be served at the same time; it is only read.

    Raises:
        StoreError: there is no such engine, or it cannot be read.
        UpdateNeededError: a newer version of Twinlock wrote it.
    """
    if place.is_cluster:
        async with open_writing(place) as holdings:
            yield holdings
        return
    if not place.database.is_file():
        raise StoreError(f"there is no server's database in the folder {place.folder}")
    async with _with_blobs(place, SqliteEngine.open_reading(place.database)) as holdings:
        yield holdings


@asynccontextmanager
async def open_writing(place: EnginePlace, *, even_moved: bool = False) -> AsyncIterator[Holdings]:
    """Open an engine that nobody serves, or make it.

    Raises:
        StoreError: it cannot be opened, or somebody serves it.
        UpdateNeededError: a newer version of Twinlock wrote it.
    """
    engine: JetstreamEngine | SqliteEngine
    if place.is_cluster:
        engine = await _connect(place)
    else:
        engine = SqliteEngine.open(place.database, even_moved=even_moved)
    async with _with_blobs(place, engine) as holdings:
        yield holdings


async def _connect(place: EnginePlace) -> JetstreamEngine:
    # Who has no cluster needs none of its parts.
    from twinlock.engines.jetstream import JetstreamEngine
    from twinlock.engines.jetstream_options import NatsOptions

    options = NatsOptions.from_url(
        place.url,
        ca_file=place.nats_ca_file,
        certificate=place.nats_certificate,
        key=place.nats_key,
        nkey_file=place.nats_nkey_file,
        creds_file=place.nats_creds_file,
    )
    return await JetstreamEngine.connect(place.url, options)


@asynccontextmanager
async def _with_blobs(place: EnginePlace, engine: JetstreamEngine | SqliteEngine) -> AsyncIterator[Holdings]:
    try:
        blobs = open_blobs(place.blob_place, place.blobs_endpoint)
        try:
            places = engine.log.places if isinstance(engine, SqliteEngine) else None
            yield Holdings(engine.log, engine.directory, engine.broker, blobs, places)
        finally:
            await blobs.close()
    finally:
        await engine.close()


@asynccontextmanager
async def open_backup(where: str, endpoint: str = "", *, is_made: bool = False) -> AsyncIterator[BlobStore]:
    """Open the folder or bucket of a backup; with `is_made` a folder that is not there is made.

    Raises:
        StoreError: it cannot be opened, or another process writes a backup there.
    """
    store = _backup_store(where, endpoint, is_made)
    try:
        if is_made and not where.startswith(BUCKET_SCHEME):
            with _locked(Path(where)):
                yield store
        else:
            yield store
    finally:
        await store.close()


def _backup_store(where: str, endpoint: str, is_made: bool) -> BlobStore:
    if where.startswith(BUCKET_SCHEME):
        return open_blobs(where, endpoint)
    if is_made:
        return open_blobs(where)
    if not Path(where).is_dir():
        raise StoreError(f"there is no folder {where}: name one that `twinlock backup` has made")
    # Only read, and perhaps where nothing can be written.
    return ObstoreBlobs(LocalStore(Path(where).absolute()))


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Keep another process from writing a backup into a folder; a bucket has no such lock."""
    descriptor = os.open(folder / LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError as exc:
        raise StoreError(f"another process writes a backup into {folder.name}") from exc
    finally:
        os.close(descriptor)
