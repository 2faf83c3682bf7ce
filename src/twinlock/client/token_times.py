"""Asking the application for a token of its own issuer, and when to. It is read here, and verified by the server."""

from __future__ import annotations

import base64
import binascii
import logging

import msgspec

from twinlock.client.options import Token
from twinlock.errors import TokenError, TwinlockError

logger = logging.getLogger(__name__)

REFRESH_BEFORE_S = 60.0
"""So long before its end a token is replaced, or half of what is left of a short one."""

RETRY_S_MIN = 5.0
WAIT_S_MAX = 86_400.0


class _Claims(msgspec.Struct):
    exp: float


async def fresh_token(ask: Token | None) -> str:
    """Have the application give a token, where it signs in by its own issuer; else there is none.

    Raises:
        TokenError: it gave none.
    """
    if ask is None:
        return ""
    try:
        token = await ask()
    except TwinlockError:
        raise
    except Exception as exc:
        # The application's code may fail in any way, mostly for want of a network: the next attempt asks again.
        logger.exception("the application gave no token")
        raise TokenError("the application gave none") from exc
    if not isinstance(token, str) or not token:
        raise TokenError("the application gave none")
    return token


def refresh_after_s(token: str, now_ms: int) -> float | None:
    """Return after how many seconds to replace a token; None if it does not tell when it ends."""
    try:
        payload = token.split(".")[1]
        claims = msgspec.json.decode(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)), type=_Claims)
    except (IndexError, binascii.Error, ValueError, msgspec.DecodeError):
        return None
    left_s = claims.exp - now_ms / 1000
    return min(max(left_s - REFRESH_BEFORE_S, left_s / 2, RETRY_S_MIN), WAIT_S_MAX)
