"""Which frames may come when, and each limit of a session on both sides of it."""

import msgspec
import pytest

from twinlock.errors import ChallengeError, LimitExceededError, UnexpectedFrameError
from twinlock.protocol import limits
from twinlock.protocol.frames import Attach, Call, Detach, Hello, Lease, Push, Signal
from twinlock.protocol.server import ANONYMOUS_METHODS, ServerSession, Stage

SPACE = b"s" * 16
NIL = msgspec.Raw(b"\xc0")
HELLO = Hello(b"n" * 32, "ws://here", b"a" * 16, b"d" * 16, b"")
EVERY_OTHER = [
    Attach(SPACE, b"", 0),
    Detach(SPACE),
    Push(SPACE, [b"e"]),
    Lease(SPACE, [1], b"n", 0, b""),
    Signal(SPACE, b"s"),
    Call(1, "account.spaces", NIL),
]


def a_session(device: bytes = b"d" * 16) -> ServerSession:
    session = ServerSession(b"n" * 32, 1_000)
    session.take(HELLO)
    session.welcome(b"a" * 16, device, 7)
    return session


@pytest.mark.parametrize("frame", EVERY_OTHER)
def test_only_a_hello_answers_the_challenge(frame):
    with pytest.raises(UnexpectedFrameError):
        ServerSession(b"n" * 32, 0).take(frame)


@pytest.mark.parametrize("frame", EVERY_OTHER)
def test_a_welcomed_device_may_send_everything_but_a_second_hello(frame):
    session = a_session()

    session.take(frame)

    with pytest.raises(UnexpectedFrameError):
        session.take(HELLO)


@pytest.mark.parametrize("frame", EVERY_OTHER[:-1])
def test_an_anonymous_session_may_only_call(frame):
    with pytest.raises(UnexpectedFrameError):
        a_session(device=b"").take(frame)


def test_an_anonymous_session_may_call_only_what_signing_in_needs():
    session = a_session(device=b"")
    for method in ANONYMOUS_METHODS:
        session.take(Call(1, method, NIL))

    with pytest.raises(UnexpectedFrameError):
        session.take(Call(2, "space.create", NIL))


@pytest.mark.parametrize("frame", [HELLO, *EVERY_OTHER])
def test_a_closed_session_takes_nothing(frame):
    session = a_session()
    session.close()

    with pytest.raises(UnexpectedFrameError):
        session.take(frame)
    assert session.stage is Stage.CLOSED


def test_a_challenge_is_answered_once():
    session = ServerSession(b"n" * 32, 1_000)

    assert session.take_challenge(1_000) == b"n" * 32
    with pytest.raises(ChallengeError):
        session.take_challenge(1_000)


@pytest.mark.parametrize(
    ("late_ms", "is_taken"), [(limits.CHALLENGE_TTL_MS, True), (limits.CHALLENGE_TTL_MS + 1, False)]
)
def test_a_challenge_ends(late_ms, is_taken):
    session = ServerSession(b"n" * 32, 1_000)

    if is_taken:
        assert session.take_challenge(1_000 + late_ms)
    else:
        with pytest.raises(ChallengeError):
            session.take_challenge(1_000 + late_ms)


def refuses(session: ServerSession, frame) -> bool:
    try:
        session.take(frame)
    except LimitExceededError:
        return True
    return False


MIB = bytes(1 << 20)


@pytest.mark.parametrize(
    ("within", "over"),
    [
        (Push(SPACE, [b"e"] * limits.PUSH_ENVELOPES_MAX), Push(SPACE, [b"e"] * (limits.PUSH_ENVELOPES_MAX + 1))),
        (Push(SPACE, [b"e"]), Push(SPACE, [])),
        (Push(SPACE, [MIB] * 4), Push(SPACE, [MIB] * 4 + [b"e"])),
        (Signal(SPACE, bytes(limits.SIGNAL_BYTES_MAX)), Signal(SPACE, bytes(limits.SIGNAL_BYTES_MAX + 1))),
        (
            Lease(SPACE, [1] * limits.LEASE_EPOCHS_MAX, b"", 0, b""),
            Lease(SPACE, [1] * (limits.LEASE_EPOCHS_MAX + 1), b"", 0, b""),
        ),
        (Lease(SPACE, [1], b"", 0, b""), Lease(SPACE, [], b"", 0, b"")),
    ],
    ids=["push envelopes", "empty push", "push bytes", "signal bytes", "lease epochs", "empty lease"],
)
def test_a_frame_is_taken_up_to_its_limit(within, over):
    assert not refuses(a_session(), within)
    assert refuses(a_session(), over)


def test_pushes_in_flight_are_counted_until_they_are_settled():
    session = a_session()
    for _ in range(limits.CONNECTION_PUSHES_IN_FLIGHT_MAX):
        session.take(Push(SPACE, [b"e"]))
    assert refuses(session, Push(SPACE, [b"e"]))

    session.settle_push()

    assert not refuses(session, Push(SPACE, [b"e"]))


def test_calls_and_leases_in_flight_are_counted_together():
    session = a_session()
    for number in range(limits.CONNECTION_CALLS_IN_FLIGHT_MAX - 1):
        session.take(Call(number, "space.log", NIL))
    session.take(Lease(SPACE, [1], b"", 0, b""))
    assert refuses(session, Call(99, "space.log", NIL))

    session.settle_call()

    assert not refuses(session, Call(99, "space.log", NIL))


def test_attached_spaces_are_bounded_and_attaching_again_is_free():
    session = a_session()
    names = [number.to_bytes(16, "big") for number in range(limits.CONNECTION_SPACES_MAX + 1)]
    for name in names[:-1]:
        session.take(Attach(name, b"", 0))
        session.attached(name)
    assert refuses(session, Attach(names[-1], b"", 0))
    assert not refuses(session, Attach(names[0], b"", 0))

    session.detached(names[0])

    assert not refuses(session, Attach(names[-1], b"", 0))
