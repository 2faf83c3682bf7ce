"""The backup of a root key: each of its versions sealed to a key pair whose private half lies on sheets of paper.

The file holds nothing that opens without the sheets, so it goes with the backups of the database. The public half that
a rotation seals to is taken from the root key's own file, never from here: who may only write here learns nothing.
See docs/reference/keyservice.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import msgspec
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from twinlock.errors import OpenError, SheetError, StoreError
from twinlock.keyservice.private_file import replace
from twinlock.protocol import hpke
from twinlock.protocol.labels import label, u32

FILE_NAME = "root-backup.json"
FORMAT = 1


class SplitKey(msgspec.Struct, frozen=True):
    """The public half of a split backup key, whose root key it backs up, and the set of sheets that opens it."""

    public_key: bytes
    keyservice_id: bytes
    set_id: int
    sheets_count: int
    needed_count: int


class RootBackup(msgspec.Struct, frozen=True):
    """The file: base64 of each sealed version that still exists."""

    split: SplitKey
    sealed: dict[int, bytes]
    format: int = FORMAT

    def unseal(self, private_key: bytes) -> dict[int, bytes]:
        """Return each version of the root key.

        Raises:
            SheetError: the private key, and so the sheets, are of another set.
            StoreError: a sealed version was altered.
        """
        private = X25519PrivateKey.from_private_bytes(private_key)
        if private.public_key().public_bytes_raw() != self.split.public_key:
            raise SheetError(f"the sheets are not those of this backup, which set {self.split.set_id} opens")
        return {version: self._unsealed(version, private) for version in self.sealed}

    def _unsealed(self, version: int, private: X25519PrivateKey) -> bytes:
        try:
            return hpke.open_sealed(private, self.sealed[version], _info(self.split, version))
        except OpenError as exc:
            raise StoreError(f"version {version} of the root key in {FILE_NAME} was altered") from exc


def write_root_backup(path: Path, split: SplitKey, keys: Mapping[int, bytes]) -> None:
    """Seal every version of a root key anew and write the file, durably.

    Raises:
        OSError: it cannot be written.
        ValueError: the public key is none.
    """
    sealed = {version: hpke.seal(split.public_key, key, _info(split, version)) for version, key in keys.items()}
    replace(path, msgspec.json.format(msgspec.json.encode(RootBackup(split, sealed)), indent=1) + b"\n")


def read_root_backup(path: Path) -> RootBackup:
    """Read the file.

    Raises:
        StoreError: it is missing, damaged, or of a newer version.
    """
    try:
        backup = msgspec.json.decode(path.read_bytes(), type=RootBackup)
    except FileNotFoundError as exc:
        raise StoreError(f"there is no {path.name}: this root key was never split, give its file") from exc
    except OSError as exc:
        raise StoreError(f"{path.name} cannot be read: {exc.strerror}") from exc
    except (msgspec.MsgspecError, ValueError) as exc:
        raise StoreError(f"{path.name} is damaged") from exc
    if backup.format != FORMAT:
        raise StoreError(f"{path.name} is of format {backup.format}, this version knows {FORMAT}")
    if not backup.sealed:
        raise StoreError(f"{path.name} is damaged")
    return backup


def _info(split: SplitKey, version: int) -> bytes:
    return label("root-backup", split.keyservice_id + u32(version))
