"""What `twinlock doctor` checks of what nodes share: the cluster's record, its identity, files, and backups."""

from __future__ import annotations

import os
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from twinlock.cli.findings import Finding, Verdict
from twinlock.errors import StoreError, TwinlockError

if TYPE_CHECKING:
    from twinlock.engines.jetstream_cluster import ClusterSettings
    from twinlock.engines.jetstream_connection import Connection
    from twinlock.server.settings import Settings

BACKUP_HOURS_NOTE = 26
BACKUP_HOURS_BAD = 72
_PROBE_BYTES = 64


async def check_record(connection: Connection, data: Path) -> AsyncIterator[Finding]:
    """Check the cluster's record and that this machine's identity is the cluster's.

    Raises:
        StoreError: the directory cannot be read.
    """
    from twinlock.engines.jetstream_api import Api
    from twinlock.engines.jetstream_directory import JetstreamDirectory
    from twinlock.engines.jetstream_format import Names
    from twinlock.server.stores import IDENTITY_KEY

    settings = await read_settings(connection)
    if settings is None:
        yield Finding(Verdict.NOTE, "there is no cluster yet: `twinlock cluster init` or the first server makes it")
        return
    if settings.open:
        what = f"{len(settings.partitions)} partitions, {len(settings.open)} of them open for new spaces"
        yield Finding(Verdict.GOOD, what)
    else:
        yield Finding(Verdict.BAD, "no partition is open for new spaces", "`twinlock cluster open-partitions`")
    directory = JetstreamDirectory(Api(connection), Names(), settings.shards)
    record = await directory.get(IDENTITY_KEY)
    for finding in _identity(record.value if record else b"", data):
        yield finding


async def read_settings(connection: Connection) -> ClusterSettings | None:
    """Return what the nodes of a cluster agree on; None if there is no cluster yet.

    Raises:
        StoreError: the directory cannot be read.
    """
    import msgspec

    from twinlock.engines.jetstream_api import NO_STREAM, Api, ApiError
    from twinlock.engines.jetstream_cluster import ClusterSettings
    from twinlock.engines.jetstream_directory import JetstreamDirectory
    from twinlock.engines.jetstream_format import SETTINGS_KEY, Names

    try:
        # The record is in the first part of the directory, whatever the number of parts.
        record = await JetstreamDirectory(Api(connection), Names(), 1).get(SETTINGS_KEY)
    except ApiError as error:
        if error.failure.err_code == NO_STREAM:
            return None
        raise
    return msgspec.msgpack.decode(record.value, type=ClusterSettings) if record else None


def _identity(known: bytes, data: Path) -> Iterator[Finding]:
    from twinlock.server.secrets_file import FILE_NAME, open_secrets

    path = data / FILE_NAME
    if not path.exists():
        if known:
            fix = f"Copy {FILE_NAME} from another node's data folder (0600): devices know the cluster by it."
            yield Finding(Verdict.BAD, f"{path} is missing, and the cluster has one", fix)
        return
    try:
        own = open_secrets(data).server_id
    except StoreError as exc:
        yield Finding(Verdict.BAD, exc.detail, f"chmod 600 {path}")
        return
    if known and known != own:
        fix = f"Copy {FILE_NAME} from another node's data folder (0600)."
        yield Finding(Verdict.BAD, f"{path} is that of another server: no device of this cluster takes it", fix)
    elif known:
        yield Finding(Verdict.GOOD, f"{path} is the identity of the cluster")


async def check_blobs(settings: Settings) -> AsyncIterator[Finding]:
    """Write an object, read it and delete it, where parts of files are kept."""
    from twinlock.engines.blobs import open_blobs

    if not settings.blobs:
        fix = "Set `blobs` to a bucket that all nodes use: s3://bucket/prefix."
        yield Finding(Verdict.BAD, "files are kept in this node's own folder: other nodes cannot give them out", fix)
        return
    name, data = f"doctor/{os.urandom(8).hex()}", os.urandom(_PROBE_BYTES)
    try:
        store = open_blobs(settings.blobs, settings.blobs_endpoint)
        try:
            await store.put(name, data)
            is_same = await store.get(name) == data
            await store.delete(name)
        finally:
            await store.close()
    except TwinlockError as exc:
        fix = "See that the bucket exists, and that AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY may write to it."
        yield Finding(Verdict.BAD, f"{settings.blobs} cannot be used: {exc.detail}", fix)
        return
    if is_same:
        yield Finding(Verdict.GOOD, f"{settings.blobs} takes parts of files and gives them back")
    else:
        yield Finding(Verdict.BAD, f"{settings.blobs} gives back other bytes than it was given")


async def check_backup(place: str, endpoint: str = "") -> Finding:
    """Look how old the newest generation of a backup is."""
    try:
        made_ms = await newest_backup_ms(place, endpoint)
    except TwinlockError as exc:
        return Finding(Verdict.BAD, f"{place}: {exc.detail}", "Make a backup: `twinlock backup`.")
    hours = (time.time() * 1000 - made_ms) / 3_600_000
    what = f"the newest backup in {place} is {hours:.1f} hours old"
    if hours <= BACKUP_HOURS_NOTE:
        return Finding(Verdict.GOOD, what)
    return Finding(Verdict.BAD if hours > BACKUP_HOURS_BAD else Verdict.NOTE, what, "See why `twinlock backup` fails.")


async def newest_backup_ms(place: str, endpoint: str = "") -> int:
    """Return when the newest generation of a backup was made.

    Raises:
        BackupDamagedError: there is none, or it cannot be read.
        StoreError: the place cannot be reached.
    """
    from twinlock.backup import open_backup, read_generation

    async with open_backup(place, endpoint) as store:
        manifest, _ = await read_generation(store)
    return manifest.made_ms
