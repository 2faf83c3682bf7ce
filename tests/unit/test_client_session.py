"""The client's end of a session: whom it believes, what it lets in, how much it has in flight."""

import msgspec
import pytest

from twinlock.errors import (
    DeviceRevokedError,
    LimitExceededError,
    NameTakenError,
    UnexpectedFrameError,
    WrongServerError,
)
from twinlock.ids import NO_ENVELOPE, AccountId, Counter, Incarnation, Seq, SpaceId
from twinlock.protocol import codec, proofs
from twinlock.protocol.calls import Nothing
from twinlock.protocol.client import ClientIdentity, ClientSession, Replied, Welcomed
from twinlock.protocol.frames import (
    Ack,
    Attached,
    CallError,
    Challenge,
    Entries,
    Entry,
    Lease,
    Leases,
    Notice,
    Push,
    Reject,
    Reply,
    Welcome,
)
from twinlock.protocol.limits import (
    CONNECTION_CALLS_IN_FLIGHT_MAX,
    CONNECTION_PUSHES_IN_FLIGHT_MAX,
    CONNECTION_SPACES_MAX,
    PUSH_ENVELOPES_MAX,
    SIGNAL_BYTES_MAX,
)
from twinlock.sealing.identity import DeviceKeys

SPACE = SpaceId(b"s" * 16)
INCARNATION = Incarnation(b"i" * 16)
SERVER = DeviceKeys(bytes(range(64)))
DEVICE = DeviceKeys(bytes(range(1, 65)))
ACCOUNT = AccountId(b"a" * 16)
NONCE = b"n" * 32


def new_session(server_id: bytes | None = None) -> ClientSession:
    identity = ClientIdentity(ACCOUNT, DEVICE.device, DEVICE.sign.sign)
    pinned = proofs.server_id_of(SERVER.sign_pk) if server_id is None else server_id
    return ClientSession(identity, "wss://here:1", pinned, lambda count: b"c" * count)


def challenge() -> bytes:
    return codec.encode(Challenge(NONCE, SERVER.sign_pk, INCARNATION, 5_000))


def welcome(signer: DeviceKeys = SERVER, client_nonce: bytes = b"c" * 32, time_ms: int = 5_000) -> bytes:
    server_id = proofs.server_id_of(SERVER.sign_pk)
    message = proofs.welcome_message(server_id, INCARNATION, NONCE, client_nonce, DEVICE.device)
    return codec.encode(Welcome(signer.sign.sign(message), time_ms, 7, {"envelope": 1}, b"ticket"))


def open_session() -> ClientSession:
    session = new_session()
    session.receive(challenge(), 1_000)
    session.receive(welcome(), 1_100)
    session.take_output()
    return session


def envelope(counter: int) -> bytes:
    return bytes(40) + counter.to_bytes(8, "big") + bytes(152)


def attached() -> bytes:
    return codec.encode(Attached(SPACE, INCARNATION, Seq(1), Seq(0), Seq(0), 0, Counter(0), NO_ENVELOPE, 1, b"h" * 32))


def test_hello_is_signed_for_this_server_and_origin():
    session = new_session()

    assert session.receive(challenge(), 0) is None

    hello = codec.decode_client(session.take_output()[0])
    message = proofs.hello_message(
        proofs.server_id_of(SERVER.sign_pk), "wss://here:1", INCARNATION, ACCOUNT, DEVICE.device, NONCE, b"c" * 32
    )
    proofs.verify(DEVICE.sign_pk, hello.signature, message)


def test_clock_offset_is_taken_from_the_middle_of_the_round_trip():
    session = new_session()
    session.receive(challenge(), 1_000)

    event = session.receive(welcome(time_ms=5_000), 1_100)

    assert isinstance(event, Welcomed)
    assert event.clock_offset_ms == 5_000 - 1_050
    assert event.round_trip_ms == 100
    assert event.ticket == b"ticket"


def test_another_server_than_the_pinned_one_gets_no_hello():
    session = new_session(server_id=b"x" * 32)

    with pytest.raises(WrongServerError):
        session.receive(challenge(), 0)

    assert session.take_output() == []


@pytest.mark.parametrize("forged", [welcome(signer=DEVICE), welcome(client_nonce=b"z" * 32)])
def test_a_welcome_that_the_server_did_not_sign_is_refused(forged):
    session = new_session()
    session.receive(challenge(), 0)

    with pytest.raises(WrongServerError):
        session.receive(forged, 0)
    with pytest.raises(UnexpectedFrameError):
        session.receive(welcome(), 0)


def test_a_refused_hello_raises_the_reason():
    session = new_session()
    session.receive(challenge(), 0)

    with pytest.raises(DeviceRevokedError):
        session.receive(codec.encode(Notice("device_revoked")), 0)


def test_nothing_can_be_sent_before_the_welcome():
    session = new_session()

    with pytest.raises(UnexpectedFrameError):
        session.attach(SPACE, b"", Seq(0))


def test_entries_before_attached_break_the_protocol():
    session = open_session()
    session.attach(SPACE, b"", Seq(0))

    with pytest.raises(UnexpectedFrameError):
        session.receive(codec.encode(Entries(SPACE, [], Seq(0))), 0)


