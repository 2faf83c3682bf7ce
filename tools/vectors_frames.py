"""The vectors of frames: every frame's bytes, other forms of them that are read, and what is refused."""

from __future__ import annotations

from typing import Any

import msgspec

from tools.vector_notation import written
from tools.vectors_keys import Vector, vector
from twinlock.protocol.codec import encode
from twinlock.protocol.frames import (
    Ack,
    Attach,
    Attached,
    Call,
    CallError,
    Challenge,
    ClientFrame,
    Detach,
    Entries,
    Entry,
    Goaway,
    Grant,
    Hello,
    Lease,
    Leases,
    Notice,
    Push,
    Reject,
    Reply,
    ServerFrame,
    Signal,
    Signals,
    Welcome,
)
from twinlock.protocol.limits import FRAME_BYTES_MAX

Case = dict[str, Any]
Frame = ClientFrame | ServerFrame

CLIENT_KINDS = frozenset(ClientFrame.__args__)
ACCOUNT, DEVICE, SPACE, INCARNATION = (bytes([first]) * 16 for first in (0xAC, 0xDE, 0x5A, 0x1C))
NONCE, HASH, SIGNATURE = bytes(range(32)), bytes(range(32, 64)), bytes(range(64, 128))
NOW_MS = 1_750_000_000_000
packed = msgspec.msgpack.Encoder().encode


def described(frame: Frame) -> Case:
    """Return a frame's name, sender and fields as they stand in a vector."""
    tag, *fields = msgspec.msgpack.decode(encode(frame))
    # A hello without a token is written without the field.
    names = [field.name for field in msgspec.structs.fields(type(frame))][: len(fields)]
    return {
        "from": "client" if type(frame) in CLIENT_KINDS else "server",
        "frame": type(frame).__name__.lower(),
        "tag": tag,
        "fields": {name: written(field) for name, field in zip(names, fields, strict=True)},
    }


FRAMES: dict[str, Frame] = {
    "challenge": Challenge(NONCE, HASH, INCARNATION, NOW_MS),
    "hello": Hello(NONCE, "wss://sync.example:443", ACCOUNT, DEVICE, SIGNATURE, b"ticket"),
    "hello without a device": Hello(NONCE, "ws://127.0.0.1:7350", b"", b"", b""),
    "hello with a token": Hello(NONCE, "wss://sync.example:443", ACCOUNT, DEVICE, SIGNATURE, b"", "header.body.sig"),
    "welcome": Welcome(SIGNATURE, NOW_MS, (1 << 63) - 1, {"push_envelopes_max": 64, "push_bytes_max": 4194304}, b"t"),
    "attach": Attach(SPACE, INCARNATION, 70_000),
    "the first attach": Attach(SPACE, b"", 0),
    "attached": Attached(SPACE, INCARNATION, 1, 70_000, 65_536, 1 << 33, 255, HASH, 3, NONCE),
    "detach": Detach(SPACE),
    "push": Push(SPACE, [b"first", b"second"]),
    "push of an envelope of 300 bytes": Push(SPACE, [bytes(300)]),
    "ack": Ack(SPACE, [(1, 70_001), (2, 0)]),
    "reject": Reject(SPACE, 3, "counter_conflict", "counter 3 is taken", 0, 2, HASH),
    "entries": Entries(SPACE, [Entry(1, NOW_MS, b"first"), Entry(1 << 40, NOW_MS + 1, b"second")], 1 << 40),
    "no entries": Entries(SPACE, [], 7),
    "lease": Lease(SPACE, [1, 2, 300], NONCE, NOW_MS, SIGNATURE),
    "leases": Leases(SPACE, NONCE, [Grant(1, NOW_MS + 86_400_000, b"sealed")], 3, HASH, 2, NONCE),
    "no leases": Leases(SPACE, NONCE, [], 0, b"", 0, b"", "lease_refused", "no member", 60_000),
    "signal": Signal(SPACE, b"sealed"),
    "signals": Signals(SPACE, [b"sealed", b"sealed too"]),
    "call": Call(1, "account.log", msgspec.Raw(packed({"log": ACCOUNT, "after_seq": 0}))),
    "call without params": Call(2, "account.spaces", msgspec.Raw(packed({}))),
    "reply": Reply(1, msgspec.Raw(packed({"spaces": [SPACE]}))),
    "reply without a result": Reply(2, msgspec.Raw(b"\xc0")),
    "reply with an error": Reply(3, msgspec.Raw(b"\xc0"), CallError("rate_limited", "", 1500)),
    "notice about the connection": Notice("device_revoked"),
    "notice about a space": Notice("log_grown", SPACE),
    "goaway": Goaway(5_000),
}

