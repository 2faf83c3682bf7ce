"""Keyring rows: A of an epoch, wrapped to each key holder. See spec/sealing.md, section 3.

A row is stored under its epoch, before the entry that opens the epoch is appended: whatever breaks in between, an epoch
of the log has its rows, and what was stored for an epoch that never came is never read.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import msgspec

from twinlock.contracts import Directory
from twinlock.errors import InvalidCallError, LimitExceededError
from twinlock.ids import AccountId, Epoch, SpaceId
from twinlock.protocol.calls import KeyringRow
from twinlock.protocol.limits import KEYRING_ROWS_MAX
from twinlock.protocol.space_log import SpaceLogState
from twinlock.server.together import together

WRAPPED_BYTES_MAX = 256
TAG_BYTES = 8
_decode_row = msgspec.msgpack.Decoder(KeyringRow).decode
_encode = msgspec.msgpack.encode
_NOBODY: Mapping[bytes, bytes] = {}


class Keyrings:
    """The rows of all spaces, as the directory keeps them.

    Two nodes may try to open the same epoch at once, and only the entry of one is appended. So on an engine of several
    nodes each row lies under the commitment of its epoch too, and readers find those of the entry that the log has.
    """

    __slots__ = ("_directory", "_is_shared")

    def __init__(self, directory: Directory, *, is_shared: bool = False) -> None:
        self._directory = directory
        self._is_shared = is_shared

    async def store(self, space: SpaceId, rows: Iterable[KeyringRow], rules: SpaceLogState | None = None) -> None:
        """Store rows that belong to some rules, all at once: the engine commits them in one group."""
        await together(self._store(space, row, rules) for row in rows)

    async def read(
        self, space: SpaceId, name: bytes, epoch: Epoch, rules: SpaceLogState | None = None
    ) -> KeyringRow | None:
        """Return a key holder's row of an epoch, or the newest of an earlier one (a restored server may lack some)."""
        for key in _keys(space, epoch, name, rules):
            record = await self._directory.get(key)
            if record is not None:
                return _decode_row(record.value)
        held = await self._directory.list(_prefix(space))
        rows = [(key, _decode_row(record.value)) for key, record in held.items()]
        return max(
            (
                row
                for key, row in rows
                if row.account == name and row.epoch <= epoch and key in _keys(space, row.epoch, name, rules)
            ),
            key=lambda row: row.epoch,
            default=None,
        )

    async def forget(
        self, space: SpaceId, epoch: Epoch, names: Iterable[bytes], rules: SpaceLogState | None = None
    ) -> None:
        """Delete the rows of some who hold keys no longer."""
        keys = [key for name in names for key in _keys(space, epoch, name, rules)]
        await together(self._directory.delete(key) for key in keys)

    async def forget_past(self, space: SpaceId, rules: SpaceLogState) -> None:
        """Keep the newest epoch's rows of those who hold its key; the links in the log lead back to earlier ones.

        Rows of others are what a try left whose entry was not appended; they wrap a key that never came to be.
        """
        kept = {key for name in rules.key_holders for key in _keys(space, rules.epoch, name, rules)}
        to_come = f"{_prefix(space)}{rules.epoch + 1:08x}"
        keys = await self._directory.list(_prefix(space))
        await together(self._directory.delete(key) for key in keys if key < to_come and key not in kept)

    async def forget_all(self, space: SpaceId) -> None:
        """Delete every row of a space."""
        keys = await self._directory.list(_prefix(space))
        await together(self._directory.delete(key) for key in keys)

    async def _store(self, space: SpaceId, row: KeyringRow, rules: SpaceLogState | None) -> None:
        tagged, *plain = _keys(space, row.epoch, row.account, rules)
        # What came from a cluster to an engine of one process is replaced where it lies.
        is_tagged = not plain or self._is_shared or await self._directory.get(tagged) is not None
        await self._directory.put(tagged if is_tagged else plain[0], _encode(row))


def check_rows(rows: Sequence[KeyringRow], rules: SpaceLogState, names: Iterable[bytes] | None = None) -> None:
    """Check that rows are of the newest epoch, and for those who may hold its key (or, if given, for some names only).

    Raises:
        LimitExceededError: there are too many.
        InvalidCallError: one is for somebody else, of another epoch, or of no proper length.
    """
    if len(rows) > KEYRING_ROWS_MAX:
        raise LimitExceededError(f"{len(rows)} rows, at most {KEYRING_ROWS_MAX} are allowed")
    allowed = rules.key_holders if names is None else frozenset(names)
    for row in rows:
        is_right = row.account in allowed and row.epoch == rules.epoch and rules.epoch > 0
        if not is_right or not 0 < len(row.wrapped) <= WRAPPED_BYTES_MAX:
            raise InvalidCallError("a keyring row of somebody else, of another epoch, or of a wrong length")


def needing_rows(before: SpaceLogState | None, after: SpaceLogState) -> frozenset[bytes]:
    """Return who needs a new row when a log goes from one state to another.

    All key holders at a new epoch (without a row a member would be locked out), otherwise those that are new, and
    those whose `kem` key is.
    """
    if not after.epoch:
        return frozenset()
    held = before.key_holders if before is not None and before.epoch == after.epoch else _NOBODY
    return frozenset(name for name, kem_pk in after.key_holders.items() if held.get(name) != kem_pk)


def _prefix(space: SpaceId) -> str:
    return f"keyring/{space.hex()}/"


def _keys(space: SpaceId, epoch: Epoch, name: AccountId | bytes, rules: SpaceLogState | None) -> list[str]:
    """Return where a row may lie: under the commitment of its epoch, or without."""
    plain = f"{_prefix(space)}{epoch:08x}/{name.hex()}"
    opened = rules.epochs.get(epoch) if rules is not None else None
    return [f"{plain}/{opened.dk_commit[:TAG_BYTES].hex()}", plain] if opened is not None else [plain]
