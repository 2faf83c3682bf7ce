"""An identity provider for tests: keys made here, shown as JWKS by a small HTTP server, and tokens signed with them."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import time
from collections.abc import Mapping
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm

ISSUER = "https://login.example"
AUDIENCE = "an-app"
_RSA = rsa.generate_private_key(public_exponent=65537, key_size=2048)
_WRITERS = {"RS256": RSAAlgorithm, "PS256": RSAAlgorithm, "ES256": ECAlgorithm, "EdDSA": OKPAlgorithm}


class SigningKey:
    """A key of the issuer."""

    def __init__(self, key_id: str, algorithm: str = "ES256", private: Any = None) -> None:
        self.key_id, self.algorithm = key_id, algorithm
        self.private = private or _make(algorithm)

    @property
    def jwk(self) -> dict[str, Any]:
        """The public key as JWKS shows it."""
        jwk = _WRITERS[self.algorithm].to_jwk(self.private.public_key(), as_dict=True)
        jwk.pop("key_ops", None)
        return {**jwk, "kid": self.key_id, "use": "sig", "alg": self.algorithm}

    @property
    def pem(self) -> bytes:
        """The public key as a text, which is known to everybody."""
        return self.private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)

    def sign(self, claims: Mapping[str, Any], **header: Any) -> str:
        """Sign claims."""
        return jwt.encode(dict(claims), self.private, self.algorithm, headers={"kid": self.key_id, **header})


def _make(algorithm: str) -> Any:
    if algorithm in ("RS256", "PS256"):
        return _RSA
    return ec.generate_private_key(ec.SECP256R1()) if algorithm == "ES256" else ed25519.Ed25519PrivateKey.generate()


def claims_of(subject: str = "ann", ends_in_s: float = 300, **changes: Any) -> dict[str, Any]:
    """Return what a good token says; a change to None leaves a claim out."""
    now_s = time.time()
    claims = {"iss": ISSUER, "aud": AUDIENCE, "sub": subject, "exp": now_s + ends_in_s, "iat": now_s, **changes}
    return {name: value for name, value in claims.items() if value is not None}


def written(header: Mapping[str, Any], claims: Mapping[str, Any], secret: bytes = b"") -> str:
    """Write a token that no library would: unsigned, or with an HMAC under any secret."""
    signed = ".".join(_base64(json.dumps(part).encode()) for part in (header, claims))
    signature = hmac.digest(secret, signed.encode(), hashlib.sha256) if secret else b""
    return f"{signed}.{_base64(signature)}"


def _base64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


class TokenIssuer:
    """Serves `keys` as JWKS and counts who asks; may be taken down and brought back at the same address."""

    def __init__(self) -> None:
        self.keys = [SigningKey("one")]
        self.asked = 0
        self.port = 0
        self.status = "200 OK"
        self.body: bytes | None = None
        self._server: asyncio.Server | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/jwks"

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._answer, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()
            await self._server.wait_closed()

    def token(self, subject: str = "ann", ends_in_s: float = 300, **changes: Any) -> str:
        """Sign a token with the newest key."""
        return self.keys[-1].sign(claims_of(subject, ends_in_s, **changes))

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        self.asked += 1
        body = self.body if self.body is not None else json.dumps({"keys": [key.jwk for key in self.keys]}).encode()
        head = f"HTTP/1.1 {self.status}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        writer.write(head.encode() + body)
        await writer.drain()
        writer.close()
