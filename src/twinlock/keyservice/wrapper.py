"""How service keys are kept: wrapped under a root key that lies apart from the database. See spec/sealing.md, 7."""

from __future__ import annotations

from abc import ABC, abstractmethod

from twinlock.ids import Epoch, SpaceId
from twinlock.protocol.labels import label, u32


class KeyWrapper(ABC):
    """Wraps small secrets under the newest version of a root key, each bound to its context."""

    @abstractmethod
    def wrap(self, secret: bytes, context: bytes) -> bytes:
        """Return the secret wrapped under the active version."""

    @abstractmethod
    def unwrap(self, wrapped: bytes, context: bytes) -> bytes:
        """Return the secret.

        Raises:
            StoreError: it was wrapped by another root key, for another context, or under a destroyed version.
        """

    @abstractmethod
    def rotate(self) -> int:
        """Make a new version, use it from now on, and return its number."""

    @abstractmethod
    def destroy_version(self, version: int) -> None:
        """Forget a version that is no longer active: what is still wrapped under it is lost for good."""

    def rewrap(self, wrapped: bytes, context: bytes) -> bytes:
        """Return the same secret wrapped under the active version."""
        return self.wrap(self.unwrap(wrapped, context), context)


def service_key_context(space: SpaceId, epoch: Epoch, keyservice_id: bytes) -> bytes:
    """Return what the wrapping of a service key is bound to."""
    return label("kw", space + u32(epoch) + keyservice_id)
