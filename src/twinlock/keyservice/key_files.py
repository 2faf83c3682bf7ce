"""Signing keys in files of their own: the service's, and that of each node. Readable by their owner alone."""

from __future__ import annotations

import os
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from twinlock.errors import StoreError
from twinlock.keyservice.node_auth import KEY_BYTES
from twinlock.keyservice.private_file import check_private, sync_folder

SERVICE_KEY_NAME = "service.key"
NODE_KEY_NAME = "node.key"


def open_signing_key(path: Path) -> Ed25519PrivateKey:
    """Read a signing key, or make it, and its folder, at its first use.

    Raises:
        StoreError: the file is damaged, cannot be read or written, or others may read it.
    """
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not path.exists():
            _write_new(path, os.urandom(KEY_BYTES))
        check_private(path, "signing key")
        secret = path.read_bytes()
    except OSError as exc:
        raise StoreError(f"{path.name}: {exc.strerror}") from exc
    if len(secret) != KEY_BYTES:
        raise StoreError(f"{path.name} is damaged: restore it from a backup, the other side knows this one by it")
    return Ed25519PrivateKey.from_private_bytes(secret)


def public_key_text(key: Ed25519PrivateKey) -> str:
    """Return the public half as it stands in the other side's settings."""
    return key.public_key().public_bytes_raw().hex()


def read_public_key(text: str) -> bytes:
    """Read a public key from settings.

    Raises:
        ValueError: it is none.
    """
    try:
        key = bytes.fromhex(text)
    except ValueError:
        raise ValueError(f"a public key has {2 * KEY_BYTES} hex digits, and nothing else") from None
    if len(key) != KEY_BYTES:
        raise ValueError(f"a public key has {2 * KEY_BYTES} hex digits, not {len(text)}")
    return key


def _write_new(path: Path, secret: bytes) -> None:
    # Complete or not there at all, and never over one that another process has just made.
    draft = path.with_name(f"{path.name}.{os.getpid()}.new")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(secret)
        file.flush()
        os.fsync(file.fileno())
    try:
        os.link(draft, path)
    except FileExistsError:
        pass
    finally:
        draft.unlink()
    sync_folder(path.parent)
