"""What a drill looks at in an engine that was just restored: chains, signed logs, Keyring rows, blobs."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from itertools import pairwise

import msgspec

from twinlock.backup.carried import SIGNED_LOGS
from twinlock.backup.checking import ChainCheck
from twinlock.backup.format import CHUNK_BYTES, SpaceRow, heads_in
from twinlock.backup.holdings import Holdings
from twinlock.backup.spool import new_spool
from twinlock.errors import BackupDamagedError, TwinlockError
from twinlock.ids import Seq
from twinlock.protocol.account_log import replay_account
from twinlock.protocol.calls import SignedEntry
from twinlock.protocol.signed_log import Body
from twinlock.protocol.space_log import SpaceLogState
from twinlock.protocol.space_rules import replay_space

Note = Callable[[str], None]

_decode_entry = msgspec.msgpack.Decoder(SignedEntry).decode


class _BlobFacts(msgspec.Struct, frozen=True, array_like=True):
    """What the server's record of a blob begins with."""

    epoch: int
    sealed_bytes: int
    begun_ms: int
    device: bytes
    is_finished: bool = False
    deleted_ms: int = 0
    is_ending: bool = False


class LogsReport(msgspec.Struct, frozen=True):
    """How many signed logs replay."""

    accounts_count: int
    spaces_count: int


async def prove_chains(holdings: Holdings, rows: AsyncIterator[SpaceRow], note: Note) -> None:
    """Read every space back and compare it with what the backup says of it."""
    async for row in rows:
        check, after, heads = ChainCheck(row.space), Seq(0), heads_in(row.heads)
        try:
            while page := await holdings.log.read(row.space, after, CHUNK_BYTES):
                check.take(page)
                after = page[-1].seq
            check.end(heads, row.count)
        except BackupDamagedError as error:
            note(error.detail)
        if (await holdings.log.state(row.space)).heads != heads:
            note(f"space {row.space.hex()} was restored with other heads than it had")


async def prove_logs(holdings: Holdings, note: Note) -> LogsReport:
    """Replay every signed log, and see that each space with entries has one, and a Keyring for its newest epoch."""
    accounts, spaces = 0, 0
    with new_spool() as logs:
        async for key, _ in holdings.directory.scan():
            if key.startswith(SIGNED_LOGS):
                logs.put(key.split("/")[1], b"")
        for log, _ in logs.rows():
            state = await _replayed(holdings, log, note)
            if isinstance(state, SpaceLogState):
                spaces += 1
                await _prove_keyring(holdings, state, note)
            elif state is not None:
                accounts += 1
        async for place in holdings.all_places():
            if logs.get(place.space.hex()) is None:
                note(f"space {place.space.hex()} has entries and no signed log")
    return LogsReport(accounts, spaces)


async def prove_blobs(holdings: Holdings, note: Note) -> int:
    """See that every finished blob has all of its bytes; return how many there are."""
    count = 0
    with new_spool() as sizes:
        async for part in holdings.blobs.list("blobs/"):
            blob = "/".join(part.name.split("/")[1:3])
            held = int.from_bytes(sizes.get(blob) or b"", "big")
            sizes.put(blob, (held + part.size).to_bytes(8, "big"))
        async for key, record in holdings.directory.scan():
            words = key.split("/")
            if words[0] != "blob":
                continue
            facts = msgspec.msgpack.decode(record.value, type=_BlobFacts)
            if not facts.is_finished or facts.deleted_ms or facts.is_ending:
                continue
            count += 1
            held = int.from_bytes(sizes.get(f"{words[1]}/{words[-1]}") or b"", "big")
            if held != facts.sealed_bytes:
                note(f"blob {words[-1]} of space {words[1]} has {held} bytes of {facts.sealed_bytes}")
    return count


async def _replayed(holdings: Holdings, log: str, note: Note) -> object:
    records = await holdings.directory.list(f"{SIGNED_LOGS}{log}/")
    numbers = [int(key.rpartition("/")[2]) for key in records]
    has_gap = numbers[0] != 1 or any(second != first + 1 for first, second in pairwise(numbers))
    if has_gap:
        if await holdings.directory.get(f"appending/{log}") is None:
            note(f"the signed log {log} has a gap")
        # While an append is under way the copy may have one: the key service mends it.
        return None
    entries = [_decode_entry(record.value) for record in records.values()]
    try:
        is_space = Body(entries[0].body).fields.has("partition")
        return replay_space(entries) if is_space else replay_account(entries)
    except TwinlockError as error:
        note(f"the signed log {log} does not replay: {error}")
        return None


async def _prove_keyring(holdings: Holdings, state: SpaceLogState, note: Note) -> None:
    if state.is_shredded or not state.epoch:
        return
    prefix = f"keyring/{state.space.hex()}/"
    # The rows were read after the log: they may be those of a later epoch, whose entry the key service has.
    newest = max((int(key.split("/")[2], 16) for key in await holdings.directory.list(prefix)), default=0)
    if newest < state.epoch:
        note(f"space {state.space.hex()} has no Keyring rows of its epoch {state.epoch}")
