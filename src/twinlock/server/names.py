"""What leads to an account: its name, and the subject of the application's tokens. See spec/protocol.md, section 6."""

from __future__ import annotations

from twinlock.contracts import Directory
from twinlock.errors import NameTakenError, RevisionError
from twinlock.ids import AccountId
from twinlock.server.authorize import Authority

KNOWN_MAX = 100_000
SUBJECT_TAKEN = "the token's subject has an account already"


class Names:
    """The directory's records from names and subjects to accounts, and from accounts back to names."""

    __slots__ = ("_authority", "_directory", "_is_indexed", "_known")

    def __init__(self, directory: Directory, authority: Authority) -> None:
        self._directory = directory
        self._authority = authority
        self._is_indexed = False
        self._known: dict[AccountId, str] = {}

    async def reserve(self, name: str, subject: bytes, account: AccountId) -> None:
        """Take a name, and a subject if there is one, for an account that is about to be made.

        Doing it again after a crash in between is fine. Both are looked at before either is taken.

        Raises:
            NameTakenError: another account has one of them, or the account exists under others.
        """
        if await self._authority.exists(account):
            # A sign-up proves nothing about an account that exists: others may know its log.
            await self.check_reserved(name, subject, account)
            return
        keys = {_name_key(name): ""}
        if subject:
            keys[_subject_key(subject)] = SUBJECT_TAKEN
        for key, reason in keys.items():
            await self._check_free(key, account, reason)
        for key, reason in keys.items():
            await self._take(key, account, reason)
        await self._directory.put(_reverse_key(account), name.encode())

    async def check_reserved(self, name: str, subject: bytes, account: AccountId) -> None:
        """Check, once the account is made, that its name and subject are its own.

        Raises:
            NameTakenError: another account has one of them by now.
        """
        for key in [_name_key(name), *([_subject_key(subject)] if subject else [])]:
            if await self._account_at(key) != account:
                raise NameTakenError

    async def account_named(self, name: str) -> AccountId | None:
        """Return the account of a name."""
        return await self._account_at(_name_key(name))

    async def account_of(self, subject: bytes) -> AccountId | None:
        """Return the account of a token's subject; None where a sign-up began and never came to its end."""
        account = await self._account_at(_subject_key(subject))
        return account if account is not None and await self._authority.exists(account) else None

    async def name_of(self, account: AccountId) -> str:
        """Return an account's name, which it keeps for good; empty for an account that has none."""
        known = self._known.get(account)
        if known is not None:
            return known
        record = await self._directory.get(_reverse_key(account))
        if record is None and not self._is_indexed:
            await self._index()
            record = await self._directory.get(_reverse_key(account))
        if record is None:
            return ""
        if len(self._known) >= KNOWN_MAX:
            del self._known[next(iter(self._known))]
        self._known[account] = record.value.decode()
        return self._known[account]

    async def _index(self) -> None:
        """Write the records from accounts to names that accounts of older servers lack, once in a server's life."""
        self._is_indexed = True
        for key, record in (await self._directory.list(_name_key(""))).items():
            account = AccountId(record.value)
            if await self._directory.get(_reverse_key(account)) is None:
                await self._directory.put(_reverse_key(account), key.removeprefix(_name_key("")).encode())

    async def _check_free(self, key: str, account: AccountId, reason: str) -> None:
        holder = await self._account_at(key)
        if holder is not None and holder != account and await self._authority.exists(holder):
            raise NameTakenError(reason)

    async def _take(self, key: str, account: AccountId, reason: str) -> None:
        record = await self._directory.get(key)
        if record is not None and record.value == account:
            return
        if record is not None:
            # A holder without a log is a sign-up that was broken off, which can never be finished by anybody else.
            await self._check_free(key, account, reason)
        try:
            await self._directory.put(key, account, expect_revision=record.revision if record is not None else 0)
        except RevisionError as exc:
            raise NameTakenError(reason) from exc

    async def _account_at(self, key: str) -> AccountId | None:
        record = await self._directory.get(key)
        return AccountId(record.value) if record is not None else None


def _name_key(name: str) -> str:
    return f"name/{name}"


def _subject_key(subject: bytes) -> str:
    return f"subject/{subject.hex()}"


def _reverse_key(account: AccountId) -> str:
    return f"account_name/{account.hex()}"
