"""Requests of new devices for approval by an old one. See spec/sealing.md, section 2, and spec/protocol.md, 6.

The server only carries public keys one way and a sealed answer the other way. Whatever it does to them shows: the code
on the new device's screen is made of its keys, and the answer is checked against the account's signed log.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import msgspec

from twinlock.contracts import Directory, Record
from twinlock.errors import (
    InvalidCallError,
    OverloadedError,
    PairingRefusedError,
    PairingUnknownError,
    ProofError,
    RevisionError,
    SignatureError,
)
from twinlock.ids import ID_BYTES, AccountId, DeviceId
from twinlock.protocol import proofs
from twinlock.protocol.account_log import device_id_of
from twinlock.protocol.calls import Nothing
from twinlock.protocol.device_calls import (
    ApprovePairing,
    AskPairing,
    AskPairingResult,
    FindPairing,
    FindPairingResult,
    TakePairing,
    TakePairingResult,
)
from twinlock.protocol.signed_log import KEY_BYTES
from twinlock.server.authorize import Authority, device_of
from twinlock.server.methods import Method
from twinlock.server.names import Names
from twinlock.server.peer import Peer
from twinlock.server.shared_rates import SharedRates
from twinlock.server.tries import Tries

REQUEST_TTL_MS = 10 * 60_000
REQUESTS_MAX = 10_000
"""Requests that wait at once, over all addresses; more are asked to come back."""

CLEAN_INTERVAL_MS = 10_000
PREFIX_BYTES_MIN = 10
SEALED_BYTES_MAX = 512
TAKES_PER_TRY = 20
"""A device that waits asks for its answer every second or two."""

_PREFIX = "pairing/"


class StoredPairing(msgspec.Struct, frozen=True):
    """A request as the directory holds it; `account` and `sealed` are there once it was approved."""

    sign_pk: bytes
    kem_pk: bytes
    expires_ms: int
    account: bytes = b""
    sealed: bytes = b""


_decode = msgspec.msgpack.Decoder(StoredPairing).decode
_encode = msgspec.msgpack.encode


class Pairings:
    """Keeps requests for 10 minutes, and answers the calls about them."""

    __slots__ = (
        "_asks",
        "_authority",
        "_cleaned_ms",
        "_count",
        "_directory",
        "_finds",
        "_names",
        "_now_ms",
        "_server_id",
        "_taken",
        "_takes",
    )

    def __init__(
        self,
        directory: Directory,
        authority: Authority,
        names: Names,
        server_id: bytes,
        tries_per_min: int,
        now_ms: Callable[[], int],
        rates: SharedRates | None = None,
    ) -> None:
        self._directory = directory
        self._authority = authority
        self._names = names
        self._server_id = server_id
        self._now_ms = now_ms
        self._asks = Tries(tries_per_min, now_ms, rates, "pairing asks")
        self._finds = Tries(tries_per_min, now_ms, rates, "pairing finds")
        self._takes = Tries(TAKES_PER_TRY * tries_per_min, now_ms, rates, "pairing takes")
        self._count = 0
        self._cleaned_ms = 0
        self._taken: set[DeviceId] = set()

    def methods(self) -> dict[str, Method]:
        """Return what is answered here, by name."""
        return {
            "pairing.ask": Method(AskPairing, self._ask),
            "pairing.find": Method(FindPairing, self._find),
            "pairing.approve": Method(ApprovePairing, self._approve),
            "pairing.take": Method(TakePairing, self._take),
        }

    async def clean(self) -> None:
        """Delete the requests that have ended, and count those that wait."""
        self._cleaned_ms = now_ms = self._now_ms()
        waiting = 0
        for key, record in (await self._directory.list(_PREFIX)).items():
            if _decode(record.value).expires_ms > now_ms:
                waiting += 1
            else:
                await self._forget(key, record)
        self._count = waiting

    async def forget_taken(self, arrived: Iterable[DeviceId]) -> None:
        """Delete the requests of devices that have used the answer to open a session of their own."""
        for device in self._taken.intersection(arrived):
            await self._directory.delete(_key(device))
            self._taken.discard(device)

    async def _ask(self, peer: Peer, request: AskPairing) -> AskPairingResult:
        self._asks.count(peer.address)
        if len(request.sign_pk) != KEY_BYTES or len(request.kem_pk) != KEY_BYTES:
            raise InvalidCallError(f"keys have {KEY_BYTES} bytes")
        device = device_id_of(request.sign_pk, request.kem_pk)
        record, known = await self._read(device)
        if known is None:
            await self._make_room()
        # An answer that is there already stays: the device may ask again after it lost its connection.
        stored = known or StoredPairing(request.sign_pk, request.kem_pk, 0)
        stored = msgspec.structs.replace(stored, expires_ms=self._now_ms() + REQUEST_TTL_MS)
        await self._write(device, stored, record)
        return AskPairingResult(device, stored.expires_ms)

    async def _find(self, peer: Peer, request: FindPairing) -> FindPairingResult:
        account = device_of(peer).account
        self._finds.count(account.hex())
        if not PREFIX_BYTES_MIN <= len(request.prefix) <= ID_BYTES:
            raise InvalidCallError(f"a prefix has {PREFIX_BYTES_MIN} to {ID_BYTES} bytes")
        records = await self._directory.list(f"{_PREFIX}{request.prefix.hex()}")
        waiting = [stored for stored in map(_stored, records.values()) if stored.expires_ms > self._now_ms()]
        if len(waiting) != 1:
            raise PairingUnknownError("more than one device waits under it" if waiting else "")
        [found] = waiting
        if found.account not in (b"", account):
            raise PairingUnknownError
        return FindPairingResult(found.sign_pk, found.kem_pk)

    async def _approve(self, peer: Peer, request: ApprovePairing) -> Nothing:
        account = device_of(peer).account
        if request.device not in (await self._authority.account(account)).devices:
            raise PairingRefusedError("the account's log does not certify this device")
        if not 1 <= len(request.sealed) <= SEALED_BYTES_MAX:
            raise InvalidCallError(f"1 to {SEALED_BYTES_MAX} sealed bytes are allowed")
        record, known = await self._read(request.device)
        if known is None:
            raise PairingUnknownError
        if known.account not in (b"", account):
            raise PairingRefusedError("another account has approved it")
        expires_ms = self._now_ms() + REQUEST_TTL_MS
        answered = msgspec.structs.replace(known, account=bytes(account), sealed=request.sealed, expires_ms=expires_ms)
        await self._write(request.device, answered, record)
        return Nothing()

    async def _take(self, peer: Peer, request: TakePairing) -> TakePairingResult:
        self._takes.count(peer.address)
        _, known = await self._read(request.device)
        if known is None:
            raise PairingUnknownError
        try:
            message = proofs.pairing_take_message(self._server_id, request.device)
            proofs.verify(known.sign_pk, request.signature, message)
        except SignatureError as exc:
            raise ProofError from exc
        if not known.account:
            return TakePairingResult()
        account = AccountId(known.account)
        if request.device not in (await self._authority.account(account)).devices:
            raise PairingRefusedError("the account has revoked this device")
        name, entries = await self._names.name_of(account), await self._authority.log(account)
        if len(self._taken) < REQUESTS_MAX:
            self._taken.add(request.device)
        return TakePairingResult(bytes(account), name, known.sealed, entries)

    async def _read(self, device: DeviceId) -> tuple[Record | None, StoredPairing | None]:
        """Return the record of a device, and its request if that still stands."""
        if len(device) != ID_BYTES:
            raise InvalidCallError(f"ids have {ID_BYTES} bytes")
        record = await self._directory.get(_key(device))
        stored = _stored(record) if record is not None else None
        return record, stored if stored is not None and stored.expires_ms > self._now_ms() else None

    async def _write(self, device: DeviceId, stored: StoredPairing, record: Record | None) -> None:
        revision = record.revision if record is not None else 0
        try:
            await self._directory.put(_key(device), _encode(stored), expect_revision=revision)
        except RevisionError as exc:
            raise OverloadedError("it was changed at the same moment", retry_after_ms=100) from exc

    async def _make_room(self) -> None:
        """Count one more request.

        Raises:
            OverloadedError: too many wait already.
        """
        if self._count >= REQUESTS_MAX and self._now_ms() - self._cleaned_ms > CLEAN_INTERVAL_MS:
            await self.clean()
        if self._count >= REQUESTS_MAX:
            raise OverloadedError("too many devices wait for approval", retry_after_ms=CLEAN_INTERVAL_MS)
        self._count += 1

    async def _forget(self, key: str, record: Record) -> None:
        try:
            await self._directory.delete(key, expect_revision=record.revision)
        except RevisionError:
            # It was prolonged just now.
            return
        self._taken.discard(DeviceId(bytes.fromhex(key.removeprefix(_PREFIX))))


def _key(device: DeviceId) -> str:
    return f"{_PREFIX}{device.hex()}"


def _stored(record: Record) -> StoredPairing:
    return _decode(record.value)
