"""What the server keeps things in: an engine, a key service and its own secrets, opened and closed together."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import msgspec
import structlog

from twinlock.contracts import BlobStore, Broker, Directory, KeyService, Log, check_served
from twinlock.engines.blobs import MEMORY_BLOBS, open_blobs
from twinlock.engines.jetstream import JetstreamEngine
from twinlock.engines.jetstream_options import NatsOptions
from twinlock.engines.jetstream_room import Room
from twinlock.engines.memory import MemoryBroker, MemoryDirectory, MemoryLog
from twinlock.engines.sqlite import SqliteEngine
from twinlock.errors import KeyServiceError, RevisionError, StoreError
from twinlock.keyservice.key_files import NODE_KEY_NAME, open_signing_key, public_key_text, read_public_key
from twinlock.keyservice.node_auth import LIFE_BYTES, NodeIdentity
from twinlock.keyservice.remote import RemoteKeyService
from twinlock.keyservice.service import DATABASE_NAME as KEY_DATABASE_NAME
from twinlock.keyservice.service import LocalKeyService, wall_clock_ms
from twinlock.server.partitions import OpenPartitions, single_machine_partitions
from twinlock.server.secrets_file import FILE_NAME as SERVER_KEY_NAME
from twinlock.server.secrets_file import ServerSecrets, make_secrets, open_secrets
from twinlock.server.settings import Settings

logger = structlog.get_logger(__name__)

DATABASE_NAME = "twinlock.db"
IDENTITY_KEY = "cluster/identity"
PROBE_KEY = "probe"
SIGNED_LOGS = "log/"
OTHER_NODE = "the data folder of another node"
OWN_COPY = "where you keep its copy, or from the old data folder"
KEY_SERVICE_FOLDER = "keyservice"
BLOBS_FOLDER = "blobs"


class Stores(msgspec.Struct, frozen=True):
    """Open stores; `close` is awaited once, at the end."""

    log: Log
    directory: Directory
    broker: Broker
    blobs: BlobStore
    keys: KeyService
    secrets: ServerSecrets
    close: Callable[[], Awaitable[None]]
    open_partitions: OpenPartitions = single_machine_partitions
    is_shared: bool = False
    """Whether other nodes may use the same engine at the same time."""

    node: bytes = b""
    """The name of this node among them while it runs; empty for one that is made up at the start."""


async def open_stores(settings: Settings) -> Stores:
    """Open what the settings name; a data folder is made at its first use.

    Raises:
        StoreError: something cannot be opened, or another process has it open.
    """
    if settings.in_memory:
        return await _open_in_memory(settings)
    folder = Path(settings.data)
    return await (_open_in_cluster if settings.in_cluster else _open_in_folder)(settings, folder)


async def _open_in_cluster(settings: Settings, folder: Path) -> Stores:
    """Open one node's way into a cluster; its folder holds its keys, and files where no bucket is named."""
    options = NatsOptions.from_url(
        settings.engine,
        ca_file=settings.nats_ca_file,
        certificate=settings.nats_certificate,
        key=settings.nats_key,
        nkey_file=settings.nats_nkey_file,
        creds_file=settings.nats_creds_file,
    )
    engine = await JetstreamEngine.connect(settings.engine, options)
    try:
        await check_served(engine.directory)
        secrets = await open_identity(engine.directory, folder, OTHER_NODE)
        # A node that may only read is found out now, not by its devices.
        await engine.directory.put(PROBE_KEY, b"")
        if not settings.blobs:
            logger.warning("files are kept in the folder of this node alone: set blobs to a bucket of all nodes")
        blobs = open_blobs(settings.blobs or str(folder / BLOBS_FOLDER), settings.blobs_endpoint)
        keys = await _open_keys(settings, folder)
    except BaseException:
        await engine.close()
        raise

    async def close() -> None:
        await keys.close()
        await engine.close()
        await blobs.close()

    room = Room(engine).open_partitions
    return Stores(engine.log, engine.directory, engine.broker, blobs, keys, secrets, close, room, is_shared=True)


