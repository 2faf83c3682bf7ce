"""The key service within this process: its own folder, its own database, its own thread. See spec/sealing.md, 7."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Sequence
from pathlib import Path

from twinlock.contracts.keys import Asking, KeyService
from twinlock.errors import StoreError
from twinlock.ids import LogId, SpaceId
from twinlock.keyservice.custody import Custody
from twinlock.keyservice.database import lock_database, meta, open_database
from twinlock.keyservice.deny_list import DenyList
from twinlock.keyservice.key_store import KeyStore
from twinlock.keyservice.ledger import Ledger, LedgerRecord, LedgerReport
from twinlock.keyservice.logs import SignedLogs
from twinlock.keyservice.rates import RateLimit
from twinlock.keyservice.requests import RequestGate
from twinlock.keyservice.settings import KeyServiceSettings
from twinlock.keyservice.worker import Worker
from twinlock.keyservice.wrapper import KeyWrapper
from twinlock.keyservice.wrappers import open_wrapper
from twinlock.protocol.calls import CreatePending, CreatePendingResult, LogHead, SignedEntry
from twinlock.protocol.frames import Lease, Leases
from twinlock.protocol.labels import label

DATABASE_NAME = "keyservice.db"
DENY_LIST_NAME = "denied.txt"
_LEDGER_KEY_BYTES = 32


class LocalKeyService(KeyService):
    """Used from one event loop; every call is durable when it returns."""

    __slots__ = (
        "_connection",
        "_custody",
        "_keys",
        "_keyservice_id",
        "_ledger",
        "_lock",
        "_logs",
        "_worker",
        "_wrapper",
    )

    def __init__(self, folder: Path, lock: int, settings: KeyServiceSettings, wrapper: KeyWrapper | None) -> None:
        self._lock = lock
        connection, is_new = open_database(folder / DATABASE_NAME)
        try:
            denied = DenyList(Path(settings.deny_list_file or folder / DENY_LIST_NAME))
            self._wrapper = wrapper or open_wrapper(settings, folder, is_new)
            keyservice_id = meta(connection, "keyservice_id")
            ledger_key = _ledger_key(connection, self._wrapper, keyservice_id, is_new)
            self._ledger = Ledger(connection, ledger_key)
            if is_new:
                self._ledger.begin()
                connection.execute("COMMIT")
        except BaseException:
            connection.close()
            raise
        self._logs = SignedLogs(connection)
        self._connection = connection
        self._keyservice_id = keyservice_id
        self._keys = KeyStore(connection, self._wrapper, keyservice_id)
        gate = RequestGate(connection, self._logs, RateLimit(settings.requests_burst, settings.requests_per_second))
        self._custody = Custody(self._logs, self._keys, self._ledger, gate, denied)
        self._worker = Worker(connection, self._forget)

    @classmethod
    def open(
        cls,
        folder: str | os.PathLike[str],
        settings: KeyServiceSettings | None = None,
        wrapper: KeyWrapper | None = None,
    ) -> LocalKeyService:
        """Open or create a key service, with the given wrapper or the one that the settings name.

        Raises:
            StoreError: the folder cannot be used, another process has it, or the root key is not the one that
                wrapped the database: a root key is only ever made together with its database.
            UpdateNeededError: a newer version of Twinlock wrote it.
        """
        path = Path(folder)
        try:
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
            lock = lock_database(path / DATABASE_NAME)
        except OSError as exc:
            raise StoreError(f"{path.name}: {exc.strerror}") from exc
        try:
            return cls(path, lock, settings or KeyServiceSettings(), wrapper)
        except BaseException:
            os.close(lock)
            raise

    async def append_log(self, log: LogId, expect_seq: int, entries: Sequence[SignedEntry]) -> LogHead:
        """Check entries by the rules of their log, store them durably, and return the new head."""
        return await self._worker.run(lambda: self._custody.append_log(log, expect_seq, entries))

    async def read_log(self, log: LogId, after_seq: int) -> list[SignedEntry]:
        """Return the entries of a log after the first `after_seq`."""
        return await self._worker.run(lambda: self._logs.read(log, after_seq))

    async def create_pending(self, asking: Asking, request: CreatePending) -> CreatePendingResult:
        """Make a fresh service key for a coming epoch, store it durably, and seal it to the device that asked."""
        return await self._worker.run(lambda: self._custody.create_pending(asking, request))

    async def lease(self, asking: Asking, request: Lease) -> Leases:
        """Release service keys, sealed to the device; every grant is in the ledger before it is returned."""
        return await self._worker.run(lambda: self._custody.lease(asking, request))

    async def deny(self, space: SpaceId, now_ms: int) -> None:
        """Release no key of a space ever again; its keys are deleted."""
        await self._worker.run(lambda: self._custody.deny(space, now_ms))

    async def rotate_root_key(self) -> int:
        """Make a new version of the root key, wrap everything under it, and return how many keys that were.

        The old version stays for the sake of backups until it is destroyed.
        """
        return await self._worker.run(self._rotate)

    async def destroy_root_key_version(self, version: int) -> None:
        """Forget an old version of the root key: what backups still hold under it is dead then.

        Raises:
            StoreError: it is the active one.
        """
        await self._worker.run(lambda: self._wrapper.destroy_version(version))

    async def verify_ledger(self) -> LedgerReport:
        """Check the whole ledger."""
        return await self._worker.run(self._ledger.verify)

    async def read_ledger(self, after: int = 0, limit: int = 1000) -> list[LedgerRecord]:
        """Return records of the ledger after the first `after`, in order."""
        return await self._worker.run(lambda: self._ledger.records(after, limit))

    async def close(self) -> None:
        """Finish what was begun and let another process open the folder."""
        if self._lock < 0:
            return
        lock, self._lock = self._lock, -1
        await self._worker.close()
        os.close(lock)

    def _rotate(self) -> int:
        self._wrapper.rotate()
        context = _ledger_context(self._keyservice_id)
        wrapped = self._wrapper.rewrap(meta(self._connection, "ledger_key"), context)
        self._connection.execute("UPDATE meta SET value = ? WHERE name = 'ledger_key'", (wrapped,))
        return self._keys.rewrap()

    def _forget(self) -> None:
        self._logs.forget()
        self._ledger.reload()


def _ledger_key(connection: sqlite3.Connection, wrapper: KeyWrapper, keyservice_id: bytes, is_new: bool) -> bytes:
    """Return the key of the ledger's head. It is wrapped like the rest, so it also shows that the root key fits."""
    context = _ledger_context(keyservice_id)
    if is_new:
        key = os.urandom(_LEDGER_KEY_BYTES)
        connection.execute("INSERT INTO meta VALUES ('ledger_key', ?)", (wrapper.wrap(key, context),))
        return key
    return wrapper.unwrap(meta(connection, "ledger_key"), context)


def _ledger_context(keyservice_id: bytes) -> bytes:
    return label("kw-ledger", keyservice_id)
