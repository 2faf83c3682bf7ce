"""What is checked of entries on their way: that they are of their space, in order, and that no chain has a gap."""

from __future__ import annotations

from collections.abc import Sequence

from twinlock.contracts import DeviceHead
from twinlock.errors import BackupDamagedError, MalformedEnvelopeError
from twinlock.ids import NO_ENVELOPE, Counter, DeviceId, SpaceId
from twinlock.protocol.envelope import Envelope, parse
from twinlock.protocol.frames import Entry


class ChainCheck:
    """Follows the chains of a space's devices through its entries.

    A chain begins where the log does: what came before it was cut. From there on each envelope must continue its chain,
    by counter and by predecessor. Whether it is signed is for devices to judge.
    """

    __slots__ = ("_space", "count", "heads")

    def __init__(self, space: SpaceId) -> None:
        self._space = space
        self.count = 0
        self.heads: dict[DeviceId, DeviceHead] = {}

    def take(self, entries: Sequence[Entry]) -> None:
        """Check the next entries.

        Raises:
            BackupDamagedError: one does not belong there.
        """
        for entry in entries:
            try:
                envelope = parse(entry.envelope)
            except MalformedEnvelopeError as exc:
                raise BackupDamagedError(f"entry {entry.seq} of space {self._space.hex()} is no envelope") from exc
            self._follow(envelope, entry)
            self.count += 1

    def end(self, heads: dict[DeviceId, DeviceHead], count: int) -> None:
        """Check that the entries were all of them, and end at the heads that the log had.

        Raises:
            BackupDamagedError: they were not, or do not.
        """
        if self.count != count:
            raise BackupDamagedError(f"space {self._space.hex()} has {self.count} entries of {count}")
        for device, head in self.heads.items():
            if heads.get(device) != head:
                raise BackupDamagedError(f"a chain of space {self._space.hex()} does not end at its head")

    def _follow(self, envelope: Envelope, entry: Entry) -> None:
        header = envelope.header
        head = self.heads.get(header.device)
        if head is None:
            fits = (header.counter == 1) == (header.prev == NO_ENVELOPE)
        else:
            fits = header.counter == head.counter + 1 and header.prev == head.id
        if header.space != self._space or not fits:
            where = f"entry {entry.seq} of space {self._space.hex()}"
            raise BackupDamagedError(f"{where} does not continue the chain of its device")
        self.heads[header.device] = DeviceHead(Counter(header.counter), envelope.id)
