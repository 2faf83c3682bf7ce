"""Envelopes for engines: well-formed and chained, their content just noise. An engine looks at nothing else."""

from __future__ import annotations

import os

from twinlock.ids import NO_ENVELOPE, Counter, DeviceId, EnvelopeId, Epoch, SpaceId
from twinlock.protocol.envelope import SIGNATURE_BYTES, TAG_BYTES, Envelope, Header, Kind, parse


def new_space(partition: int = 0) -> SpaceId:
    """Return the id of a space that nobody has used."""
    return SpaceId(partition.to_bytes(2, "big") + os.urandom(14))


def new_device() -> DeviceId:
    """Return the id of a device that nobody has used."""
    return DeviceId(os.urandom(16))


class Chain:
    """One device's envelopes in one space."""

    __slots__ = ("counter", "device", "prev", "space")

    def __init__(self, space: SpaceId, device: DeviceId | None = None) -> None:
        self.space = space
        self.device = device or new_device()
        self.counter = 0
        self.prev = NO_ENVELOPE

    def next(self, content: bytes = b"") -> Envelope:
        """Return the envelope that continues the chain, and go on from it."""
        envelope = self.make(self.counter + 1, self.prev, content)
        self.counter, self.prev = envelope.header.counter, envelope.id
        return envelope

    def take(self, count: int) -> list[Envelope]:
        """Return the next few envelopes."""
        return [self.next() for _ in range(count)]

    def make(self, counter: int, prev: EnvelopeId, content: bytes = b"") -> Envelope:
        """Return an envelope of this device with any counter and predecessor."""
        ciphertext = (content or os.urandom(48)) + bytes(TAG_BYTES)
        header = Header(
            Kind.CHANGE,
            Epoch(1),
            self.space,
            self.device,
            Counter(counter),
            0,
            bytes(8),
            prev,
            os.urandom(12),
            len(ciphertext),
        )
        return parse(header.pack() + ciphertext + bytes(SIGNATURE_BYTES))
