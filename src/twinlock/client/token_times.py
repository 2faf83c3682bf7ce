"""When a token of the application's own issuer should be replaced. It is read here, and verified by the server."""

from __future__ import annotations

import base64
import binascii

import msgspec

REFRESH_BEFORE_S = 60.0
"""So long before its end a token is replaced, or half of what is left of a short one."""

RETRY_S_MIN = 5.0
WAIT_S_MAX = 86_400.0


class _Claims(msgspec.Struct):
    exp: float


def refresh_after_s(token: str, now_ms: int) -> float | None:
    """Return after how many seconds to replace a token; None if it does not tell when it ends."""
    try:
        payload = token.split(".")[1]
        claims = msgspec.json.decode(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)), type=_Claims)
    except (IndexError, binascii.Error, ValueError, msgspec.DecodeError):
        return None
    left_s = claims.exp - now_ms / 1000
    return min(max(left_s - REFRESH_BEFORE_S, left_s / 2, RETRY_S_MIN), WAIT_S_MAX)
