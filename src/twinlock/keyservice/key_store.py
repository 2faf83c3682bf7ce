"""The wrapped service keys: those of epochs, and candidates for epochs that are about to be opened."""

from __future__ import annotations

import hmac
import sqlite3

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

    __slots__ = ("_connection", "_id", "_wrapper")

    def __init__(self, connection: sqlite3.Connection, wrapper: KeyWrapper, keyservice_id: bytes) -> None:
        self._connection = connection
        self._wrapper = wrapper
        self._id = keyservice_id

    def get(self, space: SpaceId, epoch: Epoch) -> ServiceKey | None:
        """Return the service key of an epoch.

        Raises:
            StoreError: it is there but cannot be unwrapped.
        """
        row = self._connection.execute(
            "SELECT wrapped FROM keys WHERE space = ? AND epoch = ?", (space, epoch)
        ).fetchone()
        if row is None:
            return None
        return ServiceKey(self._wrapper.unwrap(row[0], service_key_context(space, epoch, self._id)))

    def add_pending(self, space: SpaceId, epoch: Epoch, account: AccountId, key: ServiceKey, now_ms: int) -> bytes:
        """Store a fresh candidate and return its commitment."""
        commit = b_commit(space, epoch, key.expose())
        wrapped = self._wrapper.wrap(key.expose(), service_key_context(space, epoch, self._id))
        self._connection.execute("DELETE FROM pending WHERE created_ms < ?", (now_ms - PENDING_KEPT_MS,))
        self._connection.execute(
            "INSERT INTO pending (space, epoch, account, b_commit, wrapped, created_ms) VALUES (?, ?, ?, ?, ?, ?)",
            (space, epoch, account, commit, wrapped, now_ms),
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
            "INSERT INTO keys (space, epoch, wrapped) SELECT space, epoch, wrapped FROM pending WHERE id = ?",
            (candidate,),
        )
        self._connection.execute("DELETE FROM pending WHERE space = ? AND epoch <= ?", (space, epoch))

    def delete(self, space: SpaceId) -> None:
        """Delete every key of a space."""
        self._connection.execute("DELETE FROM keys WHERE space = ?", (space,))
        self._connection.execute("DELETE FROM pending WHERE space = ?", (space,))

    def rewrap(self) -> int:
        """Wrap every key under the newest root key; return how many."""
        keys = self._connection.execute("SELECT wrapped, space, epoch FROM keys").fetchall()
        self._connection.executemany(
            "UPDATE keys SET wrapped = ? WHERE space = ? AND epoch = ?",
            [(self._rewrapped(wrapped, space, epoch), space, epoch) for wrapped, space, epoch in keys],
        )
        pending = self._connection.execute("SELECT wrapped, space, epoch, id FROM pending").fetchall()
        self._connection.executemany(
            "UPDATE pending SET wrapped = ? WHERE id = ?",
            [(self._rewrapped(wrapped, space, epoch), identifier) for wrapped, space, epoch, identifier in pending],
        )
        return len(keys) + len(pending)

    def _rewrapped(self, wrapped: bytes, space: SpaceId, epoch: Epoch) -> bytes:
        return self._wrapper.rewrap(wrapped, service_key_context(space, epoch, self._id))
