"""Root keys in a file of this machine, readable by its owner alone. Never back it up together with the database."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from twinlock.errors import StoreError
from twinlock.keyservice.private_file import check_private, replace, write_new
from twinlock.keyservice.root_backup import FILE_NAME as BACKUP_FILE_NAME
from twinlock.keyservice.root_backup import RootBackup, SplitKey, write_root_backup
from twinlock.keyservice.wrapper import Bound, KeyWrapper
from twinlock.protocol.labels import u32

ROOT_KEY_BYTES = 32
_NONCE_BYTES = 12
_VERSION_BYTES = 4
_VERSION_MAX = (1 << 32) - 1
_OVERHEAD_BYTES = _VERSION_BYTES + _NONCE_BYTES + 16


class _RootKeys(msgspec.Struct, frozen=True, omit_defaults=True):
    """The file's content: base64 of each version that still exists, and what they are sealed to for a backup."""

    active: int
    keys: dict[int, bytes]
    split: SplitKey | None = None

    def __repr__(self) -> str:
        return f"_RootKeys(active={self.active}, ...)"

    @property
    def is_sound(self) -> bool:
        """Whether these can be versions of a root key."""
        if self.active != max(self.keys, default=-1) or not all(1 <= number <= _VERSION_MAX for number in self.keys):
            return False
        return all(len(key) == ROOT_KEY_BYTES for key in self.keys.values())


class FileKeyWrapper(KeyWrapper):
    """AES-256-GCM under a versioned root key. A wrapped secret is `u32 version || nonce || ciphertext`."""

    __slots__ = ("_backup_path", "_path", "_root")

    def __init__(self, path: Path | None, root: _RootKeys, backup_path: Path | None = None) -> None:
        """Use `create`, `load` or `of_backup`; without a path the root key is in memory only and stays as it is."""
        self._path = path
        self._root = root
        self._backup_path = backup_path or (path and path.with_name(BACKUP_FILE_NAME))

    @classmethod
    def create(cls, path: Path, backup_path: Path | None = None) -> FileKeyWrapper:
        """Make a root key file; an existing one is never touched.

        Raises:
            StoreError: there is one, or it cannot be written.
        """
        wrapper = cls(None, _RootKeys(1, {1: os.urandom(ROOT_KEY_BYTES)}))
        wrapper.save(path, backup_path)
        return wrapper

    @classmethod
    def load(cls, path: Path, backup_path: Path | None = None) -> FileKeyWrapper:
        """Read a root key file; `backup_path` is where its split backup lies, beside it by default.

        Raises:
            StoreError: it is missing, damaged, or others may read it.
        """
        return cls(path, _read(path), backup_path)

    @classmethod
    def of_backup(cls, backup: RootBackup, private_key: bytes) -> FileKeyWrapper:
        """Bring a root key back from its split backup, in memory; `save` it to go on with it.

        Raises:
            SheetError: the private key, and so the sheets, are of another set.
            StoreError: the backup was altered.
        """
        keys = backup.unseal(private_key)
        root = _RootKeys(max(keys), keys, backup.split)
        if not root.is_sound:
            raise StoreError(f"{BACKUP_FILE_NAME} is damaged")
        return cls(None, root)

    @property
    def versions(self) -> list[int]:
        """The versions that still exist, the active one last."""
        return sorted(self._root.keys)

    @property
    def split(self) -> SplitKey | None:
        """What the versions are sealed to for a backup, if the root key was ever split."""
        return self._root.split

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

    def rotate(self) -> int:
        """Make a new version, durably, and use it from now on; its split backup is durable before it is used."""
        with self._held() as root:
            version = root.active + 1
            self._replace({**root.keys, version: os.urandom(ROOT_KEY_BYTES)}, root.split)
        return version

    def destroy_version(self, version: int) -> None:
        """Forget a version and all before it, also in the split backup beside the database.

        Raises:
            StoreError: it is the active one, or does not exist.
        """
        with self._held() as root:
            if version == root.active:
                raise StoreError("the active version of the root key cannot be destroyed")
            if version not in root.keys:
                raise StoreError(f"version {version} of the root key does not exist (any more)")
            self._replace({number: key for number, key in root.keys.items() if number > version}, root.split)

    def back_up_to(self, split: SplitKey) -> None:
        """Seal every version to a split key, from now on also each new one.

        Raises:
            StoreError: the root key file or the backup cannot be written.
        """
        with self._held() as root:
            self._replace(root.keys, split)

    def save(self, path: Path, backup_path: Path | None = None) -> None:
        """Write the root key to a file that does not exist yet, and its split backup if it has one.

        Raises:
            StoreError: there is such a file, or it cannot be written.
        """
        backup_path = backup_path or path.with_name(BACKUP_FILE_NAME)
        try:
            if self._root.split is not None:
                write_root_backup(backup_path, self._root.split, self._root.keys)
            write_new(path, msgspec.json.encode(self._root))
        except (OSError, ValueError) as exc:
            raise StoreError(f"the root key file {path.name} cannot be made: {exc}") from exc
        self._path, self._backup_path = path, backup_path

    def close(self) -> None:
        """Do nothing: the file is open only while it is read or written."""

    def _unwrap(self, wrapped: bytes, context: bytes) -> bytes:
        version, rest = self.version_of(wrapped), wrapped[_VERSION_BYTES:]
        key = self._root.keys.get(version)
        if key is None:
            raise StoreError(f"version {version} of the root key does not exist (any more)")
        try:
            return AESGCM(key).decrypt(rest[:_NONCE_BYTES], rest[_NONCE_BYTES:], context)
        except (InvalidTag, ValueError) as exc:
            raise StoreError("a stored key was wrapped by another root key, or was altered") from exc

    @contextmanager
    def _held(self) -> Iterator[_RootKeys]:
        """Hold the file against other processes, as `twinlock keyservice split` beside a running service is one."""
        if self._path is None:
            raise StoreError("this root key is in memory only")
        try:
            folder = os.open(self._path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as exc:
            raise StoreError(f"the root key file cannot be written: {exc.strerror}") from exc
        try:
            fcntl.flock(folder, fcntl.LOCK_EX)
            yield _read(self._path)
        finally:
            os.close(folder)

    def _replace(self, keys: Mapping[int, bytes], split: SplitKey | None) -> None:
        assert self._path is not None
        assert self._backup_path is not None
        root = _RootKeys(max(keys), dict(keys), split)
        try:
            # The backup first: no version is ever used that the sheets could not bring back, and none that was
            # destroyed stays in it after a crash, since the destruction is then done again.
            if split is not None:
                write_root_backup(self._backup_path, split, keys)
            replace(self._path, msgspec.json.encode(root))
        except (OSError, ValueError) as exc:
            raise StoreError(f"the root key file or its backup cannot be written: {exc}") from exc
        self._root = root


def _read(path: Path) -> _RootKeys:
    try:
        check_private(path, "root key file")
        root = msgspec.json.decode(path.read_bytes(), type=_RootKeys)
    except OSError as exc:
        raise StoreError(f"the root key file {path.name} cannot be read: {exc.strerror}") from exc
    except msgspec.MsgspecError as exc:
        raise StoreError(f"the root key file {path.name} is damaged") from exc
    if not root.is_sound:
        raise StoreError(f"the root key file {path.name} is damaged")
    return root
