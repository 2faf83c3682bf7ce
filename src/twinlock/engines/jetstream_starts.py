"""What a cluster's directory holds of a space's log: where it begins, what is cut, and the heads of its devices.

`start/<space>` is changed by compare-and-set only. `cuts/<space>` exists while something is cut and not yet deleted,
so that cleaning need not look at every space. `heads/<space>` keeps two generations of chain heads, each with the place
of the log that it was taken at: one above the log's head is of a life that was lost, and is not used. Heads of very
many devices are in pieces beside it, `heads/<space>/<mark>/<piece>`, written before the record that names their mark.
"""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Awaitable, Callable, Sequence

import msgspec

from twinlock.contracts.directory import DIRECTORY_VALUE_BYTES_MAX, Directory, Record
from twinlock.errors import RevisionError, StoreError
from twinlock.ids import Counter, DeviceId, EnvelopeId, Seq, SpaceId

CUTS = "cuts/"
GENERATIONS = 2
TRIES = 5
PIECE_HEADS = 8_000
"""Heads in one record: each has 71 bytes at most."""

INLINE_HEADS = 4_000
"""Up to so many heads stand in the record itself, so that two generations fit."""


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
    """A space's state at one message of its log. Where `pieces` is not 0, the heads are in records of their own.

    `received_ms` is the receive time of the last entry up to there.
    """

    number: int
    head: Seq
    bytes_all: int
    count_all: int
    heads: list[StoredHead]
    mark: str = ""
    pieces: int = 0
    received_ms: int = 0


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
        """Return the newest heads that were taken at or below a message of the log; None if there are none.

        Raises:
            StoreError: heads that must be there are not.
        """
        for _ in range(TRIES):
            record = await self._directory.get(_heads_key(space))
            below = [held for held in _checkpoints_of(record) if held.number <= number]
            if not below:
                return None
            whole = await self._with_pieces(space, max(below, key=lambda held: held.number))
            if whole is not None:
                return whole
            # Newer heads were written meanwhile, and these are gone.
        raise StoreError("pieces of a space's heads are missing")

    async def write_checkpoint(
        self, space: SpaceId, checkpoint: Checkpoint, last: Callable[[], Awaitable[int]], *, replace: bool = False
    ) -> None:
        """Store heads, beside those before them; `replace` also where heads of the same place are there already.

        Args:
            last: tells the number of the log's last message.

        Raises:
            StoreError: another node writes all the time.
        """
        for _ in range(TRIES):
            record = await self._directory.get(_heads_key(space))
            held = _checkpoints_of(record)
            if any(each.number > checkpoint.number for each in held):
                # Asked after the record was read: what lies above it was never written in this life of the log.
                end = await last()
                held = [each for each in held if each.number <= end]
            if not replace and any(_makes_needless(each, checkpoint) for each in held):
                return
            older = sorted((each for each in held if each.number < checkpoint.number), key=lambda each: -each.number)
            if await self._write_generations(space, checkpoint, older, 0 if record is None else record.revision):
                return
        raise StoreError("the heads of a space are written by others all the time")

    async def _write_generations(
        self, space: SpaceId, checkpoint: Checkpoint, older: Sequence[Checkpoint], revision: int
    ) -> bool:
        """Store heads and those before them, then delete pieces that nothing names; tell whether nobody was faster."""
        # Whoever wrote these pieces had read the record before: once ours is written, theirs will not be.
        there = list(await self._directory.list(f"{_heads_key(space)}/")) if _needs_pieces(checkpoint) else []
        made = await self._in_pieces(space, checkpoint)
        kept = [made, *older[: GENERATIONS - 1]]
        value = msgspec.msgpack.encode(kept)
        if len(value) > DIRECTORY_VALUE_BYTES_MAX:
            kept = [made]
            value = msgspec.msgpack.encode(kept)
        try:
            await self._directory.put(_heads_key(space), value, expect_revision=revision)
        except RevisionError:
            await self._delete(_keys_of_pieces(space, made))
            return False
        named = {key for each in kept for key in _keys_of_pieces(space, each)}
        await self._delete([key for key in there if key not in named])
        return True

    async def _in_pieces(self, space: SpaceId, checkpoint: Checkpoint) -> Checkpoint:
        """Store heads in records of their own, if they are too many for one; return what names them."""
        if not _needs_pieces(checkpoint):
            return checkpoint
        heads = checkpoint.heads
        parts = [heads[first : first + PIECE_HEADS] for first in range(0, len(heads), PIECE_HEADS)]
        made = msgspec.structs.replace(checkpoint, heads=[], mark=secrets.token_hex(8), pieces=len(parts))
        for key, part in zip(_keys_of_pieces(space, made), parts, strict=True):
            await self._directory.put(key, msgspec.msgpack.encode(part), expect_revision=0)
        return made

    async def _with_pieces(self, space: SpaceId, checkpoint: Checkpoint) -> Checkpoint | None:
        """Return heads with those of their pieces; None if one is missing."""
        if not checkpoint.pieces:
            return checkpoint
        heads: list[StoredHead] = []
        for key in _keys_of_pieces(space, checkpoint):
            record = await self._directory.get(key)
            if record is None:
                return None
            heads += _decode_heads(record.value)
        return msgspec.structs.replace(checkpoint, heads=heads)

    async def _delete(self, keys: Sequence[str]) -> None:
        for key in keys:
            await self._directory.delete(key)


def _needs_pieces(checkpoint: Checkpoint) -> bool:
    return len(checkpoint.heads) > INLINE_HEADS


def _makes_needless(held: Checkpoint, checkpoint: Checkpoint) -> bool:
    """Tell whether heads that are stored lie above others, or are the same."""
    if held.number != checkpoint.number:
        return held.number > checkpoint.number
    return (held.bytes_all, held.count_all) == (checkpoint.bytes_all, checkpoint.count_all)


def _start_key(space: SpaceId) -> str:
    return f"start/{space.hex()}"


def _heads_key(space: SpaceId) -> str:
    return f"heads/{space.hex()}"


def _keys_of_pieces(space: SpaceId, checkpoint: Checkpoint) -> list[str]:
    return [f"{_heads_key(space)}/{checkpoint.mark}/{piece:04}" for piece in range(checkpoint.pieces)]


def _decode_start(value: bytes) -> Start:
    try:
        return msgspec.msgpack.decode(value, type=Start)
    except msgspec.MsgspecError as exc:
        raise StoreError("where a space's log begins cannot be read") from exc


def _checkpoints_of(record: Record | None) -> list[Checkpoint]:
    if record is None:
        return []
    try:
        return msgspec.msgpack.decode(record.value, type=list[Checkpoint])
    except msgspec.MsgspecError as exc:
        raise StoreError("the heads of a space cannot be read") from exc


def _decode_heads(value: bytes) -> list[StoredHead]:
    try:
        return msgspec.msgpack.decode(value, type=list[StoredHead])
    except msgspec.MsgspecError as exc:
        raise StoreError("a piece of a space's heads cannot be read") from exc
