"""The restore drill: prove that a backup brings every key back, without anything that serves or stays.

The root key is only ever in memory here, and the scratch folder holds nothing but the backup's own sealed rows.
"""

from __future__ import annotations

import hmac
import sqlite3
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec

from twinlock.errors import StoreError, UpdateNeededError
from twinlock.ids import ID_BYTES, Epoch, LogId, SpaceId
from twinlock.keyservice.backup import Manifest, Restored, restore_database
from twinlock.keyservice.database import meta, reading
from twinlock.keyservice.logs import SignedLogs
from twinlock.keyservice.service import DATABASE_NAME
from twinlock.keyservice.settings import KeyServiceSettings
from twinlock.keyservice.wrapper import KeyWrapper, service_key_context
from twinlock.protocol.proofs import b_commit
from twinlock.protocol.space_log import SpaceLogState
from twinlock.protocol.space_rules import EPOCH_MAX

PROBLEMS_MAX = 1_000
"""How many problems are named; a backup with more is as broken."""

_BATCH_ROWS = 100


class DrillReport(msgspec.Struct, frozen=True):
    """What a drill found. `problems` is empty if the backup would bring everything back that it ever held.

    Without a manifest, as in a copy that another tool made, nobody knows what it held.
    """

    manifest: Manifest | None
    accounts_count: int
    spaces_count: int
    keys_count: int
    candidates_count: int
    denied_count: int
    purged_count: int
    ledger_records_count: int
    took_ms: int
    problems: list[str]

    @property
    def passed(self) -> bool:
        """Whether nothing is wrong with the backup."""
        return not self.problems


class _Row(msgspec.Struct, frozen=True):
    """A wrapped key, what it must be, and how a problem with it is named."""

    name: str
    space: SpaceId
    epoch: Epoch
    wrapped: bytes
    b_commit: bytes


async def drill(backup: Path, wrapper: KeyWrapper, deny_list: Path | None, settings: KeyServiceSettings) -> DrillReport:
    """Restore a backup into a scratch folder and check everything in it: the ledger, each log, each key.

    Raises:
        StoreError: it cannot be restored at all: no backup, another root key, a damaged file.
        KeyServiceError: what holds the root key does not answer.
    """
    began_s = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="twinlock-drill-") as scratch:
        folder = Path(scratch)
        restored = await restore_database(backup, folder, wrapper, deny_list, settings)
        with reading(folder / DATABASE_NAME) as connection:
            checks = _Checks(connection, wrapper)
            checks.run(restored)
    return DrillReport(
        restored.manifest,
        checks.accounts_count,
        checks.spaces_count,
        checks.keys_count,
        checks.candidates_count,
        restored.denied_count,
        restored.purged_count,
        restored.ledger.records_count,
        int((time.monotonic() - began_s) * 1000),
        checks.problems,
    )


