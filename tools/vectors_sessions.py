"""The transcripts of sessions: handshakes, the flow of a session, frames out of order, limits. See transcripts.py."""

from __future__ import annotations

from typing import Any

import msgspec

from tests.unit.sealing_world import Person, entries, flipped
from tools.transcripts import CLIENT_MS, SERVER_MS, WINDOW, Transcript
from tools.vectors_keys import Vector, vector
from twinlock.ids import NO_ENVELOPE, Counter, Epoch, Incarnation, Seq, SpaceId
from twinlock.protocol import proofs
from twinlock.protocol.envelope import Envelope
from twinlock.protocol.frames import (
    Ack,
    Attach,
    Call,
    CallError,
    Challenge,
    Detach,
    Entries,
    Goaway,
    Grant,
    Hello,
    Lease,
    Leases,
    Notice,
    Push,
    Reject,
    Reply,
    Signal,
    Signals,
)
from twinlock.protocol.limits import (
    CHALLENGE_TTL_MS,
    CONNECTION_SPACES_MAX,
    LEASE_EPOCHS_MAX,
    PUSH_ENVELOPES_MAX,
    SIGNAL_BYTES_MAX,
)
from twinlock.protocol.space_log import Role
from twinlock.sealing import DeviceKeys

ELSEWHERE = "wss://relay.example:443"
OTHER = bytes(range(32))
TOKEN = "header.claims.signature"
NIL = msgspec.Raw(b"\xc0")
MIB = 1 << 20
NO_PARAMS = msgspec.Raw(b"\x80")


def _map(**fields: Any) -> msgspec.Raw:
    return msgspec.Raw(msgspec.msgpack.encode(fields))


# Handshakes


def handshake() -> Vector:
    """Who is let in, and whom a client believes."""
    first = Transcript("nobody's: to sign up, at a server that is not known yet", device=False)
    first.given(pinned_server_id="").opened()
    ticket = Transcript("a device with a ticket").given(ticket=b"ticket 1".hex())
    shown = Transcript("a device with a token of the application's issuer").given(token=TOKEN)
    late = Transcript("a challenge at its last moment", "server")
    accept = [
        Transcript("a device").opened(),
        first,
        Transcript("nobody's, at a server that is pinned", device=False).opened(),
        ticket.challenge().hello(ticket=b"ticket 1").welcome(),
        shown.challenge().hello(token=TOKEN).welcome(),
        late.challenge().hello(at_ms=SERVER_MS + CHALLENGE_TTL_MS).welcome(),
        Transcript("a server that goes down before the welcome").challenge().hello().step(Goaway(5_000)),
    ]
    reject = [*_refused_by_server(), *_refused_by_client()]
    return _file("sessions/handshake", "protocol.md, section 3", accept, reject)


def _refused_by_server() -> list[Transcript]:
    def lying(name: str, **altered: Any) -> Transcript:
        return Transcript(name, "server").challenge().hello("proof_refused", **altered)

    late = Transcript("a challenge that has ended", "server").challenge()
    twice = Transcript("a challenge answered twice", "server").challenge().hello()
    relayed = Transcript("an origin that is the server's, signed for another", "server").challenge()
    told_here = msgspec.structs.replace(relayed.hello_frame(origin=ELSEWHERE), origin=relayed.hello_frame().origin)
    unsigned = Transcript("a device without a signature", "server").challenge()
    bare = msgspec.structs.replace(unsigned.hello_frame(), signature=b"")
    stolen = Transcript("a token that the device did not sign for", "server").challenge()
    other = msgspec.structs.replace(stolen.hello_frame(token=TOKEN), token="header.claims.other")
    taken_out = Transcript("a token that was taken out of the hello", "server").challenge()
    without = msgspec.structs.replace(taken_out.hello_frame(token=TOKEN), token="")
    return [
        lying("a hello recorded in another session", server_nonce=OTHER),
        lying("an origin that is not the server's", origin=ELSEWHERE),
        lying("signed for another server", server_id=OTHER),
        lying("signed for another incarnation", incarnation=OTHER[:16]),
        lying("signed for another account", account=OTHER[:16]),
        lying("signed with another nonce than it shows", client_nonce=OTHER),
        relayed.step(told_here, "proof_refused", at_ms=SERVER_MS),
        unsigned.step(bare, "proof_refused", at_ms=SERVER_MS),
        stolen.step(other, "proof_refused", at_ms=SERVER_MS),
        taken_out.step(without, "proof_refused", at_ms=SERVER_MS),
        late.hello("challenge_refused", at_ms=SERVER_MS + CHALLENGE_TTL_MS + 1),
        twice.hello("challenge_refused"),
    ]


