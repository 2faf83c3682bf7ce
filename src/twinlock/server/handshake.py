"""The WebSocket opening handshake, RFC 6455 section 4.2, on a request that the HTTP server has already parsed. Pure.

uvicorn hands over the request it has read, put together again; a second full HTTP parser would cost more than all
the rest of taking on a connection but the signatures.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from http import HTTPStatus

import msgspec

SUBPROTOCOL = "twinlock.1"
_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_KEY_BYTES = 16


class HandshakeError(Exception):
    """The request is refused with an HTTP status."""

    def __init__(self, status: HTTPStatus, reason: str, *headers: str) -> None:
        super().__init__(reason)
        self.status = status
        self.reason = reason
        self.headers = headers


class Upgrade(msgspec.Struct, frozen=True):
    """A request to upgrade: its path, and its headers by lower-case name, each with every value it came with."""

    path: str
    headers: dict[str, list[str]]

    def tokens(self, name: str) -> list[str]:
        """Return the comma-separated words of a header, lower-cased."""
        return [word.strip().lower() for value in self.headers.get(name, ()) for word in value.split(",")]


def parse_upgrade(request: bytes) -> Upgrade:
    """Read a request.

    Raises:
        HandshakeError: it is not a GET with headers.
    """
    lines = request.decode("latin-1").split("\r\n")
    method, _, rest = lines[0].partition(" ")
    if method != "GET":
        raise HandshakeError(HTTPStatus.METHOD_NOT_ALLOWED, "The sync socket is opened with GET.", "Allow: GET")
    headers: dict[str, list[str]] = {}
    for line in lines[1:]:
        name, colon, value = line.partition(":")
        if colon:
            headers.setdefault(name.strip().lower(), []).append(value.strip())
    return Upgrade(rest.partition(" ")[0].partition("?")[0], headers)


def accept_upgrade(upgrade: Upgrade) -> bytes:
    """Return the answer that opens the socket.

    Raises:
        HandshakeError: something that RFC 6455 or this protocol asks for is missing.
    """
    if "upgrade" not in upgrade.tokens("connection") or upgrade.tokens("upgrade") != ["websocket"]:
        raise HandshakeError(HTTPStatus.UPGRADE_REQUIRED, "This is a WebSocket.", "Upgrade: websocket")
    if upgrade.headers.get("sec-websocket-version") != ["13"]:
        raise HandshakeError(HTTPStatus.UPGRADE_REQUIRED, "The WebSocket version is 13.", "Sec-WebSocket-Version: 13")
    if SUBPROTOCOL not in upgrade.tokens("sec-websocket-protocol"):
        raise HandshakeError(HTTPStatus.BAD_REQUEST, f"The subprotocol is {SUBPROTOCOL}.")
    keys = upgrade.headers.get("sec-websocket-key", [])
    if len(keys) != 1 or not _is_key(keys[0]):
        raise HandshakeError(HTTPStatus.BAD_REQUEST, "Sec-WebSocket-Key is missing or malformed.")
    # SHA-1 is what the RFC asks for; it protects nothing here.
    digest = hashlib.sha1(keys[0].encode("ascii") + _GUID, usedforsecurity=False).digest()
    return (
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Protocol: " + SUBPROTOCOL.encode() + b"\r\n"
        b"Sec-WebSocket-Accept: " + base64.b64encode(digest) + b"\r\n\r\n"
    )


def refusal(error: HandshakeError) -> bytes:
    """Return the answer to a request that is refused."""
    body = error.reason + "\n"
    lines = (
        f"HTTP/1.1 {error.status.value} {error.status.phrase}",
        *error.headers,
        "Connection: close",
        "Content-Type: text/plain; charset=utf-8",
        f"Content-Length: {len(body)}",
        "",
        body,
    )
    return "\r\n".join(lines).encode()


def _is_key(key: str) -> bool:
    try:
        return len(base64.b64decode(key.encode("ascii"), validate=True)) == _KEY_BYTES
    except (binascii.Error, ValueError):
        return False
