"""Unlockers: how a secret signs in, and what it opens. See spec/sealing.md, section 2, and spec/protocol.md, 6.

An unlocker belongs to one `kem` key of its account. Those of a coming key are stored before the account's log brings
it, and those of a former one are found no more from that entry on: there is no moment at which both or neither work.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable, Sequence

import msgspec

from twinlock.contracts import Directory
from twinlock.errors import CredentialsError, InvalidCallError, NameTakenError, RevisionError
from twinlock.ids import AccountId
from twinlock.protocol.account_log import AccountState
from twinlock.protocol.calls import (
    Nothing,
    OpenUnlocker,
    OpenUnlockerResult,
    PutUnlocker,
    Unlocker,
    UnlockerParams,
    UnlockerParamsResult,
)
from twinlock.protocol.labels import label
from twinlock.protocol.names import account_name
from twinlock.server.authorize import Authority, device_of
from twinlock.server.methods import Method
from twinlock.server.names import Names
from twinlock.server.peer import Peer
from twinlock.server.secrets_file import ServerSecrets
from twinlock.server.settings import Settings
from twinlock.server.tries import Tries

UNLOCKER_FAKES = {"password": ("pbkdf2-sha256", 1_000_000), "recovery_kit": ("hkdf-sha256", 0)}
"""Per kind of unlocker, what clients choose: an unknown name is answered with the same."""

SALT_BYTES = 16
UNLOCKERS_MAX = 8
_FIELD_BYTES_MAX = 1024

SignOut = Callable[[AccountId], None]
"""Ends what sessions without a device may do in the name of an account."""


class StoredUnlocker(msgspec.Struct, frozen=True):
    """An unlocker as the directory holds it: `verifier` is the keyed hash of the secret's `auth_key`."""

    kdf: str
    salt: bytes
    iterations: int
    verifier: bytes
    wrapped: bytes


_decode_unlocker = msgspec.msgpack.Decoder(StoredUnlocker).decode


class Unlockers:
    """Keeps unlockers, and answers the calls about them."""

    __slots__ = ("_addresses", "_authority", "_directory", "_names", "_secrets", "_sign_out", "_tries")

    def __init__(
        self,
        directory: Directory,
        authority: Authority,
        names: Names,
        secrets: ServerSecrets,
        settings: Settings,
        now_ms: Callable[[], int],
        sign_out: SignOut,
    ) -> None:
        self._directory = directory
        self._authority = authority
        self._names = names
        self._secrets = secrets
        self._sign_out = sign_out
        self._tries = Tries(settings.unlocker_tries_per_min, now_ms)
        # One address may stand for an office, so it gets more tries than one name.
        self._addresses = Tries(10 * settings.unlocker_tries_per_min, now_ms)

    def methods(self) -> dict[str, Method]:
        """Return what is answered here, by name."""
        return {
            "unlocker.params": Method(UnlockerParams, self._params),
            "unlocker.open": Method(OpenUnlocker, self._open),
            "unlocker.put": Method(PutUnlocker, self._put),
        }

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

    async def records_for(self, before: AccountState, after: AccountState, new: Sequence[Unlocker]) -> dict[str, bytes]:
        """Return the records that unlockers get under a coming `kem` key, by their keys in the directory.

        An unlocker that only signs in goes on with the account; one that wraps the old key is replaced or ends.
        """
        records = {unlocker_key(after, unlocker.kind): self._stored(unlocker) for unlocker in new}
        for kind in UNLOCKER_FAKES:
            record = await self._directory.get(unlocker_key(before, kind))
            if record is not None and not _decode_unlocker(record.value).wrapped:
                records.setdefault(unlocker_key(after, kind), record.value)
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
        check_unlockers([request.unlocker])
        state = await self._authority.account(device_of(peer).account)
        await self._directory.put(unlocker_key(state, request.unlocker.kind), self._stored(request.unlocker))
        # Whoever came in by the secret that was replaced has to come again.
        self._sign_out(state.account)
        return Nothing()

    def _stored(self, unlocker: Unlocker) -> bytes:
        verifier = self._secrets.keyed_hash(unlocker.auth_key)
        stored = StoredUnlocker(unlocker.kdf, unlocker.salt, unlocker.iterations, verifier, unlocker.wrapped)
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
