"""The calls about blobs, and the paths of their parts over HTTP. See spec/protocol.md, section 9.

A blob is sealed on the device in chunks (spec/sealing.md, section 5) and stored in parts of BLOB_PART_CHUNKS chunks.
Parts travel over HTTP beside the sync socket, with a bearer token from `session.token`:

    PUT /blobs/<space>/<blob>/<part>    the bytes of one part, of a blob that was begun
    GET /blobs/<space>/<blob>/<part>    all of it, or what a `Range: bytes=first-last` names

Ids are 32 hex digits, a part's number is decimal. A part is put once or again with the same bytes.
"""

from __future__ import annotations

import msgspec

from twinlock.ids import BlobId, Epoch, SpaceId


class BearerToken(msgspec.Struct, frozen=True):
    """The result of `session.token`: what a device shows over HTTP as `Authorization: Bearer`, for 15 minutes."""

    token: str
    expires_ms: int

    def __repr__(self) -> str:
        return f"BearerToken(hidden, {self.expires_ms})"


class BeginBlob(msgspec.Struct, frozen=True):
    """`blob.begin` (owner, admin, editor): room for a blob of so many sealed bytes.

    Called again it tells which parts are there. Raises `space_full` where the space has no room left.
    """

    space: SpaceId
    blob: BlobId
    epoch: Epoch
    sealed_bytes: int


class BeginBlobResult(msgspec.Struct, frozen=True):
    """Which parts the server already holds in full, by number, and whether the blob is finished."""

    parts: list[int]
    is_finished: bool


class NameBlob(msgspec.Struct, frozen=True):
    """`blob.finish`: every part is there, it may be read now. `blob.delete`: it is deleted after the grace.

    `blob.restore` (owner, admin): it is not deleted after all. `blob.info` (whoever reads): its `BlobInfo`.
    """

    space: SpaceId
    blob: BlobId


class BlobInfo(msgspec.Struct, frozen=True):
    """What the server knows of a blob. `deleted_ms` is 0 unless it is to be deleted; `device` began it."""

    blob: BlobId
    epoch: Epoch
    sealed_bytes: int
    begun_ms: int
    is_finished: bool
    deleted_ms: int
    device: bytes


class ListBlobs(msgspec.Struct, frozen=True):
    """`blob.list` (whoever reads): the blobs of a space above an id, sorted by id, a page of them."""

    space: SpaceId
    after: BlobId


class ListBlobsResult(msgspec.Struct, frozen=True):
    """A page; `used_bytes` of `room_bytes` (0: no limit) are taken by all blobs of the space."""

    blobs: list[BlobInfo]
    has_more: bool
    used_bytes: int
    room_bytes: int


def part_path(space: SpaceId, blob: BlobId, part: int) -> str:
    """Return the path of a part over HTTP."""
    return f"/blobs/{space.hex()}/{blob.hex()}/{part}"
