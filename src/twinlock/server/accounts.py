"""The calls about accounts: sign-up, unlockers, the account's log, its spaces. See spec/protocol.md, section 6."""

from __future__ import annotations

import hmac
from collections.abc import Callable, Sequence

import msgspec

from twinlock.contracts import Directory
from twinlock.errors import (
    CredentialsError,
    InvalidCallError,
    LimitExceededError,
    NameTakenError,
    NotSignedInError,
    RateLimitedError,
    RevisionError,
    RoleError,
)
from twinlock.ids import AccountId, SpaceId
from twinlock.protocol.account_log import replay_account
from twinlock.protocol.calls import (
    AppendLog,
    CreateAccount,
    LogHead,
    Nothing,
    OpenUnlocker,
    OpenUnlockerResult,
    PutUnlocker,
    ReadLog,
    ReadLogResult,
    SignedEntry,
    Spaces,
    SpacesResult,
    Unlocker,
    UnlockerParams,
    UnlockerParamsResult,
)
from twinlock.protocol.labels import label
from twinlock.protocol.limits import LOG_ENTRY_BYTES_MAX, LOG_PAGE_ENTRIES_MAX
from twinlock.protocol.names import account_name
from twinlock.server.authorize import Authority
from twinlock.server.buckets import TryLimiter
from twinlock.server.methods import Method
from twinlock.server.peer import Peer
from twinlock.server.registry import SpaceRegistry
from twinlock.server.secrets_file import ServerSecrets
from twinlock.server.settings import Settings

UNLOCKER_FAKES = {"password": ("pbkdf2-sha256", 1_000_000), "recovery_kit": ("hkdf-sha256", 0)}
"""Per kind of unlocker, what clients choose: an unknown name is answered with the same."""

SALT_BYTES = 16
UNLOCKERS_MAX = 8
_FIELD_BYTES_MAX = 1024


class StoredUnlocker(msgspec.Struct, frozen=True):
    """An unlocker as the directory holds it: `verifier` is the keyed hash of the secret's `auth_key`."""

    kdf: str
    salt: bytes
    iterations: int
    verifier: bytes
    wrapped: bytes


_decode_unlocker = msgspec.msgpack.Decoder(StoredUnlocker).decode


