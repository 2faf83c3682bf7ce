"""Bearer tokens for HTTP: they name a device and prove that a session of it asked. Pure: the time is handed in.

Any server with the same secrets takes them. What the device may do is looked up anew at each request: a token grants
nothing by itself, and a revoked device's is worth nothing.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac

from twinlock.errors import BearerError
from twinlock.ids import ID_BYTES, AccountId, DeviceId
from twinlock.protocol.blob_calls import BearerToken
from twinlock.protocol.labels import u64
from twinlock.protocol.limits import HTTP_TOKEN_TTL_MS

SCHEME = "Bearer"
_TIME_BYTES = 8
_CLAIM_BYTES = _TIME_BYTES + 2 * ID_BYTES
_PROOF_BYTES = 32
_TEXT_BYTES = -(-(_CLAIM_BYTES + _PROOF_BYTES) * 4 // 3)


class Bearers:
    """Issues tokens and reads them again."""

    __slots__ = ("_key",)

    def __init__(self, key: bytes) -> None:
        self._key = key

    def issue(self, account: AccountId, device: DeviceId, now_ms: int, ends_ms: int = 0) -> BearerToken:
        """Return a token of a device; it ends no later than the session that asks, if that has an end."""
        expires_ms = now_ms + HTTP_TOKEN_TTL_MS
        if ends_ms:
            expires_ms = min(expires_ms, ends_ms)
        claim = u64(expires_ms) + account + device
        return BearerToken(base64.urlsafe_b64encode(claim + self._proof(claim)).decode(), expires_ms)

    def holder(self, header: str, now_ms: int) -> tuple[AccountId, DeviceId]:
        """Return whose token an `Authorization` header shows.

        Raises:
            BearerError: it shows none that holds.
        """
        scheme, _, text = header.partition(" ")
        if scheme.lower() != SCHEME.lower() or len(text) != _TEXT_BYTES:
            raise BearerError
        try:
            data = base64.b64decode(text.encode("ascii"), altchars=b"-_", validate=True)
        except (UnicodeEncodeError, binascii.Error) as exc:
            raise BearerError from exc
        claim, proof = data[:_CLAIM_BYTES], data[_CLAIM_BYTES:]
        if not hmac.compare_digest(proof, self._proof(claim)):
            raise BearerError
        if int.from_bytes(claim[:_TIME_BYTES], "big") <= now_ms:
            raise BearerError("it has ended")
        ids = claim[_TIME_BYTES:]
        return AccountId(ids[:ID_BYTES]), DeviceId(ids[ID_BYTES:])

    def _proof(self, claim: bytes) -> bytes:
        return hmac.digest(self._key, claim, hashlib.sha256)
