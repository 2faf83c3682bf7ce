"""What every request of a device must pass before its rights are looked at. See spec/sealing.md, section 7."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence

import msgspec

from twinlock.errors import ChallengeError, ClockSkewError, InvalidCallError, LeaseRefusedError, LimitExceededError
from twinlock.ids import ID_BYTES, AccountId, DeviceId, Epoch, SpaceId
from twinlock.keyservice.logs import SignedLogs
from twinlock.keyservice.rates import RateLimit
from twinlock.protocol.account_log import AccountState, DeviceRecord
from twinlock.protocol.limits import LEASE_EPOCHS_MAX, LEASE_REQUEST_SKEW_MS_MAX
from twinlock.protocol.proofs import verify
from twinlock.protocol.space_rules import EPOCH_MAX

NONCE_BYTES_MIN = 16
NONCE_BYTES_MAX = 64
_TIME_MS_MAX = (1 << 53) - 1


class Proof(msgspec.Struct, frozen=True):
    """How a device proves that it asks, now and once: `signature` over `message`, which holds nonce and time."""

    nonce: bytes
    time_ms: int
    signature: bytes
    message: bytes


class Asker(msgspec.Struct, frozen=True):
    """A device that has proved itself. Whether it was revoked since is for the caller to refuse, and to record."""

    account: AccountState
    device: DeviceId
    record: DeviceRecord
    revoked: bool


def check_form(space: SpaceId, epochs: Sequence[Epoch], nonce: bytes, time_ms: int) -> None:
    """Check that a request can be what a device signs, before any of it is computed with.

    Raises:
        InvalidCallError: a space, nonce or time of no proper form.
        LimitExceededError: too many epochs, none, or one that cannot be.
    """
    if len(space) != ID_BYTES or not 0 <= time_ms <= _TIME_MS_MAX:
        raise InvalidCallError("a space or a time of no proper form")
    if not NONCE_BYTES_MIN <= len(nonce) <= NONCE_BYTES_MAX:
        raise InvalidCallError(f"a nonce of {len(nonce)} bytes")
    if not 1 <= len(epochs) <= LEASE_EPOCHS_MAX:
        raise LimitExceededError(f"{len(epochs)} epochs in a request, {LEASE_EPOCHS_MAX} at most")
    if not all(1 <= epoch <= EPOCH_MAX for epoch in epochs):
        raise LimitExceededError("an epoch out of range")


class RequestGate:
    """Checks proofs; remembers nonces for as long as their time could be taken, also across a restart."""

    __slots__ = ("_connection", "_logs", "_rates")

    def __init__(self, connection: sqlite3.Connection, logs: SignedLogs, rates: RateLimit) -> None:
        self._connection = connection
        self._logs = logs
        self._rates = rates

    def check(self, account: AccountId, device: DeviceId, proof: Proof, now_ms: int) -> Asker:
        """Return who asks.

        Raises:
            RateLimitedError: the device asks too often.
            LeaseRefusedError: the account never certified such a device.
            SignatureError: the device did not sign this.
            ClockSkewError, ChallengeError: another time than now, a repetition.
        """
        self._rates.take(device, now_ms)
        state = self._logs.account(account)
        record = None if state is None else state.certified(device)
        if state is None or record is None:
            raise LeaseRefusedError("the account has no such device")
        verify(record.sign_pk, proof.signature, proof.message)
        if abs(now_ms - proof.time_ms) > LEASE_REQUEST_SKEW_MS_MAX:
            raise ClockSkewError(f"the request is {abs(now_ms - proof.time_ms)} ms away from this clock")
        self._use_nonce(device, proof, now_ms)
        return Asker(state, device, record, device in state.revoked)

    def forget_nonces(self, now_ms: int) -> None:
        """Drop nonces whose time can no longer be taken."""
        self._connection.execute("DELETE FROM nonces WHERE expires_ms < ?", (now_ms,))

    def _use_nonce(self, device: DeviceId, proof: Proof, now_ms: int) -> None:
        self.forget_nonces(now_ms)
        used = self._connection.execute(
            "INSERT OR IGNORE INTO nonces (device, nonce, expires_ms) VALUES (?, ?, ?)",
            (device, proof.nonce, proof.time_ms + LEASE_REQUEST_SKEW_MS_MAX),
        )
        if used.rowcount == 0:
            raise ChallengeError("a request to the key service was repeated")
