"""What is known of a file: its manifest, as a document of `$files`, and what an application is told of it."""

from __future__ import annotations

import mimetypes
from collections.abc import Mapping
from enum import StrEnum
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any, Final

import msgspec

from twinlock.document.file_ref import FileRef
from twinlock.errors import InvalidDataError, TwinlockError
from twinlock.ids import BlobId, Epoch
from twinlock.protocol.limits import BLOB_BYTES_MAX
from twinlock.sealing.blobs import BlobLayout

FILE_NAME_BYTES_MAX: Final = 255
FILE_TYPE_BYTES_MAX: Final = 255
DEFAULT_TYPE: Final = "application/octet-stream"


class Manifest(msgspec.Struct, frozen=True):
    """What names a file and lets it be read: the content of its document. See spec/documents.md, section 11."""

    blob_id: bytes
    epoch: int
    size: int
    sha256: bytes
    name: str
    type: str
    added_ms: int
    attached: bool = False

    @property
    def blob(self) -> BlobId:
        """The id of the file's blob, which is the file's own."""
        return BlobId(self.blob_id)

    @property
    def number(self) -> Epoch:
        """The epoch under which it is sealed."""
        return Epoch(self.epoch)

    @property
    def layout(self) -> BlobLayout:
        """Where its chunks lie."""
        return BlobLayout(self.size)

    def stored(self) -> dict[str, Any]:
        """Return what stands in the document."""
        return {field: getattr(self, field) for field in self.__struct_fields__}


class FileState(StrEnum):
    """Where a file is: `waiting` on this device alone, `uploading`, `held` back by an error, or `uploaded`."""

    WAITING = "waiting"
    UPLOADING = "uploading"
    HELD = "held"
    UPLOADED = "uploaded"


class FileInfo(msgspec.Struct, frozen=True):
    """A file as an application sees it.

    `name` and `type` are what whoever put it said; never open a path by them unchecked. `attached` tells that it is
    deleted when no document names it any more. `sent_bytes` of `sealed_bytes` are on the server. `error` is why it is
    held back.
    """

    id: str
    name: str
    type: str
    size: int
    sealed_bytes: int
    added_ms: int
    attached: bool
    state: FileState
    sent_bytes: int
    error: TwinlockError | None = None

    @property
    def ref(self) -> FileRef:
        """What names it in a document."""
        return FileRef(self.id)


def info_of(
    manifest: Manifest, state: FileState, sent_bytes: int | None = None, error: TwinlockError | None = None
) -> FileInfo:
    """Return what an application is told; without `sent_bytes` all are on the server."""
    sealed_bytes = manifest.layout.sealed_bytes
    sent = sealed_bytes if sent_bytes is None else sent_bytes
    return FileInfo(
        manifest.blob_id.hex(),
        manifest.name,
        manifest.type,
        manifest.size,
        sealed_bytes,
        manifest.added_ms,
        manifest.attached,
        state,
        sent,
        error,
    )


def read_manifest(id: str, value: Mapping[str, Any]) -> Manifest | None:
    """Read a document of `$files`; None if it is none of a file that could be read."""
    try:
        manifest = msgspec.convert(value, Manifest)
    except msgspec.ValidationError:
        return None
    is_sound = (
        manifest.blob_id.hex() == id
        and manifest.size >= 0
        and manifest.epoch > 0
        and len(manifest.sha256) == 32
        and manifest.layout.sealed_bytes <= BLOB_BYTES_MAX
    )
    return manifest if is_sound else None


def check_file_name(name: str) -> str:
    """Return the name of a file that is put: the last part of a path, without control characters.

    Raises:
        InvalidDataError: nothing is left of it, or it is too long.
    """
    last = PureWindowsPath(PurePosixPath(name).name).name
    kept = "".join(letter for letter in last if letter.isprintable())
    if kept in ("", ".", "..") or len(kept.encode(errors="surrogateescape")) > FILE_NAME_BYTES_MAX:
        raise InvalidDataError(f"a file's name has 1 to {FILE_NAME_BYTES_MAX} bytes")
    return kept


def check_file_type(type: str | None, name: str) -> str:
    """Return the type of a file that is put, by default what its name tells.

    Raises:
        InvalidDataError: it is no media type.
    """
    found = type if type is not None else mimetypes.guess_type(name, strict=False)[0] or DEFAULT_TYPE
    if not found.isascii() or not found.isprintable() or not 1 <= len(found) <= FILE_TYPE_BYTES_MAX:
        raise InvalidDataError(f"a file's type has 1 to {FILE_TYPE_BYTES_MAX} ASCII characters")
    return found
