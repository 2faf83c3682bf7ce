"""Making a backup of a server that goes on serving.

The order makes a backup sound that is no picture of one moment. The log is read first, space by space, each as it was
at some moment: what lies in it was acknowledged, and the chains of its devices have no gap. Then the directory, which
is so never older than the log: a space with entries has its signed log there, and an epoch its Keyring rows. What is
newer in the directory than in the log does no harm, since devices push again what a restored log lacks. Then the blobs:
whatever the directory calls finished is there. The manifest is last: without it nothing of all this counts.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import TypeVar

import msgspec

from twinlock.backup.blob_table import BlobTable
from twinlock.backup.chunks import Chunks
from twinlock.backup.directory_table import write_records
from twinlock.backup.format import BlobRow, Manifest, SpaceRow
from twinlock.backup.generations import list_generations, prune, read_generation, write_generation
from twinlock.backup.holdings import Holdings
from twinlock.backup.log_tables import LogTable
from twinlock.backup.pages import page_digests, read_page
from twinlock.contracts import BlobStore
from twinlock.errors import BackupDamagedError

Row = TypeVar("Row", bound=msgspec.Struct)


class Made(msgspec.Struct, frozen=True):
    """A backup that was made: its manifest, and how many old generations were deleted after it."""

    manifest: Manifest
    pruned_count: int


async def make_backup(
    holdings: Holdings, store: BlobStore, now_ms: Callable[[], int], *, identity: bytes = b"", keep: int = 0
) -> Made:
    """Write the next generation of a backup; what has not changed since the last one is not written again.

    Whoever serves may go on. One backup at a time is made into a store.

    Args:
        holdings: what is backed up; it is only read.
        store: where the backup is.
        now_ms: the clock.
        identity: the server's own secrets, if they are to be in the backup.
        keep: how many generations stay, the new one included; 0 for all.

    Raises:
        StoreError: something cannot be read or written; no generation was made.
        BackupDamagedError: the manifest of the newest generation is damaged: begin in another place.
        OverloadedError: a space is cut again and again while it is read.
    """
    began_ms = now_ms()
    chunks = Chunks(store)
    known = await list_generations(store)
    before, previous = await read_generation(store, known[-1]) if known else (None, "")
    await chunks.list()
    incarnation = holdings.log.incarnation.hex()
    table = LogTable(holdings.log, chunks)
    # Seqs of another life are others: its spaces are read anew.
    is_same_life = before is not None and before.incarnation == incarnation
    spaces = await table.write(holdings, _rows(chunks, before.spaces if before and is_same_life else "", SpaceRow))
    records, records_count = await write_records(holdings.directory, chunks)
    blobs = BlobTable(holdings.blobs, store, chunks)
    blob_table = await blobs.write(_rows(chunks, before.blobs if before else "", BlobRow))
    manifest = Manifest(
        generation=known[-1] + 1 if known else 1,
        began_ms=began_ms,
        made_ms=now_ms(),
        incarnation=incarnation,
        previous=previous,
        spaces=spaces.hex(),
        records=records.hex(),
        blobs=blob_table.hex(),
        counts=msgspec.structs.replace(
            table.counts, records=records_count, blobs=blobs.count, blob_bytes=blobs.bytes_count
        ),
        identity=(await chunks.put(identity)).hex() if identity else "",
        written_bytes=chunks.written_bytes + blobs.written_bytes,
    )
    await write_generation(store, manifest)
    return Made(manifest, await prune(store, chunks, keep) if keep else 0)


async def _rows(chunks: Chunks, table: str, form: type[Row]) -> AsyncIterator[Row]:
    """Yield what the generation before had; what of it is damaged is as if it had never been backed up."""
    if not table:
        return
    try:
        digests = await page_digests(chunks, bytes.fromhex(table))
    except BackupDamagedError:
        return
    for digest in digests:
        try:
            rows = await read_page(chunks, digest, form)
        except BackupDamagedError:
            # Were it taken for present, it would not be written again.
            chunks.present.discard(digest)
            continue
        for row in rows:
            yield row
