"""Stamps, the order of all edits: a hybrid logical clock's time, then the device. See spec/documents.md, section 2."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Final, NewType

from twinlock.ids import DeviceId
from twinlock.protocol.clock import Hlc, milliseconds_of

Stamp = NewType("Stamp", bytes)
"""24 bytes, 8 of clock (big-endian) and 16 of device id: their order as bytes is the order of edits."""

NEVER: Final = Stamp(b"")
"""Before every stamp: what a write saw that replaced nothing."""

_HLC_BYTES: Final = 8
STAMP_BYTES: Final = 24
_DEVICE_BYTES: Final = STAMP_BYTES - _HLC_BYTES
_UNIX_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


def stamp_of(hlc: Hlc, device: DeviceId) -> Stamp:
    """Join a clock's time and a device id to a stamp."""
    assert len(device) == _DEVICE_BYTES
    return Stamp(hlc.to_bytes(_HLC_BYTES, "big") + device)


def hlc_of(stamp: Stamp) -> Hlc:
    """Return the clock's time of a stamp; 0 for `NEVER`."""
    return Hlc(int.from_bytes(stamp[:_HLC_BYTES], "big"))


def device_of(stamp: Stamp) -> DeviceId:
    """Return the device of a stamp."""
    return DeviceId(stamp[_HLC_BYTES:])


def instant_of(stamp: Stamp) -> datetime:
    """Return the wall-clock time of a stamp: what `server_timestamp` becomes."""
    return _UNIX_EPOCH + timedelta(milliseconds=milliseconds_of(hlc_of(stamp)))


def is_stamp(data: bytes) -> bool:
    """Tell whether bytes from elsewhere are a stamp, or `NEVER`."""
    return len(data) in (0, STAMP_BYTES)
