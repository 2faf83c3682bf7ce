"""The directory's part of a backup: its records, sorted."""

from __future__ import annotations

from twinlock.backup.carried import SIGNED_LOGS, is_carried
from twinlock.backup.chunks import Chunks
from twinlock.backup.format import RecordRow
from twinlock.backup.pages import PageWriter
from twinlock.backup.spool import Spool, new_spool
from twinlock.contracts import Directory


async def write_records(directory: Directory, chunks: Chunks) -> tuple[bytes, int]:
    """Write all records; return the table's hash and how many there are.

    The entries of signed logs are read first and everything else after them: what belongs to an entry, such as the
    Keyring rows of its epoch, is stored before it, and so is never missing here. An entry that may be, the key service
    has.
    """
    with new_spool() as records:
        await _note(directory, records, is_of_logs=True)
        await _note(directory, records, is_of_logs=False)
        pages = PageWriter(chunks)
        for key, value in records.rows():
            await pages.add(key.encode(), RecordRow(key, value))
        return await pages.end(), records.count()


async def _note(directory: Directory, records: Spool, is_of_logs: bool) -> None:
    async for key, record in directory.scan():
        if key.startswith(SIGNED_LOGS) == is_of_logs and is_carried(key):
            records.put(key, record.value)