async def open_identity(directory: Directory, folder: Path, whence: str) -> ServerSecrets:
    """Open the secrets in a data folder, or make those of a new server, and check that the engine's devices know them.

    Args:
        directory: that of the engine.
        folder: the data folder.
        whence: where there is a copy of the right file, should this one be missing or another.

    Raises:
        StoreError: they are damaged, can be read by others, are missing, or are those of another server.
    """
    if not (folder / SERVER_KEY_NAME).exists() and await _is_known(directory):
        raise StoreError(
            f"{SERVER_KEY_NAME} is missing from {folder}, and devices know the server by it: copy it from {whence}"
        )
    secrets = open_secrets(folder)
    await check_identity(directory, secrets.server_id, whence)
    return secrets


async def _is_known(directory: Directory) -> bool:
    """Tell whether a server has served this engine: databases of earlier versions do not name it."""
    if await directory.get(IDENTITY_KEY) is not None:
        return True
    async for key, _ in directory.scan():
        if key.startswith(SIGNED_LOGS):
            return True
    return False


async def check_identity(directory: Directory, server_id: bytes, whence: str = OTHER_NODE) -> None:
    """Check that this is the server that the engine's devices know; the first one to open it says which.

    Raises:
        StoreError: it is another one, to which none of them would speak.
    """
    record = await directory.get(IDENTITY_KEY)
    if record is None:
        try:
            await directory.put(IDENTITY_KEY, server_id, expect_revision=0)
        except RevisionError:
            record = await directory.get(IDENTITY_KEY)
    if record is not None and record.value != server_id:
        raise StoreError(
            f"{SERVER_KEY_NAME} is that of another server, and devices know this one by its own: copy it from {whence}"
        )


async def _open_in_folder(settings: Settings, folder: Path) -> Stores:
    engine = SqliteEngine.open(folder / DATABASE_NAME)
    try:
        secrets = await open_identity(engine.directory, folder, OWN_COPY)
        blobs = open_blobs(settings.blobs or str(folder / BLOBS_FOLDER), settings.blobs_endpoint)
        keys = await _open_keys(settings, folder)
    except BaseException:
        await engine.close()
        raise

    async def close() -> None:
        await keys.close()
        await engine.close()
        await blobs.close()

    return Stores(engine.log, engine.directory, engine.broker, blobs, keys, secrets, close)


async def _open_keys(settings: Settings, folder: Path) -> KeyService:
    """Open the key service of this process, or the way to the one that the settings name.

    Raises:
        StoreError: the folder was used with the other kind: the keys are there, and none would be found here.
        NodeRefusedError: the key service does not take requests of this server.
    """
    own, node_key = folder / KEY_SERVICE_FOLDER, folder / NODE_KEY_NAME
    has_own = (own / KEY_DATABASE_NAME).exists()
    if not settings.keyservice_url:
        if node_key.exists() and not has_own:
            raise StoreError(f"{NODE_KEY_NAME} tells of a key service of its own: set keyservice_url and keyservice_pk")
        return LocalKeyService.open(own, settings.keyservice)
    if has_own:
        raise StoreError(
            f"the service keys are in the folder {KEY_SERVICE_FOLDER}: move it to the key service as its data folder"
        )
    key, service_pk = open_signing_key(node_key), read_public_key(settings.keyservice_pk)
    node = NodeIdentity(key, service_pk, os.urandom(LIFE_BYTES))
    keys = RemoteKeyService.connect(settings.keyservice_url, node, wall_clock_ms, settings.keyservice_ca_file)
    logger.info("key service is apart", url=settings.keyservice_url, node_key=public_key_text(key))
    try:
        await keys.probe()
    except KeyServiceError as error:
        # Serving begins all the same: devices work on their leases.
        logger.warning("the key service does not answer", detail=error.detail)
    except BaseException:
        await keys.close()
        raise
    return keys


async def _open_in_memory(settings: Settings) -> Stores:
    log = MemoryLog()
    # The key service knows only files; these live as long as the process.
    folder = TemporaryDirectory(prefix="twinlock-")
    keys = LocalKeyService.open(folder.name, settings.keyservice)
    blobs = open_blobs(settings.blobs or MEMORY_BLOBS, settings.blobs_endpoint)

    async def close() -> None:
        await keys.close()
        await log.close()
        await blobs.close()
        folder.cleanup()

    return Stores(log, MemoryDirectory(), MemoryBroker(), blobs, keys, make_secrets(), close)
