"""The key service contract: custody of every space's service keys. See spec/sealing.md, section 7."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import msgspec

from twinlock.ids import AccountId, DeviceId, Incarnation, LogId
from twinlock.protocol.calls import CreatePending, CreatePendingResult, LogHead, SignedEntry
from twinlock.protocol.frames import Lease, Leases


class Asking(msgspec.Struct, frozen=True):
    """Who asks for a service key, as the server's session proved it, and what the answer is bound to.

    A key service of its own takes the time from its own clock and leaves `now_ms` aside.
    """

    account: AccountId
    device: DeviceId
    incarnation: Incarnation
    now_ms: int


class KeyService(ABC):
    """The authority over signed logs and the only holder of service keys.

    It replays every account and space log itself, never accepts a shorter or different one, and writes each
    release of a key to its ledger. A service key leaves it only sealed to a device's own key.
    """

    @abstractmethod
    async def take_turn(self, log: LogId) -> int:
        """Begin to change a log, and return a number above 0 by which `append_log` knows that nobody began later.

        A node that stalls in the middle of a change can so do no harm: whoever waited for it takes a turn, and its
        append is refused. Turns are kept in memory alone; after a restart none that was given before holds.
        """

    @abstractmethod
    async def append_log(self, log: LogId, expect_seq: int, entries: Sequence[SignedEntry], turn: int = 0) -> LogHead:
        """Check entries by the rules of their log, store them durably, and return the new head.

        The kind of log (account or space) follows from the genesis entry. An `epoch` entry is taken only if its
        `b_commit` is the pending key that was made for its signer. Appending what is already there is fine.

        Raises:
            LogConflictError: the log has other entries from `expect_seq` on, or `turn` is not 0 nor the latest.
            LogInvalidError, SignatureError: an entry breaks a rule; nothing was stored.
            UpdateNeededError: an entry is of a type that this version does not know.
            LimitExceededError: more than LOG_PAGE_ENTRIES_MAX entries at once.
            LeaseRefusedError: a new epoch of a shredded space.
            KeyServiceError, OverloadedError: this and every other call, when the service cannot serve it now.
        """

    @abstractmethod
    async def read_log(self, log: LogId, after_seq: int) -> list[SignedEntry]:
        """Return the entries of a log after the first `after_seq`, all of them (empty where there is none)."""

    @abstractmethod
    async def create_pending(self, asking: Asking, request: CreatePending) -> CreatePendingResult:
        """Make a fresh service key for a coming epoch, store it durably, and seal it to the device that asked.

        Raises:
            LeaseRefusedError: the device may not open an epoch in this space.
            SignatureError, ClockSkewError, ChallengeError: it is not the device's own, not of now, or repeated.
            InvalidCallError, LimitExceededError, RateLimitedError: its form, its numbers, its frequency.
        """

    @abstractmethod
    async def lease(self, asking: Asking, request: Lease) -> Leases:
        """Release service keys, sealed to the device; every grant goes to the ledger.

        Raises:
            LeaseRefusedError: revoked device, no reading role, unknown epoch, denied or shredded space.
            SignatureError, ClockSkewError, ChallengeError: it is not the device's own, not of now, or repeated.
            InvalidCallError, LimitExceededError, RateLimitedError: its form, its numbers, its frequency.
            KeyServiceError: the store or the ledger failed; no key was released.
        """

    @abstractmethod
    async def tend(self, now_ms: int) -> None:
        """Do what must be done from time to time, such as rotating root keys; called every minute or so.

        A service in a process of its own does it by itself and makes nothing of this call.

        Raises:
            StoreError, KeyServiceError, OverloadedError: not now; the next call goes on where this one ended.
        """

    @abstractmethod
    async def close(self) -> None:
        """Release the store."""
