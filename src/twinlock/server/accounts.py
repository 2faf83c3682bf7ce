"""The calls about accounts: sign-up, the account's log, its spaces, names. See spec/protocol.md, section 6."""

from __future__ import annotations

from collections.abc import Sequence

from twinlock.contracts import Directory
from twinlock.errors import (
    InvalidCallError,
    LimitExceededError,
    LogInvalidError,
    NameTakenError,
    NotSignedInError,
    RoleError,
    UnknownSpaceError,
)
from twinlock.ids import AccountId, SpaceId
from twinlock.protocol.account_log import replay_account
from twinlock.protocol.calls import (
    AppendLog,
    CreateAccount,
    LogHead,
    ReadLog,
    ReadLogResult,
    SignedEntry,
    Spaces,
    SpacesResult,
)
from twinlock.protocol.limits import LOG_ENTRY_BYTES_MAX, LOG_PAGE_ENTRIES_MAX
from twinlock.protocol.membership_calls import Names as ReadNames
from twinlock.protocol.membership_calls import NamesResult
from twinlock.protocol.names import account_name
from twinlock.protocol.signed_log import Body
from twinlock.server.authorize import Authority, device_of
from twinlock.server.methods import Method
from twinlock.server.names import Names
from twinlock.server.peer import Peer
from twinlock.server.registry import SpaceRegistry
from twinlock.server.sign_in import TokenSignIn
from twinlock.server.standing import COMING, FORMER, check_member, index_value, readable_seq, refusal_of
from twinlock.server.tries import Tries
from twinlock.server.unlockers import Unlockers, check_unlockers


class Accounts:
    """Answers the calls about accounts."""

    __slots__ = ("_authority", "_directory", "_names", "_registry", "_sign_in", "_sign_ups", "_unlockers")

    def __init__(
        self,
        directory: Directory,
        authority: Authority,
        registry: SpaceRegistry,
        names: Names,
        unlockers: Unlockers,
        sign_in: TokenSignIn,
        sign_ups: Tries,
    ) -> None:
        self._directory = directory
        self._authority = authority
        self._registry = registry
        self._names = names
        self._unlockers = unlockers
        self._sign_in = sign_in
        self._sign_ups = sign_ups

    def methods(self) -> dict[str, Method]:
        """Return what is answered here, by name."""
        return {
            "account.create": Method(CreateAccount, self._create),
            "account.append": Method(AppendLog, self._append),
            "account.log": Method(ReadLog, self._log),
            "account.spaces": Method(Spaces, self._spaces),
            "account.names": Method(ReadNames, self._account_names),
        }

    async def _create(self, peer: Peer, request: CreateAccount) -> LogHead:
        self._sign_ups.count(peer.address)
        name = account_name(request.name)
        check_entries(request.entries)
        if not request.unlockers:
            raise InvalidCallError("an account without an unlocker")
        check_unlockers(request.unlockers)
        began = replay_account(request.entries)
        account = began.account
        # Whoever knows an account's log could otherwise bring it a password of their own.
        self._unlockers.check_sign_up(began, name, request)
        subject = await self._sign_in.subject_of_sign_up(request.token)
        await self._names.reserve(name, subject, account)
        state = await self._authority.append(account, 0, request.entries)
        if state.kem_pk != began.kem_pk:
            raise NameTakenError("the account has changed its keys since")
        for unlocker in request.unlockers:
            await self._unlockers.store_first(state, unlocker)
        await self._names.check_reserved(name, subject, account)
        if not peer.session.device:
            peer.session.account = account
        return LogHead(state.seq, state.head)

    async def _append(self, peer: Peer, request: AppendLog) -> LogHead:
        account = _own(peer)
        if request.log != account:
            raise RoleError("the log of another account")
        check_entries(request.entries)
        if any(map(_is_rekem, request.entries)):
            raise InvalidCallError("a rekem comes by account.rekem, together with what must change with it")
        state = await self._authority.append(account, request.expect_seq, request.entries)
        return LogHead(state.seq, state.head)

    async def _log(self, peer: Peer, request: ReadLog) -> ReadLogResult:
        own, account = _own(peer), AccountId(request.log)
        if account != own and not await self._share_a_space(peer, account):
            raise RoleError("the log of an account that shares no space")
        return page_of(await self._authority.log(account), request.after_seq)

    async def _spaces(self, peer: Peer, request: Spaces) -> SpacesResult:
        account = _own(peer)
        prefix = f"member/{account.hex()}/"
        result = SpacesResult([])
        for key, record in (await self._directory.list(prefix)).items():
            space, value = SpaceId(bytes.fromhex(key.removeprefix(prefix))), record.value
            told = await self._coming(space, account) if value == COMING else value
            if told is not None:
                (result.former if told == FORMER else result.spaces).append(space)
        return result

    async def _coming(self, space: SpaceId, account: AccountId) -> bytes | None:
        """Return how an account stands to a space that it was coming into, by the space's log."""
        try:
            served = await self._registry.current(space)
        except UnknownSpaceError:
            return None
        return index_value(served.sequencer.rules, account)

    async def _account_names(self, peer: Peer, request: ReadNames) -> NamesResult:
        author = device_of(peer)
        rules = (await self._registry.current(request.space)).sequencer.rules
        check_member(rules, author.account)
        everyone = (*rules.members, *rules.former, *rules.applicants)
        found = {account: await self._names.name_of(account) for account in everyone}
        return NamesResult({account: name for account, name in found.items() if name})

    async def _share_a_space(self, peer: Peer, account: AccountId) -> bool:
        """Tell whether an account is or was in a space of the peer's: mostly it is one that is attached.

        A device that comes into a space reads the members' logs before it attaches, to judge what is delivered then.
        """
        attached = (self._registry.at_hand(space) for space in peer.session.spaces)
        if any(space is not None and readable_seq(space.sequencer.rules, account) for space in attached):
            return True
        for space in (await self._spaces(peer, Spaces())).spaces:
            try:
                rules = (await self._registry.current(space)).sequencer.rules
            except UnknownSpaceError:
                continue
            if refusal_of(rules, _own(peer)) is None and readable_seq(rules, account):
                return True
        return False


def check_entries(entries: Sequence[SignedEntry]) -> None:
    """Check the sizes of entries that are to be appended to a signed log.

    Raises:
        InvalidCallError: there are none.
        LimitExceededError: there are too many, or one is too large.
    """
    if not entries:
        raise InvalidCallError("no entries")
    if len(entries) > LOG_PAGE_ENTRIES_MAX:
        raise LimitExceededError(f"{len(entries)} entries, at most {LOG_PAGE_ENTRIES_MAX} are allowed")
    if any(len(entry.body) > LOG_ENTRY_BYTES_MAX for entry in entries):
        raise LimitExceededError(f"an entry of more than {LOG_ENTRY_BYTES_MAX} bytes")


def page_of(entries: list[SignedEntry], after_seq: int) -> ReadLogResult:
    """Return the page of a signed log after its first `after_seq` entries."""
    first = max(0, after_seq)
    page: list[SignedEntry] = []
    total = 0
    for entry in entries[first : first + LOG_PAGE_ENTRIES_MAX]:
        total += len(entry.body)
        if page and total > 1 << 20:
            break
        page.append(entry)
    return ReadLogResult(page, len(entries))


def _own(peer: Peer) -> AccountId:
    if not peer.session.account:
        raise NotSignedInError
    return peer.session.account


def _is_rekem(entry: SignedEntry) -> bool:
    try:
        return Body(entry.body).type == "rekem"
    except LogInvalidError:
        # Whoever replays the log refuses it by the proper rule.
        return False
