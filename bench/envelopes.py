"""Envelopes made before the clock starts; the server cannot tell their ciphertext from sealed data.

Everything that the server checks at a push is as it must be: layout, space, device, epoch, counter and predecessor.
"""

from __future__ import annotations

import os

from bench.scale import PAYLOAD_BYTES
from twinlock.ids import NO_ENVELOPE, Counter, DeviceId, EnvelopeId, Epoch, SpaceId
from twinlock.protocol import codec
from twinlock.protocol.envelope import NONCE_BYTES, SIGNATURE_BYTES, TAG_BYTES, Header, Kind, envelope_id
from twinlock.protocol.frames import Push

_PADDED_BYTES = 272
"""What 256 bytes of payload and the padding's mark become. See spec/sealing.md, section 5."""

assert _PADDED_BYTES > PAYLOAD_BYTES


class EnvelopeSource:
    """Makes one device's envelopes of one space, each chained to the one before."""

    __slots__ = ("_counter", "_device", "_log_head", "_prev", "_space")

    def __init__(self, space: SpaceId, device: DeviceId, log_head: bytes) -> None:
        self._space = space
        self._device = device
        self._log_head = log_head[:8]
        self._counter = 0
        self._prev = NO_ENVELOPE

    def make(self, count: int) -> list[bytes]:
        """Return the next envelopes of the chain."""
        return [self._next() for _ in range(count)]

    def pushes(self, count: int, size: int = 1) -> list[bytes]:
        """Return ready messages, each a push of some envelopes."""
        return [codec.encode(Push(self._space, self.make(size))) for _ in range(count)]

    def _next(self) -> bytes:
        self._counter += 1
        ciphertext = os.urandom(_PADDED_BYTES + TAG_BYTES)
        header = Header(
            kind=Kind.CHANGE,
            epoch=Epoch(1),
            space=self._space,
            device=self._device,
            counter=Counter(self._counter),
            session=0,
            log_head=self._log_head,
            prev=self._prev,
            nonce=os.urandom(NONCE_BYTES),
            ciphertext_bytes=len(ciphertext),
        ).pack()
        self._prev = EnvelopeId(envelope_id(header, ciphertext))
        return header + ciphertext + bytes(SIGNATURE_BYTES)
