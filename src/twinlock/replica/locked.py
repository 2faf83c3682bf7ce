"""Writing while locked: each batch is sealed so that this device cannot open it before its next lease.

See spec/sealing.md, section 7. Works with no lease and no open store: with the signed log's last drop key alone.
"""

from __future__ import annotations

from collections.abc import Sequence

from twinlock.errors import OpenError
from twinlock.ids import DeviceId
from twinlock.protocol.clock import HybridClock
from twinlock.protocol.space_log import SpaceLogState
from twinlock.replica.batch import Batch
from twinlock.replica.intents import LockedWrite, decode_locked, encode_locked
from twinlock.replica.keyring import Keyring
from twinlock.sealing.cipher import locked_write_epoch, open_locked_write, seal_locked_write
from twinlock.sealing.suite import StoreKey

__all__ = ["LockedOutbox", "LockedWrite", "open_records"]


class LockedOutbox:
    """Seals batches as records of the side file, numbered in order."""

    __slots__ = ("_clock", "_device", "_log", "_number", "_store_key")

    def __init__(self, log: SpaceLogState, device: DeviceId, store_key: StoreKey, records_count: int) -> None:
        self._log = log
        self._device = device
        self._store_key = store_key
        self._number = records_count
        self._clock = HybridClock()

    def seal(self, batch: Batch, now_ms: int) -> bytes:
        """Return the record to be appended durably to the side file.

        Raises:
            LeaseExpiredError: an intent needs to read the document first.
            InvalidDataError, DocumentTooLargeError: the batch cannot be stored.
        """
        payload = encode_locked(batch, self._clock.tick(now_ms))
        place = (self._log.space, self._log.epoch, self._device)
        drop_pk = self._log.epochs[self._log.epoch].drop_pk
        self._number += 1
        return seal_locked_write(payload, drop_pk, place, self._number, self._store_key)


def open_records(records: Sequence[bytes], keyring: Keyring, store_key: StoreKey) -> list[bytes]:
    """Return the batches of the side file as `decode_locked` reads them, in the order of writing.

    Raises:
        LeaseExpiredError: there are records and no keys.
        OpenError: a record is not this device's own, or the records are not in their order.
    """
    opened = []
    last = 0
    for record in records:
        keys = keyring.keys(locked_write_epoch(record)) or keyring.newest_keys()
        number, payload = open_locked_write(record, keys, keyring.device, store_key)
        if number <= last:
            raise OpenError("the side file's records are not in their order")
        last = number
        decode_locked(payload)
        opened.append(payload)
    return opened
