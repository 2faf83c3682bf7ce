"""The service key B as the key service holds it: its bytes show up only where they are asked for."""

from __future__ import annotations

import os

SERVICE_KEY_BYTES = 32


class ServiceKey:
    """32 random bytes that never leave the key service except sealed to a device."""

    __slots__ = ("_key",)

    def __init__(self, key: bytes) -> None:
        assert len(key) == SERVICE_KEY_BYTES
        self._key = key

    @classmethod
    def generate(cls) -> ServiceKey:
        """Make a fresh one."""
        return cls(os.urandom(SERVICE_KEY_BYTES))

    def expose(self) -> bytes:
        """Return the bytes, to wrap, commit to or seal them."""
        return self._key

    def __repr__(self) -> str:
        return "ServiceKey(...)"

    def __reduce__(self) -> tuple[object, ...]:
        raise TypeError("a service key is not pickled")