RECEIVED: dict[str, tuple[bytes, Frame]] = {
    "hello without its last field": (
        packed([2, NONCE, "ws://here:1", b"", b"", b""]),
        Hello(NONCE, "ws://here:1", b"", b"", b""),
    ),
    "welcome without its last field": (packed([3, SIGNATURE, NOW_MS, 1, {}]), Welcome(SIGNATURE, NOW_MS, 1, {})),
    "leases without their last fields": (
        packed([12, SPACE, NONCE, [], 1, HASH, 1, HASH]),
        Leases(SPACE, NONCE, [], 1, HASH, 1, HASH),
    ),
    "reply without its last field": (packed([16, 1, None]), Reply(1, msgspec.Raw(b"\xc0"))),
    "notice with its first field only": (packed([17, "draining"]), Notice("draining")),
    "an error with two fields": (
        packed([16, 1, None, ["internal", "x"]]),
        Reply(1, msgspec.Raw(b"\xc0"), CallError("internal", "x")),
    ),
    "fields of a newer version": (packed([6, SPACE, "later", [1, {"a": None}]]), Detach(SPACE)),
    "ints that are longer than they need be": (
        b"\x94\x04\xc4\x10" + SPACE + b"\xc4\x00" + b"\xcf" + bytes(7) + b"\x05",
        Attach(SPACE, b"", 5),
    ),
    "lengths that are longer than they need be": (b"\xdc\x00\x02\xd0\x06\xc5\x00\x10" + SPACE, Detach(SPACE)),
}

FROM_CLIENT: dict[str, bytes] = {
    "no bytes": b"",
    "no array": packed({"tag": 6, "space": SPACE}),
    "an empty array": packed([]),
    "no tag": packed([SPACE]),
    "a tag that is text": packed(["detach", SPACE]),
    "a tag that nobody knows": packed([99, SPACE]),
    "tag 0": packed([0, SPACE]),
    "a server's frame": encode(Goaway(1)),
    "a challenge from a client": encode(FRAMES["challenge"]),
    "a missing field": packed([4, SPACE, b""]),
    "a space that is text": packed([6, "space"]),
    "a space that is nil": packed([6, None]),
    "a cursor that is text": packed([4, SPACE, b"", "5"]),
    "a cursor that is a float": packed([4, SPACE, b"", 5.0]),
    "a cursor that is true": packed([4, SPACE, b"", True]),
    "an origin that is bytes": packed([2, NONCE, b"ws://here:1", b"", b"", b""]),
    "an origin that is no UTF-8": packed([2, NONCE, msgspec.Raw(b"\xa2\xff\xfe"), b"", b"", b""]),
    "envelopes that are one": packed([7, SPACE, b"envelope"]),
    "an envelope that is text": packed([7, SPACE, ["envelope"]]),
    "a byte too many": encode(Detach(SPACE)) + b"\0",
    "two frames": encode(Detach(SPACE)) * 2,
    "cut off": encode(Detach(SPACE))[:-1],
    "a length without what it counts": b"\xdd\xff\xff\xff\xff",
    "bytes of a length without end": b"\x92\x06\xc6\xff\xff\xff\xff",
    "an unused code": b"\xc1",
}

FROM_SERVER: dict[str, bytes] = {
    "a client's frame": encode(Detach(SPACE)),
    "entries that are no arrays": packed([10, SPACE, [b"envelope"], 1]),
    "an entry without its envelope": packed([10, SPACE, [[1, NOW_MS]], 1]),
    "acked that is no pair": packed([8, SPACE, [[1]]]),
    "acked that is three": packed([8, SPACE, [[1, 2, 3]]]),
    "limits that are text": packed([3, SIGNATURE, NOW_MS, 1, {"push_bytes_max": "4"}]),
    "an error that is text": packed([16, 1, None, "internal"]),
}


def frames() -> Vector:
    """Every frame, what older and newer versions may send, and what is no frame."""
    accept: list[Case] = [
        {"name": name, **described(frame), "bytes": encode(frame).hex()} for name, frame in FRAMES.items()
    ]
    accept += [
        {"name": name, **described(frame), "received": received.hex(), "bytes": encode(frame).hex()}
        for name, (received, frame) in RECEIVED.items()
    ]
    reject: list[Case] = [
        {"name": name, "from": side, "received": received.hex(), "error": "malformed_frame"}
        for side, malformed in (("client", FROM_CLIENT), ("server", FROM_SERVER))
        for name, received in malformed.items()
    ]
    reject += [
        {
            "name": f"nested 100,000 deep, from a {side}",
            "from": side,
            "received": [start, [100_000, "91"], "c0"],
            "error": "malformed_frame",
        }
        for side, start in (("client", "9306c410" + SPACE.hex()), ("server", "93120a"))
    ]
    reject += [
        {
            "name": f"a byte over FRAME_BYTES_MAX, from a {side}",
            "from": side,
            "received": [[FRAME_BYTES_MAX + 1, "00"]],
            "error": "limit_exceeded",
        }
        for side in ("client", "server")
    ]
    return vector("frames", "protocol.md, section 2", accept, reject)


MAKERS = {"frames": frames}
