"""Unlockers: how a secret signs in, and what it opens. See spec/sealing.md, section 2, and spec/protocol.md, 6.

An unlocker belongs to one `kem` key of its account. Those of a coming key are stored before the account's log brings
it, and those of a former one are found no more from that entry on: there is no moment at which both or neither work.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable, Sequence

import msgspec

from twinlock.contracts import Directory, Record
from twinlock.errors import (
    ClockSkewError,
    CredentialsError,
    InvalidCallError,
    NameTakenError,
    RevisionError,
)
from twinlock.ids import AccountId
from twinlock.protocol.account_log import AccountState
from twinlock.protocol.calls import (
    CreateAccount,
    Nothing,
    OpenUnlocker,
    OpenUnlockerResult,
    PutUnlocker,
    Unlocker,
    UnlockerParams,
    UnlockerParamsResult,
)
from twinlock.protocol.labels import label
from twinlock.protocol.limits import CLOCK_SKEW_MS_MAX
from twinlock.protocol.names import account_name
from twinlock.protocol.proofs import verify
from twinlock.protocol.unlocker_proofs import sign_up_message, unlocker_put_message
from twinlock.server.authorize import Authority, device_of
from twinlock.server.methods import Method
from twinlock.server.names import Names
from twinlock.server.peer import Peer
from twinlock.server.secrets_file import ServerSecrets
from twinlock.server.tries import Tries

UNLOCKER_FAKES = {"password": ("pbkdf2-sha256", 1_000_000), "recovery_kit": ("hkdf-sha256", 0)}
"""Per kind of unlocker, what clients choose: an unknown name is answered with the same."""

SALT_BYTES = 16
UNLOCKERS_MAX = 8
ITERATIONS_MAX = (1 << 32) - 1
_FIELD_BYTES_MAX = 1024

SignOut = Callable[[AccountId], None]
"""Ends what sessions without a device may do in the name of an account."""


class StoredUnlocker(msgspec.Struct, frozen=True):
    """An unlocker as the directory holds it: `verifier` is the keyed hash of the secret's `auth_key`.

    `put_ms` is the time that the account signed when it put it; 0 if it came with the account or with its `kem` key.
    """

    kdf: str
    salt: bytes
    iterations: int
    verifier: bytes
    wrapped: bytes
    put_ms: int = 0


_decode_unlocker = msgspec.msgpack.Decoder(StoredUnlocker).decode


class Unlockers:
    """Keeps unlockers, and answers the calls about them.

    Args:
        tries: how often a name, and an address, may try.
    """

    __slots__ = ("_addresses", "_authority", "_directory", "_names", "_now_ms", "_secrets", "_sign_out", "_tries")

    def __init__(
        self,
        directory: Directory,
        authority: Authority,
        names: Names,
        secrets: ServerSecrets,
        tries: tuple[Tries, Tries],
        now_ms: Callable[[], int],
        sign_out: SignOut,
    ) -> None:
        self._directory = directory
        self._authority = authority
        self._names = names
        self._secrets = secrets
        self._sign_out = sign_out
        self._now_ms = now_ms
        self._tries, self._addresses = tries

    def methods(self) -> dict[str, Method]:
        """Return what is answered here, by name."""
        return {
            "unlocker.params": Method(UnlockerParams, self._params),
            "unlocker.open": Method(OpenUnlocker, self._open),
            "unlocker.put": Method(PutUnlocker, self._put),
        }

    def check_sign_up(self, began: AccountState, name: str, request: CreateAccount) -> None:
        """Check that the account itself brings these unlockers.

        Raises:
            SignatureError: it does not.
        """
        message = sign_up_message(self._secrets.server_id, began.account, name, request.unlockers)
        verify(began.sign_pk, request.signature, message)

    async def store_first(self, state: AccountState, unlocker: Unlocker) -> None:
        """Store an unlocker of a new account, or find that this very one was stored before a crash.

        A sign-up proves nothing about an account that exists, since others may know its log: it replaces nothing.

        Raises:
            NameTakenError: the account has another unlocker of that kind.
        """
        key, stored = unlocker_key(state, unlocker.kind), self._stored(unlocker)
        try:
            await self._directory.put(key, stored, expect_revision=0)
        except RevisionError as exc:
            record = await self._directory.get(key)
            if record is None or not hmac.compare_digest(record.value, stored):
                raise NameTakenError from exc

    async def records_for(
        self, before: AccountState, after: AccountState, new: Sequence[Unlocker], ends: Sequence[str]
    ) -> dict[str, bytes]:
        """Return the records that unlockers get under a coming `kem` key, by their keys in the directory.

        An unlocker that only signs in goes on with the account; one that wraps the old key is replaced or ends.

        Raises:
            InvalidCallError: one that wraps the old key is not replaced, and `ends` does not name its kind.
        """
        records = {unlocker_key(after, unlocker.kind): self._stored(unlocker) for unlocker in new}
        for kind in UNLOCKER_FAKES:
            record, key = await self._directory.get(unlocker_key(before, kind)), unlocker_key(after, kind)
            if record is None or key in records:
                continue
            if not _decode_unlocker(record.value).wrapped:
                records[key] = record.value
            elif kind not in ends:
                raise InvalidCallError(f"the {kind} would end: replace it, or name it in `ends`")
        return records

    async def _params(self, peer: Peer, request: UnlockerParams) -> UnlockerParamsResult:
        self._addresses.count(peer.address)
        stored = await self._unlocker_of(account_name(request.name), request.kind)
        return UnlockerParamsResult(stored[1].kdf, stored[1].salt, stored[1].iterations)

    async def _open(self, peer: Peer, request: OpenUnlocker) -> OpenUnlockerResult:
        name = account_name(request.name)
        self._addresses.count(peer.address)
        self._tries.count(name)
        account, stored = await self._unlocker_of(name, request.kind)
        # Also done for a name that does not exist, so that the time taken tells nothing.
        is_right = hmac.compare_digest(self._secrets.keyed_hash(request.auth_key), stored.verifier)
        if not is_right or account is None:
            raise CredentialsError
        entries = await self._authority.log(account)
        # The account may have changed its keys while its log was read here.
        if await self._unlocker_of(name, request.kind) != (account, stored):
            raise CredentialsError
        if not peer.session.device:
            peer.session.account = account
        return OpenUnlockerResult(account, stored.wrapped, entries)

    async def _put(self, peer: Peer, request: PutUnlocker) -> Nothing:
        """Replace an unlocker by the word of the account; a device's own word, if it was stolen, is the thief's."""
        check_unlockers([request.unlocker])
        state = await self._authority.account(device_of(peer).account)
        self._check_put(state, request)
        key, stored = unlocker_key(state, request.unlocker.kind), self._stored(request.unlocker, request.time_ms)
        record = await self._directory.get(key)
        if record is None or record.value != stored:
            _check_newer(request.time_ms, record)
            await self._directory.put(key, stored, expect_revision=record.revision if record is not None else 0)
        # Whoever came in by the secret that was replaced has to come again.
        self._sign_out(state.account)
        if (await self._authority.account(state.account)).kem_pk != state.kem_pk:
            raise RevisionError("the account has changed its keys meanwhile, and its unlockers with them")
        return Nothing()

    def _check_put(self, state: AccountState, request: PutUnlocker) -> None:
        if not 0 < request.time_ms <= self._now_ms() + CLOCK_SKEW_MS_MAX:
            raise ClockSkewError("an unlocker from the future")
        server_id, unlocker = self._secrets.server_id, request.unlocker
        message = unlocker_put_message(server_id, state.account, state.kem_pk, request.time_ms, unlocker)
        verify(state.sign_pk, request.signature, message)

    def _stored(self, unlocker: Unlocker, put_ms: int = 0) -> bytes:
        verifier = self._secrets.keyed_hash(unlocker.auth_key)
        stored = StoredUnlocker(unlocker.kdf, unlocker.salt, unlocker.iterations, verifier, unlocker.wrapped, put_ms)
        return msgspec.msgpack.encode(stored)

    async def _unlocker_of(self, name: str, kind: str) -> tuple[AccountId | None, StoredUnlocker]:
        """Return a name's account and unlocker; for an unknown name a fake that is the same every time."""
        if kind not in UNLOCKER_FAKES:
            raise InvalidCallError("an unlocker of an unknown kind")
        account = await self._names.account_named(name)
        if account is not None and await self._authority.exists(account):
            state = await self._authority.account(account)
            record = await self._directory.get(unlocker_key(state, kind))
            if record is not None:
                return account, _decode_unlocker(record.value)
        kdf, iterations = UNLOCKER_FAKES[kind]
        salt = self._secrets.keyed_hash(label("fake-salt", f"{kind}/{name}".encode()))[:SALT_BYTES]
        return None, StoredUnlocker(kdf, salt, iterations, b"", b"")


