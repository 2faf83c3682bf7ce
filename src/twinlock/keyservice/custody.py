"""The rules of the key service: who gets which service key. Synchronous; all of it runs in the worker's thread.

Each request is one call inside a transaction. A call checks first and writes last, so that a refusal leaves nothing
behind but the used nonce and its record in the ledger.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NoReturn

import msgspec

from twinlock.contracts.keys import Asking
from twinlock.errors import LeaseRefusedError, LogInvalidError
from twinlock.ids import Epoch, LogId, SpaceId
from twinlock.keyservice.deny_list import DenyList
from twinlock.keyservice.key_store import KeyStore
from twinlock.keyservice.ledger import Ledger, LedgerRecord
from twinlock.keyservice.logs import LogState, SignedLogs
from twinlock.keyservice.requests import Asker, Proof, RequestGate, check_form
from twinlock.keyservice.service_key import ServiceKey
from twinlock.protocol import hpke
from twinlock.protocol.calls import CreatePending, CreatePendingResult, LogHead, SignedEntry
from twinlock.protocol.frames import Grant, Lease, Leases
from twinlock.protocol.leased import Leased
from twinlock.protocol.proofs import lease_info, lease_message, pending_message
from twinlock.protocol.space_log import SpaceLogState
from twinlock.protocol.space_rules import replay_space

HOUR_MS = 3_600_000


class Custody:
    """Decides over logs, candidates and leases, on the parts that it is given."""

    __slots__ = ("_denied", "_gate", "_keys", "_ledger", "_logs")

    def __init__(
        self,
        logs: SignedLogs,
        keys: KeyStore,
        ledger: Ledger,
        gate: RequestGate,
        denied: DenyList,
    ) -> None:
        self._logs = logs
        self._keys = keys
        self._ledger = ledger
        self._gate = gate
        self._denied = denied

    def append_log(self, log: LogId, expect_seq: int, entries: Sequence[SignedEntry], now_ms: int) -> LogHead:
        """Check entries by the rules of their log, store them, and return the new head.

        A space that they shred is denied before they are stored: no crash leaves its keys behind a log that says so.
        """
        fresh = self._logs.fresh(log, expect_seq, entries)
        before = self._logs.state(log)
        if not fresh:
            if before is None:
                raise LogInvalidError("a log without a genesis")
            return LogHead(before.seq, before.head)
        after = self._logs.replay(log, fresh)
        taken = self._candidates_of(before, after)
        if isinstance(after, SpaceLogState) and after.is_shredded:
            self.deny(after.space, now_ms)
            taken = {}
        self._logs.store(log, after, fresh)
        for epoch, candidate in taken.items():
            self._keys.promote(SpaceId(log), epoch, candidate)
        return LogHead(after.seq, after.head)

    def create_pending(self, asking: Asking, request: CreatePending) -> CreatePendingResult:
        """Make a candidate for a coming epoch and seal it to the device that asked."""
        check_form(request.space, [request.epoch], request.nonce, request.time_ms)
        message = pending_message(
            request.space, request.epoch, request.nonce, request.time_ms, asking.account, asking.device
        )
        asker = self._ask(asking, request, message)
        record = _record("pending", asking, request.space, [request.epoch])
        space = self._space_of_pending(request)
        role = None if space is None else space.role_of(asking.account)
        if asker.revoked:
            self._refuse(record, "the device was revoked")
        if request.space in self._denied:
            self._refuse(record, "the space was shredded")
        if space is None or role is None or not role.may_admit:
            self._refuse(record, "only an owner or admin opens an epoch")
        if request.epoch != space.epoch + 1:
            self._refuse(record, f"epoch {request.epoch} does not follow epoch {space.epoch}")
        key = ServiceKey.generate()
        binding = _Binding(request.space, asking, _not_after(space, asking.now_ms), request.nonce)
        grant = _grant(asker, binding, request.epoch, key.expose())
        commit = self._keys.add_pending(request.space, request.epoch, asking.account, key, asking.now_ms)
        self._ledger.append(msgspec.structs.replace(record, not_after_ms=binding.not_after_ms))
        return CreatePendingResult(commit, grant)

    def lease(self, asking: Asking, request: Lease) -> Leases:
        """Seal the service keys of some epochs to the device that asked."""
        check_form(request.space, request.epochs, request.nonce, request.time_ms)
        message = lease_message(
            request.space, request.epochs, request.nonce, request.time_ms, asking.account, asking.device
        )
        asker = self._ask(asking, request, message)
        record = _record("lease", asking, request.space, request.epochs)
        space = self._space_of_lease(asker, request.space, record)
        keys = self._keys.get(request.space, request.epochs)
        binding = _Binding(request.space, asking, _not_after(space, asking.now_ms), request.nonce)
        grants = []
        for epoch in dict.fromkeys(request.epochs):
            key = keys.get(epoch)
            if key is None:
                self._refuse(record, f"there is no epoch {epoch}")
            leased = Leased(key.expose(), space.position, asker.account.position)
            grants.append(_grant(asker, binding, epoch, leased.pack()))
        self._ledger.append(msgspec.structs.replace(record, not_after_ms=binding.not_after_ms))
        heads = (space.seq, space.head, asker.account.seq, asker.account.head)
        return Leases(request.space, request.nonce, grants, *heads)

    def deny(self, space: SpaceId, now_ms: int) -> None:
        """Release no key of a space ever again, and delete those that are stored."""
        self._denied.add(space)
        self._keys.note_denied(space)
        count = self._keys.delete(space)
        self._ledger.append(LedgerRecord(now_ms, "denied", space.hex(), keys_count=count))

    def apply_deny_list(self, now_ms: int) -> None:
        """Delete the keys of denied spaces that a restored backup brought back, before anything is answered."""
        for space in self._keys.denied():
            # The database knows of one that the list does not: an older list was put back.
            self._denied.add(space)
        for space in self._denied:
            self._keys.note_denied(space)
            count = self._keys.delete(space)
            if count:
                self._ledger.append(LedgerRecord(now_ms, "purged", space.hex(), keys_count=count))

    def _ask(self, asking: Asking, request: Lease | CreatePending, message: bytes) -> Asker:
        proof = Proof(request.nonce, request.time_ms, request.signature, message)
        return self._gate.check(asking.account, asking.device, proof, asking.now_ms)

    def _candidates_of(self, before: LogState | None, after: LogState) -> dict[Epoch, int]:
        """Return the candidate that each new epoch takes up.

        Raises:
            LogInvalidError: an epoch's key was not made here for its signer.
            LeaseRefusedError: the space was shredded.
        """
        if not isinstance(after, SpaceLogState):
            return {}
        first = before.epoch + 1 if isinstance(before, SpaceLogState) else 1
        taken = {}
        for number in range(first, after.epoch + 1):
            epoch = Epoch(number)
            record = after.epochs[epoch]
            if after.space in self._denied:
                raise LeaseRefusedError("the space was shredded")
            candidate = self._keys.find_pending(after.space, epoch, record.by, record.b_commit)
            if candidate is None:
                raise LogInvalidError(f"the service key of epoch {epoch} was not made for its signer")
            taken[epoch] = candidate
        return taken

    def _space_of_pending(self, request: CreatePending) -> SpaceLogState | None:
        stored = self._logs.space(request.space)
        if stored is not None or request.genesis is None:
            return stored
        coming = replay_space([request.genesis])
        return coming if coming.space == request.space else None

    def _space_of_lease(self, asker: Asker, space: SpaceId, record: LedgerRecord) -> SpaceLogState:
        state = self._logs.space(space)
        role = None if state is None else state.role_of(asker.account.account)
        if asker.revoked:
            self._refuse(record, "the device was revoked")
        if space in self._denied:
            self._refuse(record, "the space was shredded")
        if state is None or role is None or not role.may_lease:
            self._refuse(record, "the account has no role that reads this space")
        return state

    def _refuse(self, record: LedgerRecord, reason: str) -> NoReturn:
        self._ledger.append(msgspec.structs.replace(record, refused=reason))
        raise LeaseRefusedError(reason)


class _Binding(msgspec.Struct, frozen=True):
    """What all grants of one answer are bound to."""

    space: SpaceId
    asking: Asking
    not_after_ms: int
    nonce: bytes


def _grant(asker: Asker, binding: _Binding, epoch: Epoch, content: bytes) -> Grant:
    asking = binding.asking
    info = lease_info(binding.space, epoch, asking.device, binding.not_after_ms, asking.incarnation, binding.nonce)
    try:
        return Grant(epoch, binding.not_after_ms, hpke.seal(asker.record.kem_pk, content, info))
    except ValueError as exc:
        raise LeaseRefusedError("the device's key cannot be sealed to") from exc


def _record(event: str, asking: Asking, space: SpaceId, epochs: Sequence[Epoch]) -> LedgerRecord:
    return LedgerRecord(asking.now_ms, event, space.hex(), asking.account.hex(), asking.device.hex(), list(epochs))


def _not_after(space: SpaceLogState, now_ms: int) -> int:
    # With 0 hours the device may not store the lease, but it must be able to work while it is online.
    return now_ms + max(space.lease_hours, 1) * HOUR_MS
