"""Which partitions take new spaces. See spec/protocol.md, section 6, and docs/operate/cluster.md."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

from twinlock.errors import PartitionClosedError
from twinlock.ids import SpaceId
from twinlock.protocol.calls import PartitionsResult, ReadPartitions
from twinlock.protocol.space_log import partition_of
from twinlock.server.authorize import device_of
from twinlock.server.methods import Method
from twinlock.server.peer import Peer

OpenPartitions = Callable[[], Awaitable[Sequence[int]]]
"""Asks the engine, which alone knows; it is asked anew each time, so that all nodes agree at once."""

SINGLE_MACHINE_PARTITIONS = range(16)
"""Open where an engine has no partitions of its own, so that a later move to a cluster has some to spread."""


async def single_machine_partitions() -> Sequence[int]:
    """Return the partitions of an engine on one machine."""
    return SINGLE_MACHINE_PARTITIONS


class Partitions:
    """Answers where new spaces go, and refuses those that would go elsewhere."""

    __slots__ = ("_read_open",)

    def __init__(self, read_open: OpenPartitions) -> None:
        self._read_open = read_open

    def methods(self) -> dict[str, Method]:
        """Return what is answered here, by name."""
        return {"space.partitions": Method(ReadPartitions, self._read)}

    async def check(self, space: SpaceId) -> None:
        """Let a new space come to be.

        Raises:
            PartitionClosedError: its partition takes no new spaces.
            StoreError: the engine cannot say now.
        """
        partition = partition_of(space)
        if partition not in await self._read_open():
            raise PartitionClosedError(f"partition {partition}")

    async def _read(self, peer: Peer, _: ReadPartitions) -> PartitionsResult:
        device_of(peer)
        return PartitionsResult(sorted(await self._read_open()))
