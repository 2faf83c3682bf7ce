"""What a backup consists of. See docs/operate/backup.md, "The format".

A backup is a set of chunks, each named by the hash of its content, and of generations. A generation's manifest is
written last and leads to everything that the server held then: three tables of pages, of which the rows name chunks
and blobs. What has not changed since the generation before is the same chunk, and is not written again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import msgspec

from twinlock.contracts import DeviceHead
from twinlock.errors import BackupDamagedError, UpdateNeededError
from twinlock.ids import Counter, DeviceId, EnvelopeId, Seq, SpaceId
from twinlock.protocol.frames import Entry

FORMAT = 1
DIGEST_BYTES = 32
CHUNK_BYTES = 4 << 20
"""About how much of the log one chunk holds; an envelope is never divided."""

CHUNKS = "chunks/"
GENERATIONS = "generations/"
BLOBS = "blobs/"


class Run(msgspec.Struct, frozen=True, array_like=True):
    """Entries of one space as they lie in a chunk of the log: a chunk is a list of runs."""

    space: SpaceId
    entries: list[Entry]


class Segment(msgspec.Struct, frozen=True, array_like=True):
    """Where a run lies, and which entries it holds."""

    chunk: bytes
    place: int
    first: Seq
    last: Seq
    count: int


class Head(msgspec.Struct, frozen=True, array_like=True):
    """The last envelope of a device's chain."""

    device: DeviceId
    counter: Counter
    id: EnvelopeId


class SpaceRow(msgspec.Struct, frozen=True, array_like=True):
    """A space: its entries from `start` to `head`, `count` of them, and the heads of all who ever wrote to it."""

    space: SpaceId
    start: Seq
    head: Seq
    count: int
    envelope_bytes: int
    heads: list[Head]
    segments: list[Segment]


class RecordRow(msgspec.Struct, frozen=True, array_like=True):
    """A record of the directory. Its revision is not kept: another directory gives its own."""

    key: str
    value: bytes


class BlobRow(msgspec.Struct, frozen=True, array_like=True):
    """An object of the blob store, which the backup holds under the same name."""

    name: str
    size: int
    written_ms: int
    digest: bytes


class Counts(msgspec.Struct, frozen=True):
    """How much a generation holds."""

    spaces: int = 0
    entries: int = 0
    envelope_bytes: int = 0
    records: int = 0
    blobs: int = 0
    blob_bytes: int = 0


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """What one generation holds. All hashes and ids are in hex.

    `spaces`, `records` and `blobs` name the chunks that list the pages of each table. `incarnation` is that of the
    database, whose seqs the segments have. `previous` is the hash of the manifest before, empty for a first one.
    `identity` names the chunk with the server's own secrets, and is empty where they are kept elsewhere.
    """

    generation: int
    began_ms: int
    made_ms: int
    incarnation: str
    previous: str
    spaces: str
    records: str
    blobs: str
    counts: Counts
    written_bytes: int
    identity: str = ""
    format: int = FORMAT


class _SealedManifest(msgspec.Struct, frozen=True):
    manifest: msgspec.Raw
    sha256: str


class _Format(msgspec.Struct, frozen=True):
    format: int


def manifest_name(generation: int) -> str:
    """Return the name of a generation's manifest."""
    return f"{GENERATIONS}{generation:08d}.json"


def chunk_name(digest: bytes) -> str:
    """Return the name of a chunk."""
    return f"{CHUNKS}{digest.hex()[:2]}/{digest.hex()}"


def digest_of(data: bytes) -> bytes:
    """Return the hash by which a chunk is named."""
    return hashlib.sha256(data).digest()


def encode_manifest(manifest: Manifest) -> bytes:
    """Return a manifest as a file, with a hash of its own."""
    body = msgspec.json.encode(manifest)
    sealed = _SealedManifest(msgspec.Raw(body), hashlib.sha256(body).hexdigest())
    return msgspec.json.format(msgspec.json.encode(sealed), indent=1) + b"\n"


def decode_manifest(data: bytes, name: str) -> Manifest:
    """Read a manifest's file.

    Raises:
        BackupDamagedError: it was altered.
        UpdateNeededError: a newer version of Twinlock wrote it.
    """
    try:
        sealed = msgspec.json.decode(data, type=_SealedManifest)
        body = bytes(sealed.manifest)
        written = msgspec.json.decode(body, type=_Format).format
        if written > FORMAT:
            raise UpdateNeededError(f"{name} is of format {written}, this version knows {FORMAT}")
        manifest = msgspec.json.decode(body, type=Manifest)
    except (msgspec.MsgspecError, ValueError) as exc:
        raise BackupDamagedError(f"{name} cannot be read") from exc
    if hashlib.sha256(msgspec.json.encode(manifest)).hexdigest() != sealed.sha256:
        raise BackupDamagedError(f"{name} was altered")
    return manifest


def heads_of(rows: Mapping[DeviceId, DeviceHead]) -> list[Head]:
    """Return chain heads as a row holds them, always in one order."""
    return [Head(device, head.counter, head.id) for device, head in sorted(rows.items())]


def heads_in(rows: list[Head]) -> dict[DeviceId, DeviceHead]:
    """Return chain heads as a log knows them."""
    return {row.device: DeviceHead(row.counter, row.id) for row in rows}
