"""How large a cluster's streams may grow, and which partitions take new spaces. See docs/operate/capacity.md."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING

from twinlock.engines.jetstream_cluster import ClusterSettings, ClusterStatus, StreamStatus
from twinlock.errors import InvalidCallError

if TYPE_CHECKING:
    from twinlock.engines.jetstream import JetstreamEngine

SPACES_PLANNED = 1_000_000
SPACES_MAX = 2_000_000
"""A partition is full when it has so many spaces: each is a subject of its stream, whose names are all in memory."""

RECORDS_PLANNED = 4_000_000
"""Records of the directory that one of its streams is meant for."""

LOOK_SECONDS = 60.0
STREAMS_MAX = 1_000
"""Streams of one cluster: each is a Raft group of its own, and all are placed by one."""


def check_streams(settings: ClusterSettings, first: int, count: int) -> None:
    """Check that a cluster may have some more partitions.

    Raises:
        InvalidCallError: it would have too many streams.
    """
    streams = len({*settings.partitions, *range(first, first + count)}) + settings.shards
    if streams > STREAMS_MAX:
        raise InvalidCallError(f"{streams} streams, {STREAMS_MAX} at most in one NATS cluster")


def next_partition(settings: ClusterSettings) -> int:
    """Return the number from which on a cluster has no partitions yet."""
    return max(settings.partitions, default=-1) + 1


def partition_streams(status: ClusterStatus) -> dict[int, StreamStatus]:
    """Return the stream of each partition; the directory's come before them."""
    return dict(zip(status.settings.partitions, status.streams[status.settings.shards :], strict=True))


class Room:
    """Which partitions take new spaces now, as a node asks for each: those that are open and not full.

    The cluster's record is read each time, so that all nodes know at once of partitions that are opened or closed; how
    full they are is looked at when a minute has passed.
    """

    __slots__ = ("_engine", "_full", "_look_again_s", "_spaces_max")

    def __init__(self, engine: JetstreamEngine, spaces_max: int = SPACES_MAX) -> None:
        self._engine = engine
        self._spaces_max = spaces_max
        self._full: frozenset[int] = frozenset()
        self._look_again_s = 0.0

    async def open_partitions(self) -> Sequence[int]:
        """Return the partitions that take new spaces.

        Raises:
            StoreError: the cluster does not answer.
        """
        settings, now_s = await self._engine.refresh_settings(), asyncio.get_running_loop().time()
        if now_s >= self._look_again_s:
            self._look_again_s = now_s + LOOK_SECONDS
            counted = await self._engine.spaces_in(settings.open)
            self._full = frozenset(partition for partition, spaces in counted.items() if spaces >= self._spaces_max)
        return [partition for partition in settings.open if partition not in self._full]
