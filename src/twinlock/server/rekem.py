"""Replacing an account's `kem` key: its log, the parcels for its devices, its unlockers. See spec/sealing.md, 2."""

from __future__ import annotations

from collections.abc import Mapping

from twinlock.contracts import Directory
from twinlock.errors import (
    InvalidCallError,
    LimitExceededError,
    LogConflictError,
    LogInvalidError,
    RevisionError,
    SignatureError,
)
from twinlock.ids import AccountId
from twinlock.protocol.account_log import AccountState, replay_account
from twinlock.protocol.calls import LogHead
from twinlock.protocol.device_calls import Parcel, Rekem, TakeParcel, TakeParcelResult
from twinlock.protocol.proofs import verify
from twinlock.protocol.unlocker_proofs import rekem_message
from twinlock.server.accounts import check_entries
from twinlock.server.authorize import Authority, device_of
from twinlock.server.methods import Method
from twinlock.server.peer import Peer
from twinlock.server.unlockers import SignOut, Unlockers, check_unlockers, kem_tag

SEALED_BYTES_MAX = 512


class Rekeming:
    """Answers `account.rekem` and `account.parcel`.

    The log entry is the switch: parcels and unlockers are stored under the coming key before it is appended, and are
    looked for under the key that the log says. A crash leaves either all of the old or all of the new.
    """

    __slots__ = ("_authority", "_directory", "_server_id", "_sign_out", "_unlockers")

    def __init__(
        self,
        directory: Directory,
        authority: Authority,
        unlockers: Unlockers,
        server_id: bytes,
        sign_out: SignOut,
    ) -> None:
        self._directory = directory
        self._authority = authority
        self._unlockers = unlockers
        self._server_id = server_id
        self._sign_out = sign_out

    def methods(self) -> dict[str, Method]:
        """Return what is answered here, by name."""
        return {
            "account.rekem": Method(Rekem, self._rekem),
            "account.parcel": Method(TakeParcel, self._parcel),
        }

    async def _rekem(self, peer: Peer, request: Rekem) -> LogHead:
        account = device_of(peer).account
        check_entries(request.entries)
        check_unlockers(request.unlockers)
        # The entries are verified before anything is stored: only who has `account_sign` gets further.
        before, after, is_repeated = await self._states(account, request)
        _check_parcels(request.parcels, after)
        # So is what comes with them: any device of the account may read the entries, and repeat them.
        verify(after.sign_pk, request.signature, self._message(request, after))
        records = await self._unlockers.records_for(before, after, request.unlockers, request.ends)
        records.update({_parcel_key(after, parcel.device): parcel.sealed for parcel in request.parcels})
        old = [*await self._directory.list(f"unlocker/{account.hex()}/"), *await self._directory.list(_prefix(account))]
        await self._store(records, only_missing=is_repeated)
        try:
            state = await self._authority.append(account, request.expect_seq, request.entries)
        except (LogConflictError, LogInvalidError, SignatureError):
            await self._delete([key for key in records if key not in old])
            raise
        self._sign_out(account)
        if state.kem_pk == after.kem_pk:
            await self._delete([key for key in old if not _is_of(state, key)])
        return LogHead(state.seq, state.head)

    async def _parcel(self, peer: Peer, request: TakeParcel) -> TakeParcelResult:
        author = device_of(peer)
        state = await self._authority.account(author.account)
        record = await self._directory.get(_parcel_key(state, author.device))
        return TakeParcelResult(record.value if record is not None else b"")

    async def _states(self, account: AccountId, request: Rekem) -> tuple[AccountState, AccountState, bool]:
        """Return the account before and after the entries, and whether its log has them already.

        Raises:
            LogConflictError: the log has other entries there.
            LogInvalidError, SignatureError: the entries are not the account's own.
            InvalidCallError: they do not end with a `rekem`.
        """
        log = await self._authority.log(account)
        held = log[request.expect_seq : request.expect_seq + len(request.entries)]
        if not 1 <= request.expect_seq <= len(log) or held != request.entries[: len(held)]:
            raise LogConflictError(f"the log has {len(log)} entries, or others than these")
        before = replay_account(log[: request.expect_seq])
        after = replay_account(request.entries, before)
        if after.kem_seq != after.seq:
            raise InvalidCallError("the entries do not end with a rekem")
        return before, after, len(held) == len(request.entries)

    def _message(self, request: Rekem, after: AccountState) -> bytes:
        parcels, unlockers, ends = request.parcels, request.unlockers, request.ends
        return rekem_message(self._server_id, after.account, after.head, parcels, unlockers, ends)

    async def _store(self, records: Mapping[str, bytes], *, only_missing: bool) -> None:
        """Store records; where the log has the entries already, only what a crash or a restore has left out."""
        for key, value in records.items():
            try:
                await self._directory.put(key, value, expect_revision=0 if only_missing else None)
            except RevisionError:
                continue

    async def _delete(self, keys: list[str]) -> None:
        for key in keys:
            await self._directory.delete(key)


def _check_parcels(parcels: list[Parcel], after: AccountState) -> None:
    devices = {parcel.device for parcel in parcels}
    if len(devices) < len(parcels) or devices != after.devices.keys():
        raise InvalidCallError("there is to be one parcel for each device that stays, and for no other")
    if any(len(parcel.sealed) > SEALED_BYTES_MAX for parcel in parcels):
        raise LimitExceededError(f"a parcel of more than {SEALED_BYTES_MAX} bytes")


def _prefix(account: AccountId) -> str:
    return f"parcel/{account.hex()}/"


def _parcel_key(state: AccountState, device: bytes) -> str:
    return f"{_prefix(state.account)}{kem_tag(state.kem_pk)}/{device.hex()}"


def _is_of(state: AccountState, key: str) -> bool:
    """Tell whether a record of an account belongs to its present key."""
    return kem_tag(state.kem_pk) in key.split("/")