class Accounts:
    """Answers the calls about accounts."""

    __slots__ = (
        "_addresses",
        "_authority",
        "_directory",
        "_names",
        "_now_ms",
        "_registry",
        "_secrets",
        "_sign_ups",
    )

    def __init__(
        self,
        directory: Directory,
        authority: Authority,
        registry: SpaceRegistry,
        secrets: ServerSecrets,
        settings: Settings,
        now_ms: Callable[[], int],
    ) -> None:
        self._directory = directory
        self._authority = authority
        self._registry = registry
        self._secrets = secrets
        self._now_ms = now_ms
        self._names = TryLimiter(settings.unlocker_tries_per_min)
        # One address may stand for an office, so it gets more tries than one name.
        self._addresses = TryLimiter(10 * settings.unlocker_tries_per_min)
        self._sign_ups = TryLimiter(settings.sign_ups_per_min)

    def methods(self) -> dict[str, Method]:
        """Return what is answered here, by name."""
        return {
            "account.create": Method(CreateAccount, self._create),
            "account.append": Method(AppendLog, self._append),
            "account.log": Method(ReadLog, self._log),
            "account.spaces": Method(Spaces, self._spaces),
            "unlocker.params": Method(UnlockerParams, self._params),
            "unlocker.open": Method(OpenUnlocker, self._open),
            "unlocker.put": Method(PutUnlocker, self._put),
        }

    async def _create(self, peer: Peer, request: CreateAccount) -> LogHead:
        _limit(self._sign_ups.take(peer.address, self._now_ms()))
        name = account_name(request.name)
        check_entries(request.entries)
        if not 1 <= len(request.unlockers) <= UNLOCKERS_MAX:
            raise InvalidCallError(f"{len(request.unlockers)} unlockers, 1 to {UNLOCKERS_MAX} are allowed")
        for unlocker in request.unlockers:
            _check_unlocker(unlocker)
        account = replay_account(request.entries).account
        await self._reserve(name, account)
        state = await self._authority.append(account, 0, request.entries)
        for unlocker in request.unlockers:
            await self._store_first(account, unlocker)
        peer.session.account = account
        return LogHead(state.seq, state.head)

    async def _reserve(self, name: str, account: AccountId) -> None:
        """Take a name for an account; doing it again after a crash in between is fine.

        Raises:
            NameTakenError: another account has it.
        """
        try:
            await self._directory.put(f"name/{name}", account, expect_revision=0)
        except RevisionError as exc:
            if await self._account_named(name) != account:
                raise NameTakenError from exc

    async def _append(self, peer: Peer, request: AppendLog) -> LogHead:
        account = self._own(peer)
        if request.log != account:
            raise RoleError("the log of another account")
        check_entries(request.entries)
        state = await self._authority.append(account, request.expect_seq, request.entries)
        return LogHead(state.seq, state.head)

    async def _log(self, peer: Peer, request: ReadLog) -> ReadLogResult:
        own, account = self._own(peer), AccountId(request.log)
        if account != own and not self._share_a_space(peer, account):
            raise RoleError("the log of an account that shares no attached space")
        return page_of(await self._authority.log(account), request.after_seq)

    async def _spaces(self, peer: Peer, request: Spaces) -> SpacesResult:
        prefix = f"member/{self._own(peer).hex()}/"
        records = await self._directory.list(prefix)
        return SpacesResult([SpaceId(bytes.fromhex(key.removeprefix(prefix))) for key in records])

    async def _params(self, peer: Peer, request: UnlockerParams) -> UnlockerParamsResult:
        _limit(self._addresses.take(peer.address, self._now_ms()))
        stored = await self._unlocker_of(account_name(request.name), request.kind)
        return UnlockerParamsResult(stored[1].kdf, stored[1].salt, stored[1].iterations)

    async def _open(self, peer: Peer, request: OpenUnlocker) -> OpenUnlockerResult:
        name, now_ms = account_name(request.name), self._now_ms()
        _limit(self._addresses.take(peer.address, now_ms) or self._names.take(name, now_ms))
        account, stored = await self._unlocker_of(name, request.kind)
        # Also done for a name that does not exist, so that the time taken tells nothing.
        is_right = hmac.compare_digest(self._secrets.keyed_hash(request.auth_key), stored.verifier)
        if not is_right or account is None:
            raise CredentialsError
        entries = await self._authority.log(account)
        if not peer.session.device:
            peer.session.account = account
        return OpenUnlockerResult(account, stored.wrapped, entries)

    async def _put(self, peer: Peer, request: PutUnlocker) -> Nothing:
        _check_unlocker(request.unlocker)
        key = _unlocker_key(self._own(peer), request.unlocker.kind)
        await self._directory.put(key, self._stored(request.unlocker))
        return Nothing()

    async def _store_first(self, account: AccountId, unlocker: Unlocker) -> None:
        """Store an unlocker of a new account, or find that this very one was stored before a crash.

        A sign-up proves nothing about an account that exists, since others may know its log: it replaces nothing.

        Raises:
            NameTakenError: the account has another unlocker of that kind.
        """
        key, stored = _unlocker_key(account, unlocker.kind), self._stored(unlocker)
        try:
            await self._directory.put(key, stored, expect_revision=0)
        except RevisionError as exc:
            record = await self._directory.get(key)
            if record is None or not hmac.compare_digest(record.value, stored):
                raise NameTakenError from exc

    def _stored(self, unlocker: Unlocker) -> bytes:
        verifier = self._secrets.keyed_hash(unlocker.auth_key)
        stored = StoredUnlocker(unlocker.kdf, unlocker.salt, unlocker.iterations, verifier, unlocker.wrapped)
        return msgspec.msgpack.encode(stored)

    async def _unlocker_of(self, name: str, kind: str) -> tuple[AccountId | None, StoredUnlocker]:
        """Return a name's account and unlocker; for an unknown name a fake that is the same every time."""
        if kind not in UNLOCKER_FAKES:
            raise InvalidCallError("an unlocker of an unknown kind")
        account = await self._account_named(name)
        if account is not None:
            record = await self._directory.get(_unlocker_key(account, kind))
            if record is not None:
                return account, _decode_unlocker(record.value)
        kdf, iterations = UNLOCKER_FAKES[kind]
        salt = self._secrets.keyed_hash(label("fake-salt", f"{kind}/{name}".encode()))[:SALT_BYTES]
        return None, StoredUnlocker(kdf, salt, iterations, b"", b"")

    async def _account_named(self, name: str) -> AccountId | None:
        record = await self._directory.get(f"name/{name}")
        return AccountId(record.value) if record is not None else None

    def _own(self, peer: Peer) -> AccountId:
        if not peer.session.account:
            raise NotSignedInError
        return peer.session.account

    def _share_a_space(self, peer: Peer, account: AccountId) -> bool:
        served = (self._registry.at_hand(space) for space in peer.session.spaces)
        return any(space is not None and account in space.sequencer.rules.members for space in served)


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


def _unlocker_key(account: AccountId, kind: str) -> str:
    return f"unlocker/{account.hex()}/{kind}"


def _check_unlocker(unlocker: Unlocker) -> None:
    if unlocker.kind not in UNLOCKER_FAKES:
        raise InvalidCallError("an unlocker of an unknown kind")
    fields = (unlocker.kdf, unlocker.salt, unlocker.auth_key, unlocker.wrapped)
    if any(len(field) > _FIELD_BYTES_MAX for field in fields) or not unlocker.auth_key:
        raise InvalidCallError("an unlocker's field is too long or missing")


def _limit(retry_after_ms: int) -> None:
    if retry_after_ms:
        raise RateLimitedError(retry_after_ms=retry_after_ms)
