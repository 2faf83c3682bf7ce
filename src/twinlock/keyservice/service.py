"""The key service within this process: its own folder, its own database, its own thread. See spec/sealing.md, 7."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from twinlock.contracts.keys import Asking, KeyService
from twinlock.errors import StoreError
from twinlock.ids import LogId, SpaceId
from twinlock.keyservice.custody import Custody
from twinlock.keyservice.database import SCHEMA_VERSION, lock_database, meta, open_database, truncate_journal
from twinlock.keyservice.deny_list import DenyList
from twinlock.keyservice.key_store import KeyStore
from twinlock.keyservice.ledger import Ledger, LedgerRecord, LedgerReport
from twinlock.keyservice.logs import LogPage, SignedLogs
from twinlock.keyservice.rates import RateLimit
from twinlock.keyservice.requests import RequestGate
from twinlock.keyservice.root_keys import RootKeys, make_ledger_key, read_ledger_key
from twinlock.keyservice.settings import DAY_MS, KeyServiceSettings
from twinlock.keyservice.turns import Turns
from twinlock.keyservice.worker import Worker
from twinlock.keyservice.wrapper import KeyWrapper
from twinlock.keyservice.wrappers import open_wrapper
from twinlock.protocol.calls import CreatePending, CreatePendingResult, LogHead, SignedEntry
from twinlock.protocol.frames import Lease, Leases

DATABASE_NAME = "keyservice.db"
DENY_LIST_NAME = "denied.txt"


def wall_clock_ms() -> int:
    """Return the time in ms since 1970 (UTC)."""
    return time.time_ns() // 1_000_000


class LocalKeyService(KeyService):
    """Used from one event loop; every call is durable when it returns."""

    __slots__ = (
        "_connection",
        "_custody",
        "_gate",
        "_is_tending",
        "_keys",
        "_ledger",
        "_lock",
        "_logs",
        "_now_ms",
        "_own_wrapper",
        "_root_keys",
        "_settings",
        "_worker",
        "_wrapper",
    )

    def __init__(
        self,
        folder: Path,
        lock: int,
        settings: KeyServiceSettings,
        wrapper: KeyWrapper | None,
        now_ms: Callable[[], int],
    ) -> None:
        self._lock = lock
        self._settings = settings
        self._now_ms = now_ms
        self._is_tending = False
        # One that was given is its giver's to close.
        self._own_wrapper: KeyWrapper | None = None
        opened = open_database(folder / DATABASE_NAME)
        self._connection = connection = opened.connection
        try:
            is_new = opened.before == 0
            may_make_list = opened.before < SCHEMA_VERSION
            denied = DenyList(Path(settings.deny_list_file or folder / DENY_LIST_NAME), may_make=may_make_list)
            if wrapper is None:
                wrapper = self._own_wrapper = open_wrapper(settings, folder, is_new)
            self._wrapper = wrapper
            identity = meta(connection, "keyservice_id")
            ledger_key = (make_ledger_key if is_new else read_ledger_key)(connection, self._wrapper, identity)
            self._ledger = Ledger(connection, ledger_key)
            if is_new:
                self._ledger.begin()
            self._logs = SignedLogs(connection)
            self._turns = Turns()
            self._keys = KeyStore(connection, self._wrapper, identity)
            self._root_keys = RootKeys(connection, self._wrapper, self._keys, self._ledger, identity)
            rates = RateLimit(settings.requests_burst, settings.requests_per_second)
            self._gate = RequestGate(connection, self._logs, rates)
            self._custody = Custody(self._logs, self._keys, self._ledger, self._gate, denied)
            self._custody.apply_deny_list(now_ms())
            connection.execute("COMMIT")
            self._scrub()
        except BaseException:
            connection.close()
            if self._own_wrapper is not None:
                self._own_wrapper.close()
            raise
        self._worker = Worker(connection, self._forget, self._scrub)

    @classmethod
    def open(
        cls,
        folder: str | os.PathLike[str],
        settings: KeyServiceSettings | None = None,
        wrapper: KeyWrapper | None = None,
        now_ms: Callable[[], int] = wall_clock_ms,
    ) -> LocalKeyService:
        """Open or create a key service, with the given wrapper or the one that the settings name.

        A wrapper that is given stays open when the service closes. Keys of denied spaces that a restored backup brought
        back are deleted before this returns. `now_ms` is the clock of what nobody asked for, such as the record of a
        denial.

        Raises:
            StoreError: the folder cannot be used, another process has it, the deny list is missing, or the root key
                is not the one that wrapped the database: a root key is only ever made together with its database.
            UpdateNeededError: a newer version of Twinlock wrote it.
            KeyServiceError: what holds the root key does not answer.
        """
        path = Path(folder)
        try:
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
            lock = lock_database(path / DATABASE_NAME)
        except OSError as exc:
            raise StoreError(f"{path.name}: {exc.strerror}") from exc
        try:
            return cls(path, lock, settings or KeyServiceSettings(), wrapper, now_ms)
        except BaseException:
            os.close(lock)
            raise

    @property
    def waiting_count(self) -> int:
        """How many calls wait or are at work."""
        return self._worker.waiting_count

    async def take_turn(self, log: LogId) -> int:
        """Begin to change a log; who began earlier and has not appended yet is refused."""
        return await self._worker.run(lambda: self._turns.take(log))

    async def append_log(self, log: LogId, expect_seq: int, entries: Sequence[SignedEntry], turn: int = 0) -> LogHead:
        """Check entries by the rules of their log, store them durably, and return the new head."""

        def append() -> LogHead:
            self._turns.check(log, turn)
            return self._custody.append_log(log, expect_seq, entries, self._now_ms())

        return await self._worker.run(append)

    async def read_log(self, log: LogId, after_seq: int) -> list[SignedEntry]:
        """Return the entries of a log after the first `after_seq`."""
        return await self._worker.run(lambda: self._logs.read(log, after_seq))

    async def read_log_page(self, log: LogId, after_seq: int, bytes_max: int) -> LogPage:
        """Return a part of a log, for callers that may not hold all of it at once."""
        return await self._worker.run(lambda: self._logs.page(log, after_seq, bytes_max))

    async def create_pending(self, asking: Asking, request: CreatePending) -> CreatePendingResult:
        """Make a fresh service key for a coming epoch, store it durably, and seal it to the device that asked."""
        return await self._worker.run(lambda: self._custody.create_pending(asking, request))

    async def lease(self, asking: Asking, request: Lease) -> Leases:
        """Release service keys, sealed to the device; every grant is in the ledger before it is returned."""
        return await self._worker.run(lambda: self._custody.lease(asking, request))

    async def deny(self, space: SpaceId, now_ms: int) -> None:
        """Release no key of a space ever again; its keys are deleted."""
        await self._worker.run(lambda: self._custody.deny(space, now_ms))

    async def tend(self, now_ms: int) -> None:
        """Rotate the root key if it is old enough, wrap what is stored anew, destroy versions past `backup_days`.

        All of it is done in small pieces, between which others are answered; what a crash interrupts goes on the next
        time. A second call while one is at work does nothing.
        """
        if self._is_tending:
            return
        self._is_tending = True
        try:
            settings = self._settings
            rotation_ms, backup_ms = int(settings.root_rotation_days * DAY_MS), int(settings.backup_days * DAY_MS)
            await self._worker.run(lambda: self._forget_old(now_ms))
            if rotation_ms:
                await self._worker.run(lambda: self._root_keys.rotate_if_due(now_ms, rotation_ms))
            await self._rewrap(now_ms)
            await self._worker.run(lambda: self._root_keys.destroy_due(now_ms, backup_ms))
        finally:
            self._is_tending = False

    async def rotate_root_key(self) -> int:
        """Make a new version of the root key, wrap everything under it, and return how many keys that were.

        The old version stays for the sake of backups until it is destroyed.
        """
        await self._worker.run(lambda: self._root_keys.rotate(self._now_ms()))
        return await self._rewrap(self._now_ms())

    async def destroy_root_key_version(self, version: int) -> None:
        """Forget an old version of the root key, with all before it: what backups hold under it is dead then.

        Raises:
            StoreError: it is the active one, or something is still wrapped under it.
        """
        await self._worker.run(lambda: self._root_keys.destroy(version, self._now_ms()))

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
        if self._own_wrapper is not None:
            self._own_wrapper.close()
        os.close(lock)

    async def _rewrap(self, now_ms: int) -> int:
        count = 0
        while rows := await self._worker.run(lambda: self._root_keys.rewrap(now_ms)):
            count += rows
        return count

    def _forget_old(self, now_ms: int) -> None:
        self._keys.forget_pending(now_ms)
        self._gate.forget_nonces(now_ms)

    def _scrub(self) -> None:
        """Let no page that held a deleted key stay in the write-ahead log: `secure_delete` empties the database alone.

        Somebody who reads the database at this moment, as a backup does, stands in the way; then it is tried again.
        """
        if self._keys.has_deleted:
            self._keys.has_deleted = not truncate_journal(self._connection)

    def _forget(self) -> None:
        self._logs.forget()
        self._ledger.reload()
