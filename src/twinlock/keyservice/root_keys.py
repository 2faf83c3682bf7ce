"""The versions of the root key over time: made, retired when nothing is wrapped under them any more, destroyed.

A shredded space's key still lies in backups, wrapped. It is dead for good once the version that wrapped it is
destroyed, which is why root keys rotate also where nobody fears for them. See spec/sealing.md, section 7.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Sequence

from twinlock.errors import StoreError
from twinlock.keyservice.database import meta
from twinlock.keyservice.key_store import KeyStore
from twinlock.keyservice.ledger import Ledger, LedgerRecord
from twinlock.keyservice.wrapper import KeyWrapper
from twinlock.protocol.labels import label

SLICE_ROWS = 256
"""Rows that are wrapped anew in one transaction: whoever waits for a lease waits for no more."""

_LEDGER_KEY_BYTES = 32


class RootKeys:
    """Rotates, rewraps and destroys, each call inside the caller's transaction."""

    __slots__ = ("_connection", "_context", "_keys", "_ledger", "_wrapper")

    def __init__(
        self, connection: sqlite3.Connection, wrapper: KeyWrapper, keys: KeyStore, ledger: Ledger, keyservice_id: bytes
    ) -> None:
        self._connection = connection
        self._wrapper = wrapper
        self._keys = keys
        self._ledger = ledger
        self._context = _ledger_context(keyservice_id)

    def rotate_if_due(self, now_ms: int, age_ms: int) -> int:
        """Make a new version if the active one is `age_ms` old, and return it; 0 where it is not."""
        self._note_versions(now_ms)
        active = self._wrapper.versions[-1]
        (made_ms,) = self._connection.execute(
            "SELECT made_ms FROM root_versions WHERE version = ?", (active,)
        ).fetchone()
        return self.rotate(now_ms) if now_ms - made_ms >= age_ms else 0

    def rotate(self, now_ms: int) -> int:
        """Make a new version; what is stored is wrapped under it by `rewrap`."""
        self._note_versions(now_ms)
        version = self._wrapper.rotate()
        self._note_versions(now_ms)
        self._ledger.append(LedgerRecord(now_ms, "root_rotated", root_version=version))
        return version

    def rewrap(self, now_ms: int) -> int:
        """Wrap a slice of what is not under the active version anew; return how many rows, 0 when all are.

        With the last of them the earlier versions retire.
        """
        active = self._wrapper.versions[-1]
        wrapped = meta(self._connection, "ledger_key")
        if self._wrapper.version_of(wrapped) != active:
            again = self._wrapper.rewrap(wrapped, self._context)
            self._connection.execute("UPDATE meta SET value = ? WHERE name = 'ledger_key'", (again,))
        rows = self._keys.rewrap(active, SLICE_ROWS)
        if not rows:
            self._retire(active, now_ms)
        return rows

    def destroy_due(self, now_ms: int, kept_ms: int) -> list[int]:
        """Destroy the versions that retired `kept_ms` ago, with all before them, and return them."""
        return self._destroy("retired_ms <= ?", (now_ms - kept_ms,), now_ms)

    def destroy(self, version: int, now_ms: int) -> None:
        """Destroy a version and all before it.

        Raises:
            StoreError: it is the active one, or something is still wrapped under it.
        """
        if version >= self._wrapper.versions[-1]:
            raise StoreError("the active version of the root key cannot be destroyed")
        if self._keys.has_rows_up_to(version):
            raise StoreError(f"keys are still wrapped under version {version} of the root key; rotate it first")
        self._destroy("version <= ?", (version,), now_ms)

    def _destroy(self, which: str, values: Sequence[int], now_ms: int) -> list[int]:
        sql = (
            f"SELECT version FROM root_versions WHERE retired_ms > 0 AND destroyed_ms = 0 AND {which} ORDER BY version"  # noqa: S608 - no value of others
        )
        versions = [int(version) for (version,) in self._connection.execute(sql, values)]
        if not versions:
            return []
        if versions[-1] in self._wrapper.versions:
            # The wrapper first: the ledger must never tell of a destruction that did not happen.
            self._wrapper.destroy_version(versions[-1])
        for version in versions:
            self._connection.execute("UPDATE root_versions SET destroyed_ms = ? WHERE version = ?", (now_ms, version))
            self._ledger.append(LedgerRecord(now_ms, "root_destroyed", root_version=version))
        return versions

    def _retire(self, active: int, now_ms: int) -> None:
        sql = "SELECT version FROM root_versions WHERE retired_ms = 0 AND version < ? ORDER BY version"
        for (version,) in self._connection.execute(sql, (active,)).fetchall():
            self._connection.execute("UPDATE root_versions SET retired_ms = ? WHERE version = ?", (now_ms, version))
            self._ledger.append(LedgerRecord(now_ms, "root_retired", root_version=version))

    def _note_versions(self, now_ms: int) -> None:
        # A version may be unknown here: the first, one of an older database, one made just before a crash.
        rows = [(version, now_ms) for version in self._wrapper.versions]
        self._connection.executemany("INSERT OR IGNORE INTO root_versions (version, made_ms) VALUES (?, ?)", rows)


def make_ledger_key(connection: sqlite3.Connection, wrapper: KeyWrapper, keyservice_id: bytes) -> bytes:
    """Make the key of a new ledger's head and store it, wrapped like the rest."""
    key = os.urandom(_LEDGER_KEY_BYTES)
    wrapped = wrapper.wrap(key, _ledger_context(keyservice_id))
    connection.execute("INSERT INTO meta VALUES ('ledger_key', ?)", (wrapped,))
    return key


def read_ledger_key(connection: sqlite3.Connection, wrapper: KeyWrapper, keyservice_id: bytes) -> bytes:
    """Return the key of the ledger's head.

    Raises:
        StoreError: the root key is not the one that this database was wrapped with.
    """
    return wrapper.unwrap(meta(connection, "ledger_key"), _ledger_context(keyservice_id))


def _ledger_context(keyservice_id: bytes) -> bytes:
    return label("kw-ledger", keyservice_id)
