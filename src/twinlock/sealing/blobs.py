"""Blobs: files sealed in chunks that open one by one. See spec/sealing.md, section 5.

The nonces count the chunks, which is safe here and nowhere else: a blob has a random id, with it a key of its own, and
is sealed once.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterator

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from twinlock.errors import FileTooLargeError, OpenError
from twinlock.ids import BlobId, SpaceId
from twinlock.protocol.labels import label, u32
from twinlock.protocol.limits import BLOB_BYTES_MAX, BLOB_CHUNK_BYTES, BLOB_CHUNK_TAG_BYTES, BLOB_PART_CHUNKS
from twinlock.sealing.padding import MARK, padded_bytes
from twinlock.sealing.space_keys import EpochKeys

SEALED_CHUNK_BYTES = BLOB_CHUNK_BYTES + BLOB_CHUNK_TAG_BYTES
_NONCE_ZEROS = bytes(7)


class BlobLayout(msgspec.Struct, frozen=True):
    """Where the chunks of a blob lie, which follows from the length of what it holds."""

    size: int

    @property
    def padded_bytes(self) -> int:
        """The length with padding, before sealing."""
        return padded_bytes(self.size)

    @property
    def chunks_count(self) -> int:
        """How many chunks there are, at least one."""
        return -(-self.padded_bytes // BLOB_CHUNK_BYTES)

    @property
    def sealed_bytes(self) -> int:
        """The length of all chunks when sealed."""
        return self.padded_bytes + self.chunks_count * BLOB_CHUNK_TAG_BYTES

    @property
    def parts_count(self) -> int:
        """How many parts it is stored in."""
        return -(-self.chunks_count // BLOB_PART_CHUNKS)

    def is_last(self, index: int) -> bool:
        """Tell whether a chunk is the last one."""
        return index == self.chunks_count - 1

    def sealed_chunk_bytes(self, index: int) -> int:
        """Return the length of one sealed chunk; all but the last are full."""
        return self.sealed_bytes - index * SEALED_CHUNK_BYTES if self.is_last(index) else SEALED_CHUNK_BYTES

    def chunks_of(self, first: int, size: int) -> range:
        """Return the chunks that hold `size` bytes of the content from `first` on; none where there is no content."""
        end = min(first + size, self.size)
        return range(0) if first >= end else range(first // BLOB_CHUNK_BYTES, -(-end // BLOB_CHUNK_BYTES))


def check_blob_size(size: int) -> None:
    """Refuse content that is too long for a blob.

    Raises:
        FileTooLargeError: sealed it would be over BLOB_BYTES_MAX.
    """
    if BlobLayout(size).sealed_bytes > BLOB_BYTES_MAX:
        raise FileTooLargeError(f"{size} bytes")


class _Chunks:
    """The cipher of one blob."""

    __slots__ = ("_aad", "_cipher")

    def __init__(self, keys: EpochKeys, blob: BlobId) -> None:
        self._cipher = AESGCM(keys.blob_key(blob))
        self._aad = chunk_aad(keys.space, blob)

    def seal(self, index: int, is_last: bool, plain: bytes) -> bytes:
        return self._cipher.encrypt(_nonce(index, is_last), plain, self._aad)

    def open(self, index: int, is_last: bool, sealed: bytes) -> bytes:
        try:
            return self._cipher.decrypt(_nonce(index, is_last), sealed, self._aad)
        except InvalidTag as exc:
            raise OpenError from exc


class BlobSealer:
    """Seals a file of any length, which need not be known before its end, as the chunks of a new blob.

    Never two contents under one id: the nonces would repeat.
    """

    __slots__ = ("_chunks", "_digest", "_index", "_waiting", "size")

    def __init__(self, keys: EpochKeys, blob: BlobId) -> None:
        self._chunks = _Chunks(keys, blob)
        self._digest = hashlib.sha256()
        self._index = 0
        self._waiting = bytearray()
        self.size = 0

    def seal(self, data: bytes | memoryview) -> Iterator[bytes]:
        """Take in the next piece of the file and yield the sealed chunks that it fills; to be exhausted.

        Raises:
            FileTooLargeError: the file is too long.
        """
        self.size += len(data)
        check_blob_size(self.size)
        view, at = memoryview(data), 0
        while len(view) - at >= (missing := BLOB_CHUNK_BYTES - len(self._waiting)):
            self._waiting += view[at : at + missing]
            at += missing
            # The mark of the padding is yet to come: a full chunk is never the last one.
            yield self._next(is_last=False)
        self._waiting += view[at:]

    def finish(self) -> Iterator[bytes]:
        """Yield the last sealed chunks, with the padding; to be exhausted, once."""
        layout = BlobLayout(self.size)
        self._waiting += MARK
        while self._index < layout.chunks_count:
            is_last = layout.is_last(self._index)
            plain_bytes = layout.sealed_chunk_bytes(self._index) - BLOB_CHUNK_TAG_BYTES
            self._waiting += bytes(plain_bytes - len(self._waiting))
            yield self._next(is_last)

    def _next(self, is_last: bool) -> bytes:
        sealed = self._chunks.seal(self._index, is_last, bytes(self._waiting))
        self._waiting.clear()
        self._digest.update(sealed)
        self._index += 1
        return sealed

    @property
    def sealed_bytes(self) -> int:
        """The length of all sealed chunks, once it is finished."""
        return BlobLayout(self.size).sealed_bytes

    def sha256(self) -> bytes:
        """Return the SHA-256 of all sealed chunks up to now."""
        return self._digest.digest()


class BlobOpener:
    """Opens chunks of a blob, in any order. The length of the content comes from the manifest, which was signed."""

    __slots__ = ("_chunks", "layout")

    def __init__(self, keys: EpochKeys, blob: BlobId, size: int) -> None:
        self._chunks = _Chunks(keys, blob)
        self.layout = BlobLayout(size)

    def open(self, index: int, sealed: bytes) -> bytes:
        """Return the content of one chunk, without padding.

        Raises:
            OpenError: it is not this chunk of this blob, or was altered, or its padding is not that of the length.
        """
        if not 0 <= index < self.layout.chunks_count or len(sealed) != self.layout.sealed_chunk_bytes(index):
            raise OpenError
        plain = self._chunks.open(index, self.layout.is_last(index), sealed)
        content = self.layout.size - index * BLOB_CHUNK_BYTES
        if content >= len(plain):
            return plain
        # The mark is the first byte after the content; a chunk may lie wholly behind it.
        kept, mark = max(content, 0), MARK if content >= 0 else b""
        if plain[kept:] != mark.ljust(len(plain) - kept, b"\0"):
            raise OpenError
        return plain[:kept]

    def seal_again(self, index: int, content: bytes) -> bytes:
        """Return a chunk from its content, the very bytes that it was; to be hashed, never to be sent."""
        layout = self.layout
        plain_bytes = layout.sealed_chunk_bytes(index) - BLOB_CHUNK_TAG_BYTES
        mark = MARK if 0 <= layout.size - index * BLOB_CHUNK_BYTES < plain_bytes else b""
        return self._chunks.seal(index, layout.is_last(index), (content + mark).ljust(plain_bytes, b"\0"))


class BlobReader:
    """Opens a whole blob from its first chunk to its last, and compares the SHA-256 of all in the end."""

    __slots__ = ("_digest", "_index", "_opener")

    def __init__(self, opener: BlobOpener) -> None:
        self._opener = opener
        self._digest = hashlib.sha256()
        self._index = 0

    @property
    def next_chunk(self) -> int:
        """The number of the chunk that comes next."""
        return self._index

    def open(self, sealed: bytes) -> bytes:
        """Return the content of the next chunk; raises as `BlobOpener.open`."""
        content = self._opener.open(self._index, sealed)
        self._note(sealed)
        return content

    def resume(self, content: bytes) -> None:
        """Go on after a chunk that was opened earlier, by its content: a wrong one is noticed at the end."""
        self._note(self._opener.seal_again(self._index, content))

    def _note(self, sealed: bytes) -> None:
        self._digest.update(sealed)
        self._index += 1

    def finish(self, sha256: bytes) -> None:
        """Check that these were all chunks, and the ones that the manifest commits to.

        Raises:
            OpenError: they are not.
        """
        if self._index != self._opener.layout.chunks_count or not hmac.compare_digest(self._digest.digest(), sha256):
            raise OpenError


def chunk_aad(space: SpaceId, blob: BlobId) -> bytes:
    """Return what every chunk of a blob is bound to."""
    return label("chunk", space + blob)


def _nonce(index: int, is_last: bool) -> bytes:
    return _NONCE_ZEROS + u32(index) + bytes([is_last])
