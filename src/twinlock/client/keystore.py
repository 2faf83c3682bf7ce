"""Custody of the StoreKey, the one secret that makes this device's files its own. See spec/sealing.md, section 9.

The best holder that this machine offers is used: a passphrase if the application gives one, else the system's
keyring, else a file of mode 0600, which is marked weak.
"""

from __future__ import annotations

import base64
from enum import StrEnum
from pathlib import Path
from types import ModuleType

import msgspec

from twinlock.client.private_files import destroy_file, write_private
from twinlock.client.profile import STORE_KEY_FILE_NAME
from twinlock.errors import StoreKeyError
from twinlock.sealing.suite import SECRET_BYTES, Entropy, StoreKey
from twinlock.sealing.vault import open_store_key, seal_store_key

SERVICE_NAME = "twinlock"
KEYRING_PRIORITY_MIN = 1
"""Below this the `keyring` package itself does not recommend a backend: it stores nothing, or in clear text."""


class Custody(StrEnum):
    """Who holds the StoreKey."""

    KEYRING = "keyring"
    PASSPHRASE = "passphrase"  # noqa: S105 - a name, not a secret
    FILE = "file"

    @property
    def is_weak(self) -> bool:
        """Tell whether whoever can read the disk can read the key."""
        return self is Custody.FILE


class HeldKey(msgspec.Struct, frozen=True):
    """The StoreKey and who holds it."""

    key: StoreKey
    custody: Custody


class _KeyFile(msgspec.Struct, frozen=True):
    """What lies in `store.key`: where the key is, and for two of three holders the key itself."""

    custody: Custody
    name: str = ""
    sealed: bytes = b""

    def __repr__(self) -> str:
        return f"_KeyFile({self.custody}, hidden)"


def create_store_key(folder: Path, passphrase: str | None, entropy: Entropy) -> HeldKey:
    """Make this profile's StoreKey and hand it to its holder."""
    key = StoreKey.make(entropy)
    ring = None if passphrase else _keyring()
    if passphrase:
        record = _KeyFile(Custody.PASSPHRASE, sealed=seal_store_key(key, passphrase, entropy))
    elif ring is not None:
        record = _KeyFile(Custody.KEYRING, name=entropy(16).hex())
        _put_in_keyring(ring, record.name, key.expose())
    else:
        record = _KeyFile(Custody.FILE, sealed=key.expose())
    write_private(folder / STORE_KEY_FILE_NAME, msgspec.json.encode(record))
    return HeldKey(key, record.custody)


def load_store_key(folder: Path, passphrase: str | None) -> HeldKey:
    """Return this profile's StoreKey.

    Raises:
        StoreKeyError: the keyring is locked, the passphrase is missing or wrong, or the file is unreadable.
    """
    try:
        record = msgspec.json.decode((folder / STORE_KEY_FILE_NAME).read_bytes(), type=_KeyFile)
    except (OSError, msgspec.DecodeError) as exc:
        raise StoreKeyError(f"{STORE_KEY_FILE_NAME} cannot be read") from exc
    match record.custody:
        case Custody.KEYRING:
            key = _store_key(_get_from_keyring(record.name))
        case Custody.PASSPHRASE:
            key = _open_by_passphrase(record, passphrase)
        case Custody.FILE:
            key = _store_key(record.sealed)
    return HeldKey(key, record.custody)


def forget_store_key(folder: Path) -> None:
    """Delete the StoreKey from its holder, after which nothing sealed under it can be opened.

    Raises:
        StoreKeyError: the keyring that holds it cannot be reached; where it is remains known.
    """
    path = folder / STORE_KEY_FILE_NAME
    try:
        record = msgspec.json.decode(path.read_bytes(), type=_KeyFile)
    except (OSError, msgspec.DecodeError):
        record = _KeyFile(Custody.FILE)
    if record.custody is Custody.KEYRING:
        _delete_from_keyring(record.name)
    destroy_file(path)


def _open_by_passphrase(record: _KeyFile, passphrase: str | None) -> StoreKey:
    if not passphrase:
        raise StoreKeyError("this profile needs its passphrase: connect(passphrase=...)")
    return open_store_key(passphrase, record.sealed)


def _store_key(raw: bytes) -> StoreKey:
    if len(raw) != SECRET_BYTES:
        raise StoreKeyError("the key has a wrong length")
    return StoreKey(raw)


def _keyring() -> ModuleType | None:
    """Return the `keyring` package if it is installed and has a holder that keeps what it is given."""
    try:
        import keyring
    except ImportError:
        return None
    priority: float = keyring.get_keyring().priority
    return keyring if priority >= KEYRING_PRIORITY_MIN else None


def _put_in_keyring(ring: ModuleType, name: str, key: bytes) -> None:
    try:
        ring.set_password(SERVICE_NAME, name, base64.b64encode(key).decode())
    except Exception as exc:  # Every backend has exceptions of its own.
        raise StoreKeyError("the system's keyring refused to store the key") from exc


def _get_from_keyring(name: str) -> bytes:
    ring = _keyring()
    if ring is None:
        raise StoreKeyError("the system's keyring, which holds the key, is not available")
    try:
        text = ring.get_password(SERVICE_NAME, name)
    except Exception as exc:  # Every backend has exceptions of its own.
        raise StoreKeyError("the system's keyring is locked") from exc
    if text is None:
        raise StoreKeyError("the system's keyring no longer has the key")
    try:
        return base64.b64decode(text, validate=True)
    except ValueError as exc:
        raise StoreKeyError("the system's keyring holds something that is no key") from exc


def _delete_from_keyring(name: str) -> None:
    ring = _keyring()
    if ring is None:
        raise StoreKeyError("the system's keyring, which holds the key, is not available")
    try:
        if ring.get_password(SERVICE_NAME, name) is not None:
            ring.delete_password(SERVICE_NAME, name)
    except Exception as exc:  # Every backend has exceptions of its own.
        raise StoreKeyError("the system's keyring refused to delete the key") from exc
