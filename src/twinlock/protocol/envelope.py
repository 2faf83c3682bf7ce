"""The envelope's header and layout, which server and devices both read. See spec/sealing.md, section 5.

An envelope is `header(112) || ciphertext || signature(64)`. This module knows its bytes and its id; only
`twinlock.sealing` knows how to make or open the ciphertext.
"""

from __future__ import annotations

import hashlib
import struct
from enum import IntEnum

import msgspec

from twinlock.errors import MalformedEnvelopeError
from twinlock.ids import Counter, DeviceId, EnvelopeId, Epoch, SpaceId
from twinlock.protocol.limits import ENVELOPE_BYTES_MAX

VERSION = 1
HEADER_BYTES = 112
SIGNATURE_BYTES = 64
NONCE_BYTES = 12
TAG_BYTES = 16
ENVELOPE_BYTES_MIN = HEADER_BYTES + TAG_BYTES + SIGNATURE_BYTES
CIPHERTEXT_BYTES_MAX = ENVELOPE_BYTES_MAX - HEADER_BYTES - SIGNATURE_BYTES
_LAYOUT = struct.Struct(">BBHI16s16sQQ8s32s12sI")
assert _LAYOUT.size == HEADER_BYTES
_BEGINNING = struct.Struct(">BBH")
_SIZE = slice(HEADER_BYTES - 4, HEADER_BYTES)


class Kind(IntEnum):
    """What an envelope carries."""

    CHANGE = 1
    SNAPSHOT = 2
    DROP = 3
    SIGNAL = 4


class Header(msgspec.Struct, frozen=True, gc=False):
    """The 112 bytes in the clear: all that the server learns of an envelope."""

    kind: Kind
    epoch: Epoch
    space: SpaceId
    device: DeviceId
    counter: Counter
    session: int
    log_head: bytes
    prev: EnvelopeId
    nonce: bytes
    ciphertext_bytes: int

    def pack(self) -> bytes:
        """Return the header's 112 bytes."""
        return _LAYOUT.pack(
            VERSION,
            self.kind,
            0,
            self.epoch,
            self.space,
            self.device,
            self.counter,
            self.session,
            self.log_head,
            self.prev,
            self.nonce,
            self.ciphertext_bytes,
        )


class Envelope(msgspec.Struct, frozen=True, gc=False):
    """A parsed envelope: its header, its id, and the exact bytes that were parsed."""

    header: Header
    id: EnvelopeId
    data: bytes

    @property
    def header_bytes(self) -> bytes:
        """The exact header bytes (the additional data of the ciphertext)."""
        return self.data[:HEADER_BYTES]

    @property
    def ciphertext(self) -> bytes:
        """The sealed payload."""
        return self.data[HEADER_BYTES:-SIGNATURE_BYTES]

    @property
    def signature(self) -> bytes:
        """The device's signature over the id."""
        return self.data[-SIGNATURE_BYTES:]


def envelope_id(header_bytes: bytes, ciphertext: bytes) -> EnvelopeId:
    """Return `SHA-256(header || SHA-256(ciphertext))`."""
    return EnvelopeId(hashlib.sha256(header_bytes + hashlib.sha256(ciphertext).digest()).digest())


def is_laid_out(data: bytes) -> bool:
    """Tell whether `parse` would take some bytes, at a fraction of its cost."""
    if not ENVELOPE_BYTES_MIN <= len(data) <= ENVELOPE_BYTES_MAX:
        return False
    version, kind, flags = _BEGINNING.unpack_from(data)
    size = int.from_bytes(data[_SIZE], "big")
    return version == VERSION and flags == 0 and 1 <= kind <= 4 and size == len(data) - HEADER_BYTES - SIGNATURE_BYTES


def parse(data: bytes) -> Envelope:
    """Check an envelope's layout and return it parsed. Checks no signature and opens nothing.

    Raises:
        MalformedEnvelopeError: wrong length, version, kind, flags or declared size.
    """
    if not ENVELOPE_BYTES_MIN <= len(data) <= ENVELOPE_BYTES_MAX:
        raise MalformedEnvelopeError(f"an envelope of {len(data)} bytes")
    (version, kind, flags, epoch, space, device, counter, session, log_head, prev, nonce, size) = _LAYOUT.unpack_from(
        data
    )
    if version != VERSION or flags != 0 or not 1 <= kind <= 4:
        raise MalformedEnvelopeError(f"version {version}, kind {kind}, flags {flags}")
    if size != len(data) - HEADER_BYTES - SIGNATURE_BYTES:
        raise MalformedEnvelopeError(f"{size} bytes of ciphertext declared in an envelope of {len(data)}")
    header = Header(Kind(kind), epoch, space, device, counter, session, log_head, EnvelopeId(prev), nonce, size)
    identifier = envelope_id(data[:HEADER_BYTES], data[HEADER_BYTES:-SIGNATURE_BYTES])
    return Envelope(header, identifier, data)