def unlocker_key(state: AccountState, kind: str) -> str:
    """Return where the directory keeps an unlocker for the account's present `kem` key."""
    key = f"unlocker/{state.account.hex()}/{kind}"
    return key if state.kem_seq == 1 else f"{key}/{kem_tag(state.kem_pk)}"


def kem_tag(kem_pk: bytes) -> str:
    """Return what tells the records of one `kem` key of an account from those of another."""
    return hashlib.sha256(kem_pk).digest()[:16].hex()


def check_unlockers(unlockers: Sequence[Unlocker]) -> None:
    """Check the form of unlockers, and that there is at most one of a kind.

    Raises:
        InvalidCallError: one is of an unknown kind, too long, or too much.
    """
    if len(unlockers) > UNLOCKERS_MAX or len({unlocker.kind for unlocker in unlockers}) < len(unlockers):
        raise InvalidCallError(f"{len(unlockers)} unlockers, one of a kind is allowed")
    for unlocker in unlockers:
        if unlocker.kind not in UNLOCKER_FAKES:
            raise InvalidCallError("an unlocker of an unknown kind")
        fields = (unlocker.kdf, unlocker.salt, unlocker.auth_key, unlocker.wrapped)
        if any(len(field) > _FIELD_BYTES_MAX for field in fields) or not unlocker.auth_key:
            raise InvalidCallError("an unlocker's field is too long or missing")
        if not 0 <= unlocker.iterations <= ITERATIONS_MAX:
            raise InvalidCallError("an unlocker's iterations are out of range")


def _check_newer(time_ms: int, record: Record | None) -> None:
    """Check that a put is newer than what it replaces: a device may have seen, and kept, an older one."""
    put_ms = _decode_unlocker(record.value).put_ms if record is not None else 0
    if time_ms <= put_ms:
        raise RevisionError("a newer one was put already", retry_after_ms=put_ms - time_ms + 1)
