"""The wrapped key of a replica file, and how it is wrapped again at each epoch. See spec/sealing.md, 3 and 9."""

from __future__ import annotations

from pathlib import Path

import msgspec

from twinlock.client.local_store import LocalStore
from twinlock.client.private_files import write_private
from twinlock.errors import LeaseExpiredError, OpenError, StoreDamagedError
from twinlock.ids import DeviceId, Epoch
from twinlock.protocol.labels import label, u32
from twinlock.sealing.boxes import open_box, seal_box
from twinlock.sealing.space_keys import EpochKeys
from twinlock.sealing.suite import SECRET_BYTES, Entropy, StoreKey

REPLICA_FILE_NAME = "replica.db"
KEY_FILE_NAME = "replica.key"


class _WrappedKey(msgspec.Struct, frozen=True):
    """What lies in `replica.key`: which epoch's local key opens it, and the wrapped key."""

    epoch: Epoch
    wrapped: bytes


class ReplicaFile:
    """One space's replica file and the sidecar that holds its wrapped key."""

    __slots__ = ("_device", "_entropy", "_folder", "_store_key")

    def __init__(self, folder: Path, device: DeviceId, store_key: StoreKey, entropy: Entropy) -> None:
        self._folder = folder
        self._device = device
        self._store_key = store_key
        self._entropy = entropy

    @property
    def wrapped_epoch(self) -> Epoch:
        """The epoch whose keys open the file (0: there is no file yet)."""
        wrapped = self._read()
        return Epoch(0) if wrapped is None else wrapped.epoch

    def open(self, keys: dict[Epoch, EpochKeys]) -> LocalStore:
        """Open the file, made if it is not there, and wrap its key to the newest epoch at hand.

        Raises:
            LeaseExpiredError: the keys of the epoch that it is wrapped to are not at hand.
            StoreDamagedError: the file, or its key, was altered.
        """
        newest = keys[max(keys)] if keys else None
        wrapped = self._read()
        if newest is None:
            raise LeaseExpiredError
        if wrapped is None:
            file_key = self._entropy(SECRET_BYTES)
            self._write(file_key, newest)
        else:
            file_key = self._unwrap(wrapped, keys)
            if wrapped.epoch < newest.epoch:
                self._write(file_key, newest)
        return LocalStore.open(self._folder / REPLICA_FILE_NAME, file_key)

    def erase(self) -> None:
        """Delete the file's key first, then the file."""
        for name in (KEY_FILE_NAME, REPLICA_FILE_NAME, f"{REPLICA_FILE_NAME}-wal", f"{REPLICA_FILE_NAME}-shm"):
            (self._folder / name).unlink(missing_ok=True)

    def rewrap(self, keys: dict[Epoch, EpochKeys]) -> None:
        """Wrap the file's key to the newest epoch, so that an earlier one no longer opens it."""
        wrapped = self._read()
        if wrapped is not None and wrapped.epoch < max(keys, default=0):
            self._write(self._unwrap(wrapped, keys), keys[max(keys)])

    def _unwrap(self, wrapped: _WrappedKey, keys: dict[Epoch, EpochKeys]) -> bytes:
        epoch_keys = keys.get(wrapped.epoch)
        if epoch_keys is None:
            raise LeaseExpiredError(f"epoch {wrapped.epoch}")
        try:
            local_key = epoch_keys.local_key(self._store_key, self._device)
            return open_box(local_key, wrapped.wrapped, self._aad(epoch_keys))
        except OpenError as exc:
            raise StoreDamagedError(KEY_FILE_NAME) from exc

    def _write(self, file_key: bytes, keys: EpochKeys) -> None:
        local_key = keys.local_key(self._store_key, self._device)
        wrapped = seal_box(local_key, file_key, self._aad(keys), self._entropy)
        write_private(self._folder / KEY_FILE_NAME, msgspec.msgpack.encode(_WrappedKey(keys.epoch, wrapped)))

    def _read(self) -> _WrappedKey | None:
        try:
            data = (self._folder / KEY_FILE_NAME).read_bytes()
            return msgspec.msgpack.decode(data, type=_WrappedKey)
        except FileNotFoundError as exc:
            if (self._folder / REPLICA_FILE_NAME).exists():
                raise StoreDamagedError(f"{KEY_FILE_NAME} is missing") from exc
            return None
        except msgspec.DecodeError as exc:
            raise StoreDamagedError(KEY_FILE_NAME) from exc

    @staticmethod
    def _aad(keys: EpochKeys) -> bytes:
        return label("replica-key", keys.space + u32(keys.epoch))