def _refused_by_client() -> list[Transcript]:
    def impostor(name: str, **altered: Any) -> Transcript:
        return Transcript(name, "client").challenge().hello().welcome("wrong_server", **altered)

    other_key = DeviceKeys(bytes(64))
    revoked = Transcript("a device that was revoked", "client").challenge().hello()
    unlike = Transcript("another server than the pinned one", "client")
    unlike.step(Challenge(OTHER, other_key.sign_pk, unlike.incarnation, SERVER_MS), "wrong_server", at_ms=CLIENT_MS)
    return [
        unlike,
        impostor("a welcome signed by another key", signer=other_key),
        impostor("a welcome recorded in another session", client_nonce=OTHER),
        impostor("a welcome to another challenge", server_nonce=OTHER),
        impostor("a welcome of another incarnation", incarnation=OTHER[:16]),
        impostor("a welcome for another device", device=OTHER[:16]),
        revoked.step(Notice("device_revoked"), "device_revoked"),
    ]


# The flow of a session


def flow() -> Vector:
    """Attaching, delivery, pushing, calls, and what follows a refused push."""
    accept = [
        _whole(),
        _refused_attach(),
        _attached_again(),
        _detached_early(),
        _repeated(),
        _healed(),
        _conflict(),
        _gap(),
        _waiting_for_quota(),
        *_refused_envelopes(),
    ]
    other = Transcript("attached to another incarnation", "client").opened()
    other.step(Attach(other.space, b"", Seq(0)))
    other.step(other.attached(incarnation=Incarnation(OTHER[:16])), "incarnation_changed")
    return _file("sessions/flow", "protocol.md, sections 4 to 7", accept, [other])


def _whole() -> Transcript:
    talk = Transcript("a device catches up, writes, calls and leaves").opened()
    friend = Person("vectors session friend")
    talk.world.admit(friend, Role.EDITOR)
    space, theirs, own = talk.space, talk.world.chain(friend.device, 3), talk.chain(3)
    talk.step(Attach(space, b"", Seq(0))).step(talk.attached(head=2))
    talk.step(Entries(space, entries(theirs[:2]), Seq(2)))
    talk.step(_push(talk, own[:2])).step(Ack(space, [(Counter(1), Seq(3)), (Counter(2), Seq(5))]), settles=1)
    talk.step(Entries(space, [*entries(own[:1], 3), *entries(theirs[2:], 4), *entries(own[1:2], 5)], Seq(5)))
    talk.step(_push(talk, own[2:])).step(Entries(space, entries(own[2:], 6), Seq(6)))
    talk.step(Ack(space, [(Counter(3), Seq(6))]), settles=1)
    talk.step(Signal(space, b"sealed for those who are here")).step(Signals(space, [b"sealed by another"]))
    lease = _lease(talk, [1])
    grant = Grant(Epoch(1), SERVER_MS + 86_400_000, b"sealed service key")
    log = talk.world.log
    account_log = talk.person.state
    talk.step(lease)
    talk.step(Leases(space, lease.nonce, [grant], log.seq, log.head, account_log.seq, account_log.head))
    talk.step(Call(1, "account.spaces", NO_PARAMS)).step(Call(2, "space.log", _map(log=space, after_seq=2)))
    talk.step(Reply(2, NIL, CallError("rate_limited", "", 1_500))).step(Reply(1, _map(spaces=[space])))
    talk.step(Notice("log_grown", space)).step(Detach(space))
    return talk.step(Entries(space, entries(theirs[:1], 7), Seq(7)), "passed over").step(Goaway(5_000))


def _refused_attach() -> Transcript:
    talk = Transcript("a space that is not one's own").opened()
    return talk.step(Attach(talk.space, b"", Seq(0))).step(Notice("unknown_space", talk.space))


def _attached_again() -> Transcript:
    talk = Transcript("attaching again, from another cursor").opened()
    talk.step(Attach(talk.space, talk.incarnation, Seq(5))).step(talk.attached(head=9, resume=Seq(5)))
    talk.step(Attach(talk.space, talk.incarnation, Seq(2)))
    talk.step(Entries(talk.space, entries(talk.chain(1), 6), Seq(9)), "passed over")
    talk.step(talk.attached(head=9, resume=Seq(2)))
    return talk.step(Entries(talk.space, entries(talk.chain(1), 3), Seq(9)))


