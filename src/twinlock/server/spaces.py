"""The calls about spaces: their logs, keyrings, pending keys and cuts. See spec/protocol.md, section 6."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from twinlock.contracts import Asking, SpaceState
from twinlock.errors import (
    CutRefusedError,
    IncarnationError,
    InvalidCallError,
    LogConflictError,
    LogInvalidError,
    NotFoundError,
    OverloadedError,
    RoleError,
    UnknownSpaceError,
)
from twinlock.ids import ID_BYTES, LogId, Seq, SpaceId
from twinlock.protocol.calls import (
    AppendLog,
    CreatePending,
    CreatePendingResult,
    CreateSpace,
    Cut,
    CutResult,
    KeyringRow,
    LogHead,
    Nothing,
    PutKeyring,
    ReadKeyring,
    ReadLog,
    ReadLogResult,
    SignedEntry,
)
from twinlock.protocol.envelope import Kind
from twinlock.protocol.frames import LOG_GROWN, Notice
from twinlock.protocol.signed_log import Body
from twinlock.protocol.space_log import Role, SpaceLogState
from twinlock.server.accounts import check_entries, page_of
from twinlock.server.authorize import device_of
from twinlock.server.keyrings import Keyrings, check_rows, needing_rows
from twinlock.server.methods import Method
from twinlock.server.new_rules import Telling
from twinlock.server.partitions import Partitions
from twinlock.server.peer import Peer
from twinlock.server.registry import SpaceRegistry
from twinlock.server.replaying import replay_in_pieces
from twinlock.server.sequencer import Author
from twinlock.server.served_space import ServedSpace
from twinlock.server.signed_logs import SignedLogs
from twinlock.server.space_changes import SpaceChanges
from twinlock.server.standing import COMING, PRESENT, check_member, readable_seq
from twinlock.server.stores import Stores

RETRY_AFTER_MS = 1_000


class Spaces:
    """Answers the calls about spaces."""

    __slots__ = (
        "_changes",
        "_creating",
        "_keyrings",
        "_keys",
        "_log",
        "_logs",
        "_now_ms",
        "_partitions",
        "_registry",
    )

    def __init__(
        self,
        stores: Stores,
        logs: SignedLogs,
        keyrings: Keyrings,
        registry: SpaceRegistry,
        changes: SpaceChanges,
        partitions: Partitions,
        now_ms: Callable[[], int],
    ) -> None:
        self._partitions = partitions
        self._log = stores.log
        self._keys = stores.keys
        self._logs = logs
        self._keyrings = keyrings
        self._registry = registry
        self._changes = changes
        self._now_ms = now_ms
        self._creating: set[SpaceId] = set()

    def methods(self) -> dict[str, Method]:
        """Return what is answered here, by name."""
        return {
            "space.create": Method(CreateSpace, self._create),
            "space.append": Method(AppendLog, self._append),
            "space.log": Method(ReadLog, self._read_log),
            "space.keyring": Method(ReadKeyring, self._keyring),
            "space.keyring_put": Method(PutKeyring, self._keyring_put),
            "space.pending": Method(CreatePending, self._pending),
            "space.cut": Method(Cut, self._cut),
            "space.uncut": Method(Cut, self._uncut),
        }

    async def _create(self, peer: Peer, request: CreateSpace) -> LogHead:
        author = device_of(peer)
        check_entries(request.entries)
        rules = await replay_in_pieces(request.entries)
        if rules.space != request.space:
            raise LogInvalidError("the id is not that of the genesis")
        if rules.role_of(author.account) is not Role.OWNER:
            raise RoleError("a space is created by its owner")
        _check_signers(request.entries, author)
        _check_beginning(rules, request.keyring)
        if request.space in self._creating:
            raise OverloadedError("the space is being created", retry_after_ms=RETRY_AFTER_MS)
        self._creating.add(request.space)
        try:
            return await self._create_once(rules, request)
        finally:
            self._creating.discard(request.space)

    async def _create_once(self, rules: SpaceLogState, request: CreateSpace) -> LogHead:
        """Create a space, or find that it was created with just these entries: others are appended, not created."""
        held = await self._logs.read(LogId(request.space))
        if held and held[: len(request.entries)] != request.entries:
            raise LogConflictError("the space exists, with other entries")
        if not held:
            await self._partitions.check(request.space)
            await self._keyrings.store(request.space, request.keyring, rules)
            await self._changes.index(request.space, rules.members, COMING)
        head = await self._logs.append(LogId(request.space), 0, request.entries)
        # This notes under which incarnation of the database the space was born.
        await self._registry.current(request.space)
        if not held:
            await self._changes.index(request.space, rules.members, PRESENT)
        self._changes.tell_everywhere(rules, [Telling(sorted(rules.members), [Notice(LOG_GROWN, request.space)])])
        return head

    async def _append(self, peer: Peer, request: AppendLog) -> LogHead:
        author = device_of(peer)
        async with self._changes.of(SpaceId(request.log)) as space:
            rules = space.sequencer.rules
            if not readable_seq(rules, author.account):
                raise UnknownSpaceError
            check_entries(request.entries)
            entries = await self._changes.fresh(space, request.expect_seq, request.entries)
            if not entries:
                return LogHead(rules.seq, rules.head)
            check_member(rules, author.account)
            if request.is_lost:
                return await self._bring_back(space, entries)
            _check_signers(entries, author)
            after = await replay_in_pieces(entries, rules)
            # The rows of others are not for everybody to replace.
            own = None if rules.members[author.account].role.may_admit else {author.account} & after.key_holders.keys()
            check_rows(request.keyring, after, own)
            _check_complete(rules, after, request.keyring)
            return await self._changes.append(space, entries, after, request.keyring)

    async def _bring_back(self, space: ServedSpace, entries: Sequence[SignedEntry]) -> LogHead:
        """Take entries of anybody that a restored server lost; the rows to them come by `space.keyring_put`."""
        if len(space.births) < 2:
            raise LogConflictError("this server has lost nothing of the space")
        after = await replay_in_pieces(entries, space.sequencer.rules)
        return await self._changes.append(space, entries, after, is_lost=True)

    async def _read_log(self, peer: Peer, request: ReadLog) -> ReadLogResult:
        author = device_of(peer)
        space = await self._registry.current(SpaceId(request.log))
        seq = readable_seq(space.sequencer.rules, author.account)
        if not seq:
            raise UnknownSpaceError
        return page_of((await self._logs.read(LogId(space.id)))[:seq], request.after_seq)

    async def _keyring(self, peer: Peer, request: ReadKeyring) -> KeyringRow:
        space, author = await self._as_member(peer, request.space)
        rules = space.sequencer.rules
        row = await self._keyrings.read(space.id, author.account, rules.epoch, rules)
        if row is None:
            raise NotFoundError("this account has no row in the space's keyring")
        return row

    async def _keyring_put(self, peer: Peer, request: PutKeyring) -> Nothing:
        space, author = await self._as_member(peer, request.space)
        if request.row.account != author.account:
            raise RoleError("the row of another account")
        rules = space.sequencer.rules
        if request.row.epoch == rules.epoch:
            check_rows([request.row], rules)
            held = await self._keyrings.read(space.id, author.account, rules.epoch, rules)
            # No row is replaced on a device's word, which may be a thief's: it would lock the account's others out.
            # A restored server may hold one for a `kem` key that was replaced since.
            if held is None or held.epoch < request.row.epoch or len(space.births) > 1:
                await self._keyrings.store(space.id, [request.row], rules)
        elif request.row.epoch not in rules.epochs:
            raise InvalidCallError("a keyring row of an unknown epoch")
        return Nothing()

    async def _pending(self, peer: Peer, request: CreatePending) -> CreatePendingResult:
        author = device_of(peer)
        if request.genesis is None:
            await self._as_member(peer, request.space)
        asking = Asking(author.account, author.device, self._log.incarnation, self._now_ms())
        return await self._keys.create_pending(asking, request)

    async def _cut(self, peer: Peer, request: Cut) -> CutResult:
        space = await self._for_cut(peer, request)
        if request.upto > space.delivered:
            raise CutRefusedError(f"up to {request.upto}, and the head is {space.delivered}")
        space.cuts_under_way += 1
        try:
            return _moved(space, await self._log.cut(space.id, request.upto, self._now_ms()))
        finally:
            space.cuts_under_way -= 1

    async def _uncut(self, peer: Peer, request: Cut) -> CutResult:
        space = await self._for_cut(peer, request)
        role = space.sequencer.rules.role_of(device_of(peer).account)
        if role is None or not role.may_admit:
            raise RoleError("an owner or admin takes a cut back")
        return _moved(space, await self._log.uncut(space.id, request.upto))

    async def _for_cut(self, peer: Peer, request: Cut) -> ServedSpace:
        space, author = await self._as_member(peer, request.space)
        role = space.sequencer.rules.role_of(author.account)
        if role is None or not role.may_write(Kind.SNAPSHOT):
            raise RoleError
        if request.incarnation != self._log.incarnation:
            raise IncarnationError
        if request.upto < 0:
            raise CutRefusedError("a seq below 0")
        return space

    async def _as_member(self, peer: Peer, space: SpaceId) -> tuple[ServedSpace, Author]:
        """Return a space that the peer's account is a member of; the others hear what they are."""
        author = device_of(peer)
        served = await self._registry.current(space)
        check_member(served.sequencer.rules, author.account)
        return served, author


