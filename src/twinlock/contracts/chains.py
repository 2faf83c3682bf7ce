"""The rule by which every engine fits envelopes to the chains of their devices. See spec/protocol.md, section 5."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec

from twinlock.contracts.log import DeviceHead
from twinlock.errors import AppendConflictError
from twinlock.ids import NO_ENVELOPE, Counter, DeviceId, SpaceId, short
from twinlock.protocol.envelope import Envelope

NO_HEAD = DeviceHead(Counter(0), NO_ENVELOPE)
"""The head of a device that has written nothing yet."""


class AppendPlan(msgspec.Struct, frozen=True):
    """What an append would do: `known` and `fresh` are places in the given envelopes, `heads` the new chain heads."""

    known: list[int]
    fresh: list[int]
    heads: dict[DeviceId, DeviceHead]


def plan_append(space: SpaceId, envelopes: Sequence[Envelope], head_of: Callable[[DeviceId], DeviceHead]) -> AppendPlan:
    """Sort envelopes into those at or below their device's head and those that continue its chain.

    Whether a known one really is the stored one is for the caller to check, except for the head itself, whose id
    is at hand. Within one append the counters of a device must grow.

    Raises:
        AppendConflictError: an envelope of another space, a gap, a wrong `prev`, or a head with another id.
    """
    known: list[int] = []
    fresh: list[int] = []
    heads: dict[DeviceId, DeviceHead] = {}
    for place, envelope in enumerate(envelopes):
        header = envelope.header
        if header.space != space:
            raise AppendConflictError(f"an envelope of space {short(header.space)} for space {short(space)}")
        moved = heads.get(header.device)
        head = head_of(header.device) if moved is None else moved
        if header.counter > head.counter:
            _check_next(envelope, head)
            heads[header.device] = DeviceHead(header.counter, envelope.id)
            fresh.append(place)
        elif moved is not None or (header.counter == head.counter and envelope.id != head.id):
            raise AppendConflictError(f"counter {header.counter} of device {short(header.device)} is taken")
        else:
            known.append(place)
    return AppendPlan(known, fresh, heads)


def refuse_known(plan: AppendPlan) -> None:
    """Check that every envelope of an append is new.

    Raises:
        AppendConflictError: one is known already.
    """
    if plan.known:
        raise AppendConflictError("an envelope that is known already among new ones")


def _check_next(envelope: Envelope, head: DeviceHead) -> None:
    header = envelope.header
    if header.counter != head.counter + 1:
        raise AppendConflictError(
            f"counter {header.counter} of device {short(header.device)} does not follow {head.counter}"
        )
    if header.prev != head.id:
        raise AppendConflictError(
            f"counter {header.counter} of device {short(header.device)} names another predecessor"
        )
