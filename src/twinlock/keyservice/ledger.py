"""The ledger: one record for each release of a key, chained by hashes, the newest hash under a key of its own.

The chain shows that a record was altered, removed or moved; the authenticated head shows that the chain was cut short
or built anew by someone who holds only the database. A database that is rolled back as a whole is shown by a head that
was noted elsewhere: `verify` returns it.
"""

from __future__ import annotations

import hashlib
import hmac
import sqlite3

import msgspec

from twinlock.protocol.labels import label, u64

_NO_HASH = bytes(32)


class LedgerRecord(msgspec.Struct, frozen=True, omit_defaults=True):
    """What happened: ids in hex, and why it was refused if it was.

    Events: `pending` (a key of a coming epoch), `lease`, `denied` (a space, for good), `purged` (keys of a denied space
    that a restored backup had brought back), `root_rotated`, `root_retired` and `root_destroyed`.
    """

    time_ms: int
    event: str
    space: str = ""
    account: str = ""
    device: str = ""
    epochs: list[int] = []
    not_after_ms: int = 0
    refused: str = ""
    root_version: int = 0
    keys_count: int = 0


class LedgerReport(msgspec.Struct, frozen=True):
    """How far the ledger checks out. `broken_at` is the first record that does not, 0 if all is well."""

    records_count: int
    head: bytes
    broken_at: int = 0

    @property
    def intact(self) -> bool:
        """Whether nothing was altered, removed or moved."""
        return self.broken_at == 0


class Ledger:
    """Appends records inside the caller's transaction."""

    __slots__ = ("_connection", "_count", "_hash", "_key")

    def __init__(self, connection: sqlite3.Connection, key: bytes) -> None:
        self._connection = connection
        self._key = key
        self._count, self._hash = 0, _NO_HASH
        self.reload()

    def reload(self) -> None:
        """Go back to what is stored, after a transaction that failed."""
        row = self._connection.execute("SELECT n, hash FROM ledger ORDER BY n DESC LIMIT 1").fetchone()
        self._count, self._hash = (0, _NO_HASH) if row is None else (int(row[0]), bytes(row[1]))

    def begin(self) -> None:
        """Prove that the ledger is empty: once, in the transaction that makes the database."""
        self._prove_head()

    def append(self, record: LedgerRecord) -> None:
        """Add a record; it is durable when the transaction is."""
        data = msgspec.json.encode(record)
        count, chained = self._count + 1, _chain(self._count + 1, self._hash, data)
        self._connection.execute("INSERT INTO ledger (n, record, hash) VALUES (?, ?, ?)", (count, data, chained))
        self._count, self._hash = count, chained
        self._prove_head()

    def verify(self) -> LedgerReport:
        """Check every record against its neighbours and the last against the authenticated head."""
        count, chained = 0, _NO_HASH
        # The casts are for what an intruder may have written in place of bytes.
        sql = "SELECT n, CAST(record AS BLOB), CAST(hash AS BLOB) FROM ledger ORDER BY n"
        for n, data, stored in self._connection.execute(sql):
            expected = _chain(count + 1, chained, data)
            if n != count + 1 or not hmac.compare_digest(stored, expected):
                return LedgerReport(count, chained, count + 1)
            count, chained = count + 1, expected
        row = self._connection.execute("SELECT value FROM meta WHERE name = 'ledger_head'").fetchone()
        proof = b"" if row is None else bytes(row[0])
        whole = hmac.compare_digest(proof, _head_proof(self._key, count, chained))
        return LedgerReport(count, chained, 0 if whole else count + 1)

    def records(self, after: int = 0, limit: int = 1000) -> list[LedgerRecord]:
        """Return records after the first `after`, in order."""
        sql = "SELECT record FROM ledger WHERE n > ? ORDER BY n LIMIT ?"
        rows = self._connection.execute(sql, (after, limit))
        return [msgspec.json.decode(data, type=LedgerRecord) for (data,) in rows]

    def _prove_head(self) -> None:
        proof = _head_proof(self._key, self._count, self._hash)
        self._connection.execute("INSERT OR REPLACE INTO meta VALUES ('ledger_head', ?)", (proof,))


def _chain(count: int, before: bytes, record: bytes) -> bytes:
    return hashlib.sha256(label("ledger") + u64(count) + before + hashlib.sha256(record).digest()).digest()


def _head_proof(key: bytes, count: int, chained: bytes) -> bytes:
    return hmac.digest(key, label("ledger-head", u64(count) + chained), "sha256")