def _detached_early() -> Transcript:
    talk = Transcript("detached before the answer").opened()
    talk.step(Attach(talk.space, b"", Seq(0))).step(Detach(talk.space))
    talk.step(talk.attached(head=1), "passed over")
    return talk.step(Entries(talk.space, entries(talk.chain(1)), Seq(1)), "passed over")


def _repeated() -> Transcript:
    talk = Transcript("pushing again what was acknowledged in a lost connection").opened()
    own = talk.chain(3)
    talk.given(server_heads=[_head(own[1])])
    acked = [(Counter(1), Seq(0)), (Counter(2), Seq(8)), (Counter(3), Seq(9))]
    return talk.step(_push(talk, own)).step(Ack(talk.space, acked), settles=1)


def _healed() -> Transcript:
    talk = Transcript("a restored server is given what it lost").opened()
    own = talk.chain(3)
    talk.given(server_heads=[_head(own[0])])
    talk.step(Attach(talk.space, OTHER[:16], Seq(70)))
    talk.step(talk.attached(head=40, own=own[0], resume=Seq(40)))
    talk.step(_push(talk, own[1:2])).step(_push(talk, own[2:]))
    return talk.step(Ack(talk.space, [(Counter(2), Seq(41)), (Counter(3), Seq(42))]), settles=2)


def _conflict() -> Transcript:
    talk = Transcript("a counter that is taken: the rest is sealed again").opened()
    own, theirs = talk.chain(3), talk.chain(2, prefix="of a copy of this device")
    talk.given(server_heads=[_head(theirs[1])])
    talk.step(_push(talk, own[1:]))
    talk.step(_reject(talk, own[1], "counter_conflict", theirs[1]), settles=1)
    (again,) = talk.chain(1, (2, theirs[1].id))
    return talk.step(_push(talk, [again])).step(Ack(talk.space, [(Counter(3), Seq(4))]), settles=1)


def _gap() -> Transcript:
    talk = Transcript("a gap: what comes after is refused without a word").opened()
    own = talk.chain(4)
    talk.given(server_heads=[_head(own[0])])
    talk.step(_push(talk, own[2:3])).step(_push(talk, own[3:]), answered=False)
    talk.step(_reject(talk, own[2], "counter_gap", own[0]), settles=1)
    acked = [(Counter(number), Seq(number)) for number in (2, 3, 4)]
    return talk.step(_push(talk, own[1:])).step(Ack(talk.space, acked), settles=1)


def _waiting_for_quota() -> Transcript:
    talk = Transcript("a quota: the same bytes, later").opened()
    own = talk.chain(2)
    talk.step(_push(talk, own[:1]), server_refuses="quota_exceeded").step(_push(talk, own[1:]), answered=False)
    talk.step(_reject(talk, own[0], "quota_exceeded", None, 1_500), settles=1)
    talk.step(_push(talk, own[:1])).step(_push(talk, own[1:]))
    talk.step(Ack(talk.space, [(Counter(1), Seq(1))]), settles=1)
    return talk.step(Ack(talk.space, [(Counter(2), Seq(2))]), settles=1)


def _refused_envelopes() -> list[Transcript]:
    def refused(name: str, code: str, **given: Any) -> tuple[Transcript, list[Envelope]]:
        talk = Transcript(f"{code}: {name}").opened().given(**given)
        return talk, talk.chain(2)

    reader, written = refused("a reader writes", "role_forbids", role="reader")
    reader.step(_push(reader, written)).step(_reject(reader, written[0], "role_forbids", None), settles=1)
    old, sealed = refused("the space has a newer epoch", "stale_epoch", epoch=2)
    old.step(_push(old, sealed)).step(_reject(old, sealed[0], "stale_epoch", None), settles=1)
    fork, chain = refused("another predecessor", "prev_mismatch")
    other = fork.chain(2, prefix="other")
    fork.step(_push(fork, [chain[0], other[1]])).step(Ack(fork.space, [(Counter(1), Seq(1))]))
    fork.step(_reject(fork, other[1], "prev_mismatch", chain[0]), settles=1)
    foreign, _ = refused("of another device", "foreign_envelope")
    stranger = foreign.world.chain(Person("vectors session stranger").device, 1)
    foreign.step(_push(foreign, stranger)).step(_reject(foreign, stranger[0], "foreign_envelope", None), settles=1)
    broken, good = refused("of another version", "malformed_envelope")
    data = flipped(good[0].data, 0)
    broken.step(Push(broken.space, [data])).step(_reject(broken, good[0], "malformed_envelope", None), settles=1)
    return [reader, old, fork, foreign, broken]


