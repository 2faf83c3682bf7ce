"""Revoking a device of the account: in its own log, then in every space. See spec/sealing.md, section 2.

What a revocation still lacks is seen from the signed logs alone, so that it can be finished at any time, by any
unlocked device of the account, wherever it was interrupted.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from twinlock.client.account_log import APPEND_TRIES_MAX, AccountLog
from twinlock.client.connection import Connection
from twinlock.client.courier import Courier
from twinlock.client.credentials import Credentials
from twinlock.client.device_context import DeviceContext
from twinlock.client.devices import Devices
from twinlock.client.epochs import wrapped_row
from twinlock.client.log_writer import Draft, LogWriter
from twinlock.client.space_runtime import SpaceRuntime
from twinlock.client.space_settings import SpaceSettings
from twinlock.errors import InvalidCallError, LogConflictError, TwinlockError
from twinlock.ids import ID_BYTES, Counter, DeviceId
from twinlock.protocol.account_log import AccountState, replay_account
from twinlock.protocol.calls import LogHead, SignedEntry
from twinlock.protocol.device_calls import Parcel
from twinlock.protocol.signed_log import Body
from twinlock.protocol.space_log import SpaceLogState
from twinlock.protocol.space_rules import replay_space
from twinlock.sealing.account_requests import rekem_request
from twinlock.sealing.identity import AccountKeys, rekem_entry, revoke_entry
from twinlock.sealing.pairing import seal_parcel
from twinlock.sealing.space_entries import cutoff_entry, member_kem_entry
from twinlock.sealing.suite import SECRET_BYTES
from twinlock.sealing.vault import KIND_PASSWORD

logger = logging.getLogger(__name__)

CHORE_NAME = "revocations"
PATIENCE_TRIES = 5
PATIENCE_MS = 10_000


class Revoker:
    """Cuts devices off, and finishes what an earlier revocation left undone."""

    __slots__ = ("_connection", "_context", "_courier", "_credentials", "_devices", "_log", "_settings", "_writer")

    def __init__(
        self,
        context: DeviceContext,
        connection: Connection,
        courier: Courier,
        devices: Devices,
        credentials: Credentials,
        settings: SpaceSettings,
    ) -> None:
        self._context = context
        self._connection = connection
        self._courier = courier
        self._devices = devices
        self._credentials = credentials
        self._settings = settings
        self._log = AccountLog(context, connection)
        self._writer = LogWriter(context, connection, courier, credentials.sudo)

    async def revoke(self, wanted: str, stolen: bool) -> None:
        """Cut a device off: first the account's log, from which on it gets no lease, then its chain in every space."""
        keys = self._credentials.sudo.keys()
        await self._devices.all()
        device = self._devices.find(wanted, self._log.known())
        if device == self._context.state.device_keys.device:
            raise InvalidCallError("a device does not revoke itself: sign out here, or revoke it from another device")
        if stolen:
            await self._replace_kem(device)
        else:
            await self._log.append(lambda state: revoke_entry(keys, state, device) if device in state.devices else None)
        await self.finish()

    def finish_later(self) -> None:
        """Look in the background whether an earlier revocation was interrupted."""
        self._courier.want(CHORE_NAME, self._finish_quietly)

    async def _finish_quietly(self) -> None:
        if self._credentials.sudo.is_granted and self._connection.session is not None:
            await self.finish()

    async def finish(self) -> None:
        """Bring every space to what the account's log says; those that cannot be reached now do not hold up the rest.

        Raises:
            TwinlockError: why the first of them failed.
        """
        failures: list[TwinlockError] = []
        state = self._log.known()
        for runtime in list(self._courier.runtimes.values()):
            try:
                await self._finish_patiently(runtime, state)
            except TwinlockError as exc:
                logger.warning("a space waits", extra={"space": runtime.space.hex(), "code": exc.code})
                failures.append(exc)
        if failures:
            raise failures[0]

    async def _finish_patiently(self, runtime: SpaceRuntime, state: AccountState) -> None:
        """Finish a space; a server that is asked too much, by an account of many spaces, tells when to go on."""
        for _ in range(PATIENCE_TRIES):
            try:
                return await self._finish_space(runtime, state)
            except TwinlockError as exc:
                if not 0 < exc.retry_after_ms <= PATIENCE_MS:
                    raise
                await asyncio.sleep(exc.retry_after_ms / 1000)
        return await self._finish_space(runtime, state)

    # The account

    async def _replace_kem(self, device: DeviceId) -> None:
        """Revoke a stolen device and take a new `kem` key, in one step, with a parcel for each device that stays."""
        for _ in range(APPEND_TRIES_MAX):
            state = await self._log.read()
            keys = self._credentials.sudo.keys()
            if _was_replaced_after(self._log.entries(), device):
                # An earlier try came so far, and its kit was perhaps never seen.
                await self._credentials.put_new_kit()
                return
            new_keys = keys.with_kem(X25519PrivateKey.from_private_bytes(self._context.entropy(SECRET_BYTES)))
            kit, unlocker = self._credentials.make_kit(new_keys)
            entries = _rekem_entries(keys, new_keys, state, device)
            parcels, server_id = _parcels(new_keys, replay_account(entries, state)), self._context.state.home.server_id
            # A password that opened the old keys ends with them: only its person could wrap the new ones by it.
            request = rekem_request(keys, server_id, state, entries, parcels, [unlocker], [KIND_PASSWORD])
            try:
                await self._connection.call("account.rekem", request, LogHead)
            except LogConflictError:
                continue
            self._context.state.put_account_kem(new_keys.kem)
            self._credentials.took_kit(kit)
            await self._log.read()
            await self._devices.reseal_names()
            return
        raise LogConflictError

    # The spaces

    async def _finish_space(self, runtime: SpaceRuntime, state: AccountState) -> None:
        """Bring one space to what the account's log says, and rotate it if that is wanted then."""
        if self._lacks(runtime.keyring.log, state):
            await self._append_missing(runtime, state)
        role = runtime.keyring.log.role_of(state.account)
        if runtime.rotation_wanted and role is not None and role.may_admit:
            await self._settings.rotate(runtime, only_if_wanted=True)

    async def _append_missing(self, runtime: SpaceRuntime, state: AccountState) -> None:
        """End the chains of revoked devices, and have the member keys wrapped to the account's present key."""

        async def prepare(keys: AccountKeys, log: SpaceLogState) -> Draft | None:
            if not self._lacks(log, state):
                return None
            entries, rows = await self._cutoffs(runtime, keys, log, state), []
            after = replay_space(entries, log)
            if self._is_stale(log, state):
                if runtime.keyring.member_key(log.epoch) is not None:
                    rows.append(wrapped_row(runtime, log, keys.account, keys.kem_pk))
                entries.append(member_kem_entry(keys, after))
            return Draft(entries, rows)

        await self._writer.write(runtime, prepare)

    def _lacks(self, log: SpaceLogState, state: AccountState) -> bool:
        if state.account not in log.members or log.is_shredded:
            return False
        return bool(_uncut(log, state)) or self._is_stale(log, state)

    def _is_stale(self, log: SpaceLogState, state: AccountState) -> bool:
        # A device that still waits for its parcel leaves this to one that has it.
        return log.members[state.account].kem_pk != state.kem_pk == self._context.state.account_kem.kem_pk

    async def _cutoffs(
        self, runtime: SpaceRuntime, keys: AccountKeys, log: SpaceLogState, state: AccountState
    ) -> list[SignedEntry]:
        """Sign where the chains of revoked devices end: where the server has their last envelopes."""
        uncut = _uncut(log, state)
        if not uncut:
            return []
        heads = await self._writer.heads(runtime, keys.account)
        return [cutoff_entry(keys, log, keys.account, {device: heads.get(device, Counter(0)) for device in uncut})]


