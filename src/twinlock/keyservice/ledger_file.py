"""The ledger as an operator or auditor reads it: from the folder, read-only, also while the service runs."""

from __future__ import annotations

import hmac
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import msgspec

from twinlock.errors import LedgerBrokenError, StoreError
from twinlock.keyservice.database import meta, reading
from twinlock.keyservice.ledger import Ledger, LedgerRecord, LedgerReport
from twinlock.keyservice.root_keys import read_ledger_key
from twinlock.keyservice.service import DATABASE_NAME
from twinlock.keyservice.settings import KeyServiceSettings
from twinlock.keyservice.wrappers import open_wrapper

_PAGE_RECORDS = 500


class Wanted(msgspec.Struct, frozen=True):
    """Which records to show: ids in hex or beginnings of them; what is empty lets everything pass."""

    space: str = ""
    account: str = ""
    device: str = ""
    since_ms: int = 0

    def covers(self, record: LedgerRecord) -> bool:
        """Tell whether a record is wanted."""
        return (
            record.time_ms >= self.since_ms
            and record.space.startswith(self.space)
            and record.account.startswith(self.account)
            and record.device.startswith(self.device)
        )


class NumberedRecord(msgspec.Struct, frozen=True):
    """A record and its place in the ledger, from 1."""

    number: int
    record: LedgerRecord


class CheckedLedger(msgspec.Struct, frozen=True):
    """A ledger that checks out; `noted_at` is the record whose hash was expected, 0 where none was."""

    report: LedgerReport
    noted_at: int


def read_records(folder: Path, wanted: Wanted) -> Iterator[NumberedRecord]:
    """Return the wanted records in order, without checking them.

    Raises:
        StoreError: there is no key service in the folder, or a record cannot be read.
    """
    with reading(folder / DATABASE_NAME) as connection:
        rows = connection.execute("SELECT n, CAST(record AS BLOB) FROM ledger ORDER BY n")
        while page := rows.fetchmany(_PAGE_RECORDS):
            for number, data in page:
                try:
                    record = msgspec.json.decode(data, type=LedgerRecord)
                except msgspec.MsgspecError as exc:
                    raise StoreError(f"record {number} of the ledger cannot be read") from exc
                if wanted.covers(record):
                    yield NumberedRecord(number, record)


def verify_ledger(folder: Path, settings: KeyServiceSettings, expected_head: bytes = b"") -> CheckedLedger:
    """Check every record, the authenticated head, and that a head that was noted elsewhere is part of it.

    Raises:
        LedgerBrokenError: a record was altered, removed or moved, or the ledger was cut short or put back.
        StoreError: there is no key service in the folder, or its root key cannot be used.
        KeyServiceError: what holds the root key does not answer.
    """
    with reading(folder / DATABASE_NAME) as connection:
        # The wrapper is opened for what exists: it makes nothing and changes nothing.
        wrapper = open_wrapper(settings, folder, is_new=False)
        try:
            key = read_ledger_key(connection, wrapper, meta(connection, "keyservice_id"))
        finally:
            wrapper.close()
        report = Ledger(connection, key).verify()
        if not report.intact:
            raise LedgerBrokenError(_what_is_wrong(connection, report))
        return CheckedLedger(report, _place_of(connection, expected_head) if expected_head else 0)


def _what_is_wrong(connection: sqlite3.Connection, report: LedgerReport) -> str:
    (stored,) = connection.execute("SELECT count(*) FROM ledger").fetchone()
    if report.records_count == stored:
        return f"its {stored} records fit together, but they are not all that were written, or not those"
    return f"record {report.broken_at} was altered, removed or moved; the {report.records_count} before it fit together"


def _place_of(connection: sqlite3.Connection, head: bytes) -> int:
    for number, chained in connection.execute("SELECT n, CAST(hash AS BLOB) FROM ledger ORDER BY n DESC"):
        if hmac.compare_digest(chained, head):
            return int(number)
    raise LedgerBrokenError("the head that was noted is not among its records: an older ledger was put back")
