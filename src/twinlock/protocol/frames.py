"""Every frame of the sync socket, one struct each. See spec/protocol.md, section 2.

A frame is one binary WebSocket message: the MessagePack array `[tag, fields...]`. Fields are added at the end only.
"""

from __future__ import annotations

import msgspec

from twinlock.ids import AccountId, Counter, DeviceId, EnvelopeId, Epoch, Incarnation, Seq, SpaceId


class Challenge(msgspec.Struct, frozen=True, array_like=True, tag=1):
    """Server: the first frame of a connection."""

    nonce: bytes
    server_pk: bytes
    incarnation: Incarnation
    server_time_ms: int


class Hello(msgspec.Struct, frozen=True, array_like=True, tag=2):
    """Client: the answer to the challenge. See spec/sealing.md, section 6.

    A hello with an empty `device` opens a session that may only sign up, sign in or recover. `token` is one of the
    application's own issuer, for servers that ask for it; an empty one is left out of the frame.
    """

    client_nonce: bytes
    origin: str
    account: AccountId
    device: DeviceId
    signature: bytes
    ticket: bytes = b""
    token: str = ""

    def __repr__(self) -> str:
        return f"Hello({self.account.hex()!r}, {self.device.hex()!r}, hidden)"


class Welcome(msgspec.Struct, frozen=True, array_like=True, tag=3):
    """Server: the session stands. `signature` proves the server's key over both nonces."""

    signature: bytes
    server_time_ms: int
    session: int
    limits: dict[str, int]
    ticket: bytes = b""


class Attach(msgspec.Struct, frozen=True, array_like=True, tag=4):
    """Client: deliver this space from a cursor on. `incarnation` is empty on a device's first attach."""

    space: SpaceId
    incarnation: bytes
    cursor: Seq


class Attached(msgspec.Struct, frozen=True, array_like=True, tag=5):
    """Server: entries after `resume` follow without gap or overlap, then live ones.

    `own_counter` and `own_id` are the server's head of this device's chain; `log_seq` and `log_head` are those of
    the space's signed log.
    """

    space: SpaceId
    incarnation: Incarnation
    start: Seq
    head: Seq
    resume: Seq
    log_bytes: int
    own_counter: Counter
    own_id: EnvelopeId
    log_seq: int
    log_head: bytes


class Detach(msgspec.Struct, frozen=True, array_like=True, tag=6):
    """Client: deliver this space no longer."""

    space: SpaceId


class Push(msgspec.Struct, frozen=True, array_like=True, tag=7):
    """Client: commit these envelopes, in order."""

    space: SpaceId
    envelopes: list[bytes]


class Ack(msgspec.Struct, frozen=True, array_like=True, tag=8):
    """Server: these envelopes are durable."""

    space: SpaceId
    acked: list[tuple[Counter, Seq]]


class Reject(msgspec.Struct, frozen=True, array_like=True, tag=9):
    """Server: this envelope was refused, and later ones of the device are until a new one with its counter comes.

    `own_counter` and `own_id` are the server's head of the device's chain, to go on from.
    """

    space: SpaceId
    counter: Counter
    code: str
    detail: str
    retry_after_ms: int
    own_counter: Counter
    own_id: EnvelopeId


class Entry(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One envelope with its place and its receive time."""

    seq: Seq
    received_ms: int
    envelope: bytes


class Entries(msgspec.Struct, frozen=True, array_like=True, tag=10):
    """Server: delivery, in order. The same bytes for every subscriber."""

    space: SpaceId
    entries: list[Entry]
    head: Seq


class Lease(msgspec.Struct, frozen=True, array_like=True, tag=11):
    """Client: ask for service keys. Signed by the device. See spec/sealing.md, section 7."""

    space: SpaceId
    epochs: list[Epoch]
    nonce: bytes
    time_ms: int
    signature: bytes


class Grant(msgspec.Struct, frozen=True, array_like=True):
    """One service key sealed to the device that asked."""

    epoch: Epoch
    not_after_ms: int
    sealed: bytes


class Leases(msgspec.Struct, frozen=True, array_like=True, tag=12):
    """Server: the grants, and the heads of the logs they stand on; `code` is set when the key service refused."""

    space: SpaceId
    nonce: bytes
    grants: list[Grant]
    space_log_seq: int
    space_log_head: bytes
    account_log_seq: int
    account_log_head: bytes
    code: str = ""
    detail: str = ""
    retry_after_ms: int = 0


class Signal(msgspec.Struct, frozen=True, array_like=True, tag=13):
    """Client: relay this sealed signal to those who are attached now; it is never stored."""

    space: SpaceId
    sealed: bytes


class Signals(msgspec.Struct, frozen=True, array_like=True, tag=14):
    """Server: signals of other devices."""

    space: SpaceId
    sealed: list[bytes]


class Call(msgspec.Struct, frozen=True, array_like=True, tag=15):
    """Client: a request with one reply. `params` is the method's struct, see `twinlock.protocol.calls`."""

    id: int
    method: str
    params: msgspec.Raw


class CallError(msgspec.Struct, frozen=True, array_like=True):
    """Why a call failed: a code of spec/errors.json."""

    code: str
    detail: str
    retry_after_ms: int = 0


class Reply(msgspec.Struct, frozen=True, array_like=True, tag=16):
    """Server: the result of a call (nil when there is none), or its error."""

    id: int
    result: msgspec.Raw
    error: CallError | None = None


class Notice(msgspec.Struct, frozen=True, array_like=True, tag=17):
    """Server: something happened: a code of spec/errors.json, or `log_grown` for a space whose signed log grew."""

    code: str
    space: bytes = b""
    detail: str = ""
    retry_after_ms: int = 0


class Goaway(msgspec.Struct, frozen=True, array_like=True, tag=18):
    """Server: this connection ends soon; connect again after `retry_after_ms`."""

    retry_after_ms: int


ClientFrame = Hello | Attach | Detach | Push | Lease | Signal | Call
ServerFrame = Challenge | Welcome | Attached | Ack | Reject | Entries | Leases | Signals | Reply | Notice | Goaway
LOG_GROWN = "log_grown"
