"""The calls about spaces: their logs, keyrings, pending keys and cuts. See spec/protocol.md, section 6."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import msgspec

from twinlock.contracts import Asking, Directory, KeyService, Log, SpaceState
from twinlock.errors import (
    CutRefusedError,
    IncarnationError,
    InvalidCallError,
    LimitExceededError,
    LogInvalidError,
    NotFoundError,
    NotSignedInError,
    RoleError,
    UnknownSpaceError,
)
from twinlock.ids import AccountId, LogId, Seq, SpaceId
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
from twinlock.protocol.limits import LOG_PAGE_ENTRIES_MAX
from twinlock.protocol.space_log import Role, SpaceLogState
from twinlock.protocol.space_rules import replay_space
from twinlock.server.accounts import check_entries, page_of
from twinlock.server.hub import Hub
from twinlock.server.methods import Method
from twinlock.server.peer import Peer
from twinlock.server.registry import SpaceRegistry
from twinlock.server.sequencer import Author
from twinlock.server.served_space import ServedSpace
from twinlock.server.signed_logs import SignedLogs

WRAPPED_BYTES_MAX = 256
_decode_row = msgspec.msgpack.Decoder(KeyringRow).decode
_encode = msgspec.msgpack.encode


class Spaces:
    """Answers the calls about spaces."""

    __slots__ = ("_directory", "_hub", "_keys", "_log", "_logs", "_now_ms", "_registry")

    def __init__(
        self,
        log: Log,
        directory: Directory,
        keys: KeyService,
        logs: SignedLogs,
        registry: SpaceRegistry,
        hub: Hub,
        now_ms: Callable[[], int],
    ) -> None:
        self._log = log
        self._directory = directory
        self._keys = keys
        self._logs = logs
        self._registry = registry
        self._hub = hub
        self._now_ms = now_ms

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
        author = _author(peer)
        check_entries(request.entries)
        rules = replay_space(request.entries)
        if rules.space != request.space:
            raise LogInvalidError("the id is not that of the genesis")
        if rules.role_of(author.account) is not Role.OWNER:
            raise RoleError("a space is created by its owner")
        _check_rows(request.keyring, rules)
        head = await self._logs.append(LogId(request.space), 0, request.entries)
        await self._index(rules, rules.members, request.keyring)
        self._hub.tell_accounts(rules.members, Notice(LOG_GROWN, request.space))
        return head

    async def _append(self, peer: Peer, request: AppendLog) -> LogHead:
        space, _ = await self._as_member(peer, SpaceId(request.log))
        check_entries(request.entries)
        rules = await self._rules_with(space, request.expect_seq, request.entries)
        _check_rows(request.keyring, rules)
        head = await self._logs.append(LogId(space.id), request.expect_seq, request.entries)
        before = space.sequencer.rules
        if rules.seq > before.seq:
            space.sequencer.rules = rules
        newcomers = rules.members.keys() - before.members.keys()
        await self._index(rules, newcomers, request.keyring)
        self._tell_growth(space)
        self._hub.tell_accounts(newcomers, Notice(LOG_GROWN, space.id))
        return head

    async def _rules_with(self, space: ServedSpace, after_seq: int, entries: Sequence[SignedEntry]) -> SpaceLogState:
        """Return what the space's log will say with entries after its first `after_seq`; they may be there already."""
        rules = space.sequencer.rules
        if after_seq == rules.seq:
            return replay_space(entries, rules)
        before = (await self._logs.read(LogId(space.id)))[:after_seq]
        return replay_space([*before, *entries])

    async def _read_log(self, peer: Peer, request: ReadLog) -> ReadLogResult:
        space, _ = await self._as_member(peer, SpaceId(request.log))
        return page_of(await self._logs.read(LogId(space.id)), request.after_seq)

    async def _keyring(self, peer: Peer, request: ReadKeyring) -> KeyringRow:
        space, author = await self._as_member(peer, request.space)
        record = await self._directory.get(_row_key(space.id, author.account))
        if record is None:
            raise NotFoundError("this account has no row in the space's keyring")
        return _decode_row(record.value)

    async def _keyring_put(self, peer: Peer, request: PutKeyring) -> Nothing:
        space, author = await self._as_member(peer, request.space)
        if request.row.account != author.account:
            raise RoleError("the row of another account")
        _check_rows([request.row], space.sequencer.rules)
        record = await self._directory.get(_row_key(space.id, author.account))
        if record is None or _decode_row(record.value).epoch <= request.row.epoch:
            await self._put_row(space.id, request.row)
        return Nothing()

    async def _pending(self, peer: Peer, request: CreatePending) -> CreatePendingResult:
        author = _author(peer)
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
        role = space.sequencer.rules.role_of(_author(peer).account)
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
        """Return a space that the peer's account is a member of; for others it does not exist."""
        author = _author(peer)
        served = await self._registry.load(space)
        if served.sequencer.rules.role_of(author.account) is None:
            raise UnknownSpaceError
        return served, author

    async def _index(self, rules: SpaceLogState, newcomers: Iterable[AccountId], rows: Sequence[KeyringRow]) -> None:
        for row in rows:
            await self._put_row(rules.space, row)
        for account in newcomers:
            await self._directory.put(f"member/{account.hex()}/{rules.space.hex()}", b"")

    async def _put_row(self, space: SpaceId, row: KeyringRow) -> None:
        await self._directory.put(_row_key(space, row.account), _encode(row))

    def _tell_growth(self, space: ServedSpace) -> None:
        for peer in (*space.live, *space.lagging):
            author = peer.author
            if author is not None and space.sequencer.rules.role_of(author.account) is not None:
                peer.send(Notice(LOG_GROWN, space.id))
            else:
                self._hub.detach(space, peer)
                peer.session.detached(space.id)
                peer.send(Notice(UnknownSpaceError.code, space.id))


def _moved(space: ServedSpace, state: SpaceState) -> CutResult:
    space.start, space.log_bytes = state.start, state.log_bytes
    return CutResult(Seq(state.start), state.log_bytes)


def _author(peer: Peer) -> Author:
    if peer.author is None:
        raise NotSignedInError
    return peer.author


def _row_key(space: SpaceId, account: AccountId) -> str:
    return f"keyring/{space.hex()}/{account.hex()}"


def _check_rows(rows: Sequence[KeyringRow], rules: SpaceLogState) -> None:
    if len(rows) > LOG_PAGE_ENTRIES_MAX:
        raise LimitExceededError(f"{len(rows)} rows, at most {LOG_PAGE_ENTRIES_MAX} are allowed")
    for row in rows:
        if row.account not in rules.members or row.epoch not in rules.epochs or len(row.wrapped) > WRAPPED_BYTES_MAX:
            raise InvalidCallError("a keyring row of a stranger, of an unknown epoch, or too long")
