"""Growing a space's signed log: read, sign on top, append, and again if another was quicker. See spec/sealing.md, 4.

Every change is described as "what is still missing", so that repeating it after a lost answer appends nothing twice.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import msgspec

from twinlock.client.connection import Connection
from twinlock.client.courier import Courier
from twinlock.client.device_context import DeviceContext
from twinlock.client.endings import error_of_end, reason_of_end
from twinlock.client.log_reader import LogReader
from twinlock.client.space_runtime import SpaceRuntime
from twinlock.client.sudo import Sudo
from twinlock.errors import (
    CutoffConflictError,
    LeaseRefusedError,
    LogConflictError,
    OfflineError,
    RoleError,
    TwinlockError,
)
from twinlock.ids import AccountId, Counter, DeviceId
from twinlock.protocol.calls import AppendLog, KeyringRow, LogHead, SignedEntry
from twinlock.protocol.membership_calls import ReadHeads, ReadHeadsResult
from twinlock.protocol.space_log import SpaceLogState
from twinlock.sealing.identity import AccountKeys
from twinlock.sealing.space_keys import EpochKeys

TRIES_MAX = 8
"""Several admins take turns, and writing devices move their heads; more tries mean that something else is wrong."""

REFUSED_TRIES_MAX = 3
REFUSED_WAIT_S = 0.2


class OpenedEpoch(msgspec.Struct, frozen=True):
    """The keys of an epoch that an entry opens, and until when this device may use its service key."""

    keys: EpochKeys
    not_after_ms: int


class Draft(msgspec.Struct, frozen=True):
    """What is to be appended in one step: entries, the wrapped member keys that belong to them, the new epoch."""

    entries: list[SignedEntry]
    rows: list[KeyringRow] = []
    opened: OpenedEpoch | None = None


Prepare = Callable[[AccountKeys, SpaceLogState], Awaitable[Draft | None]]
"""Signs what is missing on top of a log, or returns None if nothing is."""


class LogWriter:
    """Appends to the logs of spaces with the account's signing key."""

    __slots__ = ("_connection", "_context", "_courier", "_logs", "_sudo")

    def __init__(self, context: DeviceContext, connection: Connection, courier: Courier, sudo: Sudo) -> None:
        self._context = context
        self._connection = connection
        self._courier = courier
        self._logs = LogReader(context, connection)
        self._sudo = sudo

    async def write(self, runtime: SpaceRuntime, prepare: Prepare) -> None:
        """Bring a space's log up to date and append what `prepare` finds missing.

        Raises:
            SudoNeededError: the password was not given in the last 15 minutes.
            RemovedError, ShreddedError: the space has ended.
            OfflineError: there is no connection, or it ended before the answer: repeat it.
            LogConflictError, CutoffConflictError: others were quicker, again and again.
            TwinlockError: what `prepare` or the server refuses.
        """
        self._sudo.keys()
        try:
            async with runtime.log_turn:
                await self._write_in_turn(runtime, prepare)
        finally:
            # What was read on the way is acted on, whatever became of the write.
            self._courier.log_changed(runtime)

    async def freshen(self, runtime: SpaceRuntime) -> None:
        """Bring a space's log up to date, if there is a connection."""
        try:
            async with runtime.log_turn:
                is_new = await self._logs.read_in_turn(runtime)
        except OfflineError:
            return
        if is_new:
            self._courier.log_changed(runtime)

    async def heads(self, runtime: SpaceRuntime, account: AccountId) -> dict[DeviceId, Counter]:
        """Return where the chains of an account's devices stand, for a cutoff."""
        result = await self._connection.call("space.heads", ReadHeads(runtime.space, account), ReadHeadsResult)
        return result.counters

    async def _write_in_turn(self, runtime: SpaceRuntime, prepare: Prepare) -> None:
        failure: TwinlockError = LogConflictError()
        for tries in range(TRIES_MAX):
            is_new = await self._logs.read_in_turn(runtime)
            reason = reason_of_end(runtime.keyring.log, runtime.keyring.account)
            if reason is not None:
                raise error_of_end(reason)
            if isinstance(failure, LeaseRefusedError) and not is_new:
                if tries > REFUSED_TRIES_MAX:
                    raise failure
                await asyncio.sleep(REFUSED_WAIT_S * tries)
            try:
                await self._append(runtime, prepare)
            except (LogConflictError, CutoffConflictError, LeaseRefusedError) as exc:
                # The key service refuses an epoch that another admin is opening: the log tells so, at once or soon.
                failure = exc
                continue
            return
        raise failure

    async def _append(self, runtime: SpaceRuntime, prepare: Prepare) -> None:
        log = runtime.keyring.log
        draft = await prepare(self._sudo.keys(), log)
        if draft is None:
            return
        request = AppendLog(runtime.space, log.seq, draft.entries, draft.rows)
        await self._connection.call("space.append", request, LogHead)
        self._keep(runtime, draft)

    def _keep(self, runtime: SpaceRuntime, draft: Draft) -> None:
        runtime.grow_log(draft.entries)
        opened, now_ms = draft.opened, self._context.clock.now_ms()
        if opened is not None:
            epoch, account = opened.keys.epoch, runtime.keyring.account
            runtime.keyring.install_member_key(epoch, opened.keys.member_key)
            runtime.keyring.install_service_key(epoch, opened.keys.service_key, opened.not_after_ms, now_ms)
            for row in draft.rows:
                if row.account == account:
                    self._context.state.put_keyring_row(runtime.space, row)


def check_admits(log: SpaceLogState, account: AccountId) -> None:
    """Check that an account may change members, epochs and settings.

    Raises:
        RoleError: it may not.
    """
    role = log.role_of(account)
    if role is None or not role.may_admit:
        raise RoleError("only an owner or admin does this")
