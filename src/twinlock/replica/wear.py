"""How much a device has sealed under its key of one epoch, and how much it may. See spec/sealing.md, section 3.

Nonces are random, so that the number of seals under a key must stay far below what 96 bits bear.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from twinlock.ids import Epoch
from twinlock.protocol.limits import DEVICE_KEY_BYTES_MAX, DEVICE_KEY_SEALS_MAX
from twinlock.sealing.cipher import sealed_bytes


class WearLimits(msgspec.Struct, frozen=True):
    """How much a device key may seal; other values than these are for tests."""

    seals_max: int = DEVICE_KEY_SEALS_MAX
    bytes_max: int = DEVICE_KEY_BYTES_MAX


DEFAULT_WEAR = WearLimits()


class Wear(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What was sealed under the key of an epoch; kept with the chain, in the transaction that seals."""

    epoch: Epoch = Epoch(0)
    seals: int = 0
    bytes: int = 0

    def under(self, epoch: Epoch) -> Wear:
        """Return the wear of an epoch's key: that of another epoch is new."""
        return self if epoch == self.epoch else Wear(epoch)

    def after(self, payload_bytes: int) -> Wear:
        """Return the wear after one more seal."""
        return Wear(self.epoch, self.seals + 1, self.bytes + sealed_bytes(payload_bytes))

    def fits(self, payloads: Iterable[int], limits: WearLimits) -> bool:
        """Tell whether payloads of some lengths may be sealed too."""
        wear = self
        for payload_bytes in payloads:
            wear = wear.after(payload_bytes)
        return wear.seals <= limits.seals_max and wear.bytes <= limits.bytes_max

    def is_half(self, limits: WearLimits) -> bool:
        """Tell whether it is time for a new epoch: half of what the key may seal is sealed."""
        return 2 * self.seals >= limits.seals_max or 2 * self.bytes >= limits.bytes_max
