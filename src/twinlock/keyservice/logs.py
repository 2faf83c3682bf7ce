"""The signed logs as the key service keeps them: it is their authority. See spec/sealing.md, sections 4 and 7."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence

import msgspec

from twinlock.errors import LimitExceededError, LogConflictError, LogInvalidError, StoreError, TwinlockError
from twinlock.ids import AccountId, LogId, SpaceId, short
from twinlock.protocol.account_log import AccountState, replay_account
from twinlock.protocol.calls import SignedEntry
from twinlock.protocol.limits import LOG_PAGE_ENTRIES_MAX
from twinlock.protocol.signed_log import Body
from twinlock.protocol.space_log import SpaceLogState
from twinlock.protocol.space_rules import replay_space

STATES_CACHED_MAX = 20_000
SEQ_MAX = (1 << 32) - 1

LogState = AccountState | SpaceLogState


class LogPage(msgspec.Struct, frozen=True, array_like=True):
    """A part of a log; `has_more` tells that entries follow it."""

    entries: list[SignedEntry]
    has_more: bool


class SignedLogs:
    """Replays every log itself and never gives one up for a shorter or different one."""

    __slots__ = ("_connection", "_states")

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self._states: dict[LogId, LogState] = {}

    def forget(self) -> None:
        """Drop what memory holds; the next use replays what is stored."""
        self._states.clear()

    def account(self, account: AccountId) -> AccountState | None:
        """Return what an account's log says, None for a stranger."""
        state = self.state(LogId(account))
        return state if isinstance(state, AccountState) else None

    def space(self, space: SpaceId) -> SpaceLogState | None:
        """Return what a space's log says, None where there is no such space."""
        state = self.state(LogId(space))
        return state if isinstance(state, SpaceLogState) else None

    def state(self, log: LogId) -> LogState | None:
        """Return what a log says.

        Raises:
            StoreError: the stored bytes no longer replay: the database was altered.
        """
        state = self._states.pop(log, None)
        if state is None:
            entries = self.read(log, 0)
            if not entries:
                return None
            state = self._replay_stored(log, entries)
        self._keep(log, state)
        return state

    def read(self, log: LogId, after_seq: int) -> list[SignedEntry]:
        """Return the entries after the first `after_seq`."""
        after_seq = max(0, min(after_seq, SEQ_MAX))
        rows = self._connection.execute(
            "SELECT body, sig FROM entries WHERE log = ? AND seq > ? ORDER BY seq", (log, after_seq)
        )
        return [SignedEntry(body, sig) for body, sig in rows]

    def page(self, log: LogId, after_seq: int, bytes_max: int) -> LogPage:
        """Return the entries after the first `after_seq` up to about `bytes_max`, at least one if there is any."""
        after_seq = max(0, min(after_seq, SEQ_MAX))
        rows = self._connection.execute(
            "SELECT body, sig FROM entries WHERE log = ? AND seq > ? ORDER BY seq", (log, after_seq)
        )
        entries: list[SignedEntry] = []
        size = 0
        for body, sig in rows:
            if entries and size + len(body) > bytes_max:
                rows.close()
                return LogPage(entries, has_more=True)
            entries.append(SignedEntry(body, sig))
            size += len(body) + len(sig)
        return LogPage(entries, has_more=False)

    def fresh(self, log: LogId, expect_seq: int, entries: Sequence[SignedEntry]) -> list[SignedEntry]:
        """Return those of the entries that the log does not have yet; the others must be the same bytes.

        Raises:
            LogConflictError: the log has other entries there, or ends before `expect_seq`.
            LimitExceededError: too many entries at once.
        """
        if len(entries) > LOG_PAGE_ENTRIES_MAX:
            raise LimitExceededError(f"{len(entries)} log entries at once, {LOG_PAGE_ENTRIES_MAX} at most")
        present = self.state(log)
        seq = 0 if present is None else present.seq
        if not 0 <= expect_seq <= seq:
            raise LogConflictError(f"the log has {seq} entries, not {expect_seq}")
        held = self.read(log, expect_seq) if expect_seq < seq else []
        if held[: len(entries)] != list(entries[: len(held)]):
            raise LogConflictError(f"the log has {seq} entries, and others than these after {expect_seq}")
        return list(entries[len(held) :])

    def replay(self, log: LogId, entries: Sequence[SignedEntry]) -> LogState:
        """Return the state that new entries lead to; nothing is stored.

        Raises:
            LogInvalidError, SignatureError, UpdateNeededError: an entry breaks a rule.
        """
        return _replay(log, entries, self.state(log))

    def store(self, log: LogId, state: LogState, entries: Sequence[SignedEntry]) -> None:
        """Store the entries that led to a state."""
        first = state.seq - len(entries) + 1
        rows = [(log, first + place, entry.body, entry.sig) for place, entry in enumerate(entries)]
        self._connection.executemany("INSERT INTO entries (log, seq, body, sig) VALUES (?, ?, ?, ?)", rows)
        self._states.pop(log, None)
        self._keep(log, state)

    def _keep(self, log: LogId, state: LogState) -> None:
        self._states[log] = state
        if len(self._states) > STATES_CACHED_MAX:
            del self._states[next(iter(self._states))]

    def _replay_stored(self, log: LogId, entries: Sequence[SignedEntry]) -> LogState:
        try:
            return _replay(log, entries, None)
        except TwinlockError as exc:
            raise StoreError(f"the stored log {short(log)} does not replay") from exc


def _replay(log: LogId, entries: Sequence[SignedEntry], after: LogState | None) -> LogState:
    if isinstance(after, SpaceLogState) or (after is None and _is_of_space(entries)):
        space = replay_space(entries, after)
        if LogId(space.space) != log:
            raise LogInvalidError("the genesis is that of another space")
        return space
    account = replay_account(entries, after)
    if LogId(account.account) != log:
        raise LogInvalidError("the genesis is that of another account")
    return account


def _is_of_space(entries: Sequence[SignedEntry]) -> bool:
    return bool(entries) and Body(entries[0].body).fields.has("partition")
