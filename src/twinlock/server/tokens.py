"""Tokens of the application's own issuer: what makes one valid. Pure: keys and time are handed in.

See spec/sealing.md, section 2. A token signs somebody in; it opens no data.
"""

from __future__ import annotations

import binascii
import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import jwt
import msgspec
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey

from twinlock.errors import IssuerError, TokenError
from twinlock.protocol.labels import label, prefixed
from twinlock.protocol.limits import TOKEN_BYTES_MAX

KEY_TYPES: Mapping[str, tuple[str, str]] = {
    "RS256": ("RSA", ""),
    "PS256": ("RSA", ""),
    "ES256": ("EC", "P-256"),
    "EdDSA": ("OKP", "Ed25519"),
}
"""The algorithms that are taken, each with the type of key and the curve that it needs: no `none`, no HMAC."""

RSA_BITS_MIN = 2048
SUBJECT_BYTES_MAX = 255
"""OpenID Connect allows 255 ASCII characters."""

KEYS_MAX = 100
_CLAIMS = ["iss", "sub", "aud", "exp"]
# Times are compared here, with the server's one clock.
_OPTIONS: Any = {"require": _CLAIMS, "verify_exp": False, "verify_nbf": False, "verify_iat": False}


class TokenRules(msgspec.Struct, frozen=True):
    """What a token must say to be taken."""

    issuer: str
    audience: str
    leeway_ms: int


class TokenHeader(msgspec.Struct, frozen=True):
    """Which key signed, by the token's own word; nothing is believed before the signature verifies."""

    algorithm: str
    key_id: str


class Claims(msgspec.Struct, frozen=True):
    """What a verified token says: whom it names, and when it ends."""

    subject: bytes
    ends_ms: int


class IssuerKey(msgspec.Struct, frozen=True):
    """A public key of the issuer, usable for one algorithm only."""

    key_id: str
    algorithm: str
    key: Any


def read_header(token: str) -> TokenHeader:
    """Return which key a token names.

    Raises:
        TokenError: it is no token, too long, or of an algorithm that is not taken.
    """
    if len(token) > TOKEN_BYTES_MAX:
        raise TokenError(f"a token of {len(token)} bytes, {TOKEN_BYTES_MAX} at most")
    try:
        header = jwt.get_unverified_header(token)
    except (jwt.PyJWTError, ValueError, RecursionError) as exc:
        raise TokenError("it is no signed token") from exc
    algorithm, key_id = header.get("alg"), header.get("kid", "")
    if not isinstance(algorithm, str) or algorithm not in KEY_TYPES or not isinstance(key_id, str):
        raise TokenError(f"of an algorithm that is not taken; use one of {', '.join(KEY_TYPES)}")
    if "crit" in header or "b64" in header:
        raise TokenError("its header asks for more than this server knows")
    return TokenHeader(algorithm, key_id)


def verify_token(token: str, key: IssuerKey, rules: TokenRules, now_ms: int) -> Claims:
    """Check a token's signature under one key of the issuer, and all that it says.

    Raises:
        TokenError: it is not valid here and now.
    """
    try:
        claims = jwt.decode(
            token, key.key, [key.algorithm], options=_OPTIONS, audience=rules.audience, issuer=rules.issuer
        )
    except (jwt.PyJWTError, ValueError, TypeError, RecursionError) as exc:
        raise TokenError(_reason(exc)) from exc
    ends_ms = _check_times(claims, rules.leeway_ms, now_ms)
    subject = claims["sub"]
    if not isinstance(subject, str) or not subject.isascii() or not 1 <= len(subject) <= SUBJECT_BYTES_MAX:
        raise TokenError("it names no subject")
    return Claims(subject_hash(rules.issuer, subject), ends_ms)


def subject_hash(issuer: str, subject: str) -> bytes:
    """Return the hash under which the directory keeps the account of an issuer's subject."""
    return hashlib.sha256(label("oidc-subject", prefixed(issuer.encode()) + prefixed(subject.encode()))).digest()


def read_keys(data: bytes) -> list[IssuerKey]:
    """Return the keys of a JWKS document that can verify tokens; those of other kinds and uses are passed over.

    Raises:
        IssuerError: it is no JWKS document.
    """
    try:
        found = msgspec.json.decode(data)["keys"]
    except (msgspec.DecodeError, ValueError, KeyError, TypeError, RecursionError) as exc:
        raise IssuerError("what it shows is no JWKS document") from exc
    if not isinstance(found, list):
        raise IssuerError("what it shows is no JWKS document")
    return [key for jwk in found[:KEYS_MAX] if isinstance(jwk, dict) for key in _keys_of(jwk)]


def fitting_key(keys: Sequence[IssuerKey], header: TokenHeader) -> IssuerKey | None:
    """Return the one key that a token names, if it is made for the token's algorithm.

    A token that names none is taken only where the issuer has one single key of that algorithm.
    """
    fitting = [key for key in keys if key.algorithm == header.algorithm and header.key_id in ("", key.key_id)]
    # Two keys of one name leave open which one signed: neither is guessed at.
    return fitting[0] if len(fitting) == 1 else None


def _keys_of(jwk: Mapping[str, Any]) -> list[IssuerKey]:
    """Return a key once for each algorithm that it may be used with."""
    if jwk.get("use", "sig") != "sig" or "verify" not in jwk.get("key_ops", ["verify"]):
        return []
    kind, key_id = (jwk.get("kty"), jwk.get("crv", "")), jwk.get("kid", "")
    algorithms = [name for name, needs in KEY_TYPES.items() if needs == kind and jwk.get("alg", name) == name]
    keys = [IssuerKey(key_id, name, key) for name in algorithms if (key := _read_key(jwk, name)) is not None]
    return keys if isinstance(key_id, str) else []


def _read_key(jwk: Mapping[str, Any], algorithm: str) -> Any:
    public = {name: value for name, value in jwk.items() if name in ("kty", "crv", "n", "e", "x", "y")}
    try:
        key = jwt.PyJWK(public, algorithm).key
    except (jwt.PyJWTError, ValueError, TypeError, KeyError, binascii.Error):
        return None
    is_weak = isinstance(key, RSAPublicKey) and key.key_size < RSA_BITS_MIN
    return None if is_weak else key


def _check_times(claims: Mapping[str, Any], leeway_ms: int, now_ms: int) -> int:
    """Check `exp`, `nbf` and `iat`; return when the token ends, the leeway included."""
    ends_ms = _time_ms(claims, "exp") + leeway_ms
    if ends_ms <= now_ms:
        raise TokenError("it has expired")
    for name in ("nbf", "iat"):
        if name in claims and _time_ms(claims, name) > now_ms + leeway_ms:
            raise TokenError("it is not valid yet")
    return ends_ms


def _time_ms(claims: Mapping[str, Any], name: str) -> int:
    value = claims[name]
    # NaN and the infinities are refused by the comparison.
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1 << 40:
        raise TokenError(f"its {name} is no time")
    return int(value * 1000)


def _reason(error: Exception) -> str:
    match error:
        case jwt.InvalidAudienceError():
            return "it is for another audience"
        case jwt.InvalidIssuerError():
            return "it is of another issuer"
        case jwt.MissingRequiredClaimError():
            return f"it has no {error.claim}"
        case jwt.InvalidSignatureError():
            return "it is not signed by the issuer"
    return "it is malformed"
