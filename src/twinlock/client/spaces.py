"""Making spaces, and finding them by id or name. See spec/sealing.md, sections 3 and 4."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from twinlock.client.connection import Connection
from twinlock.client.device_context import DeviceContext
from twinlock.client.endings import space_ends
from twinlock.client.epochs import Epochs
from twinlock.client.space_runtime import SpaceRuntime
from twinlock.errors import PartitionClosedError, UnknownSpaceError
from twinlock.ids import ID_BYTES, Epoch, Incarnation, SpaceId
from twinlock.protocol.calls import (
    CreateSpace,
    KeyringRow,
    LogHead,
    PartitionsResult,
    ReadPartitions,
    SignedEntry,
)
from twinlock.protocol.client import ClientSession
from twinlock.protocol.space_log import Role
from twinlock.protocol.space_rules import replay_space
from twinlock.sealing.identity import AccountKeys
from twinlock.sealing.space_entries import (
    config_lease_entry,
    config_title_entry,
    epoch_entry,
    space_genesis,
    title_index,
)
from twinlock.sealing.space_keys import EpochKeys, make_epoch, wrap_member_key

FIRST_EPOCH = Epoch(1)


class SpaceInfo(msgspec.Struct, frozen=True):
    """A space of this account; `title` is None while it is locked."""

    id: str
    title: str | None
    role: Role | None
    locked: bool


class SpaceMaker:
    """Makes new spaces with the account's signing key."""

    __slots__ = ("_asked_in", "_connection", "_context", "_epochs", "_open")

    def __init__(self, context: DeviceContext, connection: Connection) -> None:
        self._context = context
        self._connection = connection
        self._epochs = Epochs(context, connection)
        self._open: list[int] = []
        self._asked_in: ClientSession | None = None

    async def make(
        self, owner: AccountKeys, incarnation: Incarnation, title: str, lease_hours: int | None
    ) -> SpaceRuntime:
        """Make a space with its first epoch on the server, and its first member, which is its owner.

        Raises:
            PartitionClosedError: the server lets no new spaces in now.
        """
        try:
            return await self._make(owner, incarnation, title, lease_hours)
        except PartitionClosedError:
            # It was closed since this session asked.
            self._asked_in = None
            return await self._make(owner, incarnation, title, lease_hours)

    async def _partition(self) -> int:
        """Choose one of the partitions that take new spaces; they are asked for once in a session."""
        if self._asked_in is None or self._asked_in is not self._connection.session:
            self._asked_in = self._connection.session
            answer = await self._connection.call("space.partitions", ReadPartitions(), PartitionsResult)
            self._open = answer.open
        if not self._open:
            self._asked_in = None
            raise PartitionClosedError("none is open")
        return self._open[int.from_bytes(self._context.entropy(4), "big") % len(self._open)]

    async def _make(
        self, owner: AccountKeys, incarnation: Incarnation, title: str, lease_hours: int | None
    ) -> SpaceRuntime:
        entropy = self._context.entropy
        genesis = space_genesis(owner, await self._partition(), entropy)
        log = replay_space([genesis])
        service_key, not_after_ms = await self._epochs.pending_key(log.space, FIRST_EPOCH, incarnation, genesis)
        keys = make_epoch(log.space, FIRST_EPOCH, service_key, entropy)
        entries = [genesis, epoch_entry(owner, log, keys, None, entropy)]
        entries.append(config_title_entry(owner, replay_space(entries), keys, title, entropy))
        if lease_hours is not None:
            entries.append(config_lease_entry(owner, replay_space(entries), lease_hours))
        row = KeyringRow(owner.account, FIRST_EPOCH, wrap_member_key(keys, owner.account, owner.kem_pk))
        await self._connection.call("space.create", CreateSpace(log.space, entries, [row]), LogHead)
        return self._keep(entries, keys, row, not_after_ms)

    def _keep(self, entries: list[SignedEntry], keys: EpochKeys, row: KeyringRow, not_after_ms: int) -> SpaceRuntime:
        state = self._context.state
        runtime = SpaceRuntime(self._context, entries)
        state.put_space_log(runtime.space, entries)
        state.put_keyring_row(runtime.space, row)
        runtime.keyring.install_member_key(FIRST_EPOCH, keys.member_key)
        now_ms = self._context.clock.now_ms()
        runtime.keyring.install_service_key(FIRST_EPOCH, keys.service_key, not_after_ms, now_ms)
        runtime.keep_keys()
        return runtime


def find_space(context: DeviceContext, runtimes: Iterable[SpaceRuntime], wanted: str | bytes) -> SpaceRuntime:
    """Return the space of that id or name; a name is found even while the space is locked.

    Of several of one name it is the one that this account made itself: others name the spaces that they share as they
    like, and must not draw to them what was meant for one's own.

    Raises:
        RemovedError, ShreddedError: it ended on this device.
        UnknownSpaceError: there is none, or the name fits several; the message lists those that are known.
    """
    known = list(runtimes)
    identifier = _as_id(wanted)
    for runtime in known:
        if runtime.space == identifier:
            return runtime
    found = _named(context, known, wanted) if isinstance(wanted, str) else []
    own = [runtime for runtime in found if _is_own(context, runtime)]
    for fitting in (found, own):
        if len(fitting) == 1:
            return fitting[0]
    if found:
        ids = ", ".join(runtime.space.hex() for runtime in found)
        raise UnknownSpaceError(f"{len(found)} are called {wanted!r}, give an id: {ids}")
    end = space_ends(context).get(SpaceId(identifier))
    if end is not None:
        raise end.error()
    names = ", ".join(repr(runtime.title or runtime.space.hex()) for runtime in known) or "none"
    shown = wanted if isinstance(wanted, str) else wanted.hex()
    raise UnknownSpaceError(f"{shown!r}; known are: {names}")


def _named(context: DeviceContext, known: list[SpaceRuntime], name: str) -> list[SpaceRuntime]:
    index = title_index(context.state.store_key, name)
    return [
        runtime
        for runtime in known
        if runtime.title == name or (runtime.title is None and context.state.title_index(runtime.space) == index)
    ]


def _is_own(context: DeviceContext, runtime: SpaceRuntime) -> bool:
    """Tell whether this account made the space: it is in it since the first entry of the log."""
    member = runtime.keyring.log.members.get(context.state.home.account)
    return member is not None and member.granted[0][0] == 1


def _as_id(wanted: str | bytes) -> bytes:
    if isinstance(wanted, bytes):
        return wanted
    try:
        return bytes.fromhex(wanted) if len(wanted) == 2 * ID_BYTES else b""
    except ValueError:
        return b""