def _uncut(log: SpaceLogState, state: AccountState) -> list[DeviceId]:
    """Return the account's revoked devices whose chains the space's log has not ended for good."""
    cutoffs = log.members[state.account].cutoffs
    ended = {device for cutoff in cutoffs if not cutoff.is_whole for device in cutoff.counters}
    return [device for device in state.retired if device not in ended]


def _was_replaced_after(entries: Sequence[SignedEntry], device: DeviceId) -> bool:
    """Tell whether the account took a new `kem` key after it revoked a device; the entries are verified."""
    bodies = [Body(entry.body) for entry in entries]
    revoked_at = [
        at
        for at, body in enumerate(bodies)
        if body.type == "revoke" and body.fields.octets("device", ID_BYTES) == device
    ]
    return bool(revoked_at) and any(body.type == "rekem" for body in bodies[revoked_at[0] :])


def _rekem_entries(
    keys: AccountKeys, new_keys: AccountKeys, state: AccountState, device: DeviceId
) -> list[SignedEntry]:
    entries: list[SignedEntry] = []
    if device in state.devices:
        entries.append(revoke_entry(keys, state, device))
        state = replay_account(entries, state)
    return [*entries, rekem_entry(keys, state, new_keys.kem_pk)]


def _parcels(new_keys: AccountKeys, state: AccountState) -> list[Parcel]:
    """Seal the new key to every device that stays, this one too: it may end before it has kept the key."""
    return [
        Parcel(device, seal_parcel(new_keys.kem, state.account, device, record.kem_pk))
        for device, record in state.devices.items()
    ]
