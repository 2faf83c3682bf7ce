"""What travels between a sync node and a key service of its own: batches of calls and their outcomes, as MessagePack.

A batch is the body of one POST; `node_auth` says how it and its answer are signed. See docs/reference/keyservice.md.
"""

from __future__ import annotations

import msgspec

from twinlock.errors import InvalidCallError
from twinlock.ids import AccountId, DeviceId, Incarnation, LogId
from twinlock.protocol.calls import CreatePending, SignedEntry
from twinlock.protocol.frames import Lease
from twinlock.protocol.limits import PUSH_BYTES_MAX

BATCH_CALLS_MAX = 64
REQUEST_BYTES_MAX = 2 * PUSH_BYTES_MAX
"""A log entry comes to the node in one frame, which is at most a full push and its wrapping."""

LOG_PAGE_BYTES_MAX = 128 << 10
ANSWER_BYTES_MAX = BATCH_CALLS_MAX * 2 * LOG_PAGE_BYTES_MAX
"""More than all calls of a batch can be answered with: a page holds at least one entry, which is at most 64 KiB."""


class AppendCall(msgspec.Struct, frozen=True, array_like=True, tag=1):
    """`KeyService.append_log`."""

    log: LogId
    expect_seq: int
    entries: list[SignedEntry]
    turn: int = 0


class ReadCall(msgspec.Struct, frozen=True, array_like=True, tag=2):
    """`KeyService.read_log`, a page of it."""

    log: LogId
    after_seq: int


class PendingCall(msgspec.Struct, frozen=True, array_like=True, tag=3):
    """`KeyService.create_pending`; the time is the service's own."""

    account: AccountId
    device: DeviceId
    incarnation: Incarnation
    request: CreatePending


class LeaseCall(msgspec.Struct, frozen=True, array_like=True, tag=4):
    """`KeyService.lease`; the time is the service's own."""

    account: AccountId
    device: DeviceId
    incarnation: Incarnation
    request: Lease


class TurnCall(msgspec.Struct, frozen=True, array_like=True, tag=5):
    """`KeyService.take_turn`."""

    log: LogId


NodeCall = AppendCall | ReadCall | PendingCall | LeaseCall | TurnCall


class Outcome(msgspec.Struct, frozen=True, array_like=True):
    """A call's result, or its error if `code` is set."""

    result: msgspec.Raw = msgspec.Raw(b"\xc0")
    code: str = ""
    detail: str = ""
    retry_after_ms: int = 0


class Answer(msgspec.Struct, frozen=True, array_like=True):
    """The outcomes of a batch, in its order, or why none of it was done if `refusal` is set.

    `life` names the run of the service's process: a batch must name it, so that none is taken again after a restart.
    """

    life: bytes
    outcomes: list[Outcome]
    refusal: Outcome | None = None


_decode_batch = msgspec.msgpack.Decoder(list[NodeCall]).decode


def decode_batch(body: bytes) -> list[NodeCall]:
    """Read a batch.

    Raises:
        InvalidCallError: it is none, it is empty, or has too many calls.
    """
    try:
        calls = _decode_batch(body)
    except (msgspec.MsgspecError, ValueError, RecursionError) as exc:
        raise InvalidCallError("a body that is no batch of calls") from exc
    if not 1 <= len(calls) <= BATCH_CALLS_MAX:
        raise InvalidCallError(f"{len(calls)} calls in a batch, {BATCH_CALLS_MAX} at most")
    return calls
