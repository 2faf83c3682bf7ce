"""How service keys are kept: wrapped under a root key that lies apart from the database. See spec/sealing.md, 7."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from twinlock.ids import Epoch, SpaceId
from twinlock.protocol.labels import label, u32

Bound = tuple[bytes, bytes]
"""Something together with the context that its wrapping is bound to."""


class KeyWrapper(ABC):
    """Wraps small secrets under the newest version of a root key, each bound to its context.

    Used from one thread. Every call may raise `KeyServiceError` when the root key's holder cannot be reached now;
    nothing has changed then, or what has changed is seen by the next call.
    """

    @property
    @abstractmethod
    def versions(self) -> list[int]:
        """The versions that still exist, in order; the last one is the active one."""

    @abstractmethod
    def version_of(self, wrapped: bytes) -> int:
        """Return the version that a secret was wrapped under.

        Raises:
            StoreError: these bytes are not of this kind of wrapper.
        """

    @abstractmethod
    def wrap(self, secret: bytes, context: bytes) -> bytes:
        """Return the secret wrapped under the active version."""

    @abstractmethod
    def unwrap_many(self, rows: Sequence[Bound]) -> list[bytes]:
        """Return the secrets of wrapped ones with their contexts, in order; all or none.

        Raises:
            StoreError: one was wrapped by another root key, for another context, or under a destroyed version.
        """

    @abstractmethod
    def rewrap_many(self, rows: Sequence[Bound]) -> list[bytes]:
        """Return the same secrets wrapped under the active version, in order; all or none.

        Raises:
            StoreError: as for `unwrap_many`.
        """

    @abstractmethod
    def rotate(self) -> int:
        """Make a new version, durably, use it from now on, and return its number."""

    @abstractmethod
    def destroy_version(self, version: int) -> None:
        """Forget a version and all before it: what is still wrapped under them is lost for good.

        Raises:
            StoreError: it is the active one, or there is no such version any more.
        """

    @abstractmethod
    def close(self) -> None:
        """Let go of what it holds open."""

    def unwrap(self, wrapped: bytes, context: bytes) -> bytes:
        """Return the secret.

        Raises:
            StoreError: it was wrapped by another root key, for another context, or under a destroyed version.
        """
        return self.unwrap_many([(wrapped, context)])[0]

    def rewrap(self, wrapped: bytes, context: bytes) -> bytes:
        """Return the same secret wrapped under the active version."""
        return self.rewrap_many([(wrapped, context)])[0]


def service_key_context(space: SpaceId, epoch: Epoch, keyservice_id: bytes) -> bytes:
    """Return what the wrapping of a service key is bound to."""
    return label("kw", space + u32(epoch) + keyservice_id)
