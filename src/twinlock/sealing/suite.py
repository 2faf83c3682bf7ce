"""Secret keys as types of their own, which never show their bytes by accident. See spec/sealing.md, section 3."""

from __future__ import annotations

import hmac
from collections.abc import Callable
from typing import NoReturn, Self

Entropy = Callable[[int], bytes]
"""Where chance comes from: `entropy(n)` returns n random bytes."""

SECRET_BYTES = 32


class Secret:
    """32 secret bytes. `repr`, `str` and `format` hide them, pickling and copying into a message are refused.

    The kinds of keys below differ in name only, so that the type checker keeps them apart.
    """

    __slots__ = ("_raw",)

    def __init__(self, raw: bytes) -> None:
        if len(raw) != SECRET_BYTES:
            raise ValueError(f"a key of {len(raw)} bytes")
        self._raw = bytes(raw)

    @classmethod
    def make(cls, entropy: Entropy) -> Self:
        """Make a new key from chance."""
        return cls(entropy(SECRET_BYTES))

    def expose(self) -> bytes:
        """Return the bytes, to be sealed or derived from, never to be shown."""
        return self._raw

    def __repr__(self) -> str:
        return f"{type(self).__name__}(hidden)"

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        return hmac.compare_digest(self._raw, other._raw)

    # A hash would tell something of the bytes to whatever prints it.
    __hash__ = None  # type: ignore[assignment]  # this is how Python says that a class is not hashable

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError(f"a {type(self).__name__} is not to be written anywhere")


class MemberKey(Secret):
    """A: what only the members' devices hold, one for each epoch of a space."""

    __slots__ = ()


class ServiceKey(Secret):
    """B: what leaves the key service only as a lease, one for each epoch of a space."""

    __slots__ = ()


class DataKey(Secret):
    """What takes A and B to derive, and from which all keys of an epoch come."""

    __slots__ = ()


class StoreKey(Secret):
    """The key of this device's own store, used as an HMAC key only."""

    __slots__ = ()
