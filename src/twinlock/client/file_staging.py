"""Files that wait for their upload: sealed as they will lie on the server, each with a sealed note of what it is.

`<blob>.sealed` holds the chunks, `<blob>.note` what belongs to them; a note stands only beside a whole file. What has
no note is a draft that a crash left behind.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import msgspec

from twinlock.client.file_manifests import Manifest
from twinlock.client.private_files import make_private_file, make_private_folder, sync_folder, write_private
from twinlock.errors import OpenError, StoreDamagedError, StoreError, TwinlockError
from twinlock.ids import BlobId, Epoch, SpaceId
from twinlock.protocol.labels import label, u32
from twinlock.sealing.blobs import BlobSealer
from twinlock.sealing.boxes import open_box, seal_box
from twinlock.sealing.space_keys import EpochKeys
from twinlock.sealing.suite import Entropy, StoreKey

FOLDER_NAME = "files"
_SEALED, _NOTE = ".sealed", ".note"


class StagedNote(msgspec.Struct, frozen=True, array_like=True):
    """What must be known to send a file, and, sealed, what makes it a file."""

    epoch: Epoch
    sealed_bytes: int
    sealed: bytes


class Draft:
    """A file that is being sealed. Blocking: called in a thread."""

    __slots__ = ("_file", "_path", "_sealer", "blob")

    def __init__(self, path: Path, blob: BlobId, keys: EpochKeys) -> None:
        self.blob = blob
        self._path = path
        self._sealer = BlobSealer(keys, blob)
        make_private_file(path)
        self._file: BinaryIO = path.open("wb")

    @property
    def size(self) -> int:
        """How much was taken in."""
        return self._sealer.size

    def write(self, data: bytes | memoryview) -> None:
        """Seal the next piece.

        Raises:
            StoreError: the disk refused.
            FileTooLargeError: the file is too long.
        """
        try:
            for chunk in self._sealer.seal(data):
                self._file.write(chunk)
        except OSError as exc:
            raise StoreError(f"a file could not be staged: {exc.strerror}") from exc

    def finish(self) -> tuple[int, bytes]:
        """Seal the end, bring all of it to the disk, and return the length of the content and the SHA-256."""
        try:
            for chunk in self._sealer.finish():
                self._file.write(chunk)
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
        except OSError as exc:
            raise StoreError(f"a file could not be staged: {exc.strerror}") from exc
        return self._sealer.size, self._sealer.sha256()

    def discard(self) -> None:
        """Give it up."""
        self._file.close()
        self._path.unlink(missing_ok=True)


class Staging:
    """The files of one space that the server does not have yet. `held` are those that it refuses for now, and why."""

    __slots__ = ("_blobs", "_entropy", "_folder", "_space", "_store_key", "held")

    def __init__(self, folder: Path, space: SpaceId, store_key: StoreKey, entropy: Entropy) -> None:
        self._folder = folder / FOLDER_NAME
        self._space = space
        self._store_key = store_key
        self._entropy = entropy
        self.held: dict[BlobId, TwinlockError] = {}
        self._blobs = self._found()

    def _found(self) -> dict[BlobId, StagedNote]:
        """Read what an earlier run left."""
        found: dict[BlobId, StagedNote] = {}
        for path in sorted(self._folder.glob(f"*{_NOTE}")) if self._folder.exists() else ():
            blob = BlobId(bytes.fromhex(path.stem))
            try:
                found[blob] = msgspec.msgpack.decode(path.read_bytes(), type=StagedNote)
            except msgspec.DecodeError as exc:
                raise StoreDamagedError(path.name) from exc
        return found

    def discard_drafts(self) -> None:
        """Delete what an earlier run had not finished; called before this one begins any."""
        for path in self._folder.glob(f"*{_SEALED}"):
            if bytes.fromhex(path.stem) not in self._blobs:
                path.unlink()

    # Putting

    def draft(self, keys: EpochKeys) -> Draft:
        """Begin a file under a new id.

        Raises:
            StoreError: the disk refused.
        """
        blob = BlobId(self._entropy(16))
        try:
            self.make_folder()
            return Draft(self.path(blob), blob, keys)
        except OSError as exc:
            raise StoreError(f"a file could not be staged: {exc.strerror}") from exc

    def add(self, manifest: Manifest, keys: EpochKeys) -> None:
        """Make a draft that is whole a file that waits; durable when this returns."""
        sealed = seal_box(
            keys.staging_key(self._store_key, manifest.blob),
            msgspec.msgpack.encode(manifest),
            self._aad(manifest.blob, manifest.number),
            self._entropy,
        )
        note = StagedNote(manifest.number, manifest.layout.sealed_bytes, sealed)
        try:
            write_private(self._note_path(manifest.blob), msgspec.msgpack.encode(note))
        except OSError as exc:
            raise StoreError(f"a file could not be staged: {exc.strerror}") from exc
        self._blobs[manifest.blob] = note

    def make_folder(self) -> None:
        """Make the folder if it is not there."""
        make_private_folder(self._folder)

    # Reading

    @property
    def blobs(self) -> list[BlobId]:
        """The files that wait."""
        return list(self._blobs)

    @property
    def pending_count(self) -> int:
        """How many wait and are not held back."""
        return len(self._blobs) - len(self.held)

    def note(self, blob: BlobId) -> StagedNote | None:
        """Return what must be known to send a file; None if it does not wait."""
        return self._blobs.get(blob)

    def manifest(self, blob: BlobId, keys_of: Callable[[Epoch], EpochKeys | None]) -> Manifest | None:
        """Return what a file that waits is; None if it does not wait, or the keys are not at hand.

        Raises:
            StoreDamagedError: its note was altered.
        """
        note = self._blobs.get(blob)
        keys = None if note is None else keys_of(note.epoch)
        if note is None or keys is None:
            return None
        try:
            opened = open_box(keys.staging_key(self._store_key, blob), note.sealed, self._aad(blob, note.epoch))
        except OpenError as exc:
            raise StoreDamagedError(self._note_path(blob).name) from exc
        return msgspec.msgpack.decode(opened, type=Manifest)

    def path(self, blob: BlobId) -> Path:
        """Return where the sealed chunks lie."""
        return self._folder / f"{blob.hex()}{_SEALED}"

    # Ending

    def remove(self, blob: BlobId, keep_as: Path | None = None) -> None:
        """Let go of a file: the server has it, or nobody wants it any more. `keep_as` is where its chunks go."""
        self._blobs.pop(blob, None)
        self.held.pop(blob, None)
        self._note_path(blob).unlink(missing_ok=True)
        if keep_as is not None and self.path(blob).exists():
            self.path(blob).replace(keep_as)
        self.path(blob).unlink(missing_ok=True)
        if self._folder.exists():
            sync_folder(self._folder)

    def _note_path(self, blob: BlobId) -> Path:
        return self._folder / f"{blob.hex()}{_NOTE}"

    def _aad(self, blob: BlobId, epoch: Epoch) -> bytes:
        return label("staging-aad", self._space + u32(epoch) + blob)