class _Checks:
    __slots__ = (
        "_connection",
        "_id",
        "_logs",
        "_wrapper",
        "accounts_count",
        "candidates_count",
        "keys_count",
        "problems",
        "spaces_count",
    )

    def __init__(self, connection: sqlite3.Connection, wrapper: KeyWrapper) -> None:
        self._connection = connection
        self._wrapper = wrapper
        self._id = meta(connection, "keyservice_id")
        self._logs = SignedLogs(connection)
        self.accounts_count = self.spaces_count = self.keys_count = self.candidates_count = 0
        self.problems: list[str] = []

    def run(self, restored: Restored) -> None:
        self.problems.extend(restored.missing)
        if not restored.ledger.intact:
            self._note(f"the ledger is broken at record {restored.ledger.broken_at}")
        self.keys_count = self._unwrap_all(self._keys())
        self.candidates_count = self._unwrap_all(self._candidates())
        self._check_denied()

    def _keys(self) -> Iterator[_Row]:
        """Replay every log; give the key of each of its epochs, and note those that are missing or too many."""
        denied = {space for (space,) in self._connection.execute("SELECT space FROM denied")}
        for (log,) in self._connection.execute("SELECT DISTINCT CAST(log AS BLOB) FROM entries ORDER BY log"):
            state = self._replayed(log)
            if not isinstance(state, SpaceLogState):
                continue
            held = self._held(log)
            if state.is_shredded and log not in denied:
                self._note(f"space {log.hex()} was shredded but is not denied: this is not its newest deny list")
            for epoch, record in state.epochs.items():
                name = f"the key of epoch {epoch} of space {log.hex()}"
                wrapped = held.pop(epoch, None)
                if wrapped is not None:
                    yield _Row(name, state.space, epoch, wrapped, record.b_commit)
                elif log not in denied:
                    self._note(f"{name} is missing")
            for epoch in held:
                self._note(f"the key of epoch {epoch} of space {log.hex()} is there, but its log has no such epoch")
        orphans = (
            "SELECT CAST(space AS BLOB), count(*) FROM keys WHERE space NOT IN (SELECT log FROM entries) GROUP BY space"
        )
        for space, count in self._connection.execute(orphans):
            self._note(f"the log of space {space.hex()} is missing, of which there are {count} keys")

    def _replayed(self, log: bytes) -> object:
        try:
            state = self._logs.state(LogId(log))
        except (StoreError, UpdateNeededError, TypeError, ValueError) as exc:
            # The latter two are for what an intruder may have written in place of bytes.
            cause = exc.__cause__ or exc
            self._note(f"the log {log.hex()} does not replay: {getattr(cause, 'detail', '') or type(cause).__name__}")
            return None
        if isinstance(state, SpaceLogState):
            self.spaces_count += 1
        elif state is not None:
            self.accounts_count += 1
        else:
            self._note(f"the log {log.hex()} is not stored as a log")
        return state

    def _held(self, space: bytes) -> dict[Epoch, bytes]:
        sql = "SELECT epoch, CAST(wrapped AS BLOB) FROM keys WHERE space = ? ORDER BY epoch"
        return {Epoch(epoch): wrapped for epoch, wrapped in self._connection.execute(sql, (space,))}

    def _candidates(self) -> Iterator[_Row]:
        sql = (
            "SELECT CAST(space AS BLOB), epoch, CAST(wrapped AS BLOB), CAST(b_commit AS BLOB) FROM pending ORDER BY id"
        )
        for space, epoch, wrapped, commit in self._connection.execute(sql):
            name = f"a candidate for epoch {epoch} of space {space.hex()}"
            if len(space) == ID_BYTES and isinstance(epoch, int) and 1 <= epoch <= EPOCH_MAX:
                yield _Row(name, SpaceId(space), Epoch(epoch), wrapped, commit)
            else:
                self._note(f"{name} was altered")

    def _unwrap_all(self, rows: Iterator[_Row]) -> int:
        count = 0
        batch: list[_Row] = []
        for row in rows:
            batch.append(row)
            if len(batch) == _BATCH_ROWS:
                count += self._unwrap(batch)
                batch = []
        return count + self._unwrap(batch)

    def _unwrap(self, rows: Sequence[_Row]) -> int:
        """Compare keys with their commitments; return how many are right."""
        bound = [(row.wrapped, service_key_context(row.space, row.epoch, self._id)) for row in rows]
        try:
            keys = self._wrapper.unwrap_many(bound)
        except StoreError as exc:
            if len(rows) > 1:
                # One of them is refused and so all are: each on its own tells which.
                return sum(self._unwrap([row]) for row in rows)
            self._note(f"{rows[0].name} cannot be unwrapped: {exc.detail}")
            return 0
        wrong = [
            row
            for row, key in zip(rows, keys, strict=True)
            if not hmac.compare_digest(b_commit(row.space, row.epoch, key), row.b_commit)
        ]
        for row in wrong:
            self._note(f"{row.name} is another one than its signed log commits to")
        return len(rows) - len(wrong)

    def _check_denied(self) -> None:
        sql = (
            "SELECT CAST(space AS BLOB), count(*) FROM (SELECT space FROM keys UNION ALL SELECT space FROM pending)"
            " WHERE space IN (SELECT space FROM denied) GROUP BY space"
        )
        for space, count in self._connection.execute(sql):
            self._note(f"{count} keys of the denied space {space.hex()} are there")

    def _note(self, problem: str) -> None:
        if len(self.problems) < PROBLEMS_MAX:
            self.problems.append(problem)
