"""The server's own secrets: its signing key, and the key of its keyed hashes. One file, readable by its owner alone."""

from __future__ import annotations

import hashlib
import hmac
import os
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from twinlock.errors import StoreError
from twinlock.protocol.labels import label
from twinlock.protocol.proofs import server_id_of

FILE_NAME = "server.key"
_SECRET_BYTES = 64


class ServerSecrets:
    """The key that proves the server to its clients, and the keys derived beside it. `repr` shows none of them."""

    __slots__ = ("_pepper", "bearer_key", "server_id", "server_pk", "sign", "ticket_key")

    def __init__(self, secret: bytes) -> None:
        assert len(secret) == _SECRET_BYTES
        key = Ed25519PrivateKey.from_private_bytes(secret[:32])
        self.sign = key.sign
        self.server_pk = key.public_key().public_bytes_raw()
        self.server_id = server_id_of(self.server_pk)
        self._pepper = hmac.digest(secret[32:], label("pepper"), hashlib.sha256)
        self.ticket_key = hmac.digest(secret[32:], label("ticket"), hashlib.sha256)
        self.bearer_key = hmac.digest(secret[32:], label("bearer"), hashlib.sha256)

    def keyed_hash(self, data: bytes) -> bytes:
        """Return `HMAC(pepper, data)`: what is stored in place of a secret that a client proves."""
        return hmac.digest(self._pepper, data, hashlib.sha256)


def make_secrets() -> ServerSecrets:
    """Make secrets that live as long as the process."""
    return ServerSecrets(os.urandom(_SECRET_BYTES))


def open_secrets(folder: Path) -> ServerSecrets:
    """Read the secrets of a data folder, or make them at its first use.

    Raises:
        StoreError: the file is damaged, or can be read by others.
    """
    file = folder / FILE_NAME
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not file.exists():
            _write_new(file, os.urandom(_SECRET_BYTES))
        secret = file.read_bytes()
        mode = file.stat().st_mode
    except OSError as exc:
        raise StoreError(f"{FILE_NAME}: {exc.strerror}") from exc
    if len(secret) != _SECRET_BYTES:
        raise StoreError(f"{FILE_NAME} is damaged: restore it from a backup, clients know the server by it")
    if mode & 0o077:
        raise StoreError(f"{FILE_NAME} can be read by others: chmod 600 it")
    return ServerSecrets(secret)


def _write_new(file: Path, secret: bytes) -> None:
    """Write a file that is either there in full or not at all."""
    draft = file.with_suffix(".new")
    draft.unlink(missing_ok=True)
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        os.write(descriptor, secret)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    draft.rename(file)
    folder = os.open(file.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
