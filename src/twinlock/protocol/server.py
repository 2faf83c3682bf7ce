"""The server's half of a session: which frames may come when, and how many. See spec/protocol.md, section 3.

Sans-I/O: the shell hands in decoded frames and the time, and acts on what is raised.
"""

from __future__ import annotations

from enum import IntEnum

from twinlock.errors import ChallengeError, LimitExceededError, UnexpectedFrameError
from twinlock.ids import AccountId, DeviceId, SpaceId
from twinlock.protocol.frames import Attach, Call, ClientFrame, Detach, Hello, Lease, Push, Signal
from twinlock.protocol.limits import (
    CHALLENGE_TTL_MS,
    CONNECTION_CALLS_IN_FLIGHT_MAX,
    CONNECTION_PUSHES_IN_FLIGHT_MAX,
    CONNECTION_SPACES_MAX,
    LEASE_EPOCHS_MAX,
    PUSH_BYTES_MAX,
    PUSH_ENVELOPES_MAX,
    SIGNAL_BYTES_MAX,
)

ANONYMOUS_METHODS = frozenset(
    {
        "account.append",
        "account.create",
        "account.log",
        "device.revocation",
        "pairing.ask",
        "pairing.take",
        "token.open",
        "unlocker.open",
        "unlocker.params",
    }
)
"""What a session without a device may call."""

NOBODY = AccountId(b"")
NO_DEVICE = DeviceId(b"")
_NO_SPACES: frozenset[SpaceId] = frozenset()


class Stage(IntEnum):
    """Where a session stands."""

    CHALLENGED = 0
    ANONYMOUS = 1
    WELCOMED = 2
    CLOSED = 3


class ServerSession:
    """One session: its stage, who it is, what is attached and what is in flight.

    An error that `take` raises is the peer's fault and closes its connection. Kept small: thousands of these are idle.
    """

    __slots__ = (
        "account",
        "calls_in_flight",
        "challenge_nonce",
        "challenged_ms",
        "device",
        "number",
        "pushes_in_flight",
        "spaces",
        "stage",
    )

    def __init__(self, challenge_nonce: bytes, now_ms: int) -> None:
        self.stage = Stage.CHALLENGED
        self.challenge_nonce = challenge_nonce
        self.challenged_ms = now_ms
        self.account = NOBODY
        self.device = NO_DEVICE
        self.number = 0
        self.spaces: frozenset[SpaceId] | set[SpaceId] = _NO_SPACES
        self.pushes_in_flight = 0
        self.calls_in_flight = 0

    def take(self, frame: ClientFrame) -> None:
        """Check that a frame may come now, and count it where it is answered later.

        Raises:
            UnexpectedFrameError: the session's stage does not allow this frame.
            LimitExceededError: the frame, or the number of those in flight, is over a limit.
        """
        if self.stage is Stage.WELCOMED:
            if type(frame) is Push:
                self._take_push(frame)
            else:
                self._take_other(frame)
        elif self.stage is Stage.CHALLENGED:
            if type(frame) is not Hello:
                raise UnexpectedFrameError("only a hello answers the challenge")
        elif self.stage is Stage.ANONYMOUS and type(frame) is Call:
            if frame.method not in ANONYMOUS_METHODS:
                raise UnexpectedFrameError(f"a session without a device may not call {frame.method[:64]}")
            self._take_call()
        else:
            raise UnexpectedFrameError(f"{type(frame).__name__.lower()} in a session that is {self.stage.name.lower()}")

    def take_challenge(self, now_ms: int) -> bytes:
        """Return the nonce that the hello must answer, once.

        Raises:
            ChallengeError: it was used already, or is too old.
        """
        nonce, self.challenge_nonce = self.challenge_nonce, b""
        if not nonce or now_ms - self.challenged_ms > CHALLENGE_TTL_MS:
            raise ChallengeError
        return nonce

    def welcome(self, account: AccountId, device: DeviceId, number: int) -> None:
        """Note who the peer has proved to be; without a device the session stays anonymous."""
        assert self.stage is Stage.CHALLENGED
        self.stage = Stage.WELCOMED if device else Stage.ANONYMOUS
        self.account = account
        self.device = device
        self.number = number

    def attached(self, space: SpaceId) -> None:
        """Note that a space is delivered to this session."""
        if not isinstance(self.spaces, set):
            self.spaces = set()
        self.spaces.add(space)

    def detached(self, space: SpaceId) -> None:
        """Note that a space is no longer delivered."""
        if isinstance(self.spaces, set):
            self.spaces.discard(space)

    def settle_push(self) -> None:
        """Note that a push was answered in full."""
        self.pushes_in_flight -= 1
        assert self.pushes_in_flight >= 0

    def settle_call(self) -> None:
        """Note that a call or a lease was answered."""
        self.calls_in_flight -= 1
        assert self.calls_in_flight >= 0

    def close(self) -> None:
        """Take no more frames."""
        self.stage = Stage.CLOSED

    def _take_push(self, push: Push) -> None:
        count = len(push.envelopes)
        if not 1 <= count <= PUSH_ENVELOPES_MAX:
            raise LimitExceededError(f"a push of {count} envelopes, 1 to {PUSH_ENVELOPES_MAX} are allowed")
        if count > 1 and sum(map(len, push.envelopes)) > PUSH_BYTES_MAX:
            raise LimitExceededError(f"a push of more than {PUSH_BYTES_MAX} bytes")
        if self.pushes_in_flight >= CONNECTION_PUSHES_IN_FLIGHT_MAX:
            raise LimitExceededError(f"more than {CONNECTION_PUSHES_IN_FLIGHT_MAX} pushes in flight")
        self.pushes_in_flight += 1

    def _take_other(self, frame: ClientFrame) -> None:
        match frame:
            case Attach():
                if frame.space not in self.spaces and len(self.spaces) >= CONNECTION_SPACES_MAX:
                    raise LimitExceededError(f"more than {CONNECTION_SPACES_MAX} spaces attached")
            case Signal():
                if len(frame.sealed) > SIGNAL_BYTES_MAX:
                    raise LimitExceededError(f"a signal of more than {SIGNAL_BYTES_MAX} bytes")
            case Lease():
                if not 1 <= len(frame.epochs) <= LEASE_EPOCHS_MAX:
                    raise LimitExceededError(
                        f"a lease of {len(frame.epochs)} epochs, 1 to {LEASE_EPOCHS_MAX} are allowed"
                    )
                self._take_call()
            case Call():
                self._take_call()
            case Detach():
                pass
            case _:
                raise UnexpectedFrameError(f"{type(frame).__name__.lower()} in a session that stands")

    def _take_call(self) -> None:
        if self.calls_in_flight >= CONNECTION_CALLS_IN_FLIGHT_MAX:
            raise LimitExceededError(f"more than {CONNECTION_CALLS_IN_FLIGHT_MAX} calls in flight")
        self.calls_in_flight += 1
