"""The wrapped service keys: those of epochs, and candidates for epochs that are about to be opened."""

from __future__ import annotations

import hmac
import sqlite3
from collections.abc import Iterable, Sequence
from typing import Any

from twinlock.ids import AccountId, Epoch, SpaceId
from twinlock.keyservice.service_key import ServiceKey
from twinlock.keyservice.wrapper import KeyWrapper, service_key_context
from twinlock.protocol.proofs import b_commit

PENDING_PER_ACCOUNT_MAX = 16
"""Candidates kept for one epoch and signer; a further one drops the oldest, which nobody waits for any more."""

PENDING_KEPT_MS = 24 * 3_600_000
"""After this a candidate that no epoch entry took up is dropped; the admin's device asks for a new one."""


class KeyStore:
    """Reads and writes inside the caller's transaction."""

    __slots__ = ("_connection", "_id", "_wrapper", "has_deleted")

    def __init__(self, connection: sqlite3.Connection, wrapper: KeyWrapper, keyservice_id: bytes) -> None:
        self._connection = connection
        self._wrapper = wrapper
        self._id = keyservice_id
        self.has_deleted = True
        """Whether keys of a space were deleted that may still lie in the write-ahead log, as a crash may leave some."""

    def get(self, space: SpaceId, epochs: Iterable[Epoch]) -> dict[Epoch, ServiceKey]:
        """Return the service keys of those of the epochs that there are.

        Raises:
            StoreError: one is there but cannot be unwrapped.
        """
        found: dict[Epoch, tuple[bytes, bytes]] = {}
        for epoch in dict.fromkeys(epochs):
            row = self._connection.execute(
                "SELECT wrapped FROM keys WHERE space = ? AND epoch = ?", (space, epoch)
            ).fetchone()
            if row is not None:
                found[epoch] = (row[0], service_key_context(space, epoch, self._id))
        # All at once: where a key management service unwraps, each time is a request to it.
        keys = self._wrapper.unwrap_many(list(found.values())) if found else []
        return {epoch: ServiceKey(key) for epoch, key in zip(found, keys, strict=True)}

    def add_pending(self, space: SpaceId, epoch: Epoch, account: AccountId, key: ServiceKey, now_ms: int) -> bytes:
        """Store a fresh candidate and return its commitment."""
        commit = b_commit(space, epoch, key.expose())
        wrapped = self._wrapper.wrap(key.expose(), service_key_context(space, epoch, self._id))
        self.forget_pending(now_ms)
        row = (space, epoch, account, commit, wrapped, now_ms, self._wrapper.version_of(wrapped))
        self._connection.execute(
            "INSERT INTO pending (space, epoch, account, b_commit, wrapped, created_ms, root_version)"
            " VALUES (?, ?, ?, ?, ?, ?, ?)",
            row,
        )
        self._connection.execute(
            "DELETE FROM pending WHERE id IN (SELECT id FROM pending WHERE space = ? AND epoch = ? AND account = ? "
            "ORDER BY id DESC LIMIT -1 OFFSET ?)",
            (space, epoch, account, PENDING_PER_ACCOUNT_MAX),
        )
        return commit

    def find_pending(self, space: SpaceId, epoch: Epoch, account: AccountId, commit: bytes) -> int | None:
        """Return the candidate that was made for this signer and has this commitment."""
        rows = self._connection.execute(
            "SELECT id, b_commit FROM pending WHERE space = ? AND epoch = ? AND account = ?", (space, epoch, account)
        )
        found = None
        for identifier, candidate in rows.fetchall():
            if hmac.compare_digest(candidate, commit):
                found = int(identifier)
        return found

    def promote(self, space: SpaceId, epoch: Epoch, candidate: int) -> None:
        """Make a candidate the key of its epoch and delete all others up to that epoch."""
        self._connection.execute(
            "INSERT INTO keys (space, epoch, wrapped, root_version)"
            " SELECT space, epoch, wrapped, root_version FROM pending WHERE id = ?",
            (candidate,),
        )
        self._connection.execute("DELETE FROM pending WHERE space = ? AND epoch <= ?", (space, epoch))

    def forget_pending(self, now_ms: int) -> None:
        """Drop the candidates that nobody waits for any more."""
        self._connection.execute("DELETE FROM pending WHERE created_ms < ?", (now_ms - PENDING_KEPT_MS,))

    def delete(self, space: SpaceId) -> int:
        """Delete every key of a space, and return how many there were."""
        keys = self._connection.execute("DELETE FROM keys WHERE space = ?", (space,))
        pending = self._connection.execute("DELETE FROM pending WHERE space = ?", (space,))
        self.has_deleted = True
        return keys.rowcount + pending.rowcount

    def note_denied(self, space: SpaceId) -> None:
        """Remember a denied space beside its keys, in case the list is lost."""
        self._connection.execute("INSERT OR IGNORE INTO denied (space) VALUES (?)", (space,))

    def denied(self) -> list[SpaceId]:
        """Return the spaces that were denied while this database was in use."""
        return [SpaceId(space) for (space,) in self._connection.execute("SELECT space FROM denied ORDER BY space")]

    def has_rows_up_to(self, root_version: int) -> bool:
        """Tell whether anything is wrapped under a version of the root key or one before it."""
        sql = (
            "SELECT EXISTS (SELECT 1 FROM keys WHERE root_version <= ?)"
            " OR EXISTS (SELECT 1 FROM pending WHERE root_version <= ?)"
        )
        return bool(self._connection.execute(sql, (root_version, root_version)).fetchone()[0])

    def rewrap(self, active: int, rows_max: int) -> int:
        """Wrap some rows that are not under the active version of the root key anew; return how many."""
        keys = self._connection.execute(
            "SELECT wrapped, space, epoch FROM keys WHERE root_version < ? LIMIT ?", (active, rows_max)
        ).fetchall()
        self._connection.executemany(
            "UPDATE keys SET wrapped = ?, root_version = ? WHERE space = ? AND epoch = ?",
            [(wrapped, version, *row[1:]) for row, (wrapped, version) in zip(keys, self._rewrapped(keys), strict=True)],
        )
        pending = self._connection.execute(
            "SELECT wrapped, space, epoch, id FROM pending WHERE root_version < ? LIMIT ?",
            (active, rows_max - len(keys)),
        ).fetchall()
        again = zip(pending, self._rewrapped(pending), strict=True)
        self._connection.executemany(
            "UPDATE pending SET wrapped = ?, root_version = ? WHERE id = ?",
            [(wrapped, version, row[3]) for row, (wrapped, version) in again],
        )
        return len(keys) + len(pending)

    def _rewrapped(self, rows: Sequence[Any]) -> list[tuple[bytes, int]]:
        bound = [(row[0], service_key_context(row[1], row[2], self._id)) for row in rows]
        wrapped = self._wrapper.rewrap_many(bound) if bound else []
        return [(each, self._wrapper.version_of(each)) for each in wrapped]