def _push(talk: Transcript, envelopes: list[Envelope]) -> Push:
    return Push(talk.space, [envelope.data for envelope in envelopes])


def _reject(talk: Transcript, refused: Envelope, code: str, own: Envelope | None, retry_after_ms: int = 0) -> Reject:
    counter, name = (own.header.counter, own.id) if own else (Counter(0), NO_ENVELOPE)
    return Reject(talk.space, refused.header.counter, code, "", retry_after_ms, counter, name)


def _head(envelope: Envelope) -> list[Any]:
    return [envelope.header.device.hex(), envelope.header.counter, envelope.id.hex()]


def _lease(talk: Transcript, epochs: list[int]) -> Lease:
    wanted = [Epoch(epoch) for epoch in epochs]
    message = proofs.lease_message(talk.space, wanted, talk.lease_nonce, SERVER_MS, talk.account, talk.device)
    return Lease(talk.space, wanted, talk.lease_nonce, SERVER_MS, talk.person.device.sign.sign(message))


# Frames out of order


def disorder() -> Vector:
    """Frames that may not come now: each of them ends the session."""
    reject = [*_too_soon(), *_after_the_hello(), *_from_a_server()]
    return _file("sessions/order", "protocol.md, section 3", [], reject)


def _too_soon() -> list[Transcript]:
    cases = []
    frames = [Attach(_SPACE, b"", Seq(0)), Detach(_SPACE), Push(_SPACE, [bytes(192)]), Signal(_SPACE, b"s")]
    for frame in [*frames, Call(1, "account.spaces", NO_PARAMS), Lease(_SPACE, [Epoch(1)], OTHER, 0, bytes(64))]:
        name = type(frame).__name__.lower()
        cases.append(Transcript(f"{name} before the hello", "server").challenge().step(frame, "unexpected_frame"))
        cases.append(Transcript(f"{name} by nobody", "server", device=False).opened().step(frame, "unexpected_frame"))
        if not isinstance(frame, Detach):
            waiting = Transcript(f"{name} before the welcome", "client").challenge().hello()
            cases.append(waiting.unsent(frame, "unexpected_frame"))
    return cases


def _after_the_hello() -> list[Transcript]:
    second = Transcript("a second hello", "server").opened()
    nobodys = Transcript("a second hello of nobody", "server", device=False).opened()
    server = Transcript("a server's frame from a client", "server").opened()
    return [
        second.step(second.hello_frame(), "unexpected_frame", at_ms=SERVER_MS + 99),
        nobodys.step(Hello(OTHER, "ws://here:1", b"", b"", b""), "unexpected_frame", at_ms=SERVER_MS + 99),
        server.step(Goaway(1), "malformed_frame", **{"from": "client"}),
    ]


def _from_a_server() -> list[Transcript]:
    first, early, twice, again, reply, client = (
        Transcript(name, "client")
        for name in (
            "a welcome without a challenge",
            "attached before the welcome",
            "a second challenge",
            "a challenge in an open session",
            "a reply to no call",
            "a client's frame from a server",
        )
    )
    welcome_only = first.welcome("unexpected_frame")
    early.challenge().hello().step(early.attached(), "unexpected_frame")
    twice.challenge().hello().challenge("unexpected_frame")
    again.opened().challenge("unexpected_frame")
    reply.opened().step(Call(1, "account.spaces", NO_PARAMS)).step(Reply(2, NIL), "unexpected_frame")
    client.opened().step(Detach(client.space), "malformed_frame", **{"from": "server"})
    return [welcome_only, early, twice, again, reply, client]


# Limits

_SPACE = SpaceId(bytes(16))
_SPACES = [SpaceId(number.to_bytes(16, "big")) for number in range(CONNECTION_SPACES_MAX + 1)]
_PUSH = "9307c410" + _SPACE.hex()
_ENVELOPE = bytes(193).hex()
_LARGE = ["c600100000", [MIB, "00"]]


