"""What a cluster's directory holds of a space's log: where it begins, what is cut, and the heads of its devices.

`start/<space>` is changed by compare-and-set only. `cuts/<space>` exists while something is cut and not yet deleted,
so that cleaning need not look at every space. `heads/<space>` keeps two generations of chain heads, each with the place
of the log that it was taken at: one above the log's head is of a life that was lost, and is not used.
"""

from __future__ import annotations

import contextlib

import msgspec

from twinlock.contracts.directory import DIRECTORY_VALUE_BYTES_MAX, Directory
from twinlock.errors import RevisionError, StoreError
from twinlock.ids import Counter, DeviceId, EnvelopeId, Seq, SpaceId

CUTS = "cuts/"
GENERATIONS = 2


class Cut(msgspec.Struct, frozen=True, array_like=True):
    """A cut that is not yet cleaned: up to where, when, and how many envelopes there were up to there."""

    upto: Seq
    cut_ms: int
    count: int


class Start(msgspec.Struct, frozen=True, array_like=True):
    """Where delivery begins, what is deleted, and the bytes of everything before the start."""

    start: Seq = Seq(1)
    cleaned: Seq = Seq(0)
    bytes_before: int = 0
    count_cleaned: int = 0
    cuts: list[Cut] = []


class StoredHead(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """The last envelope of a device: its counter, its id and its seq."""

    device: DeviceId
    counter: Counter
    id: EnvelopeId
    seq: Seq


class Checkpoint(msgspec.Struct, frozen=True, array_like=True):
    """A space's state at one message of its log."""

    number: int
    head: Seq
    bytes_all: int
    count_all: int
    heads: list[StoredHead]


class Starts:
    """The records of spaces' logs in the directory."""

    __slots__ = ("_directory",)

    def __init__(self, directory: Directory) -> None:
        self._directory = directory

    async def read(self, space: SpaceId) -> Start:
        """Return where a space's log begins."""
        return (await self.read_with_revision(space))[0]

    async def read_with_revision(self, space: SpaceId) -> tuple[Start, int]:
        """Return where a space's log begins, and the revision that `write` wants."""
        record = await self._directory.get(_start_key(space))
        if record is None:
            return Start(), 0
        return _decode_start(record.value), record.revision

    async def write(self, space: SpaceId, start: Start, revision: int) -> None:
        """Store where a space's log begins.

        Raises:
            RevisionError: another node changed it meanwhile.
        """
        if start.cuts:
            await self.mark(space)
        await self._directory.put(_start_key(space), msgspec.msgpack.encode(start), expect_revision=revision)

    async def mark(self, space: SpaceId) -> None:
        """Note that there is something to clean."""
        # A new revision each time: whoever is about to take the mark away then looks again.
        await self._directory.put(f"{CUTS}{space.hex()}", b"")

    async def unmark(self, space: SpaceId) -> None:
        """Note that there is nothing to clean any more, unless something was cut meanwhile."""
        key = f"{CUTS}{space.hex()}"
        record = await self._directory.get(key)
        if record is not None and not (await self.read(space)).cuts:
            with contextlib.suppress(RevisionError):
                await self._directory.delete(key, expect_revision=record.revision)

    async def marked(self) -> list[SpaceId]:
        """Return the spaces with something to clean."""
        return [SpaceId(bytes.fromhex(key[len(CUTS) :])) for key in await self._directory.list(CUTS)]

    async def checkpoint_below(self, space: SpaceId, number: int) -> Checkpoint | None:
        """Return the newest heads that were taken at or below a message of the log; None if there are none."""
        record = await self._directory.get(_heads_key(space))
        generations = [] if record is None else _decode_checkpoints(record.value)
        return max((held for held in generations if held.number <= number), key=lambda held: held.number, default=None)

    async def write_checkpoint(self, space: SpaceId, checkpoint: Checkpoint, *, replace: bool = False) -> None:
        """Store heads, beside those before them; `replace` also where heads of the same place are there already.

        Raises:
            StoreError: there are more devices than a record holds, or another node writes all the time.
        """
        for _ in range(5):
            record = await self._directory.get(_heads_key(space))
            older = [] if record is None else _decode_checkpoints(record.value)
            if not replace and any(held.number >= checkpoint.number for held in older):
                return
            older = sorted((held for held in older if held.number < checkpoint.number), key=lambda held: -held.number)
            value = msgspec.msgpack.encode([checkpoint, *older[: GENERATIONS - 1]])
            if len(value) > DIRECTORY_VALUE_BYTES_MAX:
                value = msgspec.msgpack.encode([checkpoint])
            try:
                revision = 0 if record is None else record.revision
                await self._directory.put(_heads_key(space), value, expect_revision=revision)
                return
            except RevisionError:
                continue
        raise StoreError("the heads of a space are written by others all the time")


def _start_key(space: SpaceId) -> str:
    return f"start/{space.hex()}"


def _heads_key(space: SpaceId) -> str:
    return f"heads/{space.hex()}"


def _decode_start(value: bytes) -> Start:
    try:
        return msgspec.msgpack.decode(value, type=Start)
    except msgspec.MsgspecError as exc:
        raise StoreError("where a space's log begins cannot be read") from exc


def _decode_checkpoints(value: bytes) -> list[Checkpoint]:
    try:
        return msgspec.msgpack.decode(value, type=list[Checkpoint])
    except msgspec.MsgspecError as exc:
        raise StoreError("the heads of a space cannot be read") from exc
