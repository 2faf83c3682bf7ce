"""Calls to OpenBao over HTTP: the token, TLS, time limits, and what its refusals mean to an operator."""

from __future__ import annotations

import ipaddress
import os
import ssl
import stat
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import msgspec

from twinlock.errors import KeyServiceError, StoreError
from twinlock.keyservice.settings import KeyServiceSettings

TOKEN_VARIABLE = "BAO_TOKEN"  # noqa: S105 - the name of the variable, not its value
_TOKEN_HEADER = "X-Vault-Token"  # noqa: S105 - the name of the header
_LOST = (httpx.RemoteProtocolError, httpx.ReadError, httpx.WriteError)


class Answer(msgspec.Struct, frozen=True):
    """What OpenBao said: its status, its data, and its complaints."""

    status: int
    data: dict[str, Any]
    errors: list[str]

    @property
    def ok(self) -> bool:
        """Whether the whole request was done."""
        return self.status < httpx.codes.BAD_REQUEST

    def complains_of(self, text: str) -> bool:
        """Tell whether a complaint holds these words."""
        return any(text in error for error in self.errors)


class _Content(msgspec.Struct, frozen=True):
    data: dict[str, Any] | None = None
    errors: list[str] | None = None


class OpenBaoClient:
    """One connection with one token. Every call here is repeatable, and is repeated once if the connection broke."""

    __slots__ = ("_client", "_rest_until_s", "_settings")

    def __init__(self, settings: KeyServiceSettings) -> None:
        """Read the token and the certificates; nothing is sent yet.

        Raises:
            StoreError: a setting or a file of it cannot be used.
        """
        self._settings = settings
        self._rest_until_s = 0.0
        self._client = httpx.Client(
            base_url=f"{_checked_url(settings.openbao_url)}/v1/",
            headers={_TOKEN_HEADER: _token(settings)},
            timeout=settings.openbao_timeout_ms / 1000,
            verify=_tls(settings.openbao_ca_file),
            # A proxy of the environment is no place for keys to pass.
            trust_env=False,
        )

    def call(self, method: str, path: str, body: Mapping[str, object] | None = None) -> Answer:
        """Return what OpenBao answers, also if it is a refusal of this one request.

        Raises:
            KeyServiceError: it cannot be reached, is sealed or overloaded, or refuses the token.
        """
        answer = self._send(method, path, body)
        if answer.status == httpx.codes.FORBIDDEN:
            # Whoever keeps the token fresh has perhaps written a new one.
            self._client.headers[_TOKEN_HEADER] = _token(self._settings)
            answer = self._send(method, path, body)
        if answer.status == httpx.codes.FORBIDDEN:
            raise KeyServiceError(f"OpenBao refuses the token, or its policy does not allow {method} {path}")
        if answer.complains_of("sealed"):
            raise KeyServiceError("OpenBao is sealed: unseal it")
        if answer.status >= httpx.codes.INTERNAL_SERVER_ERROR or answer.status == httpx.codes.TOO_MANY_REQUESTS:
            raise KeyServiceError(f"OpenBao answers with status {answer.status}")
        return answer

    def close(self) -> None:
        """Close the connection."""
        self._client.close()

    def _send(self, method: str, path: str, body: Mapping[str, object] | None) -> Answer:
        if time.monotonic() < self._rest_until_s:
            raise KeyServiceError("OpenBao did not answer in time a moment ago")
        try:
            try:
                response = self._client.request(method, path, json=body)
            except _LOST:
                # It was restarted since the last call, which only shows at the next.
                response = self._client.request(method, path, json=body)
        except httpx.TimeoutException as exc:
            # One thread serves all devices: each of them waiting for the limit in turn would be an outage of hours.
            self._rest_until_s = time.monotonic() + self._settings.openbao_timeout_ms / 1000
            limit_ms = self._settings.openbao_timeout_ms
            raise KeyServiceError(f"OpenBao did not answer within {limit_ms} ms") from exc
        except httpx.HTTPError as exc:
            raise KeyServiceError(f"OpenBao cannot be reached: {exc}") from exc
        return _read(response)


def _read(response: httpx.Response) -> Answer:
    try:
        content = msgspec.json.decode(response.content or b"{}", type=_Content)
    except (msgspec.MsgspecError, ValueError) as exc:
        raise KeyServiceError(f"what answers is no OpenBao (status {response.status_code})") from exc
    return Answer(response.status_code, content.data or {}, content.errors or [])


def _checked_url(url: str) -> str:
    """Return the address without a slash at its end.

    Raises:
        StoreError: it is none, or keys would cross a network in clear.
    """
    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
    except ValueError as exc:
        raise StoreError("openbao_url is no address") from exc
    if parts.scheme not in ("http", "https") or not host or parts.query or parts.username:
        raise StoreError("openbao_url is no address such as https://bao.example.org:8200")
    if parts.scheme == "http" and not _is_loopback(host):
        raise StoreError("openbao_url leaves this machine without TLS: use https")
    return url.rstrip("/")


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _tls(ca_file: str) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=ca_file or None)
    except (OSError, ssl.SSLError) as exc:
        raise StoreError(f"the certificates of openbao_ca_file {Path(ca_file).name} cannot be read") from exc
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    return context


def _token(settings: KeyServiceSettings) -> str:
    if not settings.openbao_token_file:
        token = os.environ.get(TOKEN_VARIABLE, "")
        where = f"the environment variable {TOKEN_VARIABLE}"
    else:
        token, where = _token_of_file(Path(settings.openbao_token_file)), "the file openbao_token_file"
    # A token that cannot stand in a header would fail with its own text in the error.
    if not token or not token.isascii() or not token.isprintable():
        raise StoreError(f"{where} holds no token for OpenBao")
    return token


def _token_of_file(path: Path) -> str:
    try:
        if stat.S_IMODE(path.stat().st_mode) & 0o077:
            raise StoreError(f"others may read the token file {path.name}; run `chmod 600` on it")
        return path.read_text("ascii").strip()
    except (OSError, ValueError) as exc:
        raise StoreError(f"the token file {path.name} cannot be read") from exc
