"""How to reach a NATS cluster: its addresses, TLS, and who we are."""

from __future__ import annotations

import base64
import ssl
from pathlib import Path
from urllib.parse import urlsplit

import msgspec
import nkeys

from twinlock.errors import StoreError

DEFAULT_PORT = 4222
SCHEMES = ("nats", "tls")


class Address(msgspec.Struct, frozen=True):
    """One server of the cluster."""

    host: str
    port: int


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
            raise StoreError(f"the certificates for NATS cannot be used: {exc.strerror or exc}") from exc
        return context

    def proofs(self, nonce: str) -> dict[str, str]:
        """Return what a `CONNECT` says of who we are, with the server's nonce signed.

        Raises:
            StoreError: the seed cannot be read.
        """
        if self.creds_file:
            return {"jwt": _section(self.creds_file, "JWT"), **_signed(_section(self.creds_file, "SEED"), nonce)}
        if self.nkey_file:
            seed = _read(self.nkey_file).strip()
            return {"nkey": _public_key(seed), **_signed(seed, nonce)}
        return {"user": self.user, "pass": self.password} if self.user else {}


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="ascii")
    except (OSError, ValueError) as exc:
        # The file's name says enough; its content is a secret.
        raise StoreError(f"{Path(path).name} cannot be read") from exc


def _section(path: str, name: str) -> str:
    """Return what stands between the BEGIN and END lines of a part of a credentials file."""
    lines = _read(path).splitlines()
    marks = [place for place, line in enumerate(lines) if name in line and line.startswith("---")]
    if len(marks) < 2:
        raise StoreError(f"{Path(path).name} is no credentials file of NATS")
    return "".join(lines[marks[0] + 1 : marks[1]]).strip()


def _signed(seed: str, nonce: str) -> dict[str, str]:
    pair = _pair(seed)
    signature = pair.sign(nonce.encode())
    pair.wipe()
    return {"sig": base64.b64encode(signature).decode()}


def _public_key(seed: str) -> str:
    pair = _pair(seed)
    public: bytes = pair.public_key
    text = public.decode()
    pair.wipe()
    return text


def _pair(seed: str) -> nkeys.KeyPair:
    try:
        return nkeys.from_seed(bytearray(seed.encode()))
    except nkeys.NkeysError as exc:
        raise StoreError("the seed for NATS is no nkey seed") from exc