def test_entries_of_a_detached_space_are_dropped():
    session = open_session()
    session.attach(SPACE, b"", Seq(0))
    session.receive(attached(), 0)
    assert session.is_attached(SPACE)

    session.detach(SPACE)

    assert session.receive(codec.encode(Entries(SPACE, [Entry(Seq(1), 0, b"")], Seq(1))), 0) is None


@pytest.mark.parametrize("detaches", [True, False])
def test_entries_of_an_earlier_attachment_are_dropped_until_the_new_one_stands(detaches):
    session = open_session()
    session.attach(SPACE, b"", Seq(0))
    session.receive(attached(), 0)
    late = codec.encode(Entries(SPACE, [Entry(Seq(1), 0, b"")], Seq(1)))

    if detaches:
        session.detach(SPACE)
    session.attach(SPACE, b"", Seq(0))

    assert session.receive(late, 0) is None
    session.receive(attached(), 0)
    assert isinstance(session.receive(late, 0), Entries)


def test_the_server_may_tell_an_attached_space_anew():
    session = open_session()
    session.attach(SPACE, b"", Seq(0))

    assert isinstance(session.receive(attached(), 0), Attached)
    assert isinstance(session.receive(attached(), 0), Attached)


def test_a_second_challenge_breaks_the_protocol():
    session = open_session()

    with pytest.raises(UnexpectedFrameError):
        session.receive(challenge(), 0)


def test_replies_belong_to_calls():
    session = open_session()
    good = session.call("account.spaces", Nothing())
    bad = session.call("account.create", Nothing())

    result = session.receive(codec.encode(Reply(good, msgspec.Raw(b"\x80"))), 0)
    failure = session.receive(codec.encode(Reply(bad, codec.NIL, CallError("name_taken", "ann"))), 0)

    assert isinstance(result, Replied)
    assert result.error is None
    assert isinstance(failure.error, NameTakenError)
    with pytest.raises(UnexpectedFrameError):
        session.receive(codec.encode(Reply(good, codec.NIL)), 0)


def test_calls_in_flight_are_bounded():
    session = open_session()
    for _ in range(CONNECTION_CALLS_IN_FLIGHT_MAX):
        session.call("account.spaces", Nothing())

    with pytest.raises(LimitExceededError):
        session.call("account.spaces", Nothing())


def test_leases_of_many_spaces_wait_their_turn_and_leave_room_for_calls():
    session = open_session()
    requests = [Lease(SPACE, [1], number.to_bytes(32, "big"), 0, bytes(64)) for number in range(600)]
    for request in requests:
        session.lease(request)

    session.call("account.spaces", Nothing())
    asked = [codec.decode_client(data) for data in session.take_output()]
    assert [frame for frame in asked if isinstance(frame, Lease)] == requests[: len(asked) - 1]
    assert len(asked) < CONNECTION_CALLS_IN_FLIGHT_MAX

    while asked:
        session.receive(codec.encode(Leases(SPACE, asked[0].nonce, [], 0, b"", 0, b"")), 0)
        answered = asked.pop(0)
        asked = [frame for frame in asked if isinstance(frame, Lease)]
        asked += [codec.decode_client(data) for data in session.take_output()]
    assert answered == requests[-1]


def test_attached_spaces_are_bounded():
    session = open_session()
    for number in range(CONNECTION_SPACES_MAX):
        session.attach(SpaceId(number.to_bytes(16, "big")), b"", Seq(0))

    with pytest.raises(LimitExceededError):
        session.attach(SPACE, b"", Seq(0))


def test_pushes_in_flight_are_bounded_and_acks_make_room():
    session = open_session()
    for counter in range(1, CONNECTION_PUSHES_IN_FLIGHT_MAX + 1):
        session.push(SPACE, [envelope(counter)])
    with pytest.raises(LimitExceededError):
        session.push(SPACE, [envelope(99)])

    session.receive(codec.encode(Ack(SPACE, [(Counter(1), Seq(1)), (Counter(2), Seq(2))])), 0)

    assert session.push_room == 2


def test_a_reject_ends_everything_that_is_in_flight_for_the_space():
    session = open_session()
    for counter in range(1, 6):
        session.push(SPACE, [envelope(counter)])

    session.receive(codec.encode(Reject(SPACE, Counter(2), "quota_exceeded", "", 5, Counter(1), NO_ENVELOPE)), 0)

    assert session.push_room == CONNECTION_PUSHES_IN_FLIGHT_MAX


def test_a_push_takes_64_envelopes_and_no_more():
    session = open_session()

    session.push(SPACE, [envelope(counter) for counter in range(1, PUSH_ENVELOPES_MAX + 1)])

    assert isinstance(codec.decode_client(session.take_output()[0]), Push)
    with pytest.raises(LimitExceededError):
        session.push(SPACE, [envelope(counter) for counter in range(PUSH_ENVELOPES_MAX + 1)])


def test_a_signal_takes_16_kib_and_no_more():
    session = open_session()

    session.signal(SPACE, bytes(SIGNAL_BYTES_MAX))

    with pytest.raises(LimitExceededError):
        session.signal(SPACE, bytes(SIGNAL_BYTES_MAX + 1))
