"""How to reach a NATS cluster: its addresses, TLS, and who we are."""

from __future__ import annotations

import re
import ssl
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import msgspec
import nkeys

from twinlock.errors import StoreError

DEFAULT_PORT = 4222
SCHEMES = ("nats", "tls")
SEE_KEY = "see that it knows our key: nats_nkey_file in the settings, --operator on the command line"
_LONG_IDS = re.compile(r"\b([0-9a-f]{8})[0-9a-f]{24,}\b")


class Address(msgspec.Struct, frozen=True):
    """One server of the cluster."""

    host: str
    port: int

    @property
    def netloc(self) -> str:
        """Host and port as they stand in an address."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class NatsOptions(msgspec.Struct, frozen=True):
    """The settings of the connections to a cluster.

    `ca_file` is the authority that signed the servers' certificates, `certificate` and `key` our own if they ask for
    one; `nkey_file` holds an nkey seed, `creds_file` a JWT with its seed. All are paths, empty where not used.
    """

    addresses: tuple[Address, ...]
    is_tls: bool = False
    ca_file: str = ""
    certificate: str = ""
    key: str = ""
    nkey_file: str = ""
    creds_file: str = ""
    user: str = ""
    password: str = ""

    @classmethod
    def from_url(
        cls,
        url: str,
        *,
        ca_file: str = "",
        certificate: str = "",
        key: str = "",
        nkey_file: str = "",
        creds_file: str = "",
    ) -> NatsOptions:
        """Read addresses such as `nats://a:4222,b:4222` or `tls://a,b,c`.

        Raises:
            StoreError: it is no such address.
        """
        addresses: list[Address] = []
        scheme, mark, rest = url.partition("://")
        if scheme not in SCHEMES or not mark or not rest:
            raise StoreError("the address of a NATS cluster is nats://host:port,host:port or tls://…")
        user = password = ""
        for part in rest.split(","):
            try:
                split = urlsplit(f"{scheme}://{part.partition('://')[2] or part}")
                addresses.append(Address(split.hostname or "", split.port or DEFAULT_PORT))
            except ValueError as exc:
                raise StoreError("the address of a NATS server cannot be read") from exc
            user, password = split.username or user, split.password or password
        if not all(address.host for address in addresses):
            raise StoreError("the address of a NATS server without a host")
        is_tls = scheme == "tls" or bool(ca_file or certificate)
        return cls(tuple(addresses), is_tls, ca_file, certificate, key, nkey_file, creds_file, user, password)

    def tls_context(self) -> ssl.SSLContext:
        """Return what TLS connections are made with.

        Raises:
            StoreError: a file cannot be read or is no certificate.
        """
        try:
            context = ssl.create_default_context(cafile=self.ca_file or None)
            context.minimum_version = ssl.TLSVersion.TLSv1_2
            if self.certificate:
                context.load_cert_chain(self.certificate, self.key or None)
        except (OSError, ssl.SSLError) as exc:
            files = ", ".join(file for file in (self.ca_file, self.certificate, self.key) if file)
            raise StoreError(f"the certificates for NATS cannot be used ({files}): {exc.strerror or exc}") from exc
        return context

    def connect_arguments(self, address: Address) -> dict[str, Any]:
        """Return what `nats.connect` is told of one server and of who we are.

        Raises:
            StoreError: a file cannot be read, or holds something else.
        """
        told: dict[str, Any] = {
            "servers": [f"{'tls' if self.is_tls else 'nats'}://{address.netloc}"],
            "name": "twinlock",
        }
        if self.is_tls:
            told |= {"tls": self.tls_context(), "tls_hostname": address.host}
        if self.creds_file:
            _check_file(self.creds_file)
            told["user_credentials"] = self.creds_file
        elif self.nkey_file:
            _check_seed(self.nkey_file)
            told["nkeys_seed"] = self.nkey_file
        elif self.user:
            told |= {"user": self.user, "password": self.password}
        return told


def why_unusable(address: Address, error: Exception) -> str:
    """Say why a server cannot be used, and which setting it depends on where the error itself names none."""
    reason = shown_error(error)
    if "CERTIFICATE_VERIFY_FAILED" in reason:
        reason += "; name the authority: nats_ca_file in the settings, --operator on the command line"
    elif isinstance(error, (ConnectionResetError, BrokenPipeError)) or "authorization" in reason.lower():
        # A server that refuses a key closes at once, often before its word to that effect is read.
        reason += f"; {SEE_KEY}"
    return f"NATS at {address.host}:{address.port} cannot be used: {reason}"


def shown_error(error: Exception) -> str:
    """Return the text of an error with ids shortened: those who read logs need not know of whole spaces."""
    return _LONG_IDS.sub(r"\1…", str(error) or type(error).__name__)


def _check_file(path: str) -> str:
    try:
        return Path(path).read_text(encoding="ascii")
    except OSError as exc:
        raise StoreError(f"{path} cannot be read: {exc.strerror}") from exc
    except ValueError as exc:
        # Its content is a secret.
        raise StoreError(f"{path} cannot be read: it is no text") from exc


def _check_seed(path: str) -> None:
    try:
        nkeys.from_seed(bytearray(_check_file(path).strip().encode())).wipe()
    except nkeys.NkeysError as exc:
        raise StoreError(f"{path} holds no nkey seed") from exc
