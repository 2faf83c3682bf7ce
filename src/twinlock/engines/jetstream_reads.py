"""Reading a space's messages: pages from any replica, what is newest from the leader, and repeats by walking back."""

from __future__ import annotations

import asyncio
from collections.abc import Collection

import msgspec

from twinlock.engines.jetstream_api import PATIENCE_SECONDS, RETRY_AFTER_MS, Api
from twinlock.engines.jetstream_format import (
    PLACES,
    UNREADABLE,
    LogMessage,
    Names,
    device_of,
    partition_of,
    read_stored,
    seq_at,
)
from twinlock.engines.jetstream_newest import Newest
from twinlock.engines.jetstream_tail import counter_of
from twinlock.errors import StoreError
from twinlock.ids import Counter, DeviceId, Seq, SpaceId

PAGE_MESSAGES = 256
PAGE_BYTES = 4 << 20
STALE_SECONDS = 0.003
WALK_FIRST = 4_096
"""How many numbers of the stream the first step back goes; each further one goes eight times as far."""

NumberedMessage = tuple[int, LogMessage]


class Known(msgspec.Struct, frozen=True):
    """An envelope that is in the log: its bytes and its seq."""

    data: bytes
    seq: Seq


class Reads:
    """Reads of the spaces' messages."""

    __slots__ = ("_api", "_names", "_newest")

    def __init__(self, api: Api, names: Names) -> None:
        self._api = api
        self._names = names
        self._newest = Newest(api)

    async def last(self, space: SpaceId, seconds: float = PATIENCE_SECONDS) -> int:
        """Return the number of a space's last message, as the leader knows it; 0 if it has none.

        Raises:
            StoreError: there is no leader.
        """
        stream = self._names.log_stream(partition_of(space))
        subject = self._names.log_subject(space)
        if seconds < PATIENCE_SECONDS:
            message = await self._api.last(stream, subject, seconds)
        else:
            message = await self._newest.last(stream, subject)
        return 0 if message is None else message.seq

    async def page(
        self, space: SpaceId, first: int, bytes_max: int = PAGE_BYTES, count: int = PAGE_MESSAGES
    ) -> list[NumberedMessage]:
        """Return some messages from a number on; none where a replica knows of none (yet)."""
        request = {
            "seq": max(first, 1),
            "batch": count,
            "max_bytes": bytes_max,
            "next_by_subj": self._names.log_subject(space),
        }
        messages = await self._api.page(self._names.log_stream(partition_of(space)), request)
        return [(message.number("Nats-Sequence"), read_stored(message.payload)) for message in messages]

    async def page_upto(
        self, space: SpaceId, first: int, upto: int, bytes_max: int = PAGE_BYTES, count: int = PAGE_MESSAGES
    ) -> list[NumberedMessage]:
        """Return some messages, at least one, of which the one numbered `upto` is known to exist.

        Raises:
            StoreError: no replica has it for long.
        """
        ends = asyncio.get_running_loop().time() + PATIENCE_SECONDS
        while not (messages := await self.page(space, first, bytes_max, count)):
            # This replica is behind the leader by a moment.
            if asyncio.get_running_loop().time() > ends:
                raise StoreError(f"message {upto} cannot be read", retry_after_ms=RETRY_AFTER_MS)
            await asyncio.sleep(STALE_SECONDS)
        return messages

    async def before(self, space: SpaceId, upto: Seq, last: int) -> tuple[int, int] | None:
        """Return bytes and number of all envelopes up to a seq; None if nothing is stored from there on."""
        number, place = divmod(upto, PLACES)
        if number > last:
            return None
        found, message = (await self.page_upto(space, number, last, count=1))[0]
        while message is UNREADABLE:
            if found >= last:
                return None
            found, message = (await self.page_upto(space, found + 1, last, count=1))[0]
        if found > number:
            return message.bytes_before, message.count_before
        first = message.envelopes[: place + 1]
        return message.bytes_before + sum([len(data) for data in first]), message.count_before + len(first)

    async def find(
        self, space: SpaceId, device: DeviceId, counters: Collection[Counter], head: Seq
    ) -> dict[int, Known]:
        """Return envelopes of a device by their counters, those that are still there, walking back from its head."""
        wanted, found = set(counters), dict[int, Known]()
        upto, step = head // PLACES, WALK_FIRST
        while upto > 0 and wanted - found.keys():
            first = max(1, upto - step + 1)
            await self._find_between(space, device, first, upto, found)
            upto, step = first - 1, step * 8
        return {counter: found[counter] for counter in wanted & found.keys()}

    async def _find_between(
        self, space: SpaceId, device: DeviceId, first: int, upto: int, found: dict[int, Known]
    ) -> None:
        while first <= upto:
            messages = await self.page(space, first)
            for number, message in messages:
                if number > upto:
                    return
                for place, data in enumerate(message.envelopes):
                    if device_of(data) == device:
                        found[counter_of(data)] = Known(data, seq_at(number, place))
            if not messages:
                return
            first = messages[-1][0] + 1
