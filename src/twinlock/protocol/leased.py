"""What is sealed in a lease: the service key, and the logs that the key service stood on. See spec/sealing.md, 7.

Who carries the lease can neither read nor alter it, so a device learns by it whether the key service was kept from
entries that the device knows, such as a revocation.
"""

from __future__ import annotations

from typing import NoReturn

from twinlock.errors import OpenError
from twinlock.protocol.labels import u64
from twinlock.protocol.signed_log import HEAD_BYTES, LogPosition

KEY_BYTES = 32
_POSITION_BYTES = 8 + HEAD_BYTES


class Leased:
    """A service key, and where the logs of the space and of the account stood when it was released."""

    __slots__ = ("account", "service_key", "space")

    def __init__(self, service_key: bytes, space: LogPosition, account: LogPosition) -> None:
        assert len(service_key) == KEY_BYTES
        self.service_key = service_key
        self.space = space
        self.account = account

    @classmethod
    def unpack(cls, data: bytes) -> Leased:
        """Read what `pack` wrote.

        Raises:
            OpenError: it is of another length.
        """
        if len(data) != KEY_BYTES + 2 * _POSITION_BYTES:
            raise OpenError
        space, account = data[KEY_BYTES : KEY_BYTES + _POSITION_BYTES], data[KEY_BYTES + _POSITION_BYTES :]
        return cls(data[:KEY_BYTES], _position(space), _position(account))

    def pack(self) -> bytes:
        """Return `key || u64 seq || head || u64 seq || head`: of the space's log, then of the account's."""
        positions = (self.space, self.account)
        return self.service_key + b"".join(u64(position.seq) + position.head for position in positions)

    def __repr__(self) -> str:
        return "Leased(hidden)"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a service key is not pickled")


def _position(data: bytes) -> LogPosition:
    return LogPosition(int.from_bytes(data[:8], "big"), data[8:])