def _moved(space: ServedSpace, state: SpaceState) -> CutResult:
    space.start, space.log_bytes = state.start, state.log_bytes
    return CutResult(Seq(state.start), state.log_bytes)


def _check_complete(before: SpaceLogState, after: SpaceLogState, rows: Sequence[KeyringRow]) -> None:
    """Check that nobody who is to read is left without a row.

    Raises:
        InvalidCallError: somebody is.
    """
    for name in needing_rows(before, after) - {row.account for row in rows}:
        raise InvalidCallError(f"no keyring row for {name.hex()}, who would be locked out")


def _check_signers(entries: Sequence[SignedEntry], author: Author) -> None:
    """Check that an account appends what it signed itself, and joins by `space.join`, where invites are looked at.

    Raises:
        RoleError: an entry of somebody else.
        InvalidCallError: a `join`.
    """
    for entry in entries:
        body = Body(entry.body)
        if body.type == "join":
            raise InvalidCallError("an account joins by `space.join`")
        if body.fields.octets("by", ID_BYTES) != author.account:
            raise RoleError("an entry of another account")


def _check_beginning(rules: SpaceLogState, rows: Sequence[KeyringRow]) -> None:
    """Check with what a space is created: there is nobody yet whose chains could end.

    Raises:
        InvalidCallError, LimitExceededError: entries that come later only, or rows that are missing or not due.
    """
    check_rows(rows, rules)
    if rules.is_shredded or any(each.cutoffs for each in (*rules.members.values(), *rules.former.values())):
        raise InvalidCallError("a space is created with entries that end something")
    if not needing_rows(None, rules) <= {row.account for row in rows}:
        raise InvalidCallError("a space is created with a keyring row for everybody who reads it")
