"""Root keys in a file of this machine, readable by its owner alone. Never back it up together with the database."""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from pathlib import Path

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from twinlock.errors import StoreError
from twinlock.keyservice.wrapper import Bound, KeyWrapper
from twinlock.protocol.labels import u32

ROOT_KEY_BYTES = 32
_NONCE_BYTES = 12
_VERSION_BYTES = 4
_OVERHEAD_BYTES = _VERSION_BYTES + _NONCE_BYTES + 16


class _RootKeys(msgspec.Struct, frozen=True):
    """The file's content: base64 of each version that still exists."""

    active: int
    keys: dict[int, bytes]

    def __repr__(self) -> str:
        return f"_RootKeys(active={self.active}, ...)"


class FileKeyWrapper(KeyWrapper):
    """AES-256-GCM under a versioned root key. A wrapped secret is `u32 version || nonce || ciphertext`."""

    __slots__ = ("_path", "_root")

    def __init__(self, path: Path, root: _RootKeys) -> None:
        self._path = path
        self._root = root

    @classmethod
    def create(cls, path: Path) -> FileKeyWrapper:
        """Make a root key file; an existing one is never touched.

        Raises:
            StoreError: there is one, or it cannot be written.
        """
        root = _RootKeys(1, {1: os.urandom(ROOT_KEY_BYTES)})
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            _write_and_sync(descriptor, msgspec.json.encode(root))
            _sync_folder(path.parent)
        except OSError as exc:
            raise StoreError(f"the root key file cannot be made: {exc.strerror}") from exc
        return cls(path, root)

    @classmethod
    def load(cls, path: Path) -> FileKeyWrapper:
        """Read a root key file.

        Raises:
            StoreError: it is missing, damaged, or others may read it.
        """
        try:
            if stat.S_IMODE(path.stat().st_mode) & 0o077:
                raise StoreError(f"others may read the root key file {path.name}; run `chmod 600` on it")
            root = msgspec.json.decode(path.read_bytes(), type=_RootKeys)
        except OSError as exc:
            raise StoreError(f"the root key file {path.name} cannot be read: {exc.strerror}") from exc
        except msgspec.MsgspecError as exc:
            raise StoreError(f"the root key file {path.name} is damaged") from exc
        if root.active not in root.keys or any(len(key) != ROOT_KEY_BYTES for key in root.keys.values()):
            raise StoreError(f"the root key file {path.name} is damaged")
        return cls(path, root)

    @property
    def versions(self) -> list[int]:
        """The versions that still exist, the active one last."""
        return sorted(self._root.keys)

    def version_of(self, wrapped: bytes) -> int:
        """Return the version that a secret was wrapped under."""
        if len(wrapped) < _OVERHEAD_BYTES:
            raise StoreError("a stored key is no key that a root key file wrapped")
        return int.from_bytes(wrapped[:_VERSION_BYTES], "big")

    def wrap(self, secret: bytes, context: bytes) -> bytes:
        """Return the secret wrapped under the active version."""
        nonce = os.urandom(_NONCE_BYTES)
        sealed = AESGCM(self._root.keys[self._root.active]).encrypt(nonce, secret, context)
        return u32(self._root.active) + nonce + sealed

    def unwrap_many(self, rows: Sequence[Bound]) -> list[bytes]:
        """Return the secrets of wrapped ones with their contexts."""
        return [self._unwrap(wrapped, context) for wrapped, context in rows]

    def rewrap_many(self, rows: Sequence[Bound]) -> list[bytes]:
        """Return the same secrets wrapped under the active version."""
        return [self.wrap(self._unwrap(wrapped, context), context) for wrapped, context in rows]

    def _unwrap(self, wrapped: bytes, context: bytes) -> bytes:
        version, rest = self.version_of(wrapped), wrapped[_VERSION_BYTES:]
        key = self._root.keys.get(version)
        if key is None:
            raise StoreError(f"version {version} of the root key does not exist (any more)")
        try:
            return AESGCM(key).decrypt(rest[:_NONCE_BYTES], rest[_NONCE_BYTES:], context)
        except (InvalidTag, ValueError) as exc:
            raise StoreError("a stored key was wrapped by another root key, or was altered") from exc

    def rotate(self) -> int:
        """Make a new version, durably, and use it from now on."""
        version = max(self._root.keys) + 1
        self._replace(_RootKeys(version, {**self._root.keys, version: os.urandom(ROOT_KEY_BYTES)}))
        return version

    def destroy_version(self, version: int) -> None:
        """Forget a version and all before it.

        Raises:
            StoreError: it is the active one, or does not exist.
        """
        if version == self._root.active:
            raise StoreError("the active version of the root key cannot be destroyed")
        if version not in self._root.keys:
            raise StoreError(f"version {version} of the root key does not exist (any more)")
        self._replace(_RootKeys(self._root.active, {n: key for n, key in self._root.keys.items() if n > version}))

    def close(self) -> None:
        """Do nothing: the file is open only while it is read or written."""

    def _replace(self, root: _RootKeys) -> None:
        beside = self._path.with_name(self._path.name + ".new")
        try:
            descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            _write_and_sync(descriptor, msgspec.json.encode(root))
            os.replace(beside, self._path)
            _sync_folder(self._path.parent)
        except OSError as exc:
            raise StoreError(f"the root key file cannot be written: {exc.strerror}") from exc
        self._root = root


def _write_and_sync(descriptor: int, data: bytes) -> None:
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
