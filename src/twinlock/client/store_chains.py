"""Named values, chains and quarantine of a replica file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from twinlock.client.store_file import StoreFile
from twinlock.ids import DeviceId, Seq
from twinlock.replica.store import QuarantinedEnvelope

SCHEMA = """
CREATE TABLE IF NOT EXISTS meta(name TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS quarantine(
    seq INTEGER PRIMARY KEY, received_ms INTEGER NOT NULL, data BLOB NOT NULL, reason TEXT NOT NULL);
"""

_CHAIN = "chain-"
"""Chains lie among the named values: what moves together with them lies on the same page of the file."""


class ChainTables:
    """Small state: by name, by device, by seq."""

    __slots__ = ("_file", "_quarantined_count")

    def __init__(self, file: StoreFile) -> None:
        self._file = file
        self._quarantined_count = 0
        self.recount()

    def recount(self) -> None:
        """Count again, after opening or after a transaction that was taken back."""
        (self._quarantined_count,) = self._file.rows("SELECT count(*) FROM quarantine")[0]

    def get_meta(self, name: str) -> bytes | None:
        """Return a named value."""
        row = self._file.row("SELECT value FROM meta WHERE name = ?", (name,))
        return None if row is None else row[0]

    def put_meta(self, name: str, value: bytes) -> None:
        """Set a named value."""
        self._file.run("INSERT OR REPLACE INTO meta VALUES(?, ?)", (name, value))

    def chains(self) -> dict[DeviceId, bytes]:
        """Return every chain's state."""
        rows = self._file.rows("SELECT name, value FROM meta WHERE name >= 'chain-' AND name < 'chain.'")
        return {DeviceId(bytes.fromhex(name.removeprefix(_CHAIN))): state for name, state in rows}

    def put_chains(self, chains: Mapping[DeviceId, bytes]) -> None:
        """Set the state of some chains."""
        for device, state in chains.items():
            self.put_meta(_CHAIN + device.hex(), state)

    def quarantine(self, envelopes: Sequence[QuarantinedEnvelope]) -> None:
        """Store quarantined envelopes."""
        rows = [(entry.seq, entry.received_ms, entry.data, entry.reason) for entry in envelopes]
        self._file.run_many("INSERT OR REPLACE INTO quarantine VALUES(?, ?, ?, ?)", rows)
        self.recount()

    def quarantined(self) -> list[QuarantinedEnvelope]:
        """Return all of them by seq."""
        if not self._quarantined_count:
            return []
        rows = self._file.rows("SELECT seq, received_ms, data, reason FROM quarantine ORDER BY seq")
        return [QuarantinedEnvelope(Seq(seq), received_ms, data, reason) for seq, received_ms, data, reason in rows]

    def release(self, seqs: Sequence[Seq]) -> None:
        """Remove some of them."""
        self._file.run_many("DELETE FROM quarantine WHERE seq = ?", [(seq,) for seq in seqs])
        self.recount()
