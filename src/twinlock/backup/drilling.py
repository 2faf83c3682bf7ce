"""The restore drill of a server's backup: restore it all into a scratch place, prove it, leave nothing behind."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from twinlock.backup.chunks import Chunks
from twinlock.backup.format import Manifest, SpaceRow, manifest_name
from twinlock.backup.generations import list_generations, read_generation
from twinlock.backup.holdings import Holdings
from twinlock.backup.pages import read_rows
from twinlock.backup.proving import prove_blobs, prove_chains, prove_logs
from twinlock.backup.restoring import PROBLEMS_MAX, Restored, restore
from twinlock.backup.serving import prove_serving
from twinlock.contracts import BlobStore
from twinlock.engines.blobs import open_blobs
from twinlock.engines.sqlite import SqliteEngine
from twinlock.errors import BackupDamagedError

DATABASE_NAME = "drill.db"


class ServerDrill(msgspec.Struct, frozen=True):
    """What a drill found. `problems` is empty if a restore would bring everything back that the backup ever held."""

    manifest: Manifest
    restored: Restored
    account_logs_count: int
    space_logs_count: int
    blobs_count: int
    served_spaces_count: int
    has_identity: bool
    took_ms: int
    problems: list[str]

    @property
    def passed(self) -> bool:
        """Whether nothing is wrong with the backup."""
        return not self.problems


async def drill(store: BlobStore, now_ms: Callable[[], int], generation: int | None = None) -> ServerDrill:
    """Restore a generation into a scratch folder, check everything in it, and serve it.

    Raises:
        BackupDamagedError: there is no manifest that could be restored.
        StoreError: the store or the scratch folder fails.
    """
    began_s = time.monotonic()
    manifest, _ = await read_generation(store, generation)
    problems: list[str] = []

    def note(problem: str) -> None:
        if len(problems) < PROBLEMS_MAX:
            problems.append(problem)

    await _prove_line(store, manifest, note)
    with tempfile.TemporaryDirectory(prefix="twinlock-drill-") as scratch:
        engine = SqliteEngine.open(Path(scratch) / DATABASE_NAME)
        blobs = open_blobs(f"{scratch}/blobs")
        try:
            holdings = Holdings(engine.log, engine.directory, engine.broker, blobs, engine.log.places)
            restored = await restore(manifest, store, holdings, now_ms, even_damaged=True)
            problems += restored.problems
            chunks = Chunks(store)
            identity = await _identity(chunks, manifest, note)
            try:
                await prove_chains(holdings, read_rows(chunks, bytes.fromhex(manifest.spaces), SpaceRow), note)
            except BackupDamagedError as error:
                note(error.detail)
            logs = await prove_logs(holdings, note)
            finished = await prove_blobs(holdings, note)
            served = await prove_serving(holdings, identity, note)
        finally:
            await blobs.close()
            await engine.close()
    return ServerDrill(
        manifest,
        restored,
        logs.accounts_count,
        logs.spaces_count,
        finished,
        served.spaces_count,
        bool(identity),
        int((time.monotonic() - began_s) * 1000),
        problems,
    )


async def _prove_line(store: BlobStore, manifest: Manifest, note: Callable[[str], None]) -> None:
    """See that the manifest follows the one before it, where that is still there."""
    before = manifest.generation - 1
    if before not in await list_generations(store):
        return
    try:
        _, digest = await read_generation(store, before)
    except BackupDamagedError as error:
        note(error.detail)
        return
    if digest != manifest.previous:
        note(f"{manifest_name(manifest.generation)} does not follow {manifest_name(before)}: one of them was replaced")


async def _identity(chunks: Chunks, manifest: Manifest, note: Callable[[str], None]) -> bytes:
    if not manifest.identity:
        return b""
    try:
        return await chunks.get(bytes.fromhex(manifest.identity))
    except BackupDamagedError as error:
        note(error.detail)
        return b""