def limits() -> Vector:
    """Each limit of a session on both sides of it: a client keeps to it, and a server sees to it."""
    at, over = (_long_pushes(count) for count in (0, 1))
    within, beyond = [], []
    for side in ("client", "server"):
        talk = Transcript(f"frames at their limits, {side}", side).opened()
        for parts in at.values():
            talk.bulk(Push(_SPACE, []), parts)
        talk.bulk(Signal(_SPACE, b""), _signal(SIGNAL_BYTES_MAX))
        within.append(talk)
    for what, parts in over.items():
        beyond += _both(f"a push of {what}", Push(_SPACE, []), parts)
    beyond += _both("a signal of 16 KiB and a byte", Signal(_SPACE, b""), _signal(SIGNAL_BYTES_MAX + 1))
    for count in (0, LEASE_EPOCHS_MAX + 1):
        talk = Transcript(f"a lease of {count} epochs", "server").opened()
        request = Lease(_SPACE, [Epoch(1)] * count, OTHER, SERVER_MS, bytes(64))
        beyond.append(talk.step(request, "limit_exceeded"))
    return _file("sessions/limits", "protocol.md, section 8", [*within, *_made_room()], [*beyond, *_in_flight()])


def _long_pushes(more: int) -> dict[str, list[Any]]:
    """Return pushes at their limits, or over them by one."""
    count = PUSH_ENVELOPES_MAX + more
    pushes: dict[str, list[Any]] = {f"{count} envelopes": [_PUSH + f"dc{count:04x}", [count, "c4c1" + _ENVELOPE]]}
    last = ["c4c1" + _ENVELOPE] * more
    pushes["4 MiB" + " and more" * more] = [_PUSH + f"{0x94 + more:02x}", *_LARGE * 4, *last]
    if more:
        pushes["no envelope"] = [_PUSH + "90"]
    return pushes


def _signal(size: int) -> list[Any]:
    return ["930dc410" + _SPACE.hex() + f"c5{size:04x}", [size, "00"]]


def _both(name: str, frame: Any, parts: list[Any]) -> list[Transcript]:
    client, server = (Transcript(f"{name}, {side}", side).opened() for side in ("client", "server"))
    client.bulk(frame, parts, "unsent", error="limit_exceeded")
    return [client, server.bulk(frame, parts, "limit_exceeded")]


def _made_room() -> list[Transcript]:
    pushes = Transcript("an ack makes room for a push").opened()
    own = pushes.chain(WINDOW + 1)
    pushes.each([_push(pushes, [envelope]) for envelope in own[:-1]])
    pushes.step(Ack(pushes.space, [(Counter(1), Seq(1))]), settles=1).step(_push(pushes, own[-1:]))
    rest = [(Counter(number), Seq(number)) for number in range(2, WINDOW + 2)]
    pushes.step(Ack(pushes.space, rest), settles=WINDOW)
    calls = Transcript("a reply makes room for a call").opened()
    calls.each([Call(number, "account.spaces", NO_PARAMS) for number in range(1, WINDOW + 1)])
    calls.step(Reply(5, _map(spaces=[]))).step(Call(WINDOW + 1, "account.spaces", NO_PARAMS))
    spaces = Transcript("a detach makes room for a space").opened()
    spaces.each([Attach(space, b"", Seq(0)) for space in _SPACES[:-1]])
    spaces.step(Detach(_SPACES[0])).step(Attach(_SPACES[-1], b"", Seq(0)))
    return [pushes, calls, spaces]


def _in_flight() -> list[Transcript]:
    found = []
    for side in ("client", "server"):
        pushes, calls, spaces = (
            Transcript(f"{name}, {side}", side).opened() for name in ("65 pushes", "65 calls", "513 spaces")
        )
        own = pushes.chain(WINDOW + 1)
        pushes.each([_push(pushes, [envelope]) for envelope in own[:-1]])
        calls.each([Call(number, "account.spaces", NO_PARAMS) for number in range(1, WINDOW + 1)])
        spaces.each([Attach(space, b"", Seq(0)) for space in _SPACES[:-1]])
        lasts = {
            pushes: _push(pushes, own[-1:]),
            calls: Call(WINDOW + 1, "account.spaces", NO_PARAMS),
            spaces: Attach(_SPACES[-1], b"", Seq(0)),
        }
        for talk, frame in lasts.items():
            found.append(
                talk.unsent(frame, "limit_exceeded") if side == "client" else talk.step(frame, "limit_exceeded")
            )
    leased = Transcript("64 calls and a lease", "server").opened()
    leased.each([Call(number, "account.spaces", NO_PARAMS) for number in range(1, WINDOW + 1)])
    return [*found, leased.step(_lease(leased, [1]), "limit_exceeded")]


def _file(name: str, section: str, accept: list[Transcript], reject: list[Transcript]) -> Vector:
    return vector(name, section, [talk.case() for talk in accept], [talk.case() for talk in reject])


MAKERS = {
    "sessions/handshake": handshake,
    "sessions/flow": flow,
    "sessions/order": disorder,
    "sessions/limits": limits,
}
